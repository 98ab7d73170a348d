"""Whether a pool is streamed, and the files that it is read from."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from dpl_ray.config.schema import DataConfig
from dpl_ray.data.files.listing import Listing
from dpl_ray.data.files.location import open_location
from dpl_ray.data.files.reach import Reach
from dpl_ray.data.files.shards import are_shards
from dpl_ray.data.formats.rows import PoolFiles, list_pool, pool_of
from dpl_ray.data.images.convert import DecodeSettings
from dpl_ray.data.images.decode import decode_or_reason
from dpl_ray.data.labeled.records import Records
from dpl_ray.data.labels import label_indices
from dpl_ray.data.pool.benchmark import is_shaped
from dpl_ray.data.pool.windows import StreamedPool

_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


def should_stream(data: DataConfig, train: Records, num_images: int) -> bool:
    """Whether the mode, or in `auto` the size of all images decoded, asks for streaming.

    Raises:
        ValueError: it does, but the images have no size yet.
    """
    why = reason_to_stream(data, num_images, lambda: bytes_per_image(data, train))
    if why is not None and data.image_size is None:
        raise ValueError(
            f"{why}, which takes images of one size; set the side to resize them to, as data.image_size=32"
        )
    return why is not None


def reason_to_stream(data: DataConfig, num_images: int, bytes_each: Callable[[], int]) -> str | None:
    """Why so many images or their features are streamed, for messages; None where they are held in memory.

    Args:
        bytes_each: of an image in memory, which is asked for in the mode `auto` alone.

    Raises:
        ValueError: the pool is to be made a benchmark of, which takes one in memory.
    """
    why = "data.pool.mode=stream"
    if data.pool.mode == "memory":
        return None
    if data.pool.mode == "auto":
        size, limit = num_images * bytes_each(), data.pool.memory_share * memory_size()
        if size <= limit:
            return None
        why = f"data.pool.memory_share={data.pool.memory_share}: the {num_images} images take {size / 1e9:.1f} GB"
        why += f" decoded, more than {limit / 1e9:.1f} GB, so that they are streamed"
    if made := is_shaped(data.pool):
        raise ValueError(f"{made}: it takes a pool in memory, and {why}; set data.pool.mode=memory")
    return why


def memory_size() -> int:
    """Bytes of memory of this machine, or of the container that this is."""
    size = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = _CGROUP_LIMIT.read_text().strip() if _CGROUP_LIMIT.is_file() else "max"
    return min(size, int(limit)) if limit.isdecimal() else size


def streamed_pool(
    data: DataConfig,
    class_names: tuple[str, ...],
    train: Records,
    rest: Collection[str],
    unlabeled: PoolFiles | None,
    others: Collection[str],
) -> StreamedPool:
    """The pool of what is left of data.train and of data.unlabeled.

    Args:
        rest: ids of data.train that are in the pool.
        unlabeled: files of data.unlabeled.
        others: ids of data.train and data.test, which are not taken from data.unlabeled.
    """
    parts = []
    if rest:
        parts.append(_rest_of(train, set(rest), class_names))
    if unlabeled is not None:
        parts.append(unlabeled.without(others))
    return StreamedPool(tuple(parts), DecodeSettings.from_config(data), class_names)


def list_unlabeled(data: DataConfig, class_names: tuple[str, ...] | None = None) -> PoolFiles:
    """The files of data.unlabeled, in memory or streamed.

    Args:
        class_names: of which integer labels are to be the indices; None where labels do not matter.

    Raises:
        ValueError: there is nothing to read, or no file has the column of the images, or too much of it is in shards
            that cannot be read.
    """
    assert data.unlabeled is not None, "asked for where it is given"
    location = replace(open_location("data.unlabeled", data.unlabeled), reach=Reach.of(data))
    files = list_pool(location, image_column=data.image_column, label_column=data.label_column, class_names=class_names)
    files.check_image_column("data.image_column")
    files.check_unopened("data.max_bad_fraction", data.max_bad_fraction)
    return files


def _rest_of(train: Records, rest: set[str], class_names: tuple[str, ...]) -> PoolFiles:
    files = train.files or files_named(train, sorted(rest))
    if are_shards(files.paths).any():
        return files.without([sample_id for sample_id in train.ids if sample_id not in rest])
    known = dict(zip(train.ids, label_indices(train.labels, class_names).tolist(), strict=True))
    files = files.where(lambda file: files.name(file) in rest)
    return replace(files, labels=np.array([known.get(files.name(file), -1) for file in range(len(files.paths))]))


def files_named(train: Records, ids: list[str]) -> PoolFiles:
    """The images of these ids that a CSV names; `ValueError` where one lies on another file system than the CSV."""
    scheme = train.location.scheme
    if elsewhere := [sample_id for sample_id in ids if ("://" in sample_id) != bool(scheme)]:
        raise train.location.error(
            f"all images of a pool lie on one file system, and {elsewhere[0]} does not lie beside it"
        )
    paths = [sample_id.removeprefix(scheme) for sample_id in ids]
    sizes = [info.size or 0 for info in train.location.filesystem.get_file_info(paths)]
    return pool_of(train.location, Listing(pa.array(paths, pa.large_string()), np.array(sizes, np.int64)))


def bytes_per_image(data: DataConfig, train: Records) -> int:
    """Of a decoded image: all are of one size, that of the first where data.image_size does not say it."""
    if data.image_size is not None:
        return data.channels * data.image_size**2
    for payload in train.read():
        decoded = decode_or_reason(payload, DecodeSettings.from_config(data))
        if not isinstance(decoded, str):
            return decoded.nbytes
    return 0
