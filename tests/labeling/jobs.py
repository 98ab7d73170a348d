"""A small checkpoint, pools and outputs that the tests of labelling share."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from dpl_ray.config.section import validated
from dpl_ray.labeling.config import LabelConfig
from dpl_ray.labeling.job import LabelResult, label_pool
from tests.builders import save_labeler, tiny_config

CLASSES = ("ant", "bee", "cat")
SIZE = 8


def make_checkpoint(folder: Path, policy: str | dict[str, Any] = "dpl", scale: float = 3, **data: Any) -> str:
    chosen = {"name": policy} if isinstance(policy, str) else policy
    config = tiny_config(policy=chosen, data={"name": "digits", "image_size": SIZE} | data)
    return save_labeler(folder, config, CLASSES, 3, SIZE, scale)


def picture(number: int, size: tuple[int, int] = (SIZE, SIZE)) -> Image.Image:
    noise = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(noise)


def encode(image: Image.Image, form: str = "png", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def png(number: int) -> bytes:
    return encode(picture(number))


def write_images(folder: Path, numbers: range) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        (folder / f"{number:04d}.png").write_bytes(png(number))


def write_parquet(path: Path, numbers: range, row_group_size: int = 5) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"image": [png(number) for number in numbers]}), path, row_group_size=row_group_size)


def label(checkpoint: str, pool: Path | str | tuple[str, ...], output: Path | str, **fields: Any) -> LabelResult:
    """In this process, in parts of 4 rows, and not to MLflow."""
    tree: dict[str, Any] = {"checkpoint": checkpoint, "pool": str(pool) if isinstance(pool, Path) else pool}
    tree |= {"output": str(output), "rows_per_part": 4, "batch_size": 3}
    tree |= {"scale": {"num_workers": 0}, "tracking": {"enabled": False}}
    return label_pool(validated(LabelConfig, tree | fields))


def rows(output: Path | str) -> dict[str, dict[str, Any]]:
    """Sample id -> its row; each once."""
    table = pq.read_table(str(output))
    found = {row["sample_id"]: row for row in table.to_pylist()}
    assert len(found) == len(table), "a sample is there twice"
    return found


def parts(output: Path) -> dict[str, tuple[int, bytes]]:
    """Part -> when it was written, and its bytes."""
    return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in sorted(output.glob("part-*.parquet"))}


def summary(output: Path) -> dict[str, Any]:
    return json.loads((output / "_report" / "summary.json").read_text())
