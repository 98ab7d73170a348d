"""The parts that labels are written in: their columns, and the counts that each carries in its metadata.

Legend: C classes, H bins of the histograms, K bins of confidence between CONFIDENCE_EDGES.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import TypeAdapter

from dpl_ray.data.files.kinds import FOREIGN
from dpl_ray.store.file_systems import open_file
from dpl_ray.store.records import parse_tree
from dpl_ray.store.storage import Storage

NUM_BINS = 20  # of the histograms
CONFIDENCE_EDGES = (0.5, 0.8, 0.95, 0.99)  # of the cells by which images are drawn for a review
COUNTS_KEY = b"dpl_ray.counts"
SCHEMA = pa.schema(
    {
        "sample_id": pa.string(),
        "pseudo_label": pa.int64(),
        "class_name": pa.string(),
        "confidence": pa.float32(),
        "second_label": pa.int64(),
        "second_confidence": pa.float32(),
        "third_label": pa.int64(),
        "third_confidence": pa.float32(),
        "entropy": pa.float32(),
        "foreign": pa.float32(),
        "confidence_lgp": pa.float32(),
        "confidence_hgp": pa.float32(),
        "threshold_over": pa.float32(),
        "threshold_under": pa.float32(),
        "weight": pa.float32(),
        "selected": pa.bool_(),
        "error": pa.string(),
    }
)


@dataclass
class Counts:
    """What is counted of some rows: they are selected, rejected or unreadable."""

    selected: list[int]  # (C,) by pseudo-label
    rejected: list[int]  # (C,)
    unreadable: dict[str, int] = field(default_factory=dict)  # by reason
    confidence_selected: list[int] = field(default_factory=lambda: [0] * NUM_BINS)  # (H,) of [0, 1]
    confidence_rejected: list[int] = field(default_factory=lambda: [0] * NUM_BINS)
    entropy_selected: list[int] = field(default_factory=lambda: [0] * NUM_BINS)  # (H,) of [0, log C] nats
    entropy_rejected: list[int] = field(default_factory=lambda: [0] * NUM_BINS)
    foreign_selected: list[int] = field(default_factory=lambda: [0] * NUM_BINS)  # (H,) of [0, 1]; all 0, where the
    foreign_rejected: list[int] = field(default_factory=lambda: [0] * NUM_BINS)  # policy does not ask
    cells_selected: list[int] = field(default_factory=list)  # (C * K,) by pseudo-label, then by confidence; or
    cells_rejected: list[int] = field(default_factory=list)  # empty, where an older version has written a part

    @classmethod
    def none(cls, num_classes: int) -> Counts:
        nothing = [0] * (num_classes * (len(CONFIDENCE_EDGES) + 1))
        return cls([0] * num_classes, [0] * num_classes, cells_selected=nothing, cells_rejected=nothing)

    def __add__(self, other: Counts) -> Counts:
        mine, others = vars(self), vars(other)
        reasons = self.unreadable.keys() | other.unreadable.keys()
        unreadable = {
            reason: self.unreadable.get(reason, 0) + other.unreadable.get(reason, 0) for reason in sorted(reasons)
        }
        sums = {
            name: [a + b for a, b in zip(mine[name], others[name], strict=not name.startswith("cells"))]
            for name in mine
            if name != "unreadable"
        }
        return Counts(**sums, unreadable=unreadable)

    @property
    def num_selected(self) -> int:
        return sum(self.selected)

    @property
    def num_rejected(self) -> int:
        return sum(self.rejected)

    @property
    def num_unreadable(self) -> int:
        return sum(self.unreadable.values())

    @property
    def num_foreign(self) -> int:
        return self.unreadable.get(FOREIGN, 0)

    @property
    def knows_foreign(self) -> bool:
        """Whether the policy has said how foreign the images look."""
        return any(self.foreign_selected) or any(self.foreign_rejected)

    @property
    def num_bad(self) -> int:
        """Unreadable ones that should have been images."""
        return self.num_unreadable - self.num_foreign

    @property
    def num_rows(self) -> int:
        return self.num_selected + self.num_rejected + self.num_unreadable


def make_part(
    sample_ids: Sequence[str],
    kept: NDArray[np.int64],
    errors: Mapping[int, str],
    columns: Mapping[str, NDArray[Any] | None],
    class_names: Sequence[str],
) -> tuple[pa.Table, Counts]:
    """The table of a block, and what is counted of it.

    Args:
        sample_ids: of its N rows.
        kept: (M,) the rows that have labels, rising.
        errors: row -> reason, of all others.
        columns: of `labels.label_batch`, (M,) each.
    """
    num_rows = len(sample_ids)
    assert len(kept) + len(errors) == num_rows

    def spread(values: NDArray[Any] | None, type_: pa.DataType) -> pa.Array:
        if values is None:
            return pa.nulls(num_rows, type_)
        whole = np.zeros(num_rows, values.dtype)
        whole[kept] = values
        mask = np.ones(num_rows, bool)
        mask[kept] = False
        return pa.array(whole, type_, mask=mask)

    arrays = {field.name: spread(columns.get(field.name), field.type) for field in SCHEMA}
    arrays["sample_id"] = pa.array(sample_ids, pa.string())
    arrays["class_name"] = pa.array(class_names, pa.string()).take(arrays["pseudo_label"])
    # An unreadable image counts nothing: what filters by these two needs no look at the nulls.
    arrays["selected"] = arrays["selected"].fill_null(False)
    arrays["weight"] = arrays["weight"].fill_null(pa.scalar(0, pa.float32()))
    arrays["error"] = pa.array([errors.get(row) for row in range(num_rows)], pa.string())
    counts = _count(columns, list(errors.values()), len(class_names))
    metadata = {COUNTS_KEY: json.dumps(asdict(counts)).encode()}
    table = pa.table([arrays[name] for name in SCHEMA.names], schema=SCHEMA.with_metadata(metadata))
    return table, counts


COUNTS = TypeAdapter(Counts)


def _count(columns: Mapping[str, NDArray[Any] | None], errors: list[str], num_classes: int) -> Counts:
    labels, selected = columns["pseudo_label"], columns["selected"]
    counts = Counts.none(num_classes)
    counts.unreadable = {reason: errors.count(reason) for reason in sorted(set(errors))}
    for name, rows in (("selected", selected), ("rejected", ~selected)):  # type: ignore[operator]
        setattr(counts, name, np.bincount(labels[rows], minlength=num_classes).tolist())  # type: ignore[index]
        for column, highest in histogrammed(num_classes).items():
            if columns.get(column) is None:
                continue
            values = columns[column][rows].clip(0, highest)  # type: ignore[index]
            histogram, _ = np.histogram(values, NUM_BINS, (0, highest))
            setattr(counts, f"{column}_{name}", histogram.tolist())
        cells = cell_of(labels[rows], columns["confidence"][rows])  # type: ignore[index]
        setattr(counts, f"cells_{name}", np.bincount(cells, minlength=len(counts.cells_selected)).tolist())
    return counts


def histogrammed(num_classes: int) -> dict[str, float]:
    """Columns that have a histogram, and their largest values."""
    return {"confidence": 1.0, "entropy": math.log(num_classes), "foreign": 1.0}


def cell_of(labels: NDArray[np.int64], confidence: NDArray[np.float32]) -> NDArray[np.int64]:
    """(N,) place in `Counts.cells_selected` of rows with these pseudo-labels (N,) and confidences (N,)."""
    edges = np.array(CONFIDENCE_EDGES, np.float32)
    return labels * (len(edges) + 1) + np.searchsorted(edges, confidence, side="right")


def write_part(part: Storage, table: pa.Table, **options: Any) -> int:
    """Write a part whole or not at all, with options of pyarrow's `write_table`; returns its bytes."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, **{"compression": "zstd", "write_page_checksum": True} | options)
    data = sink.getvalue()
    part.write(data)
    return len(data)


def read_counts(part: Storage, num_rows: int) -> Counts | None:
    """What a part carries; None where it is not there, not whole, or not one of `num_rows` rows."""
    try:
        with open_file(part.filesystem, part.path) as file:
            metadata = pq.read_metadata(file)
        counts = COUNTS.validate_python(parse_tree((metadata.metadata or {})[COUNTS_KEY]))
    except (OSError, pa.ArrowException, KeyError, ValueError):
        return None
    return counts if metadata.num_rows == counts.num_rows == num_rows else None
