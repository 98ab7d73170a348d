"""Pools as they are, made of clean ones for benchmarks: with a long tail, and with images of foreign classes.

Both change splits that are drawn already: the labelled images are those of the same seed without them.

Legend: C classes, in the order of their indices; N images of the pool.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from dpl_ray.config.schema import PoolConfig
from dpl_ray.data.dataset import FOREIGN, UNLABELED, ImageSet, Splits

_DRAW = 3  # beside those of the test and the labelled images (data/splits/split.py)


def is_shaped(pool: PoolConfig) -> str:
    """The field that asks for such a pool, with its value; an empty string where none does."""
    asked = {"imbalance": pool.imbalance, "foreign": pool.foreign}
    return next((f"data.pool.{name}={value:g}" for name, value in asked.items() if value is not None), "")


def shape_pool(splits: Splits, config: PoolConfig, *, seed: int) -> Splits:
    """The splits of a pool in memory, as data.pool.imbalance and data.pool.foreign ask for, and what was done in words.

    Raises:
        ValueError: the label of an image is not known, or a class has none, or too few classes are left.
    """
    if not (asked := is_shaped(config)):
        return splits
    pool, told = splits.unlabeled, []
    assert isinstance(pool, ImageSet), "where it is streamed this is refused"
    if len(unknown := pool.ids[pool.targets == UNLABELED]):
        raise ValueError(
            f"{asked}: makes a benchmark of known labels, and {len(unknown):,} of the {len(pool):,} images in the pool "
            f"have none, as {unknown[0]}; take labelled images and data.num_labels_per_class"
        )
    drawn_from = splits.seedless_fingerprint()
    if config.imbalance is not None and len(pool):
        pool = with_tail(pool, config.imbalance, splits.class_names, seed)
        sizes = np.bincount(pool.targets, minlength=len(splits.class_names))
        told.append(f"long tail of {', '.join(map(str, sizes))} images a class")
    splits = replace(splits, unlabeled=pool)
    if config.foreign is not None:
        splits, text = _with_foreign(splits, pool, config.foreign, cleaned=config.cleaned)
        told.append(text)
    return replace(splits, shaped="; ".join(told), drawn_from=drawn_from)


def tail_sizes(available: NDArray[np.int64], ratio: float) -> NDArray[np.int64]:
    """(C,) images of each class: n ratio^(-k / (C - 1)) for k = 0 ... C - 1, with the largest n that there is.

    Args:
        available: (C,) at least 1.
        ratio: of the first class to the last; below 1 the last is the most frequent.
    """
    shares = np.power(float(ratio), -np.linspace(0, 1, len(available)))
    # 1e-9: so that the class which bounds n keeps all of its images.
    return np.maximum(1, np.floor(shares * (available / shares).min() * (1 + 1e-9))).astype(np.int64)


def with_tail(pool: ImageSet, ratio: float, class_names: Sequence[str], seed: int) -> ImageSet:
    """The pool with a long tail, in its order; the images that stay are a random draw of (seed, class).

    Raises:
        ValueError: a class has no image.
    """
    members = [np.flatnonzero(pool.targets == index) for index in range(len(class_names))]
    available = np.array([len(rows) for rows in members])
    if not available.all():
        missing = class_names[int(available.argmin())]
        raise ValueError(f"data.pool.imbalance={ratio:g}: the pool has no image of {missing}; every class needs one")
    kept = [
        np.random.default_rng([_DRAW, seed, index]).permutation(rows)[:size]
        for index, (rows, size) in enumerate(zip(members, tail_sizes(available, ratio), strict=True))
    ]
    return pool.subset(np.sort(np.concatenate(kept)))


def _with_foreign(splits: Splits, pool: ImageSet, share: float, *, cleaned: bool) -> tuple[Splits, str]:
    """The last classes are foreign: labels, validation and test lose them, the pool keeps them or is `cleaned`."""
    num_classes = len(splits.class_names)
    num_known = num_classes - round(share * num_classes)
    if not 2 <= num_known < num_classes:
        raise ValueError(
            f"data.pool.foreign={share:g}: leaves {num_known} of {num_classes} classes with labels; at least 2 and at "
            f"most {num_classes - 1} must be left, as with data.pool.foreign={round(num_classes / 2) / num_classes:g}"
        )
    is_foreign = pool.targets >= num_known
    if cleaned:
        pool = pool.subset(np.flatnonzero(~is_foreign))
    else:
        pool = ImageSet(pool.images, np.where(is_foreign, FOREIGN, pool.targets), pool.ids)
    labeled, validation, test = (
        part.subset(np.flatnonzero(part.targets < num_known))
        for part in (splits.labeled, splits.validation, splits.test)
    )
    names = ", ".join(splits.class_names[num_known:])
    number = f"{int(is_foreign.sum()):,} of {len(is_foreign):,} images"
    text = f"foreign classes {names}, out of labels and test: {number}" + (" left out" if cleaned else "")
    known = splits.class_names[:num_known]
    kept = replace(splits, labeled=labeled, unlabeled=pool, validation=validation, test=test, class_names=known)
    return kept, text
