"""The plan of many GPUs: its arithmetic against slow, obvious forms; `python -m benchmarks.scaling` tries processes."""

import math

import numpy as np
import pytest

from benchmarks.scaling import LINKS, Parts, all_reduce_seconds, expected_maximum, left_over, plan_row, step_seconds


@pytest.mark.parametrize(("number", "expected"), [(1, 0.0), (2, 1 / math.sqrt(math.pi)), (3, 1.5 / math.sqrt(math.pi))])
def test_the_expected_maximum_of_few_is_the_known_one(number: int, expected: float) -> None:
    assert expected_maximum(number) == pytest.approx(expected, abs=1e-6)


def test_the_expected_maximum_of_many_is_that_of_draws() -> None:
    drawn = np.random.default_rng(0).standard_normal((20_000, 64)).max(axis=1).mean()
    assert expected_maximum(64) == pytest.approx(drawn, rel=0.01)


def test_what_is_sent_while_backward_goes_on_costs_nothing() -> None:
    assert left_over([0.1] * 4, 4.0) == pytest.approx(0.1), "the last bucket"
    assert left_over([2.0] * 4, 4.0) == pytest.approx(5.0), "the first is whole after 1 s, and all take 8"
    assert left_over([0.0, 3.0, 0.0], 3.0) == pytest.approx(2.0), "it holds up those behind it"


def test_one_worker_waits_for_nobody_and_more_wait_longer() -> None:
    parts = Parts(0.3, 0.7, 0.1)
    assert step_seconds(parts, 1, 0.0, [0.0]) == pytest.approx(1.0)
    steps = [step_seconds(parts, number, 0.01, [0.02]) for number in (2, 8, 64)]
    assert 1.03 < steps[0] < steps[1] < steps[2]
    assert all_reduce_seconds(1e9, 1) == 0
    inside, between = (all_reduce_seconds(1e9, number) for number in (LINKS.per_node, 2 * LINKS.per_node))
    assert between > 5 * inside, "the slowest link decides"


def test_a_row_adds_up() -> None:
    step, rate, *parts, cores = plan_row(0.01, 64, 10_000)
    milliseconds = [float(text.removesuffix(" ms")) for text in (step, *parts)]
    assert milliseconds[0] == pytest.approx(10 + sum(milliseconds[1:]), abs=0.1)
    assert float(cores) == pytest.approx(float(rate.replace(",", "")) / 10_000, rel=0.01)
