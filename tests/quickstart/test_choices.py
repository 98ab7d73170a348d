"""quickstart/choices.py: settings for a budget of time."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpl_ray.quickstart.choices import (
    DEPTHS,
    MAX_STEPS,
    MIN_STEPS,
    MUS,
    SIZES,
    TRAINING_SHARE,
    Candidate,
    candidates_for,
    choose,
    mus_for,
    sizes_for,
    steps_within,
)

pytestmark = pytest.mark.hypothesis


def cost(candidate: Candidate) -> float:
    return candidate.size**2 * candidate.depth * (6 + 4 * candidate.mu)


ALL = candidates_for(SIZES, DEPTHS, MUS)


@given(side=st.integers(4, 4000))
def test_images_are_never_enlarged(side: int) -> None:
    assert sizes_for(side)
    assert max(sizes_for(side)) <= side


@given(num_pool=st.integers(0, 10_000), batch_size=st.integers(1, 100))
def test_no_image_of_the_pool_is_twice_in_a_step_and_small_batches_are_tried_last(
    num_pool: int, batch_size: int
) -> None:
    mus = mus_for(num_pool, batch_size)
    assert mus[0] * batch_size <= max(num_pool, batch_size)
    candidates = candidates_for(SIZES, DEPTHS, mus)
    assert [candidate.mu for candidate in candidates] == sorted((each.mu for each in candidates), reverse=True)
    assert {candidate.size for candidate in candidates if candidate.mu < mus[0]} <= {SIZES[-1]}


@given(budget=st.floats(-100, 1e5), seconds=st.floats(1e-4, 100), beside=st.floats(0, 1e4))
def test_the_steps_are_within_the_budget(budget: float, seconds: float, beside: float) -> None:
    steps = steps_within(budget, seconds, beside)
    assert 0 <= steps <= MAX_STEPS
    assert steps == 0 or (steps + beside) * seconds <= TRAINING_SHARE * budget


@given(budget=st.floats(30, 1e5), per_unit=st.floats(1e-9, 1e-3), side=st.integers(16, 500))
def test_the_first_candidate_that_fits_is_chosen(budget: float, per_unit: float, side: int) -> None:
    candidates = candidates_for(sizes_for(side), DEPTHS, MUS)
    found = choose(candidates, cost, lambda candidate: per_unit * cost(candidate), budget, lambda _: 100.0)
    fitting = [each for each in candidates if steps_within(budget, per_unit * cost(each), 100.0) >= MIN_STEPS]
    expected = fitting[0] if fitting else min(candidates, key=cost)
    assert found.candidate == expected
    assert found.is_short == (not fitting)
    assert found.num_steps >= 1


def test_at_most_two_candidates_are_measured_where_costs_are_as_computed() -> None:
    measured: list[Candidate] = []

    def measure(candidate: Candidate) -> float:
        measured.append(candidate)
        return 1e-6 * cost(candidate)

    choose(ALL, cost, measure, 600)
    assert len(measured) == 2


def test_a_candidate_that_is_slower_than_computed_is_left_for_the_next() -> None:
    def measure(candidate: Candidate) -> float:
        return 1e-6 * cost(candidate) * (100 if candidate.size == 96 else 1)

    assert choose(ALL, cost, measure, 600).candidate.size < 96
