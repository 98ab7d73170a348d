"""The records of a training, and its thresholds as a table."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from dpl_ray.history import merge_records, threshold_table

METRICS = st.dictionaries(st.sampled_from(["train/loss", "threshold/over/a/b", "threshold/under/x"]), st.floats(0, 1))


@given(st.lists(st.tuples(st.integers(0, 5), METRICS)))
def test_what_was_told_last_counts(records: list[tuple[int, dict[str, float]]]) -> None:
    merged = merge_records(records)
    assert [step for step, _ in merged] == sorted({step for step, _ in records})
    for step, metrics in merged:
        expected: dict[str, float] = {}
        for other, told in records:
            if other == step:
                expected |= told
        assert metrics == expected


def test_the_table_has_a_row_for_each_class_of_each_record() -> None:
    records = [
        (10, {"train/loss": 1.0, "threshold/over/cat": 0.5, "threshold/over/a/b": 0.6, "threshold/under/cat": 0.1}),
        (15, {"train/loss": 1.0}),
        (20, {"threshold/over/cat": 0.7, "threshold/under/cat": 0.2, "threshold/over/a/b": 0.8}),
    ]
    assert json.loads(threshold_table(records) or b"") == {
        "columns": ["step", "class", "over", "under"],
        "data": [[10, "cat", 0.5, 0.1], [10, "a/b", 0.6, None], [20, "cat", 0.7, 0.2], [20, "a/b", 0.8, None]],
    }


def test_there_is_no_table_without_thresholds() -> None:
    assert threshold_table([(10, {"train/loss": 1.0})]) is None
