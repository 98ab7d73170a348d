"""Every command line of README.md and docs/ is composed: commands, fields, values, options and targets exist."""

from __future__ import annotations

import argparse
import re
import sys
import warnings
from collections.abc import Mapping
from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

import click
import pytest

from dpl_ray import load_config
from dpl_ray.commands.cli import commands
from dpl_ray.commands.help import help_blocks
from dpl_ray.config.parse import to_yaml
from dpl_ray.studies.comparison.config import make_plan
from dpl_ray.studies.tuning.config import resolve
from tests.documents import ROOT, Document, ShellCommand, documents

COMMANDS = commands()
OPEN = re.compile(r"\.\.\.|…")  # stands for what the reader puts in
TARGETS = set(re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))


class Parsed(Exception):  # noqa: N818
    """A benchmark has understood its arguments; what follows is not run."""


def check(command: ShellCommand, files: Mapping[str, str]) -> None:
    """`ValueError` where the command would be refused.

    Args:
        files: name -> content of those that the document writes.
    """
    program, *arguments = command.words
    if re.fullmatch(r"(\S*/)?python[\d.]*", program):
        module, arguments = arguments[1], arguments[2:]
        if module.startswith("benchmarks."):
            check_benchmark(module, arguments)
        elif module == "dpl_ray":
            check(replace(command, words=("dpl-ray", *arguments)), files)
        elif module.startswith("pipelines."):
            check(
                replace(command, words=("dpl-ray", module.removeprefix("pipelines.").replace("_", "-"), *arguments)),
                files,
            )
        elif not find_spec(module):
            raise ValueError(f"{module}: there is no such module")
    elif program == "make":
        if wrong := [text for text in arguments if "=" not in text and text not in TARGETS]:
            raise ValueError(f"make {wrong[0]}: there is no such target; known: {', '.join(sorted(TARGETS))}")
    elif program == "ray":
        entry = check_ray(arguments, is_mention=command.in_text)
        if entry:
            check(replace(command, words=entry), files)
    elif arguments:
        check_job(arguments[0], arguments[1:], files, is_mention=command.in_text and len(arguments) == 1)


def check_job(name: str, arguments: list[str], files: Mapping[str, str], *, is_mention: bool) -> None:
    if name not in COMMANDS:
        raise ValueError(f"{name}: there is no such command; known: {', '.join(COMMANDS)}")
    if is_mention or {"-h", "--help"} & set(arguments):
        return
    if any(OPEN.search(text) for text in arguments):
        fields = {field for rows in help_blocks(COMMANDS[name]).values() for field, *_ in rows}
        if wrong := [text for text in arguments if "=" in text and text.partition("=")[0] not in fields]:
            raise ValueError(f"{wrong[0]}: there is no such field")
        return
    for file, content in files.items():
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        Path(file).write_text(content)
    Path("given.yaml").write_text(to_yaml(load_config()))
    loaded = COMMANDS[name].load([re.sub(r"^config=.*", "config=given.yaml", text) for text in arguments])
    if name == "compare":
        make_plan(*loaded)
    elif name == "tune":
        resolve(*loaded)


def check_ray(arguments: list[str], *, is_mention: bool) -> tuple[str, ...]:
    """Ray's own parser reads it; returns the command of a job that is submitted."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what Ray's own modules are made of
        from ray.scripts.scripts import cli
    command: click.Command = cli
    context = click.Context(command)
    parsed: dict[str, Any] = {}
    try:
        while isinstance(command, click.Group) and arguments:
            _, found, arguments = command.resolve_command(context, arguments)
            command = command if found is None else found
        if arguments or not is_mention:
            parsed = command.make_context(command.name, list(arguments)).params
    except click.ClickException as error:
        raise ValueError(error.format_message()) from None
    return tuple(parsed.get("entrypoint", ()))


def check_benchmark(module: str, arguments: list[str]) -> None:
    """Its `main` reads them, and is stopped before it measures."""
    if not find_spec(module):
        raise ValueError(f"{module}: there is no such module")
    source = Path(str(find_spec(module).origin)).read_text()  # type: ignore[union-attr]
    if not re.search(r"parse_args\(|load_config\(", source):
        if arguments:
            raise ValueError(f"{arguments[0]}: {module} takes no arguments")
        return
    parse_args = argparse.ArgumentParser.parse_args

    def parse(self: argparse.ArgumentParser, given: list[str] | None = None) -> NoReturn:
        parse_args(self, given)
        raise Parsed

    def refuse(_self: argparse.ArgumentParser, message: str) -> NoReturn:
        raise ValueError(message)

    def compose(overrides: list[str]) -> NoReturn:
        load_config(overrides)
        raise Parsed

    benchmark = import_module(module)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [module, *arguments])
        patch.setattr(argparse.ArgumentParser, "parse_args", parse)
        patch.setattr(argparse.ArgumentParser, "error", refuse)
        patch.setattr(benchmark, "load_config", compose, raising=False)
        with pytest.raises(Parsed):
            benchmark.main(*[arguments] * benchmark.main.__code__.co_argcount)


def mistakes(document: Document, accepted: Document | None = None) -> list[str]:
    """What is wrong with the commands, but for those of `accepted`."""
    found = []
    known = {command.words for command in accepted.commands} if accepted and accepted.files == document.files else set()
    for command in document.commands:
        if command.words in known:
            continue
        try:
            check(command, document.files)
        except ValueError as error:
            found.append(f"{document.name}:{command.line}: {' '.join(command.words)}: {error}")
    return found


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of the documents are written into it."""
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("document", documents(), ids=lambda document: document.name)
def test_every_command_composes(document: Document) -> None:
    assert mistakes(document) == []


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_an_example(name: str) -> None:
    words = [command.words for document in documents() for command in document.commands if not command.in_text]
    assert any(f"pipelines.{name.replace('-', '_')}" in given or given[:2] == ("dpl-ray", name) for given in words)


TRAIN = ("python", "-m", "pipelines.train")
PAGE = """
Run `python -m pipelines.train --help`, `make test`, `python -m benchmarks.views [--batch 112]`, `ray job stop` or
`dpl-ray tune`:

```
DATA="data=parquet data.train='a b.parquet'
  data.image_size=32"          # two lines
python -m pipelines.train $DATA train.mu=3 \\
  train.num_steps=300          # words that no command has: train.nonsense=1
RAY_ADDRESS=auto .venv/bin/python -m pipelines.compare 'policies=[dpl,dpl(rule=band)]' reference=dpl && make lint
$ dpl-ray label checkpoint=a pool=b output=c
$ dpl-ray label checkpoint=a
error: pool is missing
ray job submit --working-dir . -- python -m pipelines.train data=cifar10 scale=cluster
python -m pipelines.train config=runs/NAME/best.yaml
python -m benchmarks.ablation data=digits seeds=3
python -m pipelines.tune tune=mine.yaml
```

It prints "python -m pipelines.nonsense", which is no command:

```text
python -m pipelines.nonsense
```

```yaml
# mine.yaml
searcher: optuna
```
"""


def test_what_is_right_is_accepted() -> None:
    document = Document(Path("page.md"), PAGE)
    assert mistakes(document) == []
    assert [command.words for command in document.commands] == [
        (*TRAIN, "data=parquet", "data.train=a b.parquet", "data.image_size=32", "train.mu=3", "train.num_steps=300"),
        (".venv/bin/python", "-m", "pipelines.compare", "policies=[dpl,dpl(rule=band)]", "reference=dpl"),
        ("make", "lint"),
        ("dpl-ray", "label", "checkpoint=a", "pool=b", "output=c"),
        ("ray", "job", "submit", "--working-dir", ".", "--", *TRAIN, "data=cifar10", "scale=cluster"),
        (*TRAIN, "config=runs/NAME/best.yaml"),
        ("python", "-m", "benchmarks.ablation", "data=digits", "seeds=3"),
        ("python", "-m", "pipelines.tune", "tune=mine.yaml"),
        (*TRAIN, "--help"),
        ("make", "test"),
        ("python", "-m", "benchmarks.views", "--batch", "112"),
        ("ray", "job", "stop"),
        ("dpl-ray", "tune"),
    ]


@pytest.mark.parametrize(
    ("right", "wrong", "message"),
    [
        ("train.mu=3", "train.mux=3", "there is no field train.mux"),
        ("train.mu=3", "train.mu=0", "greater than or equal to 1"),
        ("data.image_size=32", "data.image_size=large", "must be a whole number"),
        ("pipelines.train --help", "pipelines.trian --help", "trian: there is no such command"),
        ("dpl-ray label", "dpl-ray lable", "lable: there is no such command"),
        ("output=c", "", "output is missing"),
        ("`dpl-ray tune`", "`dpl-ray tune ... num_trails=3`", "num_trails=3: there is no such field"),
        ("scale=cluster", "scale=clusters", "there is no such scale"),
        ("--working-dir", "--work-dir", "No such option"),
        ("ray job stop", "ray job halt", "No such command"),
        ("rule=band", "rule=bend", "rule"),
        ("'policies=[dpl,dpl(rule=band)]'", "policies=[dpl,dpl(rule=band)]", "policies"),
        ("make lint", "make lints", "make lints: there is no such target"),
        ("--batch 112", "--batches 112", "unrecognized arguments: --batches"),
        ("--batch 112", "--batch many", "invalid int value"),
        ("benchmarks.views", "benchmarks.view", "benchmarks.view: there is no such module"),
        ("seeds=3", "seed=3", "there is no field seed"),
        ("searcher: optuna", "searcher: optima", "searcher"),
        ("# mine.yaml", "# yours.yaml", "mine.yaml"),
    ],
)
def test_a_mistake_is_found(right: str, wrong: str, message: str) -> None:
    assert right in PAGE
    found = mistakes(Document(Path("page.md"), PAGE.replace(right, wrong)), Document(Path("page.md"), PAGE))
    assert len(found) == 1, found
    assert message in found[0]
