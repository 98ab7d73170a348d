"""Pools that are made long-tailed, or get images of foreign classes, for benchmarks."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dpl_ray.algorithm.pseudo_labels import pseudo_labels
from dpl_ray.config.compose import load_config
from dpl_ray.config.schema import PoolConfig
from dpl_ray.data.dataset import FOREIGN, UNLABELED, ImageSet, Splits
from dpl_ray.data.pool.benchmark import shape_pool, tail_sizes
from dpl_ray.data.splits.sources import load_splits
from dpl_ray.report.pool import PoolSample, part
from dpl_ray.runs.provenance import describe_run
from dpl_ray.training.metrics import mean_metrics, step_sums
from tests.builders import tiny_splits

AVAILABLE = st.lists(st.integers(1, 500), min_size=2, max_size=12)


@cache
def digits(*overrides: str, seed: int = 0) -> Splits:
    return load_splits(load_config(["data=digits", *overrides]).data, seed=seed)


def pool_of(splits: Splits) -> ImageSet:
    assert isinstance(splits.unlabeled, ImageSet)
    return splits.unlabeled


def slow_sizes(available: list[int], ratio: float) -> list[int]:
    """The largest whole or broken number of the first class that no class forbids, found class by class."""
    last = len(available) - 1
    first = min(number * ratio ** (index / last) for index, number in enumerate(available))
    return [max(1, int(first * ratio ** (-index / last) + 1e-6)) for index in range(last + 1)]


@given(AVAILABLE, st.floats(0.01, 100))
def test_the_sizes_of_a_tail_are_those_of_a_loop(available: list[int], ratio: float) -> None:
    sizes = tail_sizes(np.array(available), ratio)
    assert sizes.tolist() == pytest.approx(slow_sizes(available, ratio), abs=1), "but for rounding"
    assert (sizes <= available).all()
    assert (sizes == available).any(), "one class keeps all of its images"
    assert (np.diff(sizes) <= 0).all() if ratio >= 1 else (np.diff(sizes) >= 0).all()


def test_a_tail_leaves_labels_and_test_and_thins_the_pool_in_its_order() -> None:
    whole, tail, again = digits(), digits("data.pool.imbalance=20"), digits("data.pool.imbalance=20")
    reverse = digits("data.pool.imbalance=0.05")
    assert tail.fingerprint() == again.fingerprint()
    for name in ("labeled", "test"):
        assert getattr(tail, name).ids.tolist() == getattr(whole, name).ids.tolist()
    for made, ratio in ((tail, 20), (reverse, 1 / 20)):
        sizes = np.bincount(pool_of(made).targets)
        assert sizes[0] / sizes[-1] == pytest.approx(ratio, rel=0.2)
        assert sizes.max() >= 135, "of about 140 a class"
        assert f"long tail of {', '.join(map(str, sizes))} images a class" == made.shaped
        kept = np.isin(pool_of(whole).ids, pool_of(made).ids)
        assert pool_of(made).ids.tolist() == pool_of(whole).ids[kept].tolist()
    other = digits("data.pool.imbalance=20", seed=1)
    fixed = digits("data.pool.imbalance=20", "data.subset_seed=1")
    assert other.fingerprint() == fixed.fingerprint() != tail.fingerprint()
    assert other.seedless_fingerprint() == tail.seedless_fingerprint() == whole.seedless_fingerprint()


def test_foreign_classes_leave_labels_and_test_and_stay_in_the_pool() -> None:
    whole, foreign = digits(), digits("data.pool.foreign=0.6")
    cleaned = digits("data.pool.foreign=0.6", "data.pool.cleaned=true")
    assert foreign.class_names == cleaned.class_names == ("0", "1", "2", "3")
    for name in ("labeled", "test"):
        known = getattr(whole, name).targets < 4
        for made in (foreign, cleaned):
            assert getattr(made, name).ids.tolist() == getattr(whole, name).ids[known].tolist()
    pool = pool_of(foreign)
    assert pool.ids.tolist() == pool_of(whole).ids.tolist()
    expected = np.where(pool_of(whole).targets < 4, pool_of(whole).targets, FOREIGN)
    assert pool.targets.tolist() == expected.tolist()
    assert pool_of(cleaned).ids.tolist() == pool.ids[expected >= 0].tolist()
    share = f"{(expected < 0).sum()} of {len(pool):,} images"
    assert foreign.shaped == f"foreign classes 4, 5, 6, 7, 8, 9, out of labels and test: {share}"
    assert cleaned.shaped == foreign.shaped + " left out"
    assert describe_run(foreign)["data.pool"] == foreign.shaped
    assert "data.pool" not in describe_run(whole)


def test_validation_loses_foreign_classes_too_and_a_tail_comes_before() -> None:
    both = ("data.validation_fraction=0.5", "data.pool.foreign=0.3", "data.pool.imbalance=20")
    made = digits(*both)
    assert set(made.validation.targets) == set(made.labeled.targets) == set(range(7))
    assert (pool_of(made).targets == FOREIGN).sum() < 0.1 * len(pool_of(made)), "the last classes are rare"
    assert made.shaped.startswith("long tail of 138, ")
    assert "; foreign classes 7, 8, 9," in made.shaped


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (["data.pool.imbalance=0"], "data.pool.imbalance=0: must be greater than 0"),
        (["data.pool.foreign=1"], "data.pool.foreign=1: must be less than 1"),
        (["data.pool.foreign=0.9"], r"data.pool.foreign=0.9: leaves 1 of 10 classes with labels; .*foreign=0.5"),
        (["data.pool.foreign=0.01"], r"data.pool.foreign=0.01: leaves 10 of 10 classes with labels; .*foreign=0.5"),
        (["data.pool.cleaned=true"], "data.pool.cleaned=true: there is nothing to clean; set data.pool.foreign"),
    ],
)
def test_what_cannot_be_made_is_refused(fields: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        digits(*fields)


def test_pseudo_labels_make_no_benchmark() -> None:
    fields = ["data=image_folder", "data.labels=labels", "data.pool.imbalance=20"]
    with pytest.raises(ValueError, match=r"^data.pool.imbalance=20: makes a benchmark of true labels, and data.labels"):
        load_config(fields)


def test_a_pool_without_known_labels_or_an_image_of_a_class_is_refused() -> None:
    splits, config = tiny_splits(), PoolConfig(imbalance=5)
    pool = pool_of(splits)
    unknown = replace(splits, unlabeled=ImageSet(pool.images, np.full(len(pool), UNLABELED), pool.ids))
    with pytest.raises(ValueError, match=r"^data.pool.imbalance=5: .* 40 of the 40 images in the pool have none"):
        shape_pool(unknown, config, seed=0)
    none = replace(splits, unlabeled=pool.subset(np.flatnonzero(pool.targets != 1)))
    with pytest.raises(ValueError, match=r"^data.pool.imbalance=5: the pool has no image of class1; every class needs"):
        shape_pool(none, config, seed=0)


def test_a_label_of_a_foreign_image_is_wrong_and_not_unknown() -> None:
    pseudo = pseudo_labels(torch.zeros(4, 2), torch.zeros(4, 3))
    targets = torch.tensor([int(pseudo.labels[0]), FOREIGN, FOREIGN, UNLABELED])
    sums = step_sums(
        torch.ones(3), pseudo, torch.ones(4), pseudo.labels, targets, torch.tensor(4.0, dtype=torch.float64)
    )
    assert mean_metrics(sums)["pseudo/precision"] == pytest.approx(1 / 3)
    ones = np.ones(4, np.float32)
    sample = PoolSample(4, 3, ones, ones, ones, pseudo.labels.numpy(), targets.numpy())
    assert part(sample, np.ones(4, bool), fixmatch=False).precision == pytest.approx(1 / 3)
