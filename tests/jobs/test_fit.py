"""Whole runs in this process: what is written, shown and recorded, with and without MLflow."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shlex
import shutil
import signal
import threading
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from torch import Tensor

from dpl_ray import FitResult, fit, load_checkpoint, load_config
from dpl_ray.checking.findings import Finding
from dpl_ray.commands import cli, train
from dpl_ray.config.schema import BESIDE_RUNS, Config
from dpl_ray.data.batches.feed import Batch
from dpl_ray.data.splits.sources import load_splits
from dpl_ray.runs.history_writer import HistoryWriter
from dpl_ray.tracking.sender import Sender
from dpl_ray.tracking.tracker import MlflowTracker
from dpl_ray.training import loop
from dpl_ray.training.distributed import Workers
from dpl_ray.training.records import Record
from dpl_ray.training.state import TrainState
from tests.processes import SECONDS, Command
from tests.training.test_resume import assert_same, contents


def run(folder: Path, *overrides: str) -> tuple[FitResult, str]:
    """A tiny run on digits and what it prints."""
    output = io.StringIO()
    fixed = ["scale.num_workers=0", "train.num_steps=4", "train.log_every=2", "model.width=1", "train.batch_size=4"]
    fixed += [f"run.storage_path={folder}", "run.name=tiny", "tracking.enabled=false"]
    result = fit(load_config([*fixed, *overrides]), console=Console(file=output, width=120))
    return result, output.getvalue()


@pytest.mark.rendered
@pytest.mark.parametrize("policy", ["dpl", "fixmatch", "supervised"])
def test_every_policy_runs_from_the_configuration_to_the_report(tmp_path: Path, policy: str) -> None:
    result, output = run(tmp_path, f"policy={policy}")
    assert "accuracy" in output
    test = load_splits(load_config([]).data, seed=0).test
    labels = load_checkpoint(result.checkpoint).predict(test.images).probabilities.argmax(axis=1)
    assert result.metrics["eval/accuracy"] == pytest.approx((labels == test.targets).mean())
    assert (result.baseline is None) == (policy == "supervised")
    assert ("over-confident" in output) == (policy == "dpl")
    assert Path(result.report).read_text().startswith("<!doctype html>")
    assert (result.verdict or "") in output
    assert (result.verdict is None) == (policy == "supervised")
    assert (Path(result.checkpoint) / "manifest.json").exists()
    assert result.run_id is None
    rows = [json.loads(line) for line in (tmp_path / "tiny" / "history.jsonl").read_text().splitlines()]
    records = [row for row in rows if "train/loss_labeled" in row["metrics"]]
    assert {row["step"] for row in records if row["phase"] == policy} == {2, 4}


@pytest.mark.usefixtures("mlflow_store")
def test_a_finished_run_that_is_started_again_shows_what_it_had_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, output = run(tmp_path, "tracking.enabled=true")
    history = (tmp_path / "tiny" / "history.jsonl").read_bytes()
    for name in ("run_phases", "start_tracker"):
        monkeypatch.setattr(f"dpl_ray.jobs.fit.{name}", lambda *_, **__: pytest.fail("there is nothing to do"))
    for num_workers in (0, 1):
        again, output_again = run(tmp_path, "tracking.enabled=true", f"scale.num_workers={num_workers}")
        assert again == first
        table = output[output.index("Last teacher") :]
        assert output_again == f"tiny had finished; another run.name trains anew\n{table}"
    assert (tmp_path / "tiny" / "history.jsonl").read_bytes() == history


def test_nothing_is_sent_to_mlflow_before_the_first_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    def step(*_: Any) -> Tensor:
        order.append("step")
        raise ArithmeticError("the step fails")

    def start_sender(*_: Any) -> None:
        order.append("sender")
        raise ConnectionError

    monkeypatch.setattr(loop, "train_step", step)
    monkeypatch.setattr(Sender, "__init__", start_sender)
    with pytest.raises(ArithmeticError):
        run(tmp_path, "tracking.enabled=true", "policy=supervised")
    assert order[:2] == ["step", "sender"]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    """What a run that nothing interrupts has on the test split."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dpl_ray.page.plots._render", lambda *_, **__: b"not rendered")
        result, _ = run(tmp_path_factory.mktemp("undisturbed"), "train.checkpoint_every=3")
    return {key: value for key, value in result.metrics.items() if key.startswith("eval/")}


def fail_at(monkeypatch: pytest.MonkeyPatch, phase: str, step: int) -> None:
    """Fail when a record of this phase and step arrives, as a run does that is interrupted there."""
    add = HistoryWriter.add

    def failing(self: HistoryWriter, record: Record) -> dict[str, Any]:
        row = add(self, record)
        if (record.phase, record.step) == (phase, step):
            monkeypatch.setattr(HistoryWriter, "add", add)
            raise OSError("interrupted")
        return row

    monkeypatch.setattr(HistoryWriter, "add", failing)


@pytest.mark.parametrize(
    ("phase", "step", "beginning"),
    [
        ("supervised", 2, "starts again with"),
        ("supervised", 4, "goes on from step 3 of the supervised baseline with"),
        ("dpl", 4, "goes on from step 3 of dpl with"),
    ],
)
def test_an_interrupted_run_says_from_where_it_goes_on(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    undisturbed: dict[str, float],
    phase: str,
    step: int,
    beginning: str,
) -> None:
    fail_at(monkeypatch, phase, step)
    with pytest.raises(OSError, match="interrupted"):
        run(tmp_path, "train.checkpoint_every=3")
    result, output = run(tmp_path, "train.checkpoint_every=3")
    assert output.startswith(f"tiny {beginning} this process: digits, 40 labelled")
    assert {key: value for key, value in result.metrics.items() if key.startswith("eval/")} == undisturbed


def test_a_finished_run_whose_checkpoint_was_removed_trains_again(tmp_path: Path) -> None:
    first, _ = run(tmp_path, "train.baseline=false")
    shutil.rmtree(first.checkpoint)
    again, output = run(tmp_path, "train.baseline=false")
    assert output.startswith("tiny starts again with")
    assert again.metrics["eval/accuracy"] == first.metrics["eval/accuracy"]


def test_the_baseline_is_the_supervised_run_of_the_same_seed(tmp_path: Path) -> None:
    beside, _ = run(tmp_path / "beside")
    alone, _ = run(tmp_path / "alone", "policy=supervised")
    assert beside.baseline is not None
    for key in ("eval/accuracy", "eval/ece", "train/loss_labeled"):
        assert beside.baseline[key] == alone.metrics[key]


def test_validation_is_measured_on_the_way_and_the_test_split_once(tmp_path: Path) -> None:
    run(tmp_path, "data.num_labels_per_class=8", "data.validation_fraction=0.25", "train.evaluate_every=2")
    rows = [json.loads(line) for line in (tmp_path / "tiny" / "history.jsonl").read_text().splitlines()]
    main = [row for row in rows if row["phase"] == "dpl"]
    assert [row["step"] for row in main if "validation/accuracy" in row["metrics"]] == [2, 4, 4]
    assert [row["step"] for row in main if "eval/accuracy" in row["metrics"]] == [4]


@pytest.mark.usefixtures("mlflow_store")
def test_mlflow_goes_on_with_the_same_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient

    fail_at(monkeypatch, "dpl", 2)
    with pytest.raises(OSError, match="interrupted"):
        run(tmp_path, "tracking.enabled=true")
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")
    run_id = json.loads((tmp_path / "tiny" / "tracking.json").read_text())["run_id"]
    assert client.get_run(run_id).info.status == "FAILED"
    again, _ = run(tmp_path, "tracking.enabled=true")
    assert again.run_id == run_id
    assert client.get_run(run_id).info.status == "FINISHED"
    artifact_uri = client.get_run(run_id).info.artifact_uri
    assert artifact_uri.startswith(f"file://{tmp_path}"), "artifacts lie beside the runs, not in the working directory"


def recorded(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Metric -> (step, value) of all points that MLflow has of the only run; 0 for what the clock decides."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{folder}/mlflow.db")
    (found,) = client.search_runs([client.get_experiment_by_name("dpl_ray").experiment_id])
    timed = tuple(key for key in found.data.metrics if re.search("time/|throughput/|seconds", key))
    return {
        key: [
            (point.step, 0.0 if key in timed else point.value)
            for point in client.get_metric_history(found.info.run_id, key)
        ]
        for key in found.data.metrics
    }


@pytest.mark.parametrize("is_lost", [False, True])
def test_what_mlflow_has_of_an_interrupted_run_is_there_once_and_whole(
    mlflow_template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_lost: bool
) -> None:
    """Also where the driver was killed before a word of it was sent."""
    overrides = (
        "tracking.enabled=true",
        "train.num_steps=8",
        "train.checkpoint_every=3",
        "data.validation_fraction=0.2",
    )
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
        shutil.copy(mlflow_template, tmp_path / name)
    run(tmp_path / "whole", *overrides)
    hangs = threading.Event()
    with monkeypatch.context() as patch:
        if is_lost:
            patch.setattr(Sender, "_log_metrics", lambda *_: hangs.wait())
            patch.setattr(MlflowTracker, "finish", lambda *_: None)
        fail_at(patch, "dpl", 6)
        with pytest.raises(OSError, match="interrupted"):
            run(tmp_path / "parts", *overrides)
    run(tmp_path / "parts", *overrides)
    whole, parts = recorded(tmp_path / "whole"), recorded(tmp_path / "parts")
    hangs.set()
    assert [step for step, _ in parts["train/loss_labeled"]] == [2, 4, 6, 8]
    assert [step for step, _ in parts["baseline/train/loss_labeled"]] == [2, 4, 6, 8]
    assert parts == whole


@pytest.mark.usefixtures("mlflow_store")
def test_what_lies_beside_the_runs_can_be_no_run(tmp_path: Path) -> None:
    run(tmp_path, "tracking.enabled=true")
    assert {path.name for path in tmp_path.iterdir()} - {"tiny"} <= set(BESIDE_RUNS)
    for name in BESIDE_RUNS:
        with pytest.raises(ValueError, match=rf"^run\.name={name}: something else of this name lies beside the runs"):
            run(tmp_path, f"run.name={name}")


@pytest.mark.usefixtures("mlflow_store")
def test_a_run_that_fails_says_so_to_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient

    def failing(*_: object, **__: object) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr("dpl_ray.training.loop.save_checkpoint", failing)
    with pytest.raises(OSError, match="disk is full"):
        run(tmp_path, "tracking.enabled=true")
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("dpl_ray").experiment_id])
    assert [found.info.status for found in runs] == ["FAILED"]


NINE_STEPS = (
    "train.num_steps=9", "train.log_every=4", "train.curve_images=0", "train.baseline=false", "train.batch_size=4",
    "model.width=1", "scale.num_workers=0",
)  # fmt: skip


@pytest.fixture(scope="module")
def nine_steps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nothing interrupts."""
    folder = tmp_path_factory.mktemp("nine")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dpl_ray.page.plots._render", lambda *_, **__: b"not rendered")
        fit(load_config([*NINE_STEPS, "tracking.enabled=false", f"run.storage_path={folder}", "run.name=whole"]))
    return folder / "whole"


def hold_in_step(step: int, file: Path) -> None:
    """Let a training make the file in this step and stand still until it is asked to stop; for `Command`."""
    train_step = loop.train_step

    def held(state: TrainState, batch: Batch, config: Config, workers: Workers) -> Tensor:
        if state.step == step:
            file.touch()
            assert workers.stop.wait(SECONDS), "no signal came"
        return train_step(state, batch, config, workers)

    loop.train_step = held


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, cli.INTERRUPTED), (signal.SIGTERM, cli.TERMINATED)])
@pytest.mark.usefixtures("mlflow_store")
def test_a_signal_saves_the_step_and_the_run_goes_on_to_the_same_weights(
    number: signal.Signals, status: int, nine_steps: Path, tmp_path: Path
) -> None:
    from mlflow import MlflowClient

    fields = [*NINE_STEPS, f"run.storage_path={tmp_path}"]
    held = partial(hold_in_step, 5, tmp_path / "held")
    process = Command("pipelines.train", fields, tmp_path / "printed", held)
    try:
        process.wait_for((tmp_path / "held").exists)
        (report,) = tmp_path.glob("digits-dpl-*/report.html")
        assert "dpl: step 4 of 9" in report.read_text()
        os.kill(process.pid, number)
        printed = process.end()
    finally:
        process.kill()
    assert process.status == status, printed
    (saved,) = tmp_path.glob("digits-dpl-*/step-*")
    assert saved.name == "step-00000007", "what was asked for in one step is agreed on in the next one"
    again = f"python -m pipelines.train {shlex.join(fields)} run.name={saved.parent.name}"
    assert printed.endswith(f"interrupted: step 7 of 9 of dpl is saved; go on with: {again}\n")
    assert "a checkpoint is saved after this step, within 25 s; a second Ctrl-C ends at once\n" in printed
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("dpl_ray").experiment_id])
    assert [found.info.status for found in runs] == ["KILLED"]
    fit(load_config([*fields, "tracking.enabled=false", f"run.name={saved.parent.name}"]))
    assert_same(contents(saved.parent), contents(nine_steps))
    losses = losses_of(saved.parent)
    assert losses == losses_of(nine_steps), "of steps 5 to 8, in which the run was stopped, too"
    assert [step for step, _ in losses] == [4, 8, 9]


def losses_of(run: Path) -> list[tuple[int, float]]:
    rows = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    return [(row["step"], row["metrics"][key]) for row in rows for key in row["metrics"] if key == "train/loss_labeled"]


def test_without_a_console_nothing_is_printed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    fixed = [
        "scale.num_workers=0",
        "train.num_steps=4",
        "model.width=1",
        "train.batch_size=4",
        "tracking.enabled=false",
    ]
    fit(load_config([*fixed, f"run.storage_path={tmp_path}", "run.name=tiny"]))
    assert capfd.readouterr() == ("", "")


def test_words_for_true_and_false_mean_what_they_say() -> None:
    assert load_config(["policy.alignment=no"]).policy.alignment is False
    assert load_config(["policy.alignment=yes"]).policy.alignment is True


def test_a_folder_that_only_this_machine_knows_is_refused_on_a_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dpl_ray.jobs.fit.checked_resources", contextlib.nullcontext)
    with pytest.raises(ValueError, match=r"^run\.storage_path=runs: on a cluster .* absolute path"):
        fit(load_config(["scale.address=ray://head:10001"]))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("train.num_steps=5",), "run.name=tiny: this run exists with train.num_steps=4, now it is 5"),
        (
            ("run.storage_path=/missing/../proc/sys",),
            "run.storage_path=/missing/../proc/sys: cannot be written .*; give",
        ),
        (("run.storage_path={folder}/tiny/config.yaml",), "run.storage_path=.*/config.yaml: cannot be written"),
    ],
)
def test_where_a_run_cannot_be_is_told_before_an_image_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overrides: tuple[str, ...], message: str
) -> None:
    run(tmp_path, "train.baseline=false")
    monkeypatch.setattr("dpl_ray.jobs.fit.load_splits", lambda *_, **__: pytest.fail("images were read"))
    with pytest.raises(ValueError, match=message):
        run(tmp_path, "train.baseline=false", *(override.format(folder=tmp_path) for override in overrides))


def test_a_checkpoint_is_loaded_from_a_path_object(tmp_path: Path) -> None:
    run(tmp_path, "train.baseline=false")
    assert load_checkpoint(tmp_path / "tiny").class_names == tuple(map(str, range(10)))


@pytest.mark.rendered
@pytest.mark.usefixtures("mlflow_store")
def test_the_command_ends_with_the_paths_and_writes_nothing_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from mlflow import MlflowClient

    fixed = ["scale.num_workers=0", "train.num_steps=4", "model.width=1", f"run.storage_path={tmp_path}"]
    assert cli.run(train.COMMAND, [*fixed, "run.name=tiny"]) == 0
    output, errors = capsys.readouterr()
    assert errors == ""
    run_id = json.loads((tmp_path / "tiny" / "tracking.json").read_text())["run_id"]
    for text in (f"{tmp_path}/tiny/step-00000004", f"{tmp_path}/tiny/report.html", run_id, "Too short: 4 steps; train"):
        assert text in output
    data = MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db").get_run(run_id).data
    assert data.tags["health"].endswith("too short")
    assert data.metrics["health/too_short"] == 4


def test_what_is_found_in_the_data_is_said_before_a_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dpl_ray.jobs.fit.quick_findings", lambda config, splits: [Finding("note", "[red] told")])
    monkeypatch.setattr("dpl_ray.jobs.fit.run_phases", lambda *_: 1 / 0)
    output = io.StringIO()
    overrides = ["model.width=1", f"run.storage_path={tmp_path}", "tracking.enabled=false", "scale.num_workers=0"]
    with pytest.raises(ZeroDivisionError):
        fit(overrides, console=Console(file=output, width=80))
    assert output.getvalue().splitlines()[-1] == "note: [red] told"
