"""Exact and near copies among the images of a run.

Exact copies have the same pixels after decoding. Near copies are alike to the eye: the same photograph in another
compression, size or brightness. They have perceptual hashes that differ in few bits, and grey pixels that correlate.
Images that are mirrored, turned or cropped are not found.

Legend: N images, C channels, H and W pixels, P pairs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations_with_replacement

import numpy as np
from numpy.typing import NDArray
from scipy.fft import dct

from dpl_ray.data.dataset import ImageSet
from dpl_ray.data.splits.copies import pixel_hashes

LEAST_SIDE = 16  # pixels, of images that are compared for near copies: smaller ones are alike too often
MAX_BITS = 10  # of 64, in which the hashes of near copies differ at most
LEAST_CORRELATION = 0.98  # of their grey pixels
MAX_COMPARED = 50_000  # images of a set that are compared for near copies, the first ones
_FREQUENCIES = 8  # in each direction
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R 601
_IMAGES_AT_A_TIME = 1024
_PAIRS_AT_A_TIME = 2**22

_NOTHING = np.empty((0, 2), np.int64)

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Pairs:
    """Images of a set that are copies of images of another set, or of earlier ones of the same set."""

    first: str  # names of the sets
    second: str
    exact: Rows  # (P, 2) a row of the first set, and the row of the second set that is its copy
    near: Rows  # (P, 2)


def find_copies(parts: Mapping[str, ImageSet], stored: Mapping[str, int] | None = None) -> list[Pairs]:
    """Copies between any two sets, of the last set within itself exact ones alone: it may be large.

    Args:
        parts: name -> images, all of one size, or features of images.
        stored: id -> hash of the pixels, of the images in place of which there are features; of these, exact copies.
    """
    if stored is not None:
        hashes = {name: np.array([stored[each] for each in part.ids], np.uint64) for name, part in parts.items()}
        return [
            Pairs(first, second, exact_pairs(hashes[first], None if first == second else hashes[second]), _NOTHING)
            for first, second in combinations_with_replacement(parts, 2)
        ]
    hashes = {name: pixel_hashes(part.images) for name, part in parts.items()}
    seen = {name: perceptual_hashes(part.images[:MAX_COMPARED]) for name, part in parts.items()}
    last = list(parts)[-1]
    found = []
    for first, second in combinations_with_replacement(parts, 2):
        exact = exact_pairs(hashes[first], None if first == second else hashes[second])
        near = _NOTHING
        if not first == second == last and min(parts[first].images.shape[2:]) >= LEAST_SIDE:
            near = near_pairs(seen[first], None if first == second else seen[second])
            differ = hashes[first][near[:, 0]] != hashes[second][near[:, 1]]
            near = near[differ & (correlation(parts[first], parts[second], near) >= LEAST_CORRELATION)]
        found.append(Pairs(first, second, exact, near))
    return found


def exact_pairs(first: NDArray[np.uint64], second: NDArray[np.uint64] | None) -> Rows:
    """(P, 2): every row of `second` whose hash `first` has, with the first such row; None: later rows of `first`."""
    values, places = np.unique(first, return_index=True)
    others = first if second is None else second
    at = np.searchsorted(values, others).clip(max=max(0, len(values) - 1))
    rows = np.flatnonzero(values[at] == others) if len(values) else np.empty(0, np.int64)
    pairs = np.column_stack([places[at[rows]], rows]) if len(rows) else np.empty((0, 2), np.int64)
    return pairs[pairs[:, 0] < pairs[:, 1]] if second is None else pairs


def perceptual_hashes(images: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """(N,) which of the 64 lowest frequencies of (N, C, H, W), in grey, are above their median: `phash` of imagehash.

    Not the library itself: it takes Pillow's images one by one and resizes them first. Here all images have one size,
    so that a batch is two products of matrices.
    """
    height, width = images.shape[2:]
    vertical, horizontal = (dct(np.eye(side, dtype=np.float32), axis=0)[:_FREQUENCIES] for side in (height, width))
    found = [np.empty(0, np.uint64)]
    for start in range(0, len(images), _IMAGES_AT_A_TIME):
        grey = _grey(images[start : start + _IMAGES_AT_A_TIME])
        low = (vertical @ grey @ horizontal.T).reshape(len(grey), -1)
        bits = np.packbits(low > np.median(low, axis=1, keepdims=True), axis=1)
        found.append(np.ascontiguousarray(np.pad(bits, ((0, 0), (0, 8 - bits.shape[1])))).view(np.uint64)[:, 0])
    return np.concatenate(found)


def near_pairs(first: NDArray[np.uint64], second: NDArray[np.uint64] | None) -> Rows:
    """(P, 2): every row of `second` with the nearest row of `first`, where few bits differ; None: rows of `first`."""
    others = first if second is None else second
    found = [np.empty((0, 2), np.int64)]
    step = max(1, _PAIRS_AT_A_TIME // max(1, len(first)))
    for start in range(0, len(others) if len(first) else 0, step):
        bits = np.bitwise_count(others[start : start + step, None] ^ first)
        rows = np.arange(start, start + len(bits))
        if second is None:
            bits[np.arange(len(first)) >= rows[:, None]] = 255  # an image itself, and each pair once
        nearest = bits.argmin(axis=1)
        close = bits[np.arange(len(bits)), nearest] <= MAX_BITS
        found.append(np.column_stack([nearest[close], rows[close]]))
    return np.concatenate(found)


def correlation(first: ImageSet, second: ImageSet, pairs: Rows) -> NDArray[np.float64]:
    """(P,) Pearson's, of the grey pixels of each pair; 0 where an image has one grey alone."""
    found = [np.empty(0)]
    for start in range(0, len(pairs), _IMAGES_AT_A_TIME):
        rows = pairs[start : start + _IMAGES_AT_A_TIME]
        one, other = (_centred(part.images[rows[:, side]]) for side, part in enumerate((first, second)))
        norm = np.sqrt((one**2).sum(axis=1) * (other**2).sum(axis=1))
        found.append(np.divide((one * other).sum(axis=1), norm, out=np.zeros(len(rows)), where=norm > 0))
    return np.concatenate(found)


def _grey(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(N, C, H, W) -> (N, H, W)."""
    if images.shape[1] == 1:
        return images[:, 0].astype(np.float32)
    return np.tensordot(_LUMA, images.astype(np.float32), axes=(0, 1))


def _centred(images: NDArray[np.uint8]) -> NDArray[np.float64]:
    """(N, H * W) grey pixels less their mean."""
    grey = _grey(images).reshape(len(images), -1).astype(np.float64)
    return grey - grey.mean(axis=1, keepdims=True)


def with_copies(found: list[Pairs]) -> Iterator[Pairs]:
    """Those of sets that have copies."""
    return (pairs for pairs in found if len(pairs.exact) or len(pairs.near))
