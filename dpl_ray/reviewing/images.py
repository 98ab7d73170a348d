"""Small pictures of samples of a pool, by their ids: image files and rows of shards, on disks and in buckets.

Legend: N samples.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
from PIL import Image

from dpl_ray.data.files.location import Location
from dpl_ray.data.files.reach import place_of
from dpl_ray.data.formats.samples import read_samples
from dpl_ray.data.images.convert import DecodeSettings
from dpl_ray.data.images.decode import Payload, decode_or_reason, quiet_pillow
from dpl_ray.data.images.decode_many import count_threads

MAX_PIXELS = 384  # of a picture's longer side
LOSSLESS_PIXELS = 96  # up to this side, a picture is a PNG; larger ones are JPEG

Picture = bytes | str
"""PNG or JPEG, or the reason why there is none."""


def read_pictures(pool: Location, sample_ids: Sequence[str], image_column: str) -> list[Picture]:
    """(N,) the picture of each sample. A shard is read once.

    Args:
        pool: has the file system of the samples, unless they lie on this machine, as those of features may. Only their
            own files are looked at.
        sample_ids: as in the labels of a pool: path of an image file, or `file:row` of a shard.
    """
    payloads = read_samples(sample_ids, image_column, partial(place_of, pool))
    with quiet_pillow(), ThreadPoolExecutor(count_threads()) as executor:
        return list(executor.map(make_picture, payloads))


def make_picture(payload: Payload) -> Picture:
    """An encoded image, upright and in its own shape, made smaller where a side is longer than MAX_PIXELS."""
    pixels = decode_or_reason(payload, DecodeSettings(image_size=None), least_side=MAX_PIXELS)
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
