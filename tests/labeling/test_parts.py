"""What is counted of a part, and what is shown while parts are written."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from dpl_ray.labeling import console as labeling_console
from dpl_ray.labeling.console import LabelProgress
from dpl_ray.labeling.parts import SCHEMA, make_part, read_counts, write_part
from dpl_ray.store.storage import Storage


def test_counts_are_those_of_a_part_with_as_many_rows(tmp_path: Path) -> None:
    columns = dict.fromkeys(SCHEMA.names[1:-1]) | {
        "pseudo_label": np.array([1, 0]),
        "confidence": np.array([0.9, 0.4], np.float32),
        "entropy": np.array([0.1, 0.6], np.float32),
        "weight": np.array([1, 0], np.float32),
        "selected": np.array([True, False]),
    }
    table, counts = make_part(["a", "b", "c"], np.array([0, 2]), {1: "empty"}, columns, ("ant", "bee"))
    part = Storage(str(tmp_path)) / "part-000000-00000.parquet"
    write_part(part, table)
    assert counts.num_rows == 3
    assert read_counts(part, 3) == counts
    assert read_counts(part, 4) is None, "of another plan"
    pq.write_table(table.slice(0, 2), part.path)
    assert read_counts(part, 3) is None
    assert read_counts(part, 2) is None, "its counts are of other rows"
    Path(part.path).write_bytes(b"no parquet")
    assert read_counts(part, 3) is None


@pytest.mark.parametrize("is_terminal", [False, True])
def test_progress_has_rate_and_time_left(monkeypatch: pytest.MonkeyPatch, is_terminal: bool) -> None:
    """Since the first block of this start was done: Ray's start is no measure."""
    moments = iter([0.0, 100.0, 102.0, 110.0, 120.0])
    monkeypatch.setattr(labeling_console, "time", SimpleNamespace(monotonic=lambda: next(moments)))
    output = io.StringIO()
    console = Console(file=output, force_terminal=is_terminal, color_system=None, width=120)
    with LabelProgress(console, 20_000, 5_000) as progress:
        for num_rows in (1_000, 10, 30, 13_960):
            progress.add(num_rows)
    if is_terminal:
        assert "20000/20000 images  700 images/s  00:00:00 left" in output.getvalue()
    else:
        assert output.getvalue().splitlines() == [
            "6,000/20,000 images  --:--:-- left",
            "6,040/20,000 images  4 images/s  00:58:10 left",  # at 102 seconds it was too soon for another line
            "20,000/20,000 images  700 images/s  00:00:00 left",
        ]
