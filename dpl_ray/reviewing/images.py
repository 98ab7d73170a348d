"""Small pictures of samples of a pool, by their ids: image files and rows of parquet files, on disks and in buckets.

Legend: N samples.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
from PIL import Image

from dpl_ray.data.decode import DecodeSettings, Payload, decode_or_reason, quiet_pillow
from dpl_ray.data.decode_many import count_threads
from dpl_ray.data.files import Location, is_parquet, read_image_file
from dpl_ray.data.parquet import read_rows

MAX_PIXELS = 384  # of a picture's longer side
LOSSLESS_PIXELS = 96  # up to this side, a picture is a PNG; larger ones are JPEG

Picture = bytes | str
"""PNG or JPEG, or the reason why there is none."""


def read_pictures(pool: Location, sample_ids: Sequence[str], image_column: str) -> list[Picture]:
    """(N,) the picture of each sample. Of a parquet file, the row groups that hold its samples are read once.

    Args:
        pool: on its file system are the samples; only their own files are looked at.
        sample_ids: as in the labels of a pool: path of an image file, or `file:row` of a parquet file.
    """
    found: dict[str, Picture] = {}
    with quiet_pillow(), ThreadPoolExecutor(count_threads()) as executor:
        for ids, payloads in _by_file(pool, sample_ids, image_column):
            found |= zip(ids, executor.map(make_picture, payloads), strict=True)
    return [found[sample_id] for sample_id in sample_ids]


def _by_file(pool: Location, sample_ids: Sequence[str], image_column: str) -> Iterator[tuple[list[str], list[Payload]]]:
    """Ids and encoded images, those of a parquet file together; image files are read by their payloads."""
    files: list[str] = []
    rows: dict[str, set[int]] = {}
    for sample_id in dict.fromkeys(sample_ids):
        name, _, row = sample_id.rpartition(":")
        if is_parquet(name) and row.isdecimal():
            rows.setdefault(name, set()).add(int(row))
        else:
            files.append(sample_id)
    yield files, [partial(read_image_file, pool.filesystem, name.removeprefix(pool.scheme)) for name in files]
    for name, of_file in rows.items():
        wanted = np.array(sorted(of_file))
        payloads = read_rows(pool, name.removeprefix(pool.scheme), wanted, image_column)
        yield [f"{name}:{row}" for row in wanted], [payload for payload, _ in payloads]


def make_picture(payload: Payload) -> Picture:
    """An encoded image, upright and in its own shape, made smaller where a side is longer than MAX_PIXELS."""
    pixels = decode_or_reason(payload, DecodeSettings(image_size=None))
    if isinstance(pixels, str):
        return pixels
    image = Image.fromarray(np.moveaxis(pixels, 0, 2))
    image.thumbnail((MAX_PIXELS, MAX_PIXELS))
    buffer = io.BytesIO()
    if max(image.size) <= LOSSLESS_PIXELS:
        image.save(buffer, "png", optimize=True)
    else:
        image.save(buffer, "jpeg", quality=85, optimize=True)
    return buffer.getvalue()
