"""The types that data comes in: decoded images with their targets, and the four splits of a run.

Legend: N images, C channels, H and W pixels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

UNLABELED = -1
FOREIGN = -2  # known to be of no class of the run: in the pools of benchmarks


class Streamed(Protocol):
    """A pool that is read while it is trained on: its size is known, its pixels are not."""

    def __len__(self) -> int: ...

    def fingerprint(self) -> str: ...


@dataclass(frozen=True)
class ImageSet:
    """Decoded images of one size, or in their place stored features (data/features/folder.py)."""

    images: NDArray[Any]  # (N, C, H, W) uint8, or (N, 1 + 2 V, 1, D) float16; contiguous
    targets: NDArray[np.int64]  # (N,) class index, UNLABELED where unknown, or FOREIGN
    ids: NDArray[np.str_]  # (N,) path, "file:row" or "train/123"

    def __post_init__(self) -> None:
        assert self.images.dtype in (np.uint8, np.float16)
        assert (self.images.ndim, self.targets.dtype) == (4, np.int64)
        assert self.images.flags.c_contiguous
        assert self.targets.shape == self.ids.shape == self.images.shape[:1]

    def __len__(self) -> int:
        return len(self.images)

    def subset(self, indices: NDArray[np.int64]) -> ImageSet:
        """The images at these indices, in this order; the set itself where that is all of it."""
        if np.array_equal(indices, np.arange(len(self))):
            return self
        return ImageSet(self.images[indices], self.targets[indices], self.ids[indices])


@dataclass(frozen=True)
class BadImage:
    """An image that was set aside, and why."""

    id: str
    reason: str


class Conflict(NamedTuple):
    """One image under two labels: ids and class names."""

    first_id: str
    first_class: str
    second_id: str
    second_class: str


@dataclass(frozen=True)
class Copies:
    """Images of equal pixels in the user's own data; nothing is left out with data.allow_overlap."""

    num_pool: int = 0  # left out of the pool: copies of labelled or test images
    num_labeled: int = 0  # labelled images that are copies of others with the same label: left out
    num_test: int = 0  # test images that are labelled ones too, with data.allow_overlap
    conflicts: tuple[Conflict, ...] = ()


@dataclass(frozen=True)
class Source:
    """What a data set or the user's files hold, before it is split."""

    name: str  # for messages: data=digits or data.train=/path
    class_names: tuple[str, ...]
    train: ImageSet  # targets may be UNLABELED
    unlabeled: ImageSet | None = None
    test: ImageSet | None = None  # None: there is none, so a share of `train` is held out
    bad: tuple[BadImage, ...] = ()
    selected: ImageSet | None = None  # of the pool, with pseudo-labels as targets: to be trained on, and no more
    train_pseudo_labels: NDArray[np.int64] | None = None  # (N,) of `train`, for those that are not chosen as labelled
    pseudo_labels_alone: bool = False  # the targets of `train` are pseudo-labels
    left_out: Mapping[str, int] = field(default_factory=dict)  # files that are no images, by extension
    copies: Copies = Copies()


@dataclass(frozen=True)
class Splits:
    """What a run reads. No image is in two of the four sets.

    The targets of `unlabeled` are the true labels where they are known: they serve the pseudo-labels'
    precision and must not reach training.
    """

    labeled: ImageSet
    unlabeled: ImageSet | Streamed
    validation: ImageSet
    test: ImageSet
    class_names: tuple[str, ...]
    bad: tuple[BadImage, ...]
    num_pseudo_labeled: int = 0  # of `labeled`: those whose targets are pseudo-labels of data.labels
    left_out: Mapping[str, int] = field(default_factory=dict)  # files that are no images, by extension
    copies: Copies = Copies()
    shaped: str = ""  # what was made of the pool for a benchmark (data/pool/benchmark.py)
    drawn_from: str | None = None  # the `seedless_fingerprint` before that

    def fingerprint(self) -> str:
        """Hex digest of names, targets and pixels of all four sets: equal where a run would see the same data.

        Of a pool that is streamed, of names and sizes of its files.
        """
        digest = hashlib.blake2b(digest_size=16)
        digest.update("\0".join(self.class_names).encode())
        for part in (self.labeled, self.unlabeled, self.validation, self.test):
            if not isinstance(part, ImageSet):
                digest.update(f"\0{part.fingerprint()}\0".encode())
                continue
            digest.update(f"\0{part.images.shape}\0".encode())
            digest.update("\0".join(part.ids.tolist()).encode(errors="surrogateescape"))
            digest.update(part.targets.data)
            digest.update(part.images.data)
        return digest.hexdigest()

    def seedless_fingerprint(self) -> str:
        """The same of class names, test split and all other images together: equal for every seed of the same data.

        The seed decides which images are labelled, for validation or in the pool, and so their order: they are read
        by their ids. Of a pool in memory, as it was before images were left out of it for a benchmark.
        """
        if self.drawn_from is not None:
            return self.drawn_from
        assert isinstance(self.unlabeled, ImageSet), "comparisons do not stream"
        digest = hashlib.blake2b(digest_size=16)
        digest.update("\0".join(self.class_names).encode())
        for parts in ((self.test,), (self.labeled, self.unlabeled, self.validation)):
            ids = np.concatenate([part.ids for part in parts])
            targets = np.concatenate([part.targets for part in parts])
            images = [image for part in parts for image in part.images]  # views: the pool is not copied
            order = np.argsort(ids, kind="stable")
            digest.update(f"\0{len(ids)}\0{parts[0].images.shape[1:]}\0".encode())
            digest.update("\0".join(ids[order].tolist()).encode(errors="surrogateescape"))
            digest.update(targets[order].data)
            for index in order.tolist():
                digest.update(images[index].data)
        return digest.hexdigest()


def concatenate(first: ImageSet, second: ImageSet) -> ImageSet:
    """Both sets, one after the other; nothing is copied where one is empty."""
    if not len(second):
        return first
    if not len(first):
        return second
    return ImageSet(
        np.concatenate((first.images, second.images)),
        np.concatenate((first.targets, second.targets)),
        np.concatenate((first.ids, second.ids)),
    )


def empty_like(other: ImageSet) -> ImageSet:
    """No image, in the size of the others."""
    return ImageSet(other.images[:0], other.targets[:0], other.ids[:0])
