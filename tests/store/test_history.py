"""The records of a training, and its thresholds as a table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from dpl_ray.store.history import HistoryReader, Point, merge_records, threshold_table
from dpl_ray.store.records import to_lines
from dpl_ray.store.storage import Storage

METRICS = st.dictionaries(st.sampled_from(["train/loss", "threshold/over/a/b", "threshold/under/x"]), st.floats(0, 1))


ROWS = st.lists(st.fixed_dictionaries({"step": st.integers(0, 5), "metrics": METRICS, "time": st.integers(1, 9)}))


@given(ROWS)
def test_what_was_told_last_counts(rows: list[dict[str, Any]]) -> None:
    merged = merge_records(rows)
    assert [point.step for point in merged] == sorted({row["step"] for row in rows})
    for step, metrics, time in merged:
        told = [row for row in rows if row["step"] == step]
        expected: dict[str, float] = {}
        for row in told:
            expected |= row["metrics"]
        assert (metrics, time) == (expected, told[-1]["time"])


def test_a_reader_has_every_row_once_and_the_first_of_what_is_measured_again(tmp_path: Path) -> None:
    file = Storage(str(tmp_path / "history.jsonl"))
    reader = HistoryReader(file, "dpl")
    assert reader.read() == [], "there is no file yet"

    def add(phase: str, step: int, **metrics: float) -> None:
        file.append(to_lines([{"phase": phase, "step": step, "metrics": metrics, "time": step}]))

    add("supervised", 5, loss=2.0)
    add("dpl", 5, loss=1.0)
    add("dpl", 5, accuracy=0.5)
    assert reader.read() == [
        Point(5, {"baseline/loss": 2.0}, 5),
        Point(5, {"loss": 1.0}, 5),
        Point(5, {"accuracy": 0.5}, 5),
    ]
    add("dpl", 10, loss=0.5)
    file.append(b'{"phase": "dpl", "step": 15, ')
    assert reader.read() == [Point(10, {"loss": 0.5}, 10)]
    file.append(b'"metrics": {"loss": 0.4}, "time": 15}\n')
    add("dpl", 5, loss=1.5, precision=0.75)
    assert reader.read() == [Point(15, {"loss": 0.4}, 15), Point(5, {"precision": 0.75}, 5)]
    assert reader.read() == []


def test_the_table_has_a_row_for_each_class_of_each_record() -> None:
    points = [
        Point(10, {"loss": 1.0, "threshold/over/cat": 0.5, "threshold/over/a/b": 0.6, "threshold/under/cat": 0.1}, 0),
        Point(15, {"train/loss": 1.0}, 0),
        Point(20, {"threshold/over/cat": 0.7, "threshold/under/cat": 0.2, "threshold/over/a/b": 0.8}, 0),
    ]
    assert json.loads(threshold_table(points) or b"") == {
        "columns": ["step", "class", "over", "under"],
        "data": [[10, "cat", 0.5, 0.1], [10, "a/b", 0.6, None], [20, "cat", 0.7, 0.2], [20, "a/b", 0.8, None]],
    }


def test_there_is_no_table_without_thresholds() -> None:
    assert threshold_table([Point(10, {"train/loss": 1.0}, 0)]) is None
