"""The fields of a search and of config=FILE: what is taken, and one line for what is wrong, before anything starts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from dpl_ray import search
from dpl_ray.commands import cli, tune
from dpl_ray.config.compose import load_config
from dpl_ray.config.describe import list_groups
from dpl_ray.config.parse import to_yaml
from dpl_ray.config.policies import FixMatchConfig
from dpl_ray.runs.folder import study_name
from dpl_ray.studies.tuning.config import load_search, resolve, search_tree

ROOT = Path(__file__).parents[2]


def test_the_options_say_who_proposes_and_who_stops() -> None:
    found = {option: load_search([f"tune={option}"])[1] for option in list_groups(["tune"])["tune"]}
    assert {option: (each.searcher, each.scheduler) for option, each in found.items()} == {
        "random": ("random", "none"),
        "asha": ("random", "asha"),
        "optuna": ("optuna", "none"),
        "asha_optuna": ("optuna", "asha"),
    }


def test_the_default_space_is_the_schedules() -> None:
    *_, space = resolve(*load_search(["data=digits"]))
    assert set(space) == {
        *("optim.learning_rate", "train.mu", "train.lambda_u", "train.lambda_u_ramp", "train.ema_decay"),
        *("policy.ema_decay", "policy.cut", "policy.epsilon"),
    }
    assert resolve(*load_search(["space=schedules"]))[2] == space == resolve(*load_search(["tune=asha"]))[2]


def test_fields_of_the_space_are_set_one_by_one() -> None:
    fields = ("space=optimizer", "space.train.mu={randint:[2,9]}", "space.train.lambda_u=null")
    *_, space = resolve(*load_search(["policy=fixmatch", "space.policy.threshold={uniform:[0.5,0.9]}", *fields]))
    assert set(space) == {
        "optim.learning_rate",
        "train.mu",
        "train.lambda_u_ramp",
        "train.ema_decay",
        "policy.threshold",
    }
    assert str(space["train.mu"]) == "{randint: [2,9]}"


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("searcher: optuna\nspace:\n  optim: {learning_rate: {loguniform: [1e-3, 1e-1]}}\n")
    config, options = load_search([f"tune={file}", "num_trials=3", "train.num_steps=50"])
    _, resolved, space = resolve(config, options)
    assert (resolved.searcher, resolved.scheduler, resolved.num_trials) == ("optuna", "none", 3)
    assert space["optim.learning_rate"].values == (0.001, 0.1), "1e-3 is a number here, which it is not in YAML 1.1"


def test_labelled_images_are_held_out_and_evaluated_on_the_way() -> None:
    config, options, _ = resolve(*load_search(["train.num_steps=300", "tune=asha"]))
    assert (config.data.validation_fraction, config.train.evaluate_every, options.grace_steps) == (0.5, 30, 60)
    assert config.train.curve_every is None, "no trial scores the test split"
    assert not config.train.baseline


def test_the_name_is_of_what_is_computed() -> None:
    def name(*overrides: str) -> str:
        config, options, space = resolve(*load_search(overrides))
        return study_name(config, "search", search_tree(config, options, space))

    assert name() == name("num_trials=40", "max_concurrent=1", "scale.num_workers=0", "run.storage_path=/elsewhere")
    others = {name(), name("tune=asha"), name("space.train.mu=null"), name("train.num_steps=99"), name("train.seed=1")}
    assert len(others) == 5
    assert all(each.startswith("digits-search-") for each in others)


MISTAKES = [
    (["tune=asah"], "tune=asah: there is no such tune; known: asha, asha_optuna, optuna, random"),
    (["space=nothing"], "space=nothing: there is no such space; known: optimizer, schedules"),
    (["tune=missing.yaml"], "tune=missing.yaml: cannot be read ("),
    (["num_trails=3"], "num_trails=3: there is no field num_trails; did you mean num_trials?"),
    (["num_trials=0"], "num_trials=0: must be greater than or equal to 1"),
    (["reduction_factor=1"], "reduction_factor=1: must be greater than 1"),
    (["data.validation_fraction=0"], "data.validation_fraction=0: a search chooses by the accuracy on labelled images"),
    (["train.baseline=true"], "train.baseline=true: a search has no baseline"),
    (["data.pool.mode=stream"], "data.pool.mode=stream: a search keeps the pool in memory"),
    (["train.evaluate_every=9999"], "train.evaluate_every=9999: must be at most train.num_steps=600"),
    (["tune=asha", "grace_steps=600"], "grace_steps=600: must be below train.num_steps=600"),
    (["policy=fixmatch"], "space.policy.cut={choice: [confidence,own]}: policy=fixmatch has no such parameter"),
    (["space.train.moo={choice:[1]}"], "space.train.moo={choice: [1]}: there is no field train.moo"),
    (["space.train.mu={uniform:[3]}"], "space.train.mu={uniform: [3]}: uniform takes two numbers"),
    (["cpus_per_trial=4000"], "cpus_per_trial=4000: no node of this machine has that many CPUs; at most"),
    (["max_concurrent=4000"], "max_concurrent=4000: with cpus_per_trial=1 this machine has room for"),
    (["scale.address=ray://127.0.0.1:1"], "scale.address=ray://127.0.0.1:1: a search runs where its cluster is"),
    (["data.num_labels_per_class=1"], "data.validation_fraction=0.5: every class has one label only"),
    (["config=missing.yaml"], "config=missing.yaml: cannot be read ("),
]


@pytest.mark.parametrize(
    ("overrides", "message"), MISTAKES, ids=lambda value: value[0] if isinstance(value, list) else ""
)
def test_mistake(
    overrides: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("dpl_ray.studies.tuning.job.Search.run", lambda *_: pytest.fail("a trial was started"))
    overrides = [*overrides, f"run.storage_path={tmp_path / 'runs'}", "tracking.enabled=false"]
    assert cli.run(tune.COMMAND, overrides) == 2
    output, errors = capsys.readouterr()
    assert errors.startswith(f"error: {message}"), errors
    assert errors.count("\n") == 1
    assert output == ""
    assert not (tmp_path / "runs").exists()


def test_a_training_run_has_neither_group() -> None:
    assert not {"tune", "space"} & list_groups().keys()
    for text in ("tune=asha", "space=schedules"):
        with pytest.raises(ValueError, match=f"{text}: there is no field"):
            load_config([text])


def test_a_search_is_configured_without_torch_or_ray() -> None:
    code = (
        "import sys, dpl_ray.commands.tune, dpl_ray.studies.tuning.job, dpl_ray.studies.tuning.config as c;"
        "c.load_search(['tune=optuna']);"
        "print(sorted({'torch', 'ray', 'mlflow', 'optuna'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"


def test_help_lists_fields_and_groups(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(tune.COMMAND, ["--help"]) == 0
    output = capsys.readouterr().out
    for text in ("num_trials=12", "tune=asha_optuna", "space=schedules", "reduction_factor=3.0", "config=FILE"):
        assert text in output
    assert "policy=dpl" in output


# config=FILE


def test_a_file_is_a_whole_configuration(tmp_path: Path) -> None:
    config = load_config(["data=fashion_mnist", "policy=fixmatch", "policy.threshold=0.7", "train.mu=3"])
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    assert load_config([f"config={tmp_path}/config.yaml"]) == config
    changed = load_config(["train.mu=5", f"config={tmp_path}/config.yaml", "policy.threshold=0.9"])
    assert (changed.train.mu, changed.policy) == (5, FixMatchConfig(threshold=0.9))
    assert changed.data == config.data


@pytest.mark.parametrize(
    ("text", "more", "message"),
    [
        ("[1, 2]", [], "holds no configuration"),
        ("a: [", [], "cannot be read"),
        ("train: {moo: 1}", [], r"train\.moo=1: there is no such field"),
        ("train: {mu: 0}", [], r"train\.mu=0: must be greater than or equal to 1"),
        ("policy: {name: dpl, moo: 1}", [], r"policy\.moo=1: there is no such field"),
        ("{}", ["policy=fixmatch"], "policy=fixmatch: the configuration that is given has chosen every group"),
        ("{}", ["config=other.yaml"], r"config=other\.yaml: config=.* is there already"),
        ("{}", ["train.moo=1"], r"train\.moo=1: there is no field"),
        ("!!python/object/apply:os.getcwd []", [], "cannot be read"),
    ],
)
def test_a_file_that_is_none(text: str, more: list[str], message: str, tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(text)
    with pytest.raises(ValueError, match=message):
        load_config([f"config={file}", *more])


def test_search_is_a_function_of_the_library(tmp_path: Path) -> None:
    config = load_config([f"run.storage_path={tmp_path}"])
    with pytest.raises(ValueError, match=r"data\.validation_fraction=0: "):
        search(config, console=Console(quiet=True))
    assert yaml.safe_load(to_yaml(config))["data"]["validation_fraction"] == 0
