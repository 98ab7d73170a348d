"""What every command shares: --help, exit statuses, one line for a mistake."""

from __future__ import annotations

import io
import re
import runpy
import shlex
import subprocess
import sys
import types
from collections.abc import Callable

import pytest
from rich.console import Console

from dpl_ray import __version__
from dpl_ray.cluster.workers import WorkersLostError
from dpl_ray.commands import cli, train
from dpl_ray.commands.command import Command, command_line, print_results
from dpl_ray.commands.help import print_help
from dpl_ray.config.describe import default_options, describe_fields, describe_policies, list_groups
from dpl_ray.config.schema import Config
from dpl_ray.training.faults import NonFiniteLossError
from dpl_ray.training.interruption import Interrupted


def help_text(width: int, *, terminal: bool) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=terminal, color_system=None, legacy_windows=False)
    print_help(console, train.COMMAND, "dpl-ray train")
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def named() -> list[tuple[str, str]]:
    """(field=default or group=option, meaning) of everything that --help must show."""
    rows = [(f"{group}={option}", text) for group, options in list_groups().items() for option, text in options.items()]
    fields = [*describe_fields(), *(row for rows in describe_policies().values() for row in rows)]
    return rows + [(f"{field}={default}", meaning) for field, _, default, meaning in fields]


@pytest.mark.parametrize(("width", "terminal"), [(80, False), (300, True)])
def test_help_has_every_group_and_field_in_a_line(width: int, terminal: bool) -> None:
    lines = help_text(width, terminal=terminal).splitlines()
    for name, meaning in named():
        assert any(line.startswith(f"  {name} ") and meaning in line for line in lines), name
    for group, option in default_options().items():
        assert any(line.startswith(f"  {group}={option} ") and "The default." in line for line in lines)
    assert any("train.num_steps=600" in line for line in lines if line.startswith("  data=digits ")), "the recipe"


@pytest.mark.parametrize("width", [60, 80, 120])
def test_help_fits_the_terminal(width: int) -> None:
    text = help_text(width, terminal=True)
    assert max(map(len, text.splitlines())) <= max(width, 75), "one list of choices is longer than 60"
    whole = " ".join(text.split())
    for name, meaning in named():
        assert name in whole
        assert " ".join(meaning.split()) in whole


def test_help_needs_no_docstrings() -> None:
    command = [sys.executable, "-OO", "-m", "dpl_ray", "train", "--help"]
    assert "train.num_steps" in subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("name", cli.commands())
def test_help_has_an_example_that_composes(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    command = cli.commands()[name]
    assert cli.run(command, ["--help"]) == 0
    output = capsys.readouterr().out
    assert output.startswith(f"{command.summary}\n\nUsage: dpl-ray {name} ")
    example = re.search(rf"^Example: dpl-ray {name} (.+)$", output, re.MULTILINE)
    assert example
    command.load(shlex.split(example[1]))


def test_help_is_not_a_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    for option in ("--help", "-h"):
        assert cli.run(train.COMMAND, ["train.nonsense=1", option]) == 0
        output, errors = capsys.readouterr()
        assert output.startswith("Train a classifier on a few labelled and many unlabelled images.\n")
        assert "Usage: dpl-ray train [group=option ...]" in output
        assert errors == ""


def failing(error: BaseException) -> Callable[[Config, Console], None]:
    def job(config: Config, console: Console) -> None:
        raise error

    return job


def nameless(error: Interrupted | WorkersLostError) -> BaseException:
    """What ended a run that had no name."""
    error.run_name = "a"
    return error


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (ValueError("data.train=x: is\nwrong [bold]"), 2, "error: data.train=x: is wrong [bold]"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"), 2, "error: 'utf-8' codec can't decode byte 0xff in "),
        (
            NonFiniteLossError("step 3, worker 1: train/loss_labeled is nan"),
            1,
            "failed: NonFiniteLossError: step 3, worker 1: train/loss_labeled is nan",
        ),
        (RuntimeError("first\nsecond"), 1, "failed: RuntimeError: first second"),
        (OSError(28, "No space left on device"), 1, "failed: OSError: [Errno 28] No space left on device"),
        (
            nameless(WorkersLostError("Ray's raylet has ended")),
            1,
            "failed: WorkersLostError: Ray's raylet has ended; go on with: dpl-ray train train.seed=7 run.name=a\n",
        ),
        (KeyboardInterrupt(), 130, "interrupted; go on with: dpl-ray train train.seed=7\n"),
        (
            nameless(Interrupted("step 9 is saved")),
            130,
            "interrupted: step 9 is saved; go on with: dpl-ray train train.seed=7 run.name=a\n",
        ),
    ],
)
def test_exit_status(error: BaseException, status: int, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(Command("train", failing(error), "", ""), ["train.seed=7"]) == status
    output, errors = capsys.readouterr()
    assert output == ""
    assert errors.startswith(line)
    assert errors.count("\n") == 1


def test_a_command_that_keeps_nothing_begins_anew(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(Command("predict", failing(KeyboardInterrupt()), "", "", goes_on=False), []) == 130
    assert capsys.readouterr().err == "interrupted; begin anew with: dpl-ray predict\n"


@pytest.mark.parametrize("error", [TypeError("x"), KeyError("x"), AssertionError("x"), AttributeError("x")])
def test_a_programming_error_keeps_its_traceback(error: Exception) -> None:
    with pytest.raises(type(error)):
        cli.run(Command("train", failing(error), "", ""), [])


def test_done_and_warned(capsys: pytest.CaptureFixture[str]) -> None:
    def job(config: Config, console: Console) -> None:
        import warnings

        warnings.warn("MLflow is\ndown", stacklevel=1)
        console.print(config.train.seed)

    assert cli.run(Command("train", job, "", ""), ["train.seed=7"]) == 0
    assert capsys.readouterr() == ("7\n", "warning: MLflow is down\n")


def test_a_long_message_is_one_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    assert cli.run(Command("train", failing(ValueError("word " * 100)), "", ""), []) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_entry_point(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["pipelines/train.py", "train.nonsense=1"])
    with pytest.raises(SystemExit) as ended:
        cli.main("train")
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("error: train.nonsense=1: there is no field")


@pytest.mark.parametrize(
    ("module", "program"),
    [("pipelines.self_train", "python -m pipelines.self_train"), ("dpl_ray.__main__", "dpl-ray self-train")],
)
def test_the_command_to_run_again_is_the_one_that_was_run(
    module: str, program: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    main = types.ModuleType("__main__")
    main.__spec__ = types.SimpleNamespace(name=module)  # type: ignore[assignment]
    monkeypatch.setitem(sys.modules, "__main__", main)
    monkeypatch.setattr(sys, "argv", ["main.py", "data.train=a b"])
    assert command_line("self-train") == f"{program} 'data.train=a b'"


def test_the_commands_are_listed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["--help"], ["-h"]):
        monkeypatch.setattr(sys, "argv", ["dpl-ray", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert ended.value.code == 0
        output = capsys.readouterr().out
        for name, command in cli.commands().items():
            assert re.search(rf"^  {name} +{re.escape(command.summary)}$", output, re.MULTILINE)


def test_the_version(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["dpl-ray", "--version"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"dpl-ray {__version__}\n"


def test_a_command_that_there_is_not(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["dpl-ray", "tran", "data=digits"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    errors = capsys.readouterr().err
    assert errors.startswith("error: tran: there is no such command; known: quickstart, check, train, ")
    assert errors.endswith("; did you mean train?\n")


@pytest.mark.parametrize("name", cli.NAMES)
def test_every_command_is_a_module_of_a_checkout(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["main.py", "nonsense"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(f"pipelines.{name.replace('-', '_')}", run_name="__main__")
    assert ended.value.code == 2
    expected = "folder=" if name == "quickstart" else "nonsense: says no field=value"
    assert capsys.readouterr().err.startswith(f"error: {expected}")


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("sqlite:////runs/mlflow.db", "look at it: mlflow ui --backend-store-uri sqlite:////runs/mlflow.db"),
        ("http://mlflow.example:5000", "look at it: http://mlflow.example:5000"),
    ],
)
def test_results_end_with_where_to_look_at_them(uri: str, shown: str, capsys: pytest.CaptureFixture[str]) -> None:
    print_results(Console(), {"checkpoint": "runs/a", "registered": None}, "0123", uri)
    assert capsys.readouterr().out.splitlines() == ["checkpoint  runs/a", "MLflow run  0123", shown]
