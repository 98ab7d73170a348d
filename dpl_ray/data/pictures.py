"""The images of a set as pictures, for pages: of stored features the images that they were made of.

Legend: K images, C channels, S pixels of a side.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pyarrow import fs

from dpl_ray.config.schema import DataConfig
from dpl_ray.data.dataset import ImageSet
from dpl_ray.data.decode import DecodeSettings
from dpl_ray.data.decode_many import decode_many
from dpl_ray.data.features import read_spec
from dpl_ray.data.files import Location, is_parquet, read_image_file
from dpl_ray.data.parquet import read_rows
from dpl_ray.store.file_systems import open_uri


def read_pictures(part: ImageSet, rows: NDArray[np.int64], data: DataConfig) -> NDArray[np.uint8] | None:
    """(K, C, S, S) of these rows; None where images of features cannot be read any more."""
    if part.images.dtype == np.uint8:
        return part.images[rows]
    assert data.train is not None, "features have a folder"
    spec = read_spec("data.train", data.train)
    settings = DecodeSettings(spec.image_size, spec.channels, spec.fit, spec.interpolation)  # type: ignore[arg-type]
    ids = part.ids[rows].tolist()
    images, _, bad = decode_many([(name, partial(_read, name, data.image_column)) for name in ids], settings)
    return None if bad else images


def _read(sample_id: str, image_column: str) -> bytes:
    filesystem, path = open_uri(sample_id) if "://" in sample_id else (fs.LocalFileSystem(), sample_id)
    file, _, row = path.rpartition(":")
    if not (is_parquet(file) and row.isdecimal()):
        return read_image_file(filesystem, path)
    location = Location("sample", file, filesystem, file, "")
    payload: Any = next(read_rows(location, file, np.array([int(row)]), image_column))[0]
    return (payload() if callable(payload) else payload) or b""
