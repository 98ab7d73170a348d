"""Copies: images of equal pixels, as training sees them (decoded and resized), and what is done with them.

In the user's own images, of files and in memory, and in features of them, unless data.allow_overlap:
- a test image that is a labelled one too is refused: accuracy on it would be false;
- of labelled images that are copies with the same label one is kept, so that the test and validation images which are
  held out of them are not trained on;
- images of the pool and of data.labels that are copies of a labelled or a test image are left out.

Published data sets keep their splits. A streamed pool is not read for it.

Legend: N images.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from dpl_ray.config.schema import DataConfig
from dpl_ray.data.dataset import UNLABELED, Conflict, Copies, ImageSet, Source


def pixel_hashes(images: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """(N,) 64-bit BLAKE2b of the pixels of each of (N, C, H, W).

    Two of 10^6 different images have the same one with a probability of 3e-8.
    """
    digests = [hashlib.blake2b(image, digest_size=8).digest() for image in np.ascontiguousarray(images)]
    return np.frombuffer(b"".join(digests), np.uint64)


def hashes_of(part: ImageSet) -> NDArray[np.uint64]:
    """(N,) of the images themselves."""
    return pixel_hashes(part.images)


def without_copies(
    source: Source,
    data: DataConfig,
    rank: NDArray[np.int64] | None = None,
    hash_of: Callable[[ImageSet], NDArray[np.uint64]] = hashes_of,
) -> Source:
    """The source less its copies, which it counts; the source itself where there are none.

    Args:
        rank: (N,) of `source.train`: of copies with the same label that of the lowest rank is kept, then the first one;
            -1: has no label of its own. None: that of all that have a target is 0.
        hash_of: images -> (N,) hashes of their pixels, which features in place of images have stored.

    Raises:
        ValueError: test images are among the labelled ones.
    """
    train, test = source.train, source.test
    if rank is None:
        rank = np.where(train.targets == UNLABELED, -1, 0)
    hashes = hash_of(train)
    hashes_test = np.empty(0, np.uint64) if test is None else hash_of(test)
    labeled = np.flatnonzero(rank >= 0)
    repeated, conflicts = _compare_labeled(train.subset(labeled), hashes[labeled], rank[labeled], source.class_names)
    in_test = labeled[np.isin(hashes[labeled], hashes_test)]
    if data.allow_overlap:
        num_test = int(np.isin(hashes_test, hashes[labeled]).sum())
        return replace(source, copies=Copies(num_labeled=len(repeated), num_test=num_test, conflicts=conflicts))
    if len(in_test) and not source.pseudo_labels_alone:
        assert test is not None, "it has these hashes"
        raise ValueError(_overlap(train, test, hashes, hashes_test, in_test, data))
    known = np.concatenate([hashes[labeled], hashes_test])
    gone = np.concatenate([labeled[repeated], in_test, np.flatnonzero((rank < 0) & np.isin(hashes, known))])
    rows = np.setdiff1d(np.arange(len(train)), gone)
    pool, selected = (_less(part, known, hash_of) for part in (source.unlabeled, source.selected))
    before, after = (_size(*parts) for parts in ((source.unlabeled, source.selected), (pool, selected)))
    num_pool = len(train) - len(rows) - len(repeated) + before - after
    pseudo_labels = source.train_pseudo_labels
    return replace(
        source,
        train=train.subset(rows),
        unlabeled=pool,
        selected=selected,
        train_pseudo_labels=None if pseudo_labels is None else pseudo_labels[rows],
        copies=Copies(num_pool=num_pool, num_labeled=len(repeated), conflicts=conflicts),
    )


def describe_copies(copies: Copies, data: DataConfig) -> str:
    """What a run says of its copies, in a line; an empty string where there is nothing to say."""
    if data.allow_overlap:
        told = [f"{copies.num_test:,} test images are labelled ones too"] if copies.num_test else []
        told += [f"{copies.num_labeled:,} labelled images are copies of others"] if copies.num_labeled else []
        return f"data.allow_overlap=true: {', '.join(told)}; accuracy may be false" if told else ""
    told = [f"{copies.num_pool:,} in the pool, of labelled or test images"] if copies.num_pool else []
    told += [f"{copies.num_labeled:,} of labelled images"] if copies.num_labeled else []
    return f"copies left out: {'; '.join(told)}" if told else ""


def _compare_labeled(
    labeled: ImageSet, hashes: NDArray[np.uint64], rank: NDArray[np.int64], class_names: tuple[str, ...]
) -> tuple[NDArray[np.int64], tuple[Conflict, ...]]:
    """Positions of those that are copies of another one with the same label, and copies with different labels."""
    order = np.lexsort((rank, labeled.targets, hashes))
    same = hashes[order][1:] == hashes[order][:-1]
    same_label = labeled.targets[order][1:] == labeled.targets[order][:-1]
    conflicts = [
        Conflict(*(text for row in (order[at], order[at + 1]) for text in _with_class(labeled, int(row), class_names)))
        for at in np.flatnonzero(same & ~same_label).tolist()
    ]
    return order[1:][same & same_label], tuple(conflicts)


def _with_class(labeled: ImageSet, row: int, class_names: tuple[str, ...]) -> tuple[str, str]:
    return str(labeled.ids[row]), class_names[labeled.targets[row]]


def _less(
    part: ImageSet | None, known: NDArray[np.uint64], hash_of: Callable[[ImageSet], NDArray[np.uint64]]
) -> ImageSet | None:
    return None if part is None else part.subset(np.flatnonzero(~np.isin(hash_of(part), known)))


def _size(*parts: ImageSet | None) -> int:
    return sum(len(part) for part in parts if part is not None)


def _overlap(
    train: ImageSet,
    test: ImageSet,
    hashes: NDArray[np.uint64],
    hashes_test: NDArray[np.uint64],
    in_test: NDArray[np.int64],
    data: DataConfig,
) -> str:
    rows = np.flatnonzero(np.isin(hashes_test, hashes[in_test]))
    first = int(rows[0])
    other = in_test[hashes[in_test] == hashes_test[first]][0]
    where = f"data.test={data.test}" if data.test is not None else "the test images"
    return (
        f"{where}: {len(rows):,} of its {len(test):,} images are copies of labelled ones, as {test.ids[first]} of "
        f"{train.ids[other]}, and accuracy on them is false; remove them on one side, or set data.allow_overlap=true"
    )
