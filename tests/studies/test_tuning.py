"""Whole searches in this process: what is run, stopped, proposed, resumed, kept and recorded."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from dpl_ray import SearchResult, fit, load_config, search
from dpl_ray.commands import cli, train, tune
from dpl_ray.config.schema import Config
from dpl_ray.data.dataset import Splits
from dpl_ray.runs.history_writer import HistoryWriter
from dpl_ray.store.lock import LOCK_FILE
from dpl_ray.store.records import read_lines, read_tree, write_json
from dpl_ray.store.storage import Storage
from dpl_ray.studies.tuning.config import load_search
from dpl_ray.studies.tuning.job import SearchFailedError
from dpl_ray.studies.tuning.trials import RESULT_FILE, Trial, TrialResult, recorded_seconds, run_trial
from dpl_ray.training import loop
from dpl_ray.training.interruption import Interrupted
from dpl_ray.training.records import Record
from tests.page.test_html import Outline
from tests.processes import Command

FIXED = ("train.num_steps=6", "train.log_every=2", "train.evaluate_every=2", "num_trials=3")
SMALL = ("model.width=1", "train.batch_size=4", "run.name=first", "tracking.enabled=false", "scale.num_workers=0")
SPACE = ("space=optimizer", "space.train.mu={choice:[1,2]}")
Report = Callable[[int, float], None]


def overrides_for(folder: Path, *overrides: str) -> list[str]:
    return [*FIXED, *SMALL, *SPACE, f"run.storage_path={folder}", *overrides]


def run(folder: Path, *overrides: str) -> tuple[SearchResult, str]:
    """A tiny search on digits and what it prints."""
    output = io.StringIO()
    config, options = load_search(overrides_for(folder, *overrides))
    return search(config, options, console=Console(file=output, width=150)), output.getvalue()


def history_of(folder: Path, trial: str) -> list[dict[str, Any]]:
    return read_lines(Storage(f"{folder}/first/{trial}/history.jsonl"))


def scores(result: SearchResult) -> dict[int, tuple[Any, ...]]:
    """What was computed, without times and paths."""
    return {each.number: (each.values, each.state, each.reports) for each in result.trials}


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Trial], list[float]]], list[Trial]]:
    """Puts a table in the place of training: trial -> its accuracies at the evaluations; returns who was run."""

    def install(accuracies: Callable[[Trial], list[float]]) -> list[Trial]:
        ran: list[Trial] = []

        def running(config: Config, trial: Trial, splits: Splits, folder: str, report: Report, _: Any) -> TrialResult:
            ran.append(trial)
            reports = [
                (number * (config.train.evaluate_every or 1), accuracy)
                for number, accuracy in enumerate(accuracies(trial), 1)
            ]
            rows = ({"step": step, "metrics": {"validation/accuracy": accuracy}} for step, accuracy in reports)
            text = "".join(json.dumps(row) + "\n" for row in rows)
            (Storage(folder) / trial.name / "history.jsonl").write(text.encode())
            for step, accuracy in reports[:-1]:
                report(step, accuracy)
            result = TrialResult(trial.number, trial.values, "finished", reports)
            write_json(Storage(folder) / trial.name / RESULT_FILE, result)
            report(*reports[-1])
            return result

        monkeypatch.setattr("dpl_ray.studies.tuning.on_ray.run_trial", running)
        return ran

    return install


# What is run


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_saves_the_trial_that_is_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = HistoryWriter.add

    def interrupted(writer: HistoryWriter, record: Record) -> Any:
        if (writer.folder.name, record.step) == ("trial-0001", 2) and "train/loss_labeled" in record.metrics:
            signal.raise_signal(signal.SIGINT)
        return real(writer, record)

    monkeypatch.setattr(HistoryWriter, "add", interrupted)
    with pytest.raises(Interrupted, match=r"^step 3 of 6 of dpl is saved$"):
        run(tmp_path)
    assert [path.parent.name for path in (tmp_path / "first").glob("trial-*/result.json")] == ["trial-0000"]
    assert (tmp_path / "first" / "trial-0001" / "step-00000003" / "manifest.json").exists()


@pytest.mark.rendered
def test_every_trial_is_trained_and_the_best_is_the_first(tmp_path: Path) -> None:
    result, output = run(tmp_path)
    assert [each.number for each in sorted(result.trials, key=lambda each: each.number)] == [0, 1, 2]
    assert all([step for step, _ in each.reports] == [2, 4, 6] for each in result.trials)
    accuracies = [each.accuracy for each in result.trials]
    assert accuracies == sorted(accuracies, reverse=True)
    rows = list(csv.DictReader(io.StringIO(Path(result.csv).read_text())))
    assert [int(row["trial"]) for row in rows] == [each.number for each in result.trials]
    assert [float(row["optim.learning_rate"]) for row in rows] == [
        each.values["optim.learning_rate"] for each in result.trials
    ]
    page = Path(result.report).read_text()
    assert f"Trial {result.trials[0].number} is the best of 3: {100 * accuracies[0]:.1f} % of 20 held-out" in page
    assert page.count("data:image/svg+xml") == 5 + 3, "a panel of every field, curves, the best so far, seconds"
    for each in result.trials:
        history = history_of(tmp_path, each.name)
        assert 0 < recorded_seconds(history) <= each.seconds
    assert "20 held-out labelled images, so that one image more is 5.0 points" in result.markdown
    assert "on 20 held-out labelled images (one image is 5.0 points)" in output
    assert (result.failed, result.run_id) == ({}, None)


def test_no_trial_sees_the_test_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    monkeypatch.setattr(
        "dpl_ray.training.loop.train",
        lambda *given, **more: (seen.append(len(given[1].test)), loop_train(*given, **more))[1],
    )
    result, _ = run(tmp_path)
    assert seen == [0, 0, 0]
    told = [row["metrics"] for each in result.trials for row in history_of(tmp_path, each.name)]
    keys = {key for metrics in [*told, *(each.metrics for each in result.trials)] for key in metrics}
    assert "validation/accuracy" in keys
    assert not {key for key in keys if key.startswith(("eval/", "curve/"))}


loop_train = loop.train


def test_the_best_is_a_configuration_that_training_takes_unchanged(tmp_path: Path) -> None:
    result, _ = run(tmp_path)
    config = load_config([f"config={result.best}"])
    best = result.trials[0].values
    assert (config.optim.learning_rate, config.train.mu) == (best["optim.learning_rate"], best["train.mu"])
    assert (config.train.num_steps, config.data.validation_fraction, config.run.name) == (6, 0.5, None)
    assert config.scale.num_workers is None, "of a trial's one worker"
    again = fit(load_config([f"config={result.best}", "scale.num_workers=0", "train.baseline=false"]))
    assert again.metrics["validation/accuracy"] == result.trials[0].accuracy, "it is the trial, trained again"
    assert "eval/accuracy" in again.metrics


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    given = overrides_for(tmp_path, "num_trials=2")
    monkeypatch.setattr(sys, "argv", ["dpl-ray", *given])
    assert cli.run(tune.COMMAND, given) == 0
    output = capsys.readouterr().out
    assert f"train it: dpl-ray train config={tmp_path}/first/best.yaml" in output
    assert f"report      {tmp_path}/first/search.html" in output
    assert "    dpl-ray tune train.num_steps=6" in (tmp_path / "first" / "search.md").read_text()
    best = f"config={tmp_path}/first/best.yaml"
    assert cli.run(train.COMMAND, [best, "scale.num_workers=0"]) == 0
    assert "digits-dpl-" in capsys.readouterr().out


# Who proposes, who stops


def test_asha_stops_a_bad_trial(tmp_path: Path, told: Any) -> None:
    told(lambda trial: [0.9, 0.9, 0.9] if trial.number < 3 else [0.1, 0.1, 0.1])
    result, output = run(tmp_path, "tune=asha", "num_trials=5", "reduction_factor=2")
    states = {each.number: (each.state, each.steps) for each in result.trials}
    assert states == {**dict.fromkeys((0, 1, 2), ("finished", 6)), **dict.fromkeys((3, 4), ("stopped", 2))}
    assert "trial 3 stopped at step 2 with 10.0 %" in output


def test_asha_knows_the_trials_of_an_interrupted_search(tmp_path: Path, told: Any) -> None:
    told(lambda trial: [0.9, 0.9, 0.9])
    run(tmp_path, "tune=asha", "num_trials=3", "reduction_factor=2")
    told(lambda trial: [0.1, 0.1, 0.1])
    result, _ = run(tmp_path, "tune=asha", "num_trials=4", "reduction_factor=2")
    assert {each.number: each.state for each in result.trials}[3] == "stopped"


@pytest.mark.parametrize("option", ["optuna", "asha_optuna"])
def test_optuna_proposes_from_what_was_found(tmp_path: Path, told: Any, option: str) -> None:
    def accuracies(trial: Trial) -> list[float]:
        return [1 - abs(trial.values["train.lambda_u"] - 0.2)] * 3

    space = ("space={train:{lambda_u:{uniform:[0,1]}}}", "random_trials=6")
    ran = told(accuracies)
    run(tmp_path, f"tune={option}", *space, "num_trials=24", "run.name=whole")
    errors = [abs(trial.values["train.lambda_u"] - 0.2) for trial in ran]
    assert sum(errors[12:]) / 12 < 0.7 * sum(errors[:6]) / 6, "better than at random"
    ran = told(accuracies)
    run(tmp_path, f"tune={option}", *space, "num_trials=12", "run.name=parts")
    run(tmp_path, f"tune={option}", *space, "num_trials=24", "run.name=parts")
    assert [trial.number for trial in ran] == list(range(24))
    values = [trial.values["train.lambda_u"] for trial in ran]
    assert len(set(values)) == 24, "going on proposes nothing twice"
    assert sum(abs(value - 0.2) for value in values[12:]) / 12 < 0.7 * sum(errors[:6]) / 6


# Going on


def test_a_search_goes_on_to_what_it_would_have_been(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, _ = run(tmp_path / "whole")

    def broken(config: Config, trial: Trial, splits: Splits, folder: str, report: Report, _: Any) -> TrialResult:
        def reporting(step: int, accuracy: float) -> None:
            report(step, accuracy)
            if (trial.number, step) == (1, 4):
                raise KeyboardInterrupt

        return run_trial(config, trial, splits, folder, reporting)

    with monkeypatch.context() as patch:
        patch.setattr("dpl_ray.studies.tuning.on_ray.run_trial", broken)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path)
    first = (tmp_path / "first" / "trial-0000" / "result.json").read_bytes()
    assert not (tmp_path / "first" / "trial-0001" / "result.json").exists()
    result, output = run(tmp_path)
    assert "first goes on, 1 of them ended before" in output
    assert scores(result) == scores(whole)
    assert (tmp_path / "first" / "trial-0000" / "result.json").read_bytes() == first
    # Step 2 had a checkpoint: only what came after it was done again.
    steps = [row["step"] for row in history_of(tmp_path, "trial-0001") if "train/loss_labeled" in row["metrics"]]
    assert steps.count(2) == 1


def test_a_finished_search_runs_nothing_and_more_trials_are_added(tmp_path: Path, told: Any) -> None:
    ran = told(lambda trial: [0.5, 0.5, 0.5])
    run(tmp_path)
    run(tmp_path)
    run(tmp_path, "num_trials=4")
    assert [trial.number for trial in ran] == [0, 1, 2, 3]


def test_another_search_has_another_name(tmp_path: Path, told: Any) -> None:
    told(lambda trial: [0.5, 0.5, 0.5])
    run(tmp_path)
    with pytest.raises(ValueError, match=r"run\.name=first: this search exists with train\.batch_size=4, now it is 2"):
        run(tmp_path, "train.batch_size=2")
    with pytest.raises(ValueError, match=r"space\.train\.mu=\{choice: \[1,2\]\}, now it is \{choice: \[1,2,3\]\}"):
        run(tmp_path, "space.train.mu={choice:[1,2,3]}")
    with pytest.raises(ValueError, match=r"run\.name=first: a search has this name"):
        fit(load_config([f"run.storage_path={tmp_path}", "run.name=first"]))
    file = Storage(str(tmp_path / "first" / "search.json"))
    write_json(file, read_tree(file) | {"data": "other"})
    with pytest.raises(ValueError, match=r"run\.name=first: the trials of this search were trained on other data"):
        run(tmp_path)


def test_nothing_that_is_read_again_can_execute_code(tmp_path: Path, told: Any) -> None:
    told(lambda trial: [0.5, 0.5, 0.5])
    run(tmp_path)
    kinds = {path.suffix for path in (tmp_path / "first").rglob("*.*") if path.is_file() and path.name != LOCK_FILE}
    assert kinds <= {".json", ".jsonl", ".yaml", ".csv", ".md", ".html", ".svg"}


# What goes wrong


@pytest.mark.rendered
def test_a_trial_that_diverges_is_a_bad_one_and_is_not_run_again(tmp_path: Path) -> None:
    space = ("space={optim:{learning_rate:{choice:[0.01,1e30]}}}", "num_trials=6")
    result, output = run(tmp_path, *space)
    states = {each.values["optim.learning_rate"]: each.state for each in result.trials}
    assert states == {0.01: "finished", 1e30: "diverged"}
    assert result.trials[0].values["optim.learning_rate"] == 0.01
    assert result.failed == {}
    assert "diverged at step" in output
    assert "starts" not in run(tmp_path, *space)[1].splitlines()[0]


def test_a_trial_that_fails_leaves_the_others_and_is_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(config: Config, trial: Trial, splits: Splits, folder: str, report: Report, _: Any) -> TrialResult:
        if trial.number == 1:
            raise OSError("no space left")
        return run_trial(config, trial, splits, folder, report)

    with monkeypatch.context() as patch:
        patch.setattr("dpl_ray.studies.tuning.on_ray.run_trial", failing)
        result, output = run(tmp_path)
        assert result.failed == {"trial-0001": "OSError: no space left"}
        assert "trial 1 failed: OSError: no space left" in output
        assert "trial 1, failed OSError: no space left" in Outline(Path(result.report).read_text()).text
        assert len(result.trials) == 2
    again, _ = run(tmp_path)
    assert (again.failed, len(again.trials)) == ({}, 3)


def test_a_search_without_a_result_fails(tmp_path: Path) -> None:
    with pytest.raises(SearchFailedError, match=r"2 trials failed, as trial-000. \(step 1"):
        run(tmp_path, "space={optim:{learning_rate:{choice:[1e30]}}}", "num_trials=2")


# What is recorded


@pytest.mark.slow
@pytest.mark.usefixtures("mlflow_store")
def test_mlflow_has_the_search_and_its_trials(tmp_path: Path) -> None:
    import mlflow

    result, _ = run(tmp_path, "tracking.enabled=true", "tune=asha")
    run(tmp_path, "tracking.enabled=true", "tune=asha")
    client = mlflow.MlflowClient(result.tracking_uri)
    parent = client.get_run(result.run_id)
    assert parent.data.params["search.scheduler"] == "asha"
    assert parent.data.params["search.space.train.mu"] == "{choice: [1,2]}"
    assert parent.data.tags["best"] == result.trials[0].name
    info = json.loads((tmp_path / "first" / "search.json").read_text())
    assert parent.data.tags["data.fingerprint"] == info["data"]
    assert parent.data.tags["report"] == result.report
    files = {file.path for file in client.list_artifacts(result.run_id)}
    assert files == {"best.yaml", "figures", "search.html", "search.json", "search.md", "trials.csv"}
    children = client.search_runs(
        [parent.info.experiment_id], filter_string=f"tags.`mlflow.parentRunId` = '{result.run_id}'"
    )
    assert sorted(child.info.run_name for child in children) == ["trial-0000", "trial-0001", "trial-0002"]
    by_name = {each.name: each for each in result.trials}
    for child in children:
        trial = by_name[child.info.run_name]
        assert child.data.metrics["validation/accuracy"] == trial.accuracy
        assert float(child.data.params["optim.learning_rate"]) == trial.values["optim.learning_rate"]
        assert child.data.tags["state"] == trial.state
        assert [file.path for file in client.list_artifacts(child.info.run_id)] == ["thresholds.json"]


# Killed


def start(folder: Path, *overrides: str) -> Command:
    return Command("pipelines.tune", overrides_for(folder, *overrides), folder / "printed")


LONGER = ("train.num_steps=60", "train.evaluate_every=10", "train.log_every=10", "tune=asha", "num_trials=4")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> SearchResult:
    """A search that nothing interrupts."""
    return run(tmp_path_factory.mktemp("whole"), *LONGER)[0]


@pytest.mark.slow
@pytest.mark.parametrize("kill", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_search_goes_on_by_the_same_command(whole: SearchResult, tmp_path: Path, kill: signal.Signals) -> None:
    folder = tmp_path / "first"
    process = start(tmp_path, *LONGER)
    process.wait_for(lambda: (folder / "trial-0001" / "run.json").exists())
    first = (folder / "trial-0000" / "result.json").read_bytes()
    os.killpg(process.pid, kill)
    printed = process.end()
    assert process.status == (-9 if kill == signal.SIGKILL else 130), printed
    result, output = run(tmp_path, *LONGER)
    assert "first goes on, " in output
    assert scores(result) == scores(whole)
    assert (folder / "trial-0000" / "result.json").read_bytes() == first
