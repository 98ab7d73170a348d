"""Copies of images against slow and obvious references, and what counts as a near copy."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageEnhance
from scipy.fft import dct

from dpl_ray.checking import copies
from dpl_ray.checking.copies import MAX_BITS, exact_pairs, find_copies, near_pairs, perceptual_hashes
from dpl_ray.data.dataset import ImageSet
from tests.checking.test_check import photo

HASHES = st.lists(st.integers(0, 6), max_size=12).map(lambda values: np.array(values, np.uint64))


@given(HASHES, HASHES)
def test_exact_pairs(first: np.ndarray, second: np.ndarray) -> None:
    a, b = first.tolist(), second.tolist()
    assert exact_pairs(first, second).tolist() == [[a.index(value), row] for row, value in enumerate(b) if value in a]
    assert exact_pairs(first, None).tolist() == [
        [a.index(value), row] for row, value in enumerate(a) if a.index(value) < row
    ]


@given(st.integers(0, 2**32), st.integers(0, 9), st.integers(0, 9), st.integers(1, 30))
def test_near_pairs(seed: int, num_first: int, num_second: int, at_a_time: int) -> None:
    random = np.random.default_rng(seed)
    first, second = (
        random.integers(0, 2**10, number).astype(np.uint64) << np.uint64(9) for number in (num_first, num_second)
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(copies, "_PAIRS_AT_A_TIME", at_a_time)
        between, within = near_pairs(first, second).tolist(), near_pairs(first, None).tolist()

    def nearest(row: int, others: list[int], candidates: range) -> list[list[int]]:
        bits = [(int(first[one]) ^ others[row]).bit_count() for one in candidates]
        return [[bits.index(min(bits)), row]] if bits and min(bits) <= MAX_BITS else []

    whole = range(len(first))
    assert between == [pair for row in range(len(second)) for pair in nearest(row, second.tolist(), whole)]
    assert within == [pair for row in whole for pair in nearest(row, first.tolist(), range(row))]


@pytest.mark.parametrize("channels", [1, 3])
def test_the_hash_is_that_of_the_lowest_frequencies(channels: int) -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, channels, 20, 30)).astype(np.uint8)
    found = perceptual_hashes(images)
    for image, value in zip(images, found, strict=True):
        grey = image[0] if channels == 1 else 0.299 * image[0] + 0.587 * image[1] + 0.114 * image[2]
        low = dct(dct(grey.astype(np.float64), axis=0), axis=1)[:8, :8].flatten()
        bits = np.unpackbits(np.array([value]).view(np.uint8))
        assert (bits == (low > np.median(low))).all()


def arrays(pictures: list[Image.Image]) -> ImageSet:
    images = np.stack([np.asarray(picture.convert("RGB")).transpose(2, 0, 1) for picture in pictures])
    targets = np.zeros(len(images), np.int64)
    return ImageSet(np.ascontiguousarray(images), targets, np.array([str(number) for number in range(len(images))]))


def compressed(picture: Image.Image, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    picture.save(buffer, "jpeg", quality=quality)
    return Image.open(buffer)


def test_the_same_photograph_in_another_form_is_a_near_copy() -> None:
    pictures = [photo(number) for number in range(40)]
    side = pictures[0].size
    changed = [
        compressed(pictures[0], 75),
        ImageEnhance.Brightness(pictures[1]).enhance(0.8),
        pictures[2].resize((20, 20)).resize(side),
        pictures[3].convert("L"),
        pictures[4],  # an exact copy is no near one
        photo(100),
    ]
    found = {(pairs.first, pairs.second): pairs for pairs in find_copies({"a": arrays(pictures), "b": arrays(changed)})}
    assert found["a", "b"].near.tolist() == [[0, 0], [1, 1], [2, 2], [3, 3]]
    assert found["a", "b"].exact.tolist() == [[4, 4]]
    assert not len(found["a", "a"].near)
    assert not len(found["b", "b"].exact)


def test_images_of_one_colour_and_tiny_ones_are_no_near_copies() -> None:
    plain = arrays([Image.new("RGB", (20, 20), (level, 9, 9)) for level in range(5)])
    assert not any(len(pairs.near) for pairs in find_copies({"a": plain, "b": plain.subset(np.arange(3))}))
    small = arrays([photo(number).resize((8, 8)) for number in range(5)])
    assert not any(len(pairs.near) for pairs in find_copies({"a": small, "b": small}))
    empty = small.subset(np.empty(0, np.int64))
    assert not any(len(pairs.exact) for pairs in find_copies({"a": small, "b": empty}))
