"""The images of a set as pictures, for pages: of stored features the images that they were made of.

Legend: K images, C channels, S pixels of a side.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from pyarrow import fs

from dpl_ray.config.schema import DataConfig
from dpl_ray.data.dataset import ImageSet
from dpl_ray.data.features.folder import read_spec
from dpl_ray.data.files.location import Location, open_location
from dpl_ray.data.files.reach import OutOfReachError, check_addresses
from dpl_ray.data.formats.samples import read_samples
from dpl_ray.data.images.convert import DecodeSettings
from dpl_ray.data.images.decode_many import decode_many
from dpl_ray.store.file_systems import open_uri


def read_pictures(part: ImageSet, rows: NDArray[np.int64], data: DataConfig) -> NDArray[np.uint8] | None:
    """(K, C, S, S) of these rows; None where images of features cannot be read any more."""
    if part.images.dtype == np.uint8:
        return part.images[rows]
    assert data.train is not None, "features have a folder"
    spec = read_spec("data.train", data.train)
    settings = DecodeSettings(spec.image_size, spec.channels, spec.fit, spec.interpolation)  # type: ignore[arg-type]
    ids = part.ids[rows].tolist()
    try:
        check_addresses(ids, open_location("data.train", data.train), data)
    except OutOfReachError:
        return None
    images, _, bad = decode_many(zip(ids, read_samples(ids, data.image_column, locate), strict=True), settings)
    return None if bad else images


def locate(file: str) -> Location:
    """The place of a file that ids name."""
    filesystem, path = open_uri(file) if "://" in file else (fs.LocalFileSystem(), file)
    return Location("sample", file, filesystem, path, "")
