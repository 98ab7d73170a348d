"""What recording in MLflow costs a training: 100 classes' thresholds, told every 50 steps.

    python -m benchmarks.tracking                          the default store, SQLite
    python -m benchmarks.tracking --uri http://host:5000   a server

One training in this process, of noise images (WRN-28-2, dpl, B=16, mu=7). Every other record is told to MLflow. What a
record costs is what the steps right after it take longer than the others of the same 50; that of records which are not
told is taken off. Besides, the CPU seconds of MLflow's thread are counted.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

import dpl_ray.tracking.tracker
from benchmarks.figures import Figure, add_save, median, report
from dpl_ray.config.parse import parse_config
from dpl_ray.config.schema import Config
from dpl_ray.data.dataset import UNLABELED, ImageSet, Splits
from dpl_ray.runs.provenance import describe_config
from dpl_ray.store.history import HISTORY_FILE
from dpl_ray.store.records import to_lines
from dpl_ray.store.storage import Storage
from dpl_ray.tracking.journal import Journal
from dpl_ray.tracking.sender import Sender
from dpl_ray.tracking.server import default_uri
from dpl_ray.tracking.tracker import Tracker, start_tracker
from dpl_ray.training import loop
from dpl_ray.training.distributed import Workers
from dpl_ray.training.records import Record


def noise(arguments: argparse.Namespace) -> Splits:
    random = np.random.default_rng(0)

    def images(count: int, targets: np.ndarray) -> ImageSet:
        pixels = random.integers(0, 256, (count, 3, arguments.size, arguments.size), dtype=np.uint8)
        return ImageSet(pixels, targets.astype(np.int64), np.arange(count).astype(str))

    classes = np.arange(arguments.classes)
    return Splits(
        class_names=tuple(f"class-{number}" for number in classes),
        labeled=images(len(classes), classes),
        unlabeled=images(2000, np.full(2000, UNLABELED)),
        validation=images(0, classes[:0]),
        test=images(0, classes[:0]),
        bad=(),
    )


STEPS_AFTER = 5  # a record, in which its work is done


class Meter:
    """Tells MLflow every other record, and takes the time of the steps between records."""

    def __init__(self, tracker: Tracker, history: Storage) -> None:
        self.tracker, self.history = tracker, history
        self.extra: dict[bool, list[float]] = {True: [], False: []}  # whether a record was told before -> seconds
        self.steps: list[float] = []  # since the last record, seconds
        self.usual: list[float] = []  # medians of the steps that are not right after a record
        self.calls: list[float] = []  # seconds that the training itself is held up
        self.num_metrics = 0
        self._is_warm, self._was_told = False, False

    def __call__(self, record: Record) -> None:
        if "time/step" not in record.metrics:
            return
        if self._is_warm:
            usual = statistics.median(self.steps[STEPS_AFTER:])
            self.usual.append(usual)
            self.extra[self._was_told].append(sum(self.steps[:STEPS_AFTER]) - STEPS_AFTER * usual)
        self.steps = []
        self._is_warm, self._was_told = True, not self._was_told
        if self._was_told:
            began = time.perf_counter()
            row = {
                "phase": record.phase,
                "step": record.step,
                "metrics": record.metrics,
                "time": int(1000 * time.time()),
            }
            self.history.append(to_lines([row]))
            self.tracker.log_history()
            self.calls.append(time.perf_counter() - began)
            self.num_metrics = len(record.metrics)


class TimedSender(Sender):
    """Counts the CPU seconds of its thread, start and end of the run aside."""

    seconds = 0.0

    def send(self) -> None:
        began, are_metrics = time.thread_time(), not self._journal.unsent
        super().send()
        if are_metrics:
            TimedSender.seconds += time.thread_time() - began


def measure(config: Config, arguments: argparse.Namespace, folder: Path) -> Meter:
    uri = arguments.uri or default_uri(str(folder))[0]
    storage, params = Storage(str(folder)), describe_config(config)
    tracker = start_tracker(config, uri, Journal(storage), name="benchmark", params=params, tags={})
    deadline = time.monotonic() + 120
    while tracker.run_id is None and time.monotonic() < deadline:
        time.sleep(0.1)
    meter, step = Meter(tracker, storage / HISTORY_FILE), loop.train_step

    def timed(*given: Any, **named: Any) -> Any:
        began = time.perf_counter()
        result = step(*given, **named)
        meter.steps.append(time.perf_counter() - began)
        return result

    loop.train_step = timed
    loop.train(config, noise(arguments), Workers(), Storage(str(folder / "checkpoints")), meter)
    tracker.finish("FINISHED", Console())
    return meter


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--uri", help="of a server; default: SQLite in a temporary folder")
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--log-every", type=int, default=50)
    parser.add_argument("--windows", type=int, default=16, help="of --log-every steps, half of them with MLflow's work")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--width", type=int, default=2)
    add_save(parser, "tracking")
    arguments = parser.parse_args()
    config = parse_config(
        {
            "model": {"width": arguments.width},
            "train": {
                "batch_size": arguments.batch_size,
                "num_steps": arguments.log_every * (arguments.windows + 2),
                "log_every": arguments.log_every,
                "checkpoint_every": 10**6,
                "curve_every": 10**6,
                "baseline": False,
            },
            "scale": {"num_workers": 0},
            "tracking": {"uri": arguments.uri},
        }
    )
    torch.set_num_threads(os.cpu_count() or 1)
    with tempfile.TemporaryDirectory() as folder:
        dpl_ray.tracking.tracker.Sender = TimedSender  # type: ignore[misc]
        meter = measure(config, arguments, Path(folder))
    usual = statistics.median(meter.usual)
    costs = [seconds - statistics.median(meter.extra[False]) for seconds in meter.extra[True]]
    window = usual * arguments.log_every
    seconds = TimedSender.seconds / len(meter.calls) + statistics.mean(meter.calls)
    rows = {
        "a step": Figure(usual, "s"),
        f"the {STEPS_AFTER} steps after a record take longer by": median(costs, "s"),
        f"share of the {arguments.log_every} steps between two records": median(
            [100 * cost / window for cost in costs], "%"
        ),
        f"CPU time of a record of {meter.num_metrics} metrics": Figure(seconds, "s"),
        "its share of those steps": Figure(100 * seconds / window, "%"),
    }
    report("tracking", {row: {"measured": figure} for row, figure in rows.items()}, arguments.save)


if __name__ == "__main__":
    main()
