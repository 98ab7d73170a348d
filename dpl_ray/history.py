"""The records of a training: one list of them, and its thresholds as a table."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping

TABLE_FILE = "thresholds.json"
PREFIX = "threshold/"  # of the keys threshold/<name>/<class>

Records = list[tuple[int, dict[str, float]]]  # step, metrics


def merge_records(records: Iterable[tuple[int, Mapping[str, float]]]) -> Records:
    """By step; what was told twice, before and after an interruption, counts as it was told last."""
    by_step: dict[int, dict[str, float]] = {}
    for step, metrics in records:
        by_step.setdefault(step, {}).update(metrics)
    return sorted(by_step.items())


def threshold_table(records: Iterable[tuple[int, Mapping[str, float]]]) -> bytes | None:
    """The class-wise thresholds over time: `MlflowClient.load_table`, or `pandas.read_json(file, orient="split")`.

    Returns:
        JSON with a row for every class of every record and the columns step, class, and one for each threshold of the
        policy (over and under for dpl); None where there are none.
    """
    names: dict[str, None] = {}
    found: dict[tuple[int, str], dict[str, float]] = {}
    for step, metrics in records:
        for key, value in metrics.items():
            if key.startswith(PREFIX):
                name, _, class_name = key.removeprefix(PREFIX).partition("/")
                names[name] = None
                found.setdefault((step, class_name), {})[name] = value
    if not found:
        return None
    rows = [[step, class_name, *(values.get(name) for name in names)] for (step, class_name), values in found.items()]
    return json.dumps({"columns": ["step", "class", *names], "data": rows}).encode()
