"""Outputs of pipelines.label with these rows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from dpl_ray.labeling.ledger import Part
from dpl_ray.labeling.parts import make_part, write_part
from dpl_ray.store.storage import Storage


def write_rows(
    folder: Path, rows: Sequence[tuple[str, int | None, float, bool]], class_names: Sequence[str], pool: Path
) -> Path:
    """Sample id, pseudo-label (None of an unreadable image), confidence, and whether it is selected; in one part."""
    output, name = Storage(str(folder)), "part-000000-00000.parquet"
    kept = np.array([place for place, row in enumerate(rows) if row[1] is not None])
    good = [rows[place] for place in kept]
    columns = {
        "pseudo_label": np.array([row[1] for row in good], np.int64),
        "confidence": np.array([row[2] for row in good], np.float32),
        "entropy": np.zeros(len(good), np.float32),
        "weight": np.zeros(len(good), np.float32),
        "selected": np.array([row[3] for row in good]),
    }
    errors = {place: "truncated" for place, row in enumerate(rows) if row[1] is None}
    table, counts = make_part([row[0] for row in rows], kept, errors, columns, class_names)
    part = Part(name, write_part(output / name, table), len(rows), len(errors))
    manifest = {"input": "0", "counts": asdict(counts), "parts": [asdict(part)]}
    identity = {"class_names": list(class_names), "pool": str(pool), "image_column": "image", "checkpoint": "0"}
    (output / "_ledger" / "manifests" / "000000.json").write(json.dumps(manifest).encode())
    (output / "_ledger" / "job.json").write(json.dumps({"identity": identity}).encode())
    (output / "_report" / "summary.json").write(b"{}")
    return folder
