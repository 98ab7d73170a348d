"""A step on 8 to 1,024 GPUs on paper, and the same arithmetic against processes with delays in their collectives.

    python -m benchmarks.scaling --save      2, 4 and 8 processes whose computing is a sleep of random length

A worker's step is: compute; a collective of the policy's statistics, for which all wait; compute, while whole buckets
of gradients are sent; the rest of the sending. So a step takes

    E[max of N first parts] + statistics + E[max of N second parts] + what of the sending is left,

and the maximum of N normal times is what stragglers cost. `plan` puts in the times of docs/results/bench/gpu.json and
the links of LINKS, which are assumed. The processes run the product's own collectives (`Workers`, `GradientBuckets`).
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from benchmarks.figures import Figure, Figures, Measurement, add_save, report, shown
from dpl_ray.page.markdown import markdown_row
from dpl_ray.training import distributed
from dpl_ray.training.distributed import GradientBuckets, Workers

NUM_GPUS = (8, 64, 256, 1024)
NUM_IMAGES = 64 * (1 + 7)  # of a step on one GPU
GRADIENT_BYTES, BUCKET_BYTES = 4 * 1_466_320, 2**22  # WRN-28-2
STATISTICS_BYTES = 8 * 200
SPREAD = 0.02  # standard deviation of a worker's computing, as a share of it; assumed
FIRST_SHARE = 0.3  # of the computing, before the statistics: views and the pass without gradient
DECODE = ("decode a 32x32 JPEG", "measured")  # of pool_rates.json
ONE_BY_ONE, GRAPH = "compiled, launched one by one", "compiled, one CUDA graph"  # of gpu.json
LAYERS = 4  # of the processes' network


@dataclass(frozen=True)
class Links:
    """What connects GPUs."""

    per_node: int  # GPUs
    latency: tuple[float, float]  # seconds of a message in a node, between nodes
    bandwidth: tuple[float, float]  # bytes a second of a GPU in a node, between nodes


LINKS = Links(8, (5e-6, 15e-6), (150e9, 12.5e9))  # NVLink, and 100 Gbit/s for each GPU


@dataclass(frozen=True)
class Parts:
    """A worker's step without the others, in seconds."""

    first: float
    second: float
    spread: float  # standard deviation of each part, as a share of it


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
    slower = 1 + parts.spread * expected_maximum(workers) if workers > 1 else 1.0
    return slower * (parts.first + parts.second) + statistics_seconds + left_over(sends, slower * parts.second)


# The plan.


def plan() -> str:
    """The table of docs/scale.md."""
    figures, rates = Measurement.load("gpu").figures, Measurement.load("pool_rates").figures
    decode = rates[DECODE[0]][DECODE[1]].value
    heading = ["GPUs", "step", "images/s of each", "statistics", "stragglers", "gradients left", "cores that decode"]
    lines = [markdown_row(heading), markdown_row(["---"] * len(heading))]
    for launched in (ONE_BY_ONE, GRAPH):
        alone = figures[launched]["coverage 1"].value / 1e3
        for workers in (1, *NUM_GPUS):
            lines.append(markdown_row([f"{workers:,}, {launched}", *plan_row(alone, workers, decode)]))
    inside, between = (
        f"{bandwidth / 1e9:g} GB/s and {1e6 * latency:g} µs"
        for bandwidth, latency in zip(LINKS.bandwidth, LINKS.latency, strict=True)
    )
    lines += [
        "",
        f"Assumed: {inside} for each GPU in a node of {LINKS.per_node}, {between} between nodes, and a standard "
        f"deviation of {100 * SPREAD:g} % of a worker's computing.",
    ]
    return "\n".join(lines)


def plan_row(alone: float, workers: int, decode: float) -> list[str]:
    """Of a step that takes `alone` seconds on one GPU, where a core decodes `decode` images a second."""
    parts = Parts(FIRST_SHARE * alone, (1 - FIRST_SHARE) * alone, SPREAD)
    gathered = all_reduce_seconds(STATISTICS_BYTES, workers)
    buckets = math.ceil(GRADIENT_BYTES / BUCKET_BYTES)
    sends = [all_reduce_seconds(GRADIENT_BYTES / buckets, workers)] * buckets
    whole = step_seconds(parts, workers, gathered, sends)
    waited = SPREAD * expected_maximum(workers) * alone if workers > 1 else 0.0
    left = whole - alone - waited - gathered
    times = [f"{shown(1e3 * seconds)} ms" for seconds in (whole, gathered, waited, max(0.0, left))]
    return [times[0], shown(NUM_IMAGES / whole), *times[1:], shown(NUM_IMAGES / whole / decode)]


# The same arithmetic with processes.


class Delayed:
    """Collectives that take longer: what is sent waits for what was sent before."""

    def __init__(self, seconds: dict[int, float]) -> None:
        """`seconds` by number of elements."""
        self.seconds, self.send, self.thread = seconds, dist.all_reduce, ThreadPoolExecutor(1)

    def __call__(self, values: Tensor, *, async_op: bool = False) -> Any:
        def send() -> None:
            time.sleep(self.seconds.get(values.numel(), 0.0))
            self.send(values)

        future: Future[None] = self.thread.submit(send)
        if not async_op:
            return future.result()
        future.wait = future.result  # type: ignore[attr-defined]
        return future


class Slow(torch.autograd.Function):
    """The identity, whose gradient takes so many seconds."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, seconds: float) -> Tensor:
        ctx.seconds = seconds
        return values.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        time.sleep(ctx.seconds)
        return gradient, None


def worker(
    rank: int, number: int, parts: Parts, delays: tuple[float, float], steps: int, place: str, found: Any
) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{place}", rank=rank, world_size=number)
    workers = Workers(rank, number)
    layers = nn.Sequential(*(nn.Linear(64, 64, bias=False) for _ in range(LAYERS)))
    values = torch.zeros(100, dtype=torch.float64)
    delayed = Delayed({values.numel(): delays[0], 64 * 64: delays[1]})
    dist.all_reduce = delayed  # type: ignore[assignment]
    distributed.bucket_bytes = lambda device: 0.0  # noqa: ARG005, a bucket for each layer
    buckets = GradientBuckets(layers.parameters(), workers)
    random = np.random.default_rng(rank)
    times = []
    for _ in range(steps):
        began = time.perf_counter()
        first, second = (
            max(0.0, part * (1 + parts.spread * random.standard_normal())) for part in (parts.first, parts.second)
        )
        time.sleep(first)
        workers.all_reduce_sum(values)
        through = torch.ones(1, 64)
        for layer in layers:
            through = Slow.apply(layer(through), second / LAYERS)
        through.sum().backward()
        buckets.finish()
        times.append(time.perf_counter() - began)
    if rank == 0:
        found.put(statistics.fmean(times[2:]))
    dist.barrier()
    dist.destroy_process_group()


def simulate(number: int, parts: Parts, delays: tuple[float, float], steps: int, place: str) -> float:
    """Mean seconds of a step of so many processes."""
    context = mp.get_context("spawn")
    found = context.SimpleQueue()
    mp.spawn(worker, (number, parts, delays, steps, place, found), nprocs=number)
    return float(found.get())


def compare(numbers: Sequence[int], steps: int, folder: str, show: Callable[[str], None] = print) -> Figures:
    """Planned and measured seconds of a step, with short and with long delays.

    What a collective takes without a delay is measured by steps that do nothing else.
    """
    parts = Parts(0.04, 0.08, 0.1)
    figures: Figures = {}
    bare = {}
    for number in numbers:
        alone = simulate(number, Parts(0, 0, 0), (0, 0), steps, f"{folder}/bare-{number}")
        bare[number] = alone / (1 + LAYERS)
        figures[f"{number} processes, a collective without a delay"] = {"measured": Figure(1e3 * bare[number], "ms")}
    for name, delays in {"short delays": (0.002, 0.004), "long delays": (0.02, 0.05)}.items():
        for number in numbers:
            planned = step_seconds(parts, number, delays[0] + bare[number], [delays[1] + bare[number]] * LAYERS)
            measured = simulate(number, parts, delays, steps, f"{folder}/{name.split()[0]}-{number}")
            figures[f"{number} processes, {name}"] = {
                "planned": Figure(1e3 * planned, "ms"),
                "measured": Figure(1e3 * measured, "ms"),
                "measured / planned": Figure(measured / planned, at_least=0.9, at_most=1.1),
            }
            show(f"{number} processes, {name}: planned {planned:.3f} s, measured {measured:.3f} s")
    return figures


def main() -> None:
    import tempfile

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--steps", type=int, default=60)
    add_save(parser, "scaling")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report("scaling", compare(given.processes, given.steps, folder), given.save)


if __name__ == "__main__":
    main()
