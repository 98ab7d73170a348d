"""The records of a training: one list of them, and its thresholds as a table."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

TABLE_FILE = "thresholds.json"
PREFIX = "threshold/"  # of the keys threshold/<name>/<class>


class Point(NamedTuple):
    """What was measured at a step."""

    step: int
    metrics: dict[str, float]
    time: int  # ms since 1970, of the last of it; 0: unknown


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
