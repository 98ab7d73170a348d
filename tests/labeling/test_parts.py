"""What is counted of a part, and what is shown while parts are written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

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
