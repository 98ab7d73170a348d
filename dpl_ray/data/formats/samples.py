"""Samples by their ids: paths of image files, rows of parquet files as `file.parquet:12`, members of tars."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial

import numpy as np

from dpl_ray.data.files.kinds import read_file
from dpl_ray.data.files.location import Location
from dpl_ray.data.files.reach import OutOfReachError
from dpl_ray.data.files.shards import is_tar, split_id
from dpl_ray.data.formats import parquet, tar
from dpl_ray.data.images.decode import MISSING, Payload


def read_samples(sample_ids: Sequence[str], image_column: str, locate: Callable[[str], Location]) -> Iterator[Payload]:
    """The encoded image of each sample, in their order; what cannot be read is a payload that raises.

    Image files are opened by their payloads. The wanted rows of a shard are read together, when its first one is
    asked for, and held.

    Args:
        image_column: of parquet files; one without it may have another, which is its only one of images.
        locate: file, as the ids have it -> its place, or `OutOfReachError`.
    """
    rows: dict[str, set[str]] = {}
    for file, row in map(split_id, sample_ids):
        if row is not None:
            rows.setdefault(file, set()).add(row)
    held: dict[tuple[str, str], Payload] = {}
    for file, row in map(split_id, sample_ids):
        try:
            place = locate(file)
        except OutOfReachError as error:
            yield parquet.failing(error.reason)
            continue
        if row is None:
            yield partial(read_file, place.filesystem, place.path)
            continue
        if file in rows:
            read = _read_members if is_tar(file) else partial(_read_rows, image_column=image_column)
            held |= {(file, each): payload for each, payload in read(place, rows.pop(file))}
        yield held.get((file, row), parquet.failing(MISSING))


def _read_rows(place: Location, rows: Collection[str], image_column: str) -> Iterator[tuple[str, Payload]]:
    wanted = sorted(map(int, rows))
    column = parquet.find_image_column(place, place.path, image_column)
    found = parquet.read_rows(place, place.path, np.array(wanted), column)
    yield from zip(map(str, wanted), (payload for payload, _ in found), strict=True)


def _read_members(place: Location, names: Collection[str]) -> Iterator[tuple[str, Payload]]:
    rows = tar.rows_of(place, place.path, names, None)
    found = tar.read_rows(place, place.path, rows)
    yield from zip(tar.names_of(place, place.path, rows, None), (payload for payload, _ in found), strict=True)
