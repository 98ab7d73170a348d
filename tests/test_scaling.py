"""The plan of many GPUs: its arithmetic against slow, obvious forms, and against two workers."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import replace
from itertools import count
from pathlib import Path
from threading import Event
from types import SimpleNamespace

import numpy as np
import pytest
import torch.distributed as dist

from benchmarks.figures import Measurement
from benchmarks.scaling import (
    BATCH_SIZE,
    CHECKPOINT_SAVED,
    CHECKPOINT_SIZE,
    CORES,
    GRADIENT_BYTES,
    GRAPH,
    MU,
    NUM_GPUS,
    ONE_BY_ONE,
    Measured,
    Planned,
    bottlenecks,
    measure_checkpoint,
    plan,
    planned_step,
)
from benchmarks.scaling_cluster import LAYERS, Group
from benchmarks.scaling_model import (
    LINKS,
    Parts,
    all_reduce_seconds,
    checkpoint_seconds,
    expected_maximum,
    left_over,
    step_seconds,
)
from dpl_ray.config.schema import CHECKPOINT_SHARE, TrainConfig
from dpl_ray.training import schedule
from dpl_ray.training.schedule import CheckpointClock, due_after
from tests.documents import ROOT

MEASURED = Measured({ONE_BY_ONE: 0.03, GRAPH: 0.01}, first_share=0.2, feed_rate=4000, saving=0.1)


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


# Checkpoints


@pytest.mark.parametrize(
    ("saving", "step", "every"),
    [(0.5, 0.01, 500), (0.5, 0.01, 10**6), (3.0, 0.5, 10**6), (0.01, 1.0, 10**6), (200.0, 1.0, 10**6), (1.0, 4.0, 5)],
)
def test_checkpoints_cost_what_the_product_lets_them(
    monkeypatch: pytest.MonkeyPatch, saving: float, step: float, every: int
) -> None:
    now = 0.0
    monkeypatch.setattr(schedule, "time", SimpleNamespace(monotonic=lambda: now))
    config = TrainConfig(num_steps=10**9, checkpoint_every=every)
    clock, num_saved = CheckpointClock(config.checkpoint_seconds), 0
    for number in count(1):
        wish = clock.wish(Event())
        now += step
        if due_after(number, config, wish).checkpoint:
            num_saved += 1
            with clock.saving():
                now += saving
            if num_saved == 1:
                first, since = number, now  # the clock does not know the cost before
            elif num_saved == 4:
                break
    cost = (now - since) / (number - first) - step
    assert checkpoint_seconds(saving, step, config) == pytest.approx(cost, rel=0.05), "a wish is heard a step later"


def test_checkpoints_that_are_due_by_the_time_take_a_bounded_share() -> None:
    config = TrainConfig(num_steps=10**9, checkpoint_every=10**9)
    for saving in (0.01, 1.0, 100.0, 10_000.0):
        assert checkpoint_seconds(saving, 0.01, config) <= CHECKPOINT_SHARE * 0.01 * (1 + 1e-9)


def test_a_checkpoint_is_measured_with_all_that_it_holds(tmp_path: Path) -> None:
    figures = measure_checkpoint(str(tmp_path))
    size, saved = figures[CHECKPOINT_SIZE]["measured"], figures[CHECKPOINT_SAVED]["measured"]
    assert 3 * GRADIENT_BYTES < 1e6 * size.value < 3.2 * GRADIENT_BYTES, "student, teacher and momentum"
    assert saved.value > 0


# The plan


def _steps(measured: Measured) -> dict[tuple[str, int], Planned]:
    return {
        (launched, workers): planned_step(measured, launched, workers)
        for launched in (ONE_BY_ONE, GRAPH)
        for workers in NUM_GPUS
    }


@pytest.mark.parametrize("workers", [1, *NUM_GPUS])
@pytest.mark.parametrize("cores", [1, CORES])
def test_a_step_is_its_computing_and_what_is_told_of_it(workers: int, cores: int) -> None:
    step = planned_step(MEASURED, GRAPH, workers, cores)
    parts = Parts(0.002, 0.008, 0.02)
    sends = [all_reduce_seconds(GRADIENT_BYTES / 2, workers)] * 2
    batch_there = step_seconds(parts, workers, all_reduce_seconds(1600, workers), sends)
    whole = max(batch_there, BATCH_SIZE * MU / (4000 * cores))
    assert step.whole == pytest.approx(whole + checkpoint_seconds(0.1, whole, TrainConfig()))
    assert step.whole == pytest.approx(0.01 + sum(step.costs().values()))


def test_a_step_waits_for_the_feed_where_it_has_too_few_cores() -> None:
    enough = planned_step(MEASURED, GRAPH, 8)
    assert enough.wait_for_feed == 0
    assert 10 < enough.feeding_cores < BATCH_SIZE * MU / 0.01 / 4000, "11.2 of a step without the others"
    needed = math.ceil(enough.feeding_cores)
    assert planned_step(MEASURED, GRAPH, 8, needed).whole == pytest.approx(enough.whole)
    fewer = planned_step(MEASURED, GRAPH, 8, needed - 1)
    assert fewer.whole - fewer.checkpoints == pytest.approx(BATCH_SIZE * MU / (needed - 1) / 4000)
    assert "wait for the feed" in bottlenecks(_steps(replace(MEASURED, feed_rate=1000)))


def test_the_first_bottleneck_is_named() -> None:
    text = bottlenecks(_steps(MEASURED))
    assert text.startswith("First bottleneck on 8 GPUs: launches 20.0 ms of 31.1 ms, then stragglers 0.854 ms, check")
    assert " With a graph on 8: stragglers 0.285 ms of 10.6 ms, then checkpoints 0.2 ms, gradients left " in text
    assert " With a graph on 1,024: gradients left 0.709 ms of 11.8 ms, then stragglers 0.65 ms, stat" in text
    slow_disk = bottlenecks(_steps(replace(MEASURED, saving=30.0)))
    assert slow_disk.startswith("First bottleneck on 8 GPUs: checkpoints 60.0 ms of ")


def test_the_page_names_the_first_bottleneck_that_the_plan_has() -> None:
    page = (ROOT / "docs" / "scale.md").read_text()
    assert (
        "**The first bottleneck is the launches of kernels**: from the second GPU on they are most of the step." in page
    )
    steps = _steps(Measured.load())
    assert bottlenecks(steps).startswith("First bottleneck on 8 GPUs: launches")
    for workers in NUM_GPUS:
        one_by_one = steps[ONE_BY_ONE, workers]
        assert one_by_one.alone - steps[GRAPH, workers].alone > one_by_one.whole / 2


def test_the_plan_says_what_it_puts_in() -> None:
    text, measured = plan(), Measured.load()
    step = Measurement.load("step").figures
    shares = {part: step[part]["share"].value for part in step if "share" in step[part]}
    before = shares["weak view"] + shares["weak forward"] + shares["heads and policy"]
    others = shares["strong view"] + shares["forward and backward"] + shares["optimizer and EMA"]
    assert measured.first_share == pytest.approx(before / (before + others), rel=0.01)
    assert f"{100 * measured.first_share:.1f} % of the computing before the statistics" in text
    assert f"{CORES} cores that feed each GPU" in text
    for name in ("gpu", "pool_feed_h100"):
        assert f"{CORES} cores" in Measurement.load(name).hardware, "as many are assumed"
    assert "s for a checkpoint" in text
    assert bottlenecks(_steps(measured)) in text
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    assert rows[0] == [
        "GPUs", "step", "images/s of each", "statistics", "stragglers", "gradients left", "wait for the feed",
        "checkpoints", "cores that the feed needs",
    ]  # fmt: skip
    assert len(rows) == 2 + 2 * (1 + len(NUM_GPUS))


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
    command = [sys.executable, "-m", "benchmarks.scaling", "--workers", "2", "3", "--rounds", "2", "--steps", "3"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    for number in (2, 3):
        for row in ("a collective without a delay", "short delays", "long delays"):
            assert f"| {number} workers, {row} |" in done.stdout
