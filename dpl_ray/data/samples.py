"""Samples by their ids: paths of image files, and rows of parquet files as `file.parquet:12`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np

from dpl_ray.data.decode import Payload
from dpl_ray.data.files import Location, is_parquet, read_file
from dpl_ray.data.parquet import read_rows


def file_and_row(sample_id: str) -> tuple[str, int | None]:
    """File and row of `file.parquet:12`; of an image file itself and None."""
    file, _, row = sample_id.rpartition(":")
    return (file, int(row)) if is_parquet(file) and row.isdecimal() else (sample_id, None)


def read_samples(sample_ids: Sequence[str], image_column: str, locate: Callable[[str], Location]) -> Iterator[Payload]:
    """The encoded image of each sample, in their order; what cannot be read is a payload that raises.

    Image files are opened by their payloads. The wanted rows of a parquet file are read together, when its first one is
    asked for, and held.

    Args:
        locate: file, as the ids have it -> its place.
    """
    rows: dict[str, set[int]] = {}
    for file, row in map(file_and_row, sample_ids):
        if row is not None:
            rows.setdefault(file, set()).add(row)
    held: dict[tuple[str, int], Payload] = {}
    for file, row in map(file_and_row, sample_ids):
        place = locate(file)
        if row is None:
            yield partial(read_file, place.filesystem, place.path)
            continue
        if file in rows:
            wanted = sorted(rows.pop(file))
            found = read_rows(place, place.path, np.array(wanted), image_column)
            held |= {(file, each): payload for each, (payload, _) in zip(wanted, found, strict=True)}
        yield held[file, row]
