"""Outputs of pipelines.label with labels as a test wants them: parts and books, and no images."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from fsspec.implementations.local import LocalFileSystem
from pyarrow import fs

from dpl_ray.labeling.ledger import Part
from dpl_ray.labeling.parts import Counts, make_part, write_part
from dpl_ray.store.storage import Storage

CLASSES = ("ant", "bee", "cat")


def write_output(folder: Path, parts: Sequence[Sequence[int]], *, seed: int = 0, has_cells: bool = True) -> Path:
    """Random labels.

    Args:
        parts: rows of each part of each input; the first row of each part is an unreadable image.
        has_cells: whether the parts count their labels by class and confidence, as those of older versions do not.
    """
    random = np.random.default_rng(seed)
    output = Storage(str(folder))
    for number, rows_of in enumerate(parts):
        total, books = Counts.none(len(CLASSES)), []
        for block, rows in enumerate(rows_of):
            name = f"part-{number:06d}-{block:05d}.parquet"
            ids = [f"/pool/{number:06d}/{block:05d}/{row:08d}.png" for row in range(rows)]
            confidence = (1 - random.random(rows - 1) ** 3 / 1.5).astype(np.float32)
            columns = {
                "pseudo_label": random.choice(len(CLASSES), rows - 1, p=[0.6, 0.3, 0.1]),
                "confidence": confidence,
                "second_label": np.zeros(rows - 1, np.int64),
                "second_confidence": 1 - confidence,
                "entropy": random.random(rows - 1, np.float32),
                "weight": random.random(rows - 1, np.float32),
                "selected": confidence >= 0.9,
            }
            table, counts = make_part(ids, np.arange(1, rows), {0: "truncated"}, columns, CLASSES)
            if not has_cells:
                counts.cells_selected, counts.cells_rejected = [], []
            books.append(asdict(Part(name, write_part(output / name, table), rows, 1)))
            total += counts
        manifest = {"input": str(number), "counts": asdict(total), "parts": books}
        (output / "_ledger" / "manifests" / f"{number:06d}.json").write(json.dumps(manifest).encode())
    identity = {"class_names": CLASSES, "pool": "/pool", "image_column": "image", "checkpoint": str(seed)}
    (output / "_ledger" / "job.json").write(json.dumps({"identity": identity}).encode())
    (output / "_report" / "summary.json").write(b"{}")
    return folder


class Counting(fs.FSSpecHandler):
    """Local files, and how many bytes are read of each."""

    def __init__(self) -> None:
        super().__init__(LocalFileSystem())
        self.read: Counter[str] = Counter()

    def open_input_file(self, path: str) -> Any:
        counted = self.read

        class File(io.FileIO):
            def read(self, size: int = -1) -> bytes:
                found = super().read(size)
                counted[Path(path).name] += len(found)
                return found

        return pa.PythonFile(File(path), mode="r")

    open_input_stream = open_input_file

    def storage(self, path: str) -> Storage:
        """In place of Storage(path)."""
        storage = Storage(path)
        storage.filesystem = fs.PyFileSystem(self)
        return storage
