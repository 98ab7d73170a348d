"""Whether a pool has helped: properties of the interval, and pools that do harm."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from dpl_ray.config.compose import load_config
from dpl_ray.data.dataset import UNLABELED, ImageSet, Splits
from dpl_ray.data.splits.sources import load_splits
from dpl_ray.jobs.phases import train_phases
from dpl_ray.report.health import chance_finding
from dpl_ray.report.page import find_verdict, verdict_sentence
from dpl_ray.report.verdict import Z_95, Verdict, compare_paired, wilson_interval
from dpl_ray.store.storage import Storage
from dpl_ray.training.distributed import Workers

COUNTS = st.tuples(*[st.integers(0, 400)] * 4).filter(any)


def verdict(both: int, only_model: int, only_baseline: int, neither: int) -> Verdict:
    numbers = (both, only_model, only_baseline, neither)
    right = np.repeat([True, True, False, False], numbers)
    right_baseline = np.repeat([True, False, True, False], numbers)
    order = np.random.default_rng(0).permutation(len(right))
    return compare_paired(right[order], right_baseline[order])


@given(COUNTS)
def test_the_counts_and_the_difference_are_those_of_the_images(counts: tuple[int, int, int, int]) -> None:
    found = verdict(*counts)
    assert (found.both, found.only_model, found.only_baseline, found.neither) == counts
    assert found.num_images == sum(counts)
    assert found.difference == pytest.approx((counts[1] - counts[2]) / sum(counts))
    assert -1 <= found.low <= found.difference + 1e-12
    assert found.difference - 1e-12 <= found.high <= 1


@given(COUNTS)
def test_model_and_baseline_exchanged_turn_the_verdict_around(counts: tuple[int, int, int, int]) -> None:
    both, only_model, only_baseline, neither = counts
    found, turned = verdict(*counts), verdict(both, only_baseline, only_model, neither)
    assert (turned.low, turned.high) == (pytest.approx(-found.high), pytest.approx(-found.low))
    assert turned.effect == {"helped": "hurt", "hurt": "helped", "unknown": "unknown"}[found.effect]


@given(st.integers(0, 300), st.integers(0, 300), st.integers(1, 300))
def test_as_many_gained_as_lost_tells_nothing(both: int, changed: int, neither: int) -> None:
    assert verdict(both, changed, changed, neither).effect == "unknown"


@given(COUNTS)
def test_one_more_image_that_the_model_alone_has_right_never_speaks_against_it(
    counts: tuple[int, int, int, int],
) -> None:
    both, only_model, only_baseline, neither = counts
    if not neither:
        return
    before, after = verdict(*counts), verdict(both, only_model + 1, only_baseline, neither - 1)
    assert after.difference > before.difference
    order = ["hurt", "unknown", "helped"]
    assert order.index(after.effect) >= order.index(before.effect)


@given(st.tuples(*[st.integers(0, 40)] * 4).filter(any))
def test_the_same_counts_ten_times_have_a_narrower_interval(counts: tuple[int, int, int, int]) -> None:
    few, many = verdict(*counts), verdict(*(10 * count for count in counts))
    assert many.high - many.low < few.high - few.low


def test_the_interval_is_the_formula_of_its_source() -> None:
    found = verdict(10, 6, 1, 3)
    p, q = 7 / 22, 2 / 22
    radius = 1.959964 * ((p + q - (p - q) ** 2) / 22) ** 0.5
    assert (found.low, found.high) == (pytest.approx(p - q - radius), pytest.approx(p - q + radius))


def test_the_interval_holds_the_true_difference_as_often_as_it_says() -> None:
    random, hits, draws = np.random.default_rng(0), 0, 2000
    for counts in random.multinomial(300, [0.7, 0.1, 0.06, 0.14], draws):
        found = verdict(*counts.tolist())
        hits += found.low <= 0.04 <= found.high
    assert 0.93 < hits / draws < 0.97


@given(st.integers(1, 500), st.data())
def test_wilson_holds_the_share_and_stays_in_its_bounds(number: int, data: st.DataObject) -> None:
    successes = data.draw(st.integers(0, number))
    low, high = wilson_interval(successes, number)
    assert 0 <= low <= successes / number + 1e-12
    assert successes / number - 1e-12 <= high <= 1
    for bound in (low, high):
        if 0 < bound < 1:  # each bound is a share from which the sample is 1.96 standard errors away
            assert abs(successes / number - bound) == pytest.approx(
                Z_95 * (bound * (1 - bound) / number) ** 0.5, abs=1e-6
            )


def test_a_model_at_chance_is_not_told_to_be_helped_alone() -> None:
    at_chance = chance_finding(0.1, 300, 0.18, 10, "train longer")
    assert at_chance is not None
    said = [verdict_sentence(verdict(0, *counts, 270), [at_chance]).partition(":")[0] for counts in ((23, 7), (7, 23))]
    assert said == ["The pool helped but the model is no better than guessing", "The pool hurt"]


def test_wilson_of_no_trial_says_nothing() -> None:
    assert wilson_interval(0, 0) == (0, 1)


def noise(splits: Splits) -> Splits:
    """Every pixel drawn for itself."""
    images = np.random.default_rng(0).integers(0, 256, (600, *splits.test.images.shape[1:])).astype(np.uint8)
    pool = ImageSet(images, np.full(600, UNLABELED), np.array([f"noise/{index}" for index in range(600)]))
    return Splits(splits.labeled, pool, splits.validation, splits.test, splits.class_names, ())


def foreign(splits: Splits) -> Splits:
    """The labels are of the digits below 5, the pool is of the others."""
    assert isinstance(splits.unlabeled, ImageSet)

    def where(part: ImageSet, mask: NDArray[np.bool_]) -> ImageSet:
        return part.subset(np.flatnonzero(mask))

    others = where(splits.unlabeled, splits.unlabeled.targets >= 5)
    pool = ImageSet(others.images, np.full(len(others), UNLABELED), others.ids)
    known = [where(part, part.targets < 5) for part in (splits.labeled, splits.validation, splits.test)]
    return Splits(known[0], pool, known[1], known[2], splits.class_names[:5], ())


@pytest.mark.parametrize("spoil", [noise, foreign])
def test_a_pool_of_other_things_is_called_harmful(tmp_path: Path, spoil: Callable[[Splits], Splits]) -> None:
    overrides = ["data.num_labels_per_class=25", "train.num_steps=40", "train.mu=3", "train.lambda_u=10"]
    overrides += ["train.ema_decay=0.9", "train.curve_images=0", "model.width=1", "scale.num_workers=0"]
    overrides += ["policy.shares=equal"]  # each class gets its share of the noise
    config = load_config(overrides)
    splits = spoil(load_splits(config.data, seed=0))
    outcomes = train_phases(config, splits, Storage(str(tmp_path)), Workers(), lambda _: None)
    found = find_verdict(splits, outcomes)
    assert found is not None
    assert found.effect == "hurt", verdict_sentence(found)
    assert verdict_sentence(found).startswith("The pool hurt: ")
