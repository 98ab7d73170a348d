"""What is done to a command of ours, and how its result is compared: `benchmarks.faults` and tests use it."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import signal
import sqlite3
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from dpl_ray.store import disk
from tests.labeling.jobs import rows
from tests.processes import Command, descendants

#: Victim -> part of the title of its process; the driver is the process of the command.
TITLES = {
    "a training worker": "ray::RayTrainWorker",
    "the actor that brings the news": "ray::Mailbox",
    "the controller of Ray Train": "ray::TrainController",
    "a task that reads the pool": "ray::Map",
    "a task that decodes": "ray::_decode",
    "an actor that labels": "ray::_Actor",
    "Ray's raylet": "raylet/raylet ",
    "Ray's gcs_server": "gcs/gcs_server ",
    "the agent of Ray's dashboard": "ray::DashboardAgent",
}
DRIVER = "the driver"
MOST_STARTS = 10  # of one command


@dataclass(frozen=True)
class Job:
    """A command that is disturbed."""

    name: str
    module: str
    arguments: Callable[[Path], list[str]]
    progress: Callable[[Path], int]
    result: Callable[[Path], str]  # a digest of what it has made

    @property
    def slug(self) -> str:
        """The name as that of a folder."""
        return self.name.replace(",", "").replace(" ", "-")


@dataclass
class Event:
    """What was done, when, and what came of it."""

    job: str
    what: str
    when: str = ""
    outcome: str = ""
    same: bool = False


@dataclass
class Disturbed:
    """A run of a job, which is started again whenever it ends before its time."""

    job: Job
    folder: Path
    prepare: Callable[[], None] | None = None
    more: Sequence[str] = ()
    starts: int = 0
    process: Command | None = None
    statuses: list[int | None] = field(default_factory=list)

    def start(self) -> Command:
        self.starts += 1
        assert self.starts <= MOST_STARTS, f"{self.job.name} does not end"
        arguments = [*self.job.arguments(self.folder), *self.more]
        self.process = Command(self.job.module, arguments, self.folder / "printed", self.prepare)
        self.prepare = None  # of the first start alone
        return self.process

    def strike(self, event: Event, target: int, number: int = signal.SIGKILL) -> None:
        """Send a signal to the victim when the job has come so far."""
        process = self.process or self.start()
        process.wait_for(lambda: self.job.progress(self.folder) >= target)
        found = [process.pid]
        if event.what != DRIVER:
            title, deadline = TITLES[event.what], time.monotonic() + 60
            found = []
            while not found and process.status is None and time.monotonic() < deadline:
                found = [pid for pid, name in descendants(process.pid).items() if title in name]
        event.when = f"at {self.job.progress(self.folder)}"
        if process.status is not None or not found:
            event.outcome = "it had ended"
            return
        os.kill(found[-1], number)
        if event.what == DRIVER:
            process.end()
        self.settle(event)

    def settle(self, event: Event) -> None:
        """Wait until the job goes on, or start it again."""
        process, before = self.process, self.job.progress(self.folder)
        assert process is not None
        process.wait_for(lambda: self.job.progress(self.folder) > before)
        event.outcome = "went on by itself"
        if process.status:
            event.outcome = f"status {process.status}; the same command went on"
            self.process = None

    def finish(self) -> str:
        """Go on to the end; returns the digest of the result."""
        while True:
            process = self.process or self.start()
            printed, self.process = process.end(), None
            self.statuses.append(process.status)
            if process.status == 0:
                return self.job.result(self.folder)
            assert "Traceback" not in printed, printed


def disturb(job: Job, folder: Path, victims: Sequence[str], total: int, seed: int) -> list[Event]:
    """A run in which these are killed one after another, at random instants.

    Args:
        total: `progress` of a whole run.
    """
    folder.mkdir(parents=True)
    draw, run = random.Random(seed), Disturbed(job, folder)
    targets = sorted(draw.sample(range(1, max(total * 3 // 4, len(victims) + 2)), len(victims)))
    events = [Event(job.name, what) for what in victims]
    for event, target in zip(events, targets, strict=True):
        run.strike(event, target)
    digest = run.finish()
    for event in events:
        event.same = digest == (folder.parent / f"{job.slug}.digest").read_text()
    return events


def num_rows(folder: Path) -> int:
    """Of the history of the run called first."""
    file = folder / "runs" / "first" / "history.jsonl"
    return file.read_bytes().count(b"\n") if file.exists() else 0


def weights(folder: Path) -> str:
    """A digest of the weights at the end of the run called first."""
    newest = sorted((folder / "runs" / "first").glob("step-*"))[-1]
    digest = hashlib.sha256(newest.name.encode())
    for name in ("student", "teacher", "policy"):
        digest.update((newest / f"{name}.safetensors").read_bytes())
    return digest.hexdigest()


def labels(folder: Path) -> str:
    """A digest of ids, labels and what is selected; every sample is there once, or `rows` fails."""
    found = [(name, row["pseudo_label"], row["selected"]) for name, row in sorted(rows(folder / "labels").items())]
    return hashlib.sha256(repr(found).encode()).hexdigest()


def fail_writes(first: int, number: int, code: int = errno.ENOSPC) -> None:
    """Let writes of this process fail, so many from the one numbered `first` on; for `Command`."""
    real, done = disk._write, [0]

    def write(file: int, data: bytes) -> None:
        done[0] += 1
        if first <= done[0] < first + number:
            real(file, data[: len(data) // 2])
            raise OSError(code, os.strerror(code))
        real(file, data)

    disk._write = write


def fill_database(folder: str, first: int, last: int) -> None:
    """Let SQLite files of this process be full while the run of a folder has so many rows; for `Command`."""
    connect = sqlite3.dbapi2.connect

    class Limited(sqlite3.Connection):
        def cursor(self, *given: Any) -> Any:
            pages = 1 if first <= num_rows(Path(folder)) < last else 2**30  # 1: as many as it has
            super().execute(f"PRAGMA max_page_count = {pages}")
            return super().cursor(*given)

    sqlite3.dbapi2.connect = lambda *given, **named: connect(*given, **{"factory": Limited} | named)


def recorded(database: Path) -> tuple[str, int]:
    """Status of the only run in MLflow's file, and the steps at which it has a loss."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{database}")
    (run,) = client.search_runs([each.experiment_id for each in client.search_experiments()])
    return run.info.status, len(
        {each.step for each in client.get_metric_history(run.info.run_id, "train/loss_labeled")}
    )


FULL_FOR_GOOD = partial(fail_writes, 25, 10**9)
FULL_FOR_A_WHILE = partial(fail_writes, 25, 3)
ERRORS_FOR_A_WHILE = partial(fail_writes, 25, 3, errno.EIO)
