"""The plan of many GPUs: its arithmetic against slow, obvious forms, and against two workers."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch.distributed as dist

from benchmarks.scaling import CHECKPOINT_SAVED, CHECKPOINT_SIZE, GRADIENT_BYTES, measure_checkpoint, plan_row
from benchmarks.scaling_cluster import LAYERS, Group
from benchmarks.scaling_model import LINKS, Parts, all_reduce_seconds, expected_maximum, left_over, step_seconds
from tests.documents import ROOT


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


def test_a_checkpoint_is_measured_with_all_that_it_holds(tmp_path: Path) -> None:
    figures = measure_checkpoint(str(tmp_path))
    size, saved = figures[CHECKPOINT_SIZE]["measured"], figures[CHECKPOINT_SAVED]["measured"]
    assert 3 * GRADIENT_BYTES < 1e6 * size.value < 3.2 * GRADIENT_BYTES, "student, teacher and momentum"
    assert saved.value > 0


def test_a_row_adds_up() -> None:
    step, rate, *parts, cores = plan_row(0.01, 64, 10_000)
    milliseconds = [float(text.removesuffix(" ms")) for text in (step, *parts)]
    assert milliseconds[0] == pytest.approx(10 + sum(milliseconds[1:]), abs=0.1)
    assert float(cores) == pytest.approx(float(rate.replace(",", "")) / 10_000, rel=0.01)


# Workers


@pytest.mark.ray
def test_workers_take_as_long_as_they_sleep_at_least(ray_cluster: None) -> None:
    """Two actors in the product's process group; no bound says how fast the machine has to be."""
    parts, delays = Parts(0.02, 0.04, 0.0), (0.01, 0.02)
    with Group(2) as group:
        assert group.execute(dist.get_rank) == [0, 1]
        assert group.execute(dist.get_world_size) == [2, 2]
        measured = group.step_seconds(parts, delays, steps=3)
    planned = step_seconds(parts, 2, delays[0], [delays[1]] * LAYERS)
    assert planned == pytest.approx(0.12), "the last bucket is whole after 0.07 s, and they are sent until 0.12"
    assert measured >= planned


@pytest.mark.long
def test_the_command_compares_workers_on_nodes_of_their_own() -> None:
    command = [sys.executable, "-m", "benchmarks.scaling", "--workers", "2", "3", "--steps", "3"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    for number in (2, 3):
        for row in ("a collective without a delay", "short delays", "long delays"):
            assert f"| {number} workers, {row} |" in done.stdout
