"""The interval of a difference over labelled subsets and repeats: against slow loops, and by how often it is right."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpl_ray.studies.comparison.two_level import LEAST_SUBSETS, POWER, Interval, t_quantile, two_level_interval

NUM_COMPARISONS = 1500


@st.composite
def balanced(draw: st.DrawFn) -> dict[int, list[float]]:
    """Subset -> differences, as many for each."""
    num_repeats = draw(st.integers(1, 4))
    repeats = st.lists(st.floats(-1, 1), min_size=num_repeats, max_size=num_repeats)
    return draw(st.dictionaries(st.integers(0, 99), repeats, min_size=LEAST_SUBSETS, max_size=6))


def interval(differences: dict[int, list[float]]) -> Interval:
    found = two_level_interval(differences)
    assert found is not None
    return found


def slow_interval(differences: dict[int, list[float]]) -> tuple[float, float, float, float]:
    """By the sums of squares of a random-effects analysis of variance: SE² = MS(between subsets) / (S R)."""
    num_subsets, num_all, total = len(differences), 0, 0.0
    for repeats in differences.values():
        for value in repeats:
            num_all += 1
            total += value
    grand, between = total / num_all, 0.0
    for repeats in differences.values():
        mean = sum(repeats) / len(repeats)
        for _ in repeats:
            between += (mean - grand) ** 2
    error = math.sqrt(between / (num_subsets - 1) / num_all)
    high, power = (quantile_by_steps(share, num_subsets - 1) for share in (0.975, 0.8))
    return grand, grand - high * error, grand + high * error, (high + power) * error


@cache
def quantile_by_steps(share: float, degrees: int) -> float:
    """Of Student's t by the area below its density, in steps of 1/100."""
    scale = math.gamma((degrees + 1) / 2) / (math.sqrt(degrees * math.pi) * math.gamma(degrees / 2))
    area, at, step = 0.5, 0.0, 0.01
    while area < share:
        area += step * scale * (1 + (at + step / 2) ** 2 / degrees) ** (-(degrees + 1) / 2)
        at += step
    return at


@given(balanced())
def test_the_interval_is_that_of_the_analysis_of_variance(differences: dict[int, list[float]]) -> None:
    found = interval(differences)
    expected = slow_interval(differences)
    assert (found.mean, found.low, found.high, found.detectable) == pytest.approx(expected, rel=5e-3, abs=5e-3)


@given(balanced(), st.floats(-1, 1))
def test_the_interval_moves_with_the_differences(differences: dict[int, list[float]], shift: float) -> None:
    moved = interval({subset: [value + shift for value in repeats] for subset, repeats in differences.items()})
    found = interval(differences)
    assert (moved.low, moved.high) == pytest.approx((found.low + shift, found.high + shift), abs=1e-9)
    assert moved.detectable == pytest.approx(found.detectable, abs=1e-9)


@given(balanced())
def test_repeats_that_say_the_same_tell_nothing_more(differences: dict[int, list[float]]) -> None:
    again = interval({subset: repeats * 3 for subset, repeats in differences.items()})
    found = interval(differences)
    assert (again.low, again.high, again.detectable) == pytest.approx((found.low, found.high, found.detectable))


def test_of_few_subsets_there_is_none_however_many_repeats() -> None:
    assert two_level_interval({}) is None
    assert two_level_interval({0: [0.1] * 50, 1: [0.2] * 50}) is None


def test_the_interval_covers_the_true_difference_and_the_power_is_as_stated() -> None:
    random = np.random.default_rng(0)
    num_subsets, num_repeats, between, within = 5, 3, 2.0, 1.5
    error = math.sqrt((between**2 + within**2 / num_repeats) / num_subsets)
    true = (t_quantile(0.975, num_subsets - 1) + t_quantile(POWER, num_subsets - 1)) * error
    subsets = random.normal(true, between, (NUM_COMPARISONS, num_subsets, 1))
    drawn = subsets + random.normal(0, within, (NUM_COMPARISONS, num_subsets, num_repeats))
    found = [interval(dict(enumerate(one))) for one in drawn.tolist()]
    assert np.mean([each.low <= true <= each.high for each in found]) == pytest.approx(0.95, abs=0.015)
    assert np.mean([each.low > 0 for each in found]) == pytest.approx(POWER, abs=0.05)
