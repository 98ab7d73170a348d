"""The trials of a search: one configuration trained in one process, and what is kept of it.

<run.storage_path>/<name of the search>/
  trial-0007/              a run's folder: configuration, records, checkpoint
  trial-0007/trial.json    the values that were proposed, before anything of it runs
  trial-0007/result.json   written last; a trial that has it has ended, and is never run again

`run_trial` needs neither Ray nor MLflow: a Tune trial calls it, or any other process.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import fmean
from threading import Event
from typing import Any, Literal

from dpl_ray.config.schema import Config
from dpl_ray.data.dataset import Splits, empty_like
from dpl_ray.runs.folder import RunFolder, check_run, largest_class, last_metrics, run_storage
from dpl_ray.runs.history_writer import HistoryWriter
from dpl_ray.runs.provenance import describe_run
from dpl_ray.store.records import read_json, write_json
from dpl_ray.store.storage import Storage
from dpl_ray.studies.tuning.space import with_values

TRIAL_FILE, RESULT_FILE = "trial.json", "result.json"
OBJECTIVE = "validation/accuracy"


@dataclass(frozen=True)
class Trial:
    """What is to be trained: the values of the searched fields."""

    number: int
    values: dict[str, Any]  # dotted field -> value

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"trial-{self.number:04d}"


@dataclass(frozen=True)
class TrialResult(Trial):
    """What a trial leaves that has ended."""

    state: Literal["finished", "stopped", "diverged"]  # trained to its end, by the scheduler, a loss that is not finite
    reports: list[tuple[int, float]]  # step, accuracy of the teacher on the held-out labelled images
    seconds: float = 0.0  # in training steps; up to its last evaluation where it has not come to its end
    metrics: dict[str, float] = field(default_factory=dict)  # of the last record, never of the test split
    checkpoint: str | None = None
    cause: str = ""  # why it diverged
    facts: dict[str, str] = field(default_factory=dict)  # commit, versions, hardware, data

    @property
    def steps(self) -> int:
        """Up to its last report."""
        return self.reports[-1][0] if self.reports else 0

    @property
    def accuracy(self) -> float | None:
        """Of its last report; None where there is none."""
        return self.reports[-1][1] if self.reports and self.state != "diverged" else None

    @property
    def rank(self) -> tuple[bool, float, float, int]:
        """Larger is better: trained to its end, then the last accuracy, then the mean of all, then who came first."""
        mean = fmean(accuracy for _, accuracy in self.reports) if self.reports else 0.0
        return self.state == "finished", -1.0 if self.accuracy is None else self.accuracy, mean, -self.number


def trial_config(config: Config, trial: Trial, folder: str) -> Config:
    """The configuration of a trial: of the search's, with the trial's values."""
    config = with_values(config, trial.values)
    every = min(config.train.checkpoint_every, config.train.evaluate_every or config.train.checkpoint_every)
    return config.changed(
        train={"checkpoint_every": every, "keep_checkpoints": 1},
        scale={"num_workers": 0},
        run={"storage_path": folder, "name": trial.name},
    )


def without_test(splits: Splits) -> Splits:
    """What a trial reads: a search must not see the test split, not even by scoring it."""
    return dataclasses.replace(splits, test=empty_like(splits.test))


def run_trial(
    config: Config,
    trial: Trial,
    splits: Splits,
    folder: str,
    report: Callable[[int, float], None],
    stop: Event | None = None,
) -> TrialResult:
    """Train a trial in this process, from its newest checkpoint where it has one; nothing if it has ended.

    Args:
        config: of the search, resolved.
        splits: without a test split.
        folder: of the search.
        report: called with step and accuracy on the held-out labelled images, in the order of the steps: a trial that
            goes on tells first what it had told before its checkpoint. What it raises ends the trial, unfinished.
        stop: set where the trial is to end after its step.

    Raises:
        ValueError: the trial was begun with another configuration or other data.
        Interrupted: by `stop`; a checkpoint is saved.
    """
    assert not len(splits.test)
    config = trial_config(config, trial, folder)
    check_run(config)
    run = RunFolder(run_storage(config), config, splits)
    if ended := read_json(run.storage / RESULT_FILE, TrialResult):
        for step, accuracy in ended.reports:
            report(step, accuracy)
        return ended
    from dpl_ray.training.checkpoint import list_checkpoints
    from dpl_ray.training.distributed import Workers
    from dpl_ray.training.faults import NonFiniteLossError
    from dpl_ray.training.loop import train
    from dpl_ray.training.records import Record

    num_steps = config.train.num_steps
    saved = list_checkpoints(run.storage)
    reached = int(saved[-1].name.removeprefix("step-")) if saved else 0
    for step, accuracy in read_reports(run.history):
        if step <= reached and step < num_steps:
            report(step, accuracy)

    history = HistoryWriter(run.storage)

    def receive(record: Record) -> None:
        if record.metrics:
            history.add(record)
        if OBJECTIVE in record.metrics and record.step < num_steps:
            history.save()  # what is told is never lost
            report(record.step, record.metrics[OBJECTIVE])

    def result(state: Literal["finished", "diverged"], **more: Any) -> TrialResult:
        history.save()
        more = {"seconds": recorded_seconds(run.history)} | more
        found = TrialResult(trial.number, trial.values, state, read_reports(run.history), facts=_facts(splits), **more)
        write_json(run.storage / RESULT_FILE, found)
        return found

    try:
        workers = Workers.alone(config.scale, stop)
        outcome = train(config, splits, workers, run.storage, receive, save_history=history.save)
    except NonFiniteLossError as error:
        return result("diverged", cause=str(error))
    metrics = run.last_metrics(outcome.phase) | outcome.metrics
    # Kept before the last report: with it the scheduler may end this process.
    ended = result("finished", seconds=outcome.training_seconds, metrics=metrics, checkpoint=outcome.checkpoint)
    report(*ended.reports[-1])
    return ended


def read_reports(history: list[dict[str, Any]]) -> list[tuple[int, float]]:
    """(step, accuracy) by step; what was told twice counts as it was told last."""
    found = {row["step"]: row["metrics"][OBJECTIVE] for row in history if OBJECTIVE in row["metrics"]}
    return sorted(found.items())


def recorded_seconds(history: list[dict[str, Any]]) -> float:
    """In training steps up to the last evaluation: of a trial that has not come to its end."""
    return max((row["metrics"].get("time/training", 0.0) for row in history), default=0.0)


def stopped(trial: Trial, history: list[dict[str, Any]], step: int) -> TrialResult:
    """What a trial leaves that the scheduler has stopped at this step."""
    reports = [report for report in read_reports(history) if report[0] <= step]
    metrics = last_metrics(history)
    return TrialResult(trial.number, trial.values, "stopped", reports, recorded_seconds(history), metrics)


def read_trials(folder: Storage) -> list[Trial]:
    """All trials that were proposed, by number."""
    names = sorted(name for name in folder.list() if re.fullmatch(r"trial-\d+", name))
    return [trial for name in names if (trial := read_json(folder / name / TRIAL_FILE, Trial))]


def read_results(folder: Storage) -> list[TrialResult]:
    """What all trials have left that have ended, by number."""
    trials = read_trials(folder)
    return [found for trial in trials if (found := read_json(folder / trial.name / RESULT_FILE, TrialResult))]


def _facts(splits: Splits) -> dict[str, str]:
    return describe_run(splits) | {
        "data.num_validation": str(len(splits.validation)),
        "data.num_classes": str(len(splits.class_names)),
        "data.largest_validation_share": f"{largest_class(splits.validation.targets) / len(splits.validation):.4f}",
    }
