"""The share of wrong labels: how often the truth lies outside of its interval."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import beta

from dpl_ray.reviewing.draw import allocate
from dpl_ray.reviewing.estimate import EXACT, STRATIFIED, Error, Sample, estimate_error


def estimate(sample: Sample, num_wrong: int, num_corrected: int = 0) -> Error:
    found = estimate_error(sample, sample.size, sample.number, num_wrong, num_corrected, confidence=0.95)
    assert found is not None
    return found


#: Labels of each stratum, shares of wrong ones, images drawn, part of them that is answered.
WORLDS = {
    "one stratum": ([3000], [0.04], 100, 1.0),
    "everywhere alike": ([1000] * 10, [0.05] * 10, 200, 1.0),
    "in some classes alone": ([1010] * 10, [0.0] * 5 + [0.1] * 5, 200, 1.0),
    "hardly confident ones wrong": ([9000, 700, 340, 350, 360, 410], [0.01, 0.05, 0.2, 0.5, 0.7, 0.9], 100, 1.0),
    "a third of them answered": ([5000, 2000, 300], [0.01, 0.1, 0.5], 150, 1 / 3),
    "nearly all drawn": ([60, 40, 30], [0.1, 0.3, 0.9], 120, 1.0),
}


@pytest.mark.parametrize("world", WORLDS)
def test_the_interval_misses_the_truth_as_seldom_as_it_says(world: str) -> None:
    sizes, shares, num, part = (np.array(each) for each in WORLDS[world])
    wrong = np.rint(sizes * shares).astype(int)
    truth, random = wrong.sum() / sizes.sum(), np.random.default_rng(0)
    sample = Sample(int(sizes.sum()), round(part * num), is_simple=len(sizes) == 1)
    found = []
    for _ in range(1000):
        drawn = random.hypergeometric(wrong, sizes - wrong, allocate(sizes, int(num), random)).sum()
        found.append(random.hypergeometric(drawn, num - drawn, sample.number))
    by_number = {number: estimate(sample, int(number)) for number in set(found)}
    errors = [by_number[number] for number in found]
    assert sum(each.before.low > truth for each in errors) <= 35, "2.5 % are 25; more come in 2 % of such tests"
    assert sum(each.before.high < truth for each in errors) <= 35
    assert sum(each.at_most < truth for each in errors) <= 65
    assert np.mean([each.before.estimate for each in errors]) == pytest.approx(truth, rel=0.05)


def test_images_are_shared_out_in_proportion_and_rounded_at_random() -> None:
    sizes, random = np.array([1000, 501, 40, 33, 26]), np.random.default_rng(0)
    drawn = np.array([allocate(sizes, 90, random) for _ in range(2000)])
    shares = 90 * sizes / sizes.sum()
    assert (drawn.sum(axis=1) == 90).all()
    assert (np.abs(drawn - shares) < 1).all()
    assert drawn.mean(axis=0) == pytest.approx(shares, abs=0.04)
    assert allocate(np.array([3, 2]), 100, random).tolist() == [3, 2]


def test_a_simple_draw_is_exact_and_a_stratified_one_as_narrow() -> None:
    expected = beta.ppf([0.025, 0.975, 0.95], [10, 11, 11], [191, 190, 190])
    for is_simple, method in ((True, EXACT), (False, STRATIFIED)):
        found = estimate(Sample(10**9, 200, is_simple), 10)
        assert found.method == method
        assert found.before.estimate == pytest.approx(0.05)
        assert (found.before.low, found.before.high, found.at_most) == pytest.approx(expected, rel=1e-3)
    whole = estimate(Sample(100, 100, is_simple=True), 7)
    assert (whole.before.low, whole.before.estimate, whole.before.high, whole.at_most) == (0.07,) * 4
    none = estimate(Sample(10**6, 1, is_simple=False), 0)
    assert (none.before.low, none.before.high) == (0, pytest.approx(1, abs=1e-5)), "of one image"


def test_answers_correct_their_own_labels() -> None:
    found = estimate(Sample(1000, 100, is_simple=False), 10, 8)
    assert found.before.estimate == pytest.approx(0.1)
    for side in ("estimate", "low", "high"):
        assert getattr(found.after, side) == pytest.approx(getattr(found.before, side) - 0.008)
    part = estimate_error(Sample(1000, 100, is_simple=False), 80, 8, 6, 6, confidence=0.95)
    assert part is not None
    assert part.before.estimate == pytest.approx(6 / 8)
    assert part.before.high == pytest.approx(78 / 80), "2 are right"
    assert part.after.estimate == pytest.approx(54 / 80)
    assert estimate_error(Sample(1000, 100, is_simple=False), 60, 0, 0, 0, confidence=0.95) is None
