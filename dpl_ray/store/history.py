"""The records of a training, a file of them: as they are added to it, one list of them, its thresholds as a table.

A row has phase, step, num_steps, images_per_second, metrics and time (ms); older ones may lack some.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, NamedTuple

from dpl_ray.store.records import from_lines
from dpl_ray.store.storage import Storage

HISTORY_FILE, TABLE_FILE = "history.jsonl", "thresholds.json"
PREFIX = "threshold/"  # of the keys threshold/<name>/<class>


class Point(NamedTuple):
    """What was measured at a step."""

    step: int
    metrics: dict[str, float]
    time: int  # ms since 1970, of the last of it; 0: unknown


class HistoryReader:
    """Reads a history.jsonl that grows: every row once, and of what is measured again the first."""

    def __init__(self, file: Storage, policy: str | None) -> None:
        """
        Args:
            policy: of the run.
        """
        self._file, self._policy, self._read_to = file, policy, 0
        self._newest: dict[tuple[str, str], int] = {}  # phase, key -> step

    def read(self, most: int | None = None) -> list[Point]:
        """The next rows, at most so many, without what one before has of its phase and step: after an interruption the
        steps since the last checkpoint are measured again.
        """
        # Without half a line, which is being written.
        lines = [line for line in islice(self._file.lines(self._read_to), most) if line.endswith(b"\n")]
        self._read_to += sum(map(len, lines))
        points = []
        for row in history_rows(lines):
            phase, step = row.get("phase", ""), row["step"]
            row["metrics"] = {
                key: value for key, value in row["metrics"].items() if self._newest.get((phase, key), -1) < step
            }
            self._newest |= {(phase, key): step for key in row["metrics"]}
            points.append(Point(row["step"], run_metrics(row, self._policy), row.get("time", 0)))
        return points


def run_metrics(row: Mapping[str, Any], policy: str | None) -> dict[str, float]:
    """The metrics of a row under their keys in its run: those of the supervised baseline begin with baseline/."""
    prefix = "" if row.get("phase", policy) == policy else "baseline/"
    return {prefix + key: value for key, value in row["metrics"].items()}


def history_rows(lines: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    """The rows of a history.jsonl, one at a time: as objects, all of a long run take far more memory than the file.

    What is no row is passed over.
    """
    kinds = {"step": int, "metrics": dict}
    return (row for row in from_lines(lines) if all(isinstance(row.get(name), kind) for name, kind in kinds.items()))


def read_history(folder: Storage) -> Iterator[dict[str, Any]]:
    """The rows of the run in a folder; none where it has kept none."""
    return history_rows((folder / HISTORY_FILE).lines())


def read_points(folder: Storage, policy: str | None) -> list[Point]:
    """All records of the run in a folder, by step."""
    return merge_records({**row, "metrics": run_metrics(row, policy)} for row in read_history(folder))


def merge_records(rows: Iterable[Mapping[str, Any]]) -> list[Point]:
    """Rows of a history.jsonl, by step; what was told twice, before and after an interruption, as it was told last."""
    by_step: dict[int, Point] = {}
    for row in rows:
        before = by_step.get(row["step"], Point(row["step"], {}, 0))
        by_step[row["step"]] = Point(row["step"], before.metrics | row["metrics"], row.get("time", 0))
    return [by_step[step] for step in sorted(by_step)]


def threshold_table(points: Iterable[Point]) -> bytes | None:
    """The class-wise thresholds over time: `MlflowClient.load_table`, or `pandas.read_json(file, orient="split")`.

    Returns:
        JSON with a row for every class of every record and the columns step, class, and one for each threshold of the
        policy (over and under for dpl); None where there are none.
    """
    names: dict[str, None] = {}
    found: dict[tuple[int, str], dict[str, float]] = {}
    for step, metrics, _ in points:
        for key, value in metrics.items():
            if key.startswith(PREFIX):
                name, _, class_name = key.removeprefix(PREFIX).partition("/")
                names[name] = None
                found.setdefault((step, class_name), {})[name] = value
    if not found:
        return None
    rows = [[step, class_name, *(values.get(name) for name in names)] for (step, class_name), values in found.items()]
    return json.dumps({"columns": ["step", "class", *names], "data": rows}).encode()
