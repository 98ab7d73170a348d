"""order.py and feed.py: which images make up the global batch of a step, and each worker's share of it."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dpl_ray.data.batches.augment import WEAK_UNIFORMS
from dpl_ray.data.batches.feed import Batch, BatchFeed
from dpl_ray.data.order import RandomStream, _permutation, layer_seed, sample_order, view_uniforms
from tests.builders import tiny_config, tiny_feed, tiny_splits

sizes, batch_sizes, seeds = st.integers(1, 40), st.integers(1, 90), st.integers(0, 2**31)


def order(
    size: int, batch_size: int, step: int, seed: int = 0, stream: RandomStream = RandomStream.ORDER_UNLABELED
) -> list[int]:
    return sample_order(size, batch_size, step, seed, stream).tolist()


@settings(max_examples=60)
@given(size=sizes, batch_size=batch_sizes, num_steps=st.integers(1, 8), seed=seeds)
def test_every_pass_takes_every_image_once(size: int, batch_size: int, num_steps: int, seed: int) -> None:
    drawn = [index for step in range(num_steps) for index in order(size, batch_size, step, seed)]
    assert len(drawn) == num_steps * batch_size
    for start in range(0, len(drawn), size):
        a_pass = drawn[start : start + size]
        assert sorted(a_pass) == list(range(size)) or (len(set(a_pass)) == len(a_pass) < size)


@settings(max_examples=40)
@given(size=sizes, batch_size=batch_sizes, steps=st.lists(st.integers(0, 50), min_size=1, max_size=6), seed=seeds)
def test_a_batch_is_a_function_of_seed_and_step_however_it_is_asked_for(
    size: int, batch_size: int, steps: list[int], seed: int
) -> None:
    asked = {step: order(size, batch_size, step, seed) for step in steps}
    for step in sorted(asked, reverse=True):
        _permutation.cache_clear()
        assert order(size, batch_size, step, seed) == asked[step]


def test_a_batch_larger_than_the_set_repeats_it_evenly() -> None:
    batch = order(7, 24, step=3)
    assert len(batch) == 24
    assert set(np.bincount(batch)) <= {3, 4}  # 24 places of 7 images
    assert order(1, 5, step=2) == [0] * 5


def test_passes_steps_seeds_and_streams_differ() -> None:
    batches = [
        order(30, 30, step=0),
        order(30, 30, step=1),
        order(30, 30, step=0, seed=1),
        order(30, 30, step=0, stream=RandomStream.ORDER_LABELED),
    ]
    assert len({tuple(batch) for batch in batches}) == len(batches)
    assert len(
        {tuple(view_uniforms(2, 3, 0, seed, stream).ravel()) for seed in (0, 1) for stream in RandomStream}
    ) == 2 * len(RandomStream)
    assert len({layer_seed(seed, step, rank) for seed in range(3) for step in range(3) for rank in range(3)}) == 27


def test_the_order_cannot_be_written_to() -> None:
    first = sample_order(5, 5, 0, 0, RandomStream.ORDER_LABELED)
    expected = first.tolist()
    first[:] = 0
    assert order(5, 5, 0, stream=RandomStream.ORDER_LABELED) == expected


def test_uniforms_fill_the_unit_interval() -> None:
    uniforms = view_uniforms(500, 9, 0, 0, RandomStream.VIEWS_STRONG)
    assert (uniforms.shape, uniforms.dtype) == ((500, 9), np.float32)
    assert uniforms.min() >= 0
    assert uniforms.max() < 1
    assert abs(uniforms.mean() - 0.5) < 0.02


def feeds(num_workers: int, seed: int = 0, **splits: Any) -> list[BatchFeed]:
    config = tiny_config(train={"batch_size": 12, "mu": 2, "seed": seed})
    data = tiny_splits(**({"num_labeled": 9, "num_unlabeled": 50} | splits))  # a batch is more than all labelled ones
    return [tiny_feed(config, data, rank, num_workers) for rank in range(num_workers)]


def together(batches: list[Batch]) -> dict[str, torch.Tensor]:
    return {field.name: torch.cat([getattr(batch, field.name) for batch in batches]) for field in fields(Batch)}


@pytest.mark.parametrize("step", [0, 1, 7])
@pytest.mark.parametrize("num_workers", [2, 3, 4])
def test_the_workers_shares_are_the_batch_of_one_worker(num_workers: int, step: int) -> None:
    (alone,), workers = feeds(1), feeds(num_workers)
    shares = [feed(step) for feed in workers]
    assert {len(share) for share in shares} == {36 // num_workers}
    assert {(len(share.images), len(share.images_unlabeled)) for share in shares} == {
        (12 // num_workers, 24 // num_workers)
    }
    expected = together([alone(step)])
    for name, value in together(shares).items():
        assert value.dtype == expected[name].dtype
        assert torch.equal(value, expected[name]), name
    for feed in workers:
        for mine, theirs in zip(feed.ids(step), alone.ids(step), strict=True):
            assert np.array_equal(mine, theirs)


@settings(max_examples=10)
@given(numbers=st.lists(st.sampled_from([1, 2, 3, 4, 6, 12]), min_size=2, max_size=6))
def test_the_global_batches_are_those_of_one_worker_however_the_number_changes(numbers: list[int]) -> None:
    """A pass has two steps and a bit."""
    (alone,) = feeds(1)
    for step, num_workers in enumerate(numbers):
        found, expected = together([feed(step) for feed in feeds(num_workers)]), together([alone(step)])
        assert [name for name in expected if not torch.equal(found[name], expected[name])] == []


def test_a_batch_holds_the_images_and_targets_of_its_ids() -> None:
    (feed,) = feeds(1)
    batch, (labeled, unlabeled) = feed(4), feed.ids(4)
    assert np.array_equal(batch.images, feed.labeled.images[labeled])
    assert np.array_equal(batch.targets, feed.labeled.targets[labeled])
    assert np.array_equal(batch.images_unlabeled, feed.unlabeled.images[unlabeled])
    assert np.array_equal(batch.targets_unlabeled, feed.unlabeled.targets[unlabeled])
    assert batch.uniforms.shape == (12, WEAK_UNIFORMS)
    assert batch.uniforms_weak.shape == (24, WEAK_UNIFORMS)
    assert len(batch.uniforms_strong) == 24


def test_steps_and_seeds_give_other_batches_and_the_same_ones_again() -> None:
    (feed,), (other,) = feeds(1), feeds(1, seed=1)
    first = together([feed(0)])
    for different in (feed(1), other(0)):
        for name, value in together([different]).items():
            assert not torch.equal(value, first[name]), name
    for name, value in together([feed(0)]).items():
        assert torch.equal(value, first[name]), name


def test_the_views_of_one_step_are_drawn_independently() -> None:
    (feed,) = feeds(1)
    batch = feed(0)
    # One stream drawn for two kinds of views would start them with the same numbers.
    starts = [uniforms.flatten()[:3] for uniforms in (batch.uniforms, batch.uniforms_weak, batch.uniforms_strong)]
    assert len({tuple(start.tolist()) for start in starts}) == 3


def test_a_batch_is_a_copy_of_the_data() -> None:
    (feed,) = feeds(1)
    before = feed.labeled.images.copy()
    feed(0).images.zero_()
    assert np.array_equal(feed.labeled.images, before)


def test_without_a_pool_a_batch_has_labelled_images_alone() -> None:
    config, data = tiny_config(policy={"name": "supervised"}, train={"batch_size": 12}), tiny_splits()
    batch = tiny_feed(config, data)(3)
    assert len(batch) == len(batch.images) == 12
    assert batch.images_unlabeled.shape == (0, *batch.images.shape[1:])
    assert (len(batch.targets_unlabeled), len(batch.uniforms_weak), len(batch.uniforms_strong)) == (0, 0, 0)
    assert torch.equal(batch.images, tiny_feed(tiny_config(train={"batch_size": 12}), data)(3).images)
