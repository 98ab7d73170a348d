"""What a long run holds: memory, processes, open files and Ray's object store, by records of its history.

    python -m benchmarks.leaks --save                    # part of make faults
    python -m benchmarks.leaks --records 100000          # part of make soak

Each job trains and records every step, in MLflow too. The first third of the records is warming up. The status is 1
where processes, open files or the object store grow from the second third to the last.
"""

from __future__ import annotations

import argparse
import csv
import os
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, linear_regression

import psutil

from benchmarks.faults import HERE, ON_RAY, streamed, write_streamed
from benchmarks.memory import object_store, processes_below
from benchmarks.tables import FOLDER
from dpl_ray import fit, load_config
from tests.faults import num_rows

SECONDS_BETWEEN_SAMPLES = 2.0
COLUMNS = ("job", "what", "records", "begin", "end", "slope", "unit")
HELD = ("processes", "open files", "object store")  # what must not grow
MB = 1e6


class Sampler(threading.Thread):
    """Notes what this process and its descendants hold, each time beside the number of records."""

    def __init__(self, folder: Path) -> None:
        super().__init__(daemon=True)
        self.samples: list[tuple[int, dict[str, float]]] = []
        self._folder, self._stop_event = folder, threading.Event()

    def run(self) -> None:
        while not self._stop_event.wait(SECONDS_BETWEEN_SAMPLES):
            self.samples.append((num_rows(self._folder), self._look()))

    def end(self) -> None:
        self._stop_event.set()
        self.join()

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


def measure(job: str, overrides: Sequence[str], num_records: int) -> list[dict[str, object]]:
    """A row for each thing that is held: means of the second and of the last third, and the slope over both."""
    with tempfile.TemporaryDirectory() as folder:
        config = load_config(
            [
                f"train.num_steps={num_records}", "train.log_every=1", "train.checkpoint_every=500",
                "train.batch_size=4", "train.mu=2", "train.baseline=false", "train.curve_images=0",
                "model.depth=10", "model.width=1", "run.name=first", f"run.storage_path={folder}/runs", *overrides,
            ]
        )  # fmt: skip
        sampler = Sampler(Path(folder))
        sampler.start()
        try:
            fit(config)
        finally:
            sampler.end()
    thirds: dict[int, list[tuple[int, dict[str, float]]]] = {}
    for at, found in sampler.samples:
        thirds.setdefault(3 * at // num_records, []).append((at, found))
    middle, last = thirds[1], thirds[2]
    rows: list[dict[str, object]] = []
    for what in middle[0][1]:
        records, values = zip(*[(at, found.get(what, 0.0)) for at, found in middle + last], strict=True)
        begin, end = (fmean(found.get(what, 0.0) for _, found in part) for part in (middle, last))
        slope = 1000 * linear_regression(records, values).slope
        unit = "" if what in HELD[:2] else "MB"
        rows.append(dict(zip(COLUMNS, (job, what, records[-1], begin, end, slope, unit), strict=True)))
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=1000, help="of each job")
    parser.add_argument("--only", default="", help="the job that has this in its name")
    parser.add_argument("--save", action="store_true", help="into docs/results/leaks.csv")
    given = parser.parse_args(arguments)
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        write_streamed(place)
        jobs = {"in this process": [HERE], "on Ray, pool streamed": [ON_RAY, *streamed(place)]}
        for job, overrides in jobs.items():
            for row in measure(job, overrides, given.records) if given.only in job else ():
                rows.append(row)
                print(*(f"{each:.2f}" if isinstance(each, float) else each for each in row.values()), sep=" | ")
    if given.save:
        with (FOLDER / "leaks.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    return int(any(row["what"] in HELD and float(str(row["end"])) > 1.1 * float(str(row["begin"])) + 1 for row in rows))


if __name__ == "__main__":
    sys.exit(main())
