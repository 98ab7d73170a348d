"""quickstart/choices.py: settings for a budget of time."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpl_ray.quickstart.choices import (
    CANDIDATES,
    MAX_STEPS,
    MIN_STEPS,
    TRAINING_SHARE,
    Candidate,
    candidates_for,
    choose,
    steps_within,
)

pytestmark = pytest.mark.hypothesis


def cost(candidate: Candidate) -> float:
    return candidate.size**2 * candidate.depth


@given(side=st.integers(4, 4000))
def test_images_are_never_enlarged(side: int) -> None:
    found = candidates_for(side)
    assert found
    assert all(candidate.size <= side for candidate in found)


@given(budget=st.floats(30, 1e5), seconds=st.floats(1e-4, 100))
def test_the_steps_are_within_the_budget(budget: float, seconds: float) -> None:
    steps = steps_within(budget, seconds)
    assert 0 <= steps <= MAX_STEPS
    assert steps * seconds <= TRAINING_SHARE * budget


@given(budget=st.floats(30, 1e5), per_unit=st.floats(1e-9, 1e-3), side=st.integers(16, 500))
def test_the_first_candidate_that_fits_is_chosen(budget: float, per_unit: float, side: int) -> None:
    candidates = candidates_for(side)
    found = choose(candidates, cost, lambda candidate: per_unit * cost(candidate), budget)
    fitting = [each for each in candidates if steps_within(budget, per_unit * cost(each)) >= MIN_STEPS]
    expected = fitting[0] if fitting else min(candidates, key=cost)
    assert (found.candidate.size, found.candidate.depth) == (expected.size, expected.depth)
    assert found.is_short == (not fitting)
    assert found.num_steps >= 1


def test_at_most_two_candidates_are_measured_where_costs_are_as_computed() -> None:
    measured: list[Candidate] = []

    def measure(candidate: Candidate) -> float:
        measured.append(candidate)
        return 1e-6 * cost(candidate)

    choose(CANDIDATES, cost, measure, 600)
    assert len(measured) == 2


def test_a_candidate_that_is_slower_than_computed_is_left_for_the_next() -> None:
    def measure(candidate: Candidate) -> float:
        return 1e-6 * cost(candidate) * (100 if candidate.size == 96 else 1)

    assert choose(CANDIDATES, cost, measure, 600).candidate.size < 96
