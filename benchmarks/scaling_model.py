"""What a step takes where many workers wait for each other: the arithmetic of benchmarks/scaling.py.

A worker's step is: compute; a collective of the policy's statistics, for which all wait; compute, while whole buckets
of gradients are sent; the rest of the sending. So a step takes

    E[max of N first parts] + statistics + E[max of N second parts] + what of the sending is left,

and the maximum of N normal times is what stragglers cost. Where the feed takes longer than that for the images of a
step, the step takes as long as the feed. Now and then worker 0 writes a checkpoint, and the others wait.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dpl_ray.config.schema import CHECKPOINT_SHARE, TrainConfig


@dataclass(frozen=True)
class Links:
    """What connects GPUs."""

    per_node: int  # GPUs
    latency: tuple[float, float]  # seconds of a message in a node, between nodes
    bandwidth: tuple[float, float]  # bytes a second of a GPU in a node, between nodes


LINKS = Links(8, (5e-6, 15e-6), (150e9, 12.5e9))  # NVLink, and 100 Gbit/s for each GPU


@dataclass(frozen=True)
class Parts:
    """A worker's computing without the others, in seconds."""

    first: float  # before the statistics
    second: float
    spread: float  # standard deviation of each part, as a share of it

    def slower(self, workers: int) -> float:
        """How many times as long the slowest of so many workers takes."""
        return 1 + self.spread * expected_maximum(workers) if workers > 1 else 1.0


def all_reduce_seconds(num_bytes: float, workers: int, links: Links = LINKS) -> float:
    """Latency of a tree there and back, and the bytes that a ring sends over its slowest link."""
    if workers == 1:
        return 0.0
    inside = min(workers, links.per_node)
    nodes = math.ceil(workers / links.per_node)
    hops = math.ceil(math.log2(inside)) * links.latency[0] + math.ceil(math.log2(nodes)) * links.latency[1]
    slowest = links.bandwidth[nodes > 1]
    return 2 * hops + 2 * (workers - 1) / workers * num_bytes / slowest


def expected_maximum(number: int) -> float:
    """Of so many independent standard normal numbers: the integral of 1 - Phi(x)^n for x > 0, less that of Phi(x)^n."""
    from scipy.stats import norm

    at = np.linspace(0, 10, 20_001)
    return float(np.trapezoid(1 - norm.cdf(at) ** number - norm.cdf(-at) ** number, at))


def left_over(sends: Sequence[float], second: float) -> float:
    """Seconds of sending after the backward pass, of buckets that are whole at equal distances, sent one by one."""
    done = 0.0
    for number, seconds in enumerate(sends, start=1):
        done = max(done, second * number / len(sends)) + seconds
    return done - second


def step_seconds(parts: Parts, workers: int, statistics_seconds: float, sends: Sequence[float]) -> float:
    """A step whose batch is there.

    Args:
        statistics_seconds: of their collective.
        sends: seconds of each bucket of gradients.
    """
    slower = parts.slower(workers)
    return slower * (parts.first + parts.second) + statistics_seconds + left_over(sends, slower * parts.second)


def checkpoint_seconds(saving: float, step: float, config: TrainConfig) -> float:
    """What checkpoints cost each step, with any number of workers.

    They are due after `checkpoint_every` steps, whatever they cost, and by the time (`CheckpointClock`) so seldom that
    they take CHECKPOINT_SHARE of it at most.

    Args:
        saving: seconds of one.
        step: seconds of a step without them.
    """
    by_time = max(config.checkpoint_seconds, saving / CHECKPOINT_SHARE) / step
    return saving / max(1.0, min(config.checkpoint_every, by_time))
