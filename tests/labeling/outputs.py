"""Outputs of pipelines.label written by hand, and digits as parquet files."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

SCHEMA = pa.schema(
    [("sample_id", pa.string()), ("pseudo_label", pa.int64()), ("class_name", pa.string())]
    + [(name, pa.float32()) for name in ("confidence", "entropy", "confidence_lgp", "confidence_hgp")]
    + [(name, pa.float32()) for name in ("threshold_over", "threshold_under", "weight")]
    + [("selected", pa.bool_()), ("error", pa.string())]
)


def write_labels(
    output: Path,
    rows: Sequence[tuple[str, int | None, float | None, bool]],
    *,
    class_names: Sequence[str],
    pool: Path | str,
    finished: bool = True,
    per_part: int = 5,
) -> Path:
    """Rows of (sample id, pseudo-label, confidence, selected) as the output of a job."""
    output.mkdir(parents=True, exist_ok=True)
    for start in range(0, len(rows), per_part):
        part = rows[start : start + per_part]
        columns: dict[str, Any] = {name: [None] * len(part) for name in SCHEMA.names}
        columns["sample_id"], columns["pseudo_label"], columns["confidence"], columns["selected"] = zip(
            *part, strict=True
        )
        columns["error"] = ["truncated" if row[1] is None else None for row in part]
        table = pa.table({name: list(values) for name, values in columns.items()}, SCHEMA)
        pq.write_table(table, output / f"part-{start:05d}.parquet")
    (output / "_ledger").mkdir(exist_ok=True)
    pq.write_table(pa.table({"row": [1]}), output / "_ledger" / "part-00000.parquet")
    identity = {"class_names": list(class_names), "pool": str(pool), "checkpoint": "0"}
    (output / "_ledger" / "job.json").write_text(json.dumps({"identity": identity}))
    if finished:
        (output / "_report").mkdir(exist_ok=True)
        (output / "_report" / "summary.json").write_text("{}")
    return output


def write_digits(path: Path, start: int, stop: int, *, labels: bool = True) -> Path:
    """Scikit-learn's digits start .. stop - 1 as PNGs in a parquet file with the columns image and label."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    encoded = []
    for pixels in digits.images[start:stop]:
        buffer = io.BytesIO()
        Image.fromarray((pixels * 255 / 16).round().astype("uint8")).save(buffer, "PNG")
        encoded.append(buffer.getvalue())
    columns = {"image": pa.array(encoded, pa.binary())}
    if labels:
        columns["label"] = pa.array(digits.target[start:stop].tolist(), pa.int64())
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, row_group_size=100)
    return path
