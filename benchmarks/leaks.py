"""What a long run holds: memory, processes, open files and Ray's object store, by its steps.

    python -m benchmarks.leaks                        # part of make faults
    python -m benchmarks.leaks --minutes 60 --save    # part of make soak

Each job trains a tiny network for so long and records every step, in MLflow too. The first third of the steps is
warming up. The status is 1 where processes, open files or the object store grow from the second third to the last.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, linear_regression

import psutil

from benchmarks.faults import HERE, ON_RAY, streamed, write_streamed
from benchmarks.figures import Figure, Figures, add_save, report
from benchmarks.memory import object_store, processes_below
from dpl_ray import load_config
from dpl_ray.jobs.fit import run_training
from dpl_ray.page.console import open_console
from dpl_ray.training.interruption import Interrupted

SECONDS_BETWEEN_SAMPLES = 2.0
HELD = ("processes", "open files", "object store")  # what must not grow
SLOPE = "growth per 1,000 steps"
MB = 1e6

Sample = tuple[int, dict[str, float]]
"""A step, and what is held after it."""


class Sampler(threading.Thread):
    """Notes what this process and its descendants hold, each time beside the number of rows of a history."""

    def __init__(self, history: Path) -> None:
        super().__init__(daemon=True)
        self.samples: list[Sample] = []
        self._history, self._num_rows, self._read_to = history, 0, 0
        self._stop_event = threading.Event()

    def run(self) -> None:
        while not self._stop_event.wait(SECONDS_BETWEEN_SAMPLES):
            self.samples.append((self.count(), self._look()))

    def end(self) -> None:
        self._stop_event.set()
        self.join()

    def count(self) -> int:
        """Rows that there are now. The file is read on: whole, it would be in the memory that is measured."""
        if self._history.exists():
            with self._history.open("rb") as file:
                file.seek(self._read_to)
                self._num_rows += file.read().count(b"\n")
                self._read_to = file.tell()
        return self._num_rows

    def _look(self) -> dict[str, float]:
        found: dict[str, float] = dict.fromkeys(HELD, 0.0)
        for pid, name, size in processes_below(os.getpid()):
            found[f"memory: {name}"] = found.get(f"memory: {name}", 0.0) + size / MB
            found["processes"] += 1
            try:
                found["open files"] += psutil.Process(pid).num_fds()
            except psutil.Error:  # it has ended
                continue
        found["object store"] = object_store() / MB
        return found


def measure(overrides: Sequence[str], minutes: float, log_every: int = 1) -> list[Sample]:
    """What is held while a tiny network is trained, so long from here on."""
    ends_at = time.monotonic() + 60 * minutes
    with tempfile.TemporaryDirectory() as folder:
        config = load_config(
            [
                "train.num_steps=10000000", f"train.log_every={log_every}", "train.checkpoint_every=500",
                "train.batch_size=4", "train.mu=2", "train.baseline=false", "train.curve_images=0",
                "model.depth=10", "model.width=1", "run.name=first", f"run.storage_path={folder}", *overrides,
            ]
        )  # fmt: skip
        sampler = Sampler(Path(folder) / "first" / "history.jsonl")
        sampler.start()
        try:
            run_training(config, open_console(None), ends_at=ends_at)
        except Interrupted:
            pass
        finally:
            sampler.end()
    return [(log_every * num_rows, found) for num_rows, found in sampler.samples]


def summary(samples: Sequence[Sample]) -> Figures:
    """For each thing that is held its means over the second and the last third of the steps, and the slope over both.

    Raises:
        ValueError: one of these thirds has no sample.
    """
    num_steps = samples[-1][0]
    # Without those of the end of the run, after its last step.
    middle, last = ([found for found in samples if 3 * found[0] // max(1, num_steps) == third] for third in (1, 2))
    if not middle or not last:
        raise ValueError(
            f"{num_steps} steps in --minutes: each third of them has to last some seconds; take more minutes"
        )
    ends = [Figure(part[-1][0]) for part in (middle, last)]
    figures: Figures = {"steps": dict(zip(("second third", "last third"), ends, strict=True))}
    for what in {name: None for _, found in middle + last for name in found}:
        unit = "" if what in HELD[:2] else "MB"
        steps, values = zip(*[(at, found.get(what, 0.0)) for at, found in middle + last], strict=True)
        begin, end = (fmean(found.get(what, 0.0) for _, found in part) for part in (middle, last))
        bound = 1.1 * begin + 1 if what in HELD else None
        figures[what] = {
            "second third": Figure(begin, unit),
            "last third": Figure(end, unit, at_most=bound),
            SLOPE: Figure(1000 * linear_regression(steps, values).slope, unit),
        }
    return figures


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=2.0, help="of each job")
    parser.add_argument("--log-every", type=int, default=1, help="steps for a record")
    parser.add_argument("--only", choices=("here", "ray"), help="in this process; on Ray, with a streamed pool")
    add_save(parser, "leaks")
    given = parser.parse_args(arguments)
    grow = False
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        write_streamed(place)
        jobs = {"here": [HERE], "ray": [ON_RAY, *streamed(place)]}
        for job in [given.only] if given.only else jobs:
            figures = summary(measure(jobs[job], given.minutes, given.log_every))
            report("leaks", figures, given.save and f"{given.save}_{job}")
            ends = [figures[what]["last third"] for what in HELD]
            grow = grow or any(end.at_most is not None and end.value > end.at_most for end in ends)
    return int(grow)


if __name__ == "__main__":
    sys.exit(main())
