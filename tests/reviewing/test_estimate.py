"""The share of wrong labels: how often the truth lies outside of its interval."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import beta

from dpl_ray.reviewing.draw import allocate
from dpl_ray.reviewing.estimate import EXACT, STRATIFIED, Answered, Error, estimate_error


def estimate(
    sizes: NDArray[np.int64], numbers: NDArray[np.int64], strata: NDArray[np.int64], wrong: NDArray[np.bool_]
) -> Error:
    answered = Answered(strata, wrong, wrong)
    everything = np.ones(len(strata), bool)
    found = estimate_error(sizes, numbers, answered, 0.95, num_images=int(sizes.sum()), mine=everything)
    assert found is not None
    return found


WORLDS = {
    "one stratum": ([3000], [0.04], 100, 1.0),
    "everywhere alike": ([1000] * 10, [0.05] * 10, 200, 1.0),
    "in some classes alone": ([1000] * 10, [0.0] * 5 + [0.1] * 5, 200, 1.0),
    "hardly confident ones wrong": ([9000, 700, 300, 150, 60, 10], [0.01, 0.05, 0.2, 0.5, 0.7, 0.9], 100, 1.0),
    "a third of them answered": ([5000, 2000, 300], [0.01, 0.1, 0.5], 150, 1 / 3),
    "nearly all drawn": ([60, 40, 30], [0.1, 0.3, 0.9], 120, 1.0),
}


@pytest.mark.parametrize("world", WORLDS)
def test_the_interval_misses_the_truth_as_seldom_as_it_says(world: str) -> None:
    sizes, shares, num, part = (np.array(each) for each in WORLDS[world])
    wrong_ones, numbers = np.rint(sizes * shares).astype(int), allocate(sizes, int(num))
    truth, random = wrong_ones.sum() / sizes.sum(), np.random.default_rng(0)
    strata = np.repeat(np.arange(len(sizes)), numbers)
    within = np.concatenate([np.arange(number) for number in numbers])
    found = []
    for _ in range(200):
        drawn = random.hypergeometric(wrong_ones, sizes - wrong_ones, numbers)
        order = random.permutation(len(strata))[: round(part * len(strata))]
        found.append(estimate(sizes, numbers, strata[order], (within < drawn[strata])[order]))
    above, below = sum(each.before.low > truth for each in found), sum(each.before.high < truth for each in found)
    assert above <= 10, "2.5 % are 5 of 200; 10 and more come by chance in 3 % of such tests"
    assert below <= 10
    assert sum(each.at_most < truth for each in found) <= 17
    assert np.mean([each.before.estimate for each in found]) == pytest.approx(truth, rel=0.15)


def test_one_stratum_is_exact_and_many_of_one_weight_are_nearly_so() -> None:
    wrong = np.arange(200) < 10
    one = estimate(np.array([10**9]), np.array([200]), np.zeros(200, int), wrong)
    assert one.method == EXACT
    assert one.before.estimate == pytest.approx(0.05)
    expected = beta.ppf([0.025, 0.975], [10, 11], [191, 190])
    assert (one.before.low, one.before.high) == pytest.approx(expected, rel=1e-3)
    assert one.at_most == pytest.approx(beta.ppf(0.95, 11, 190), rel=1e-3)
    many = estimate(np.full(10, 10**8), np.full(10, 20), np.arange(200) % 10, wrong)
    assert many.method == STRATIFIED
    assert (many.before.low, many.before.high) == pytest.approx(expected, rel=1e-3)
    sizes = np.array([40, 60])
    whole = estimate(sizes, sizes, np.repeat([0, 1], sizes), np.arange(100) < 7)
    assert whole.before.low <= whole.before.estimate == 0.07 <= whole.before.high


def test_answers_correct_their_own_labels() -> None:
    strata, wrong = np.repeat([0, 1], 50), np.arange(100) % 10 == 0
    corrected = wrong & (np.arange(100) > 15)
    sizes, numbers = np.array([500, 500]), np.array([50, 50])
    found = estimate_error(
        sizes, numbers, Answered(strata, wrong, corrected), 0.95, num_images=1000, mine=np.ones(100, bool)
    )
    assert found is not None
    assert found.before.estimate == pytest.approx(0.1)
    for side in ("estimate", "low", "high"):
        assert getattr(found.after, side) == pytest.approx(getattr(found.before, side) - 0.008)
    mine = strata == 1
    part = estimate_error(sizes, numbers, Answered(strata, wrong, corrected), 0.95, num_images=500, mine=mine)
    assert part is not None
    assert (part.num_answered, part.num_wrong, part.before.estimate) == (50, 5, pytest.approx(0.1))
    assert part.before.high <= (500 - 45) / 500
    nothing = Answered(strata[:0], wrong[:0], wrong[:0])
    assert estimate_error(sizes, numbers, nothing, 0.95, num_images=1000, mine=mine[:0]) is None
