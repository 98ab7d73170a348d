"""A step on 8 to 1,024 GPUs on paper, and the same arithmetic against workers with delays in their collectives.

    python -m benchmarks.scaling --save      2, 4 and 8 workers on as many nodes of Ray, made up on this machine

The arithmetic is that of benchmarks/scaling_model.py. `plan` puts in the times of docs/results/bench/gpu.json and
links, which are assumed. The workers are those of benchmarks/scaling_cluster.py. A checkpoint is measured, too.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from collections.abc import Callable, Sequence

import torch

from benchmarks.figures import Figure, Figures, Measurement, add_save, median, report, shown
from benchmarks.scaling_cluster import LAYERS, Group, nodes
from benchmarks.scaling_model import LINKS, Parts, all_reduce_seconds, expected_maximum, step_seconds
from dpl_ray.config.parse import parse_config
from dpl_ray.page.markdown import markdown_row
from dpl_ray.store.storage import Storage
from dpl_ray.training.checkpoint import save_checkpoint
from dpl_ray.training.checkpoint_folder import ModelInfo
from dpl_ray.training.distributed import Workers
from dpl_ray.training.state import build_state

NUM_GPUS = (8, 64, 256, 1024)
NUM_IMAGES = 64 * (1 + 7)  # of a step on one GPU
GRADIENT_BYTES, BUCKET_BYTES = 4 * 1_466_320, 2**22  # WRN-28-2
STATISTICS_BYTES = 8 * 200
SPREAD = 0.02  # standard deviation of a worker's computing, as a share of it; assumed
FIRST_SHARE = 0.3  # of the computing, before the statistics: views and the pass without gradient
DECODE = ("decode a 32x32 JPEG", "measured")  # of pool_rates.json
ONE_BY_ONE, GRAPH = "compiled, launched one by one", "compiled, one CUDA graph"  # of gpu.json
CHECKPOINT_SIZE, CHECKPOINT_SAVED = "size of a checkpoint, WRN-28-2", "saving it on this disk"
ROUNDS = 7


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


# The same arithmetic with workers.


def measure_checkpoint(folder: str) -> Figures:
    """Bytes of a checkpoint of WRN-28-2 after a step, and the time that saving it takes."""
    config = parse_config({"model": {"depth": 28, "width": 2}})
    state = build_state(config, 3, 10, Workers())
    for parameter in state.learner.parameters():
        parameter.grad = torch.zeros_like(parameter)
    state.optimizer.step()  # so that there is momentum to save
    info, seconds = ModelInfo(tuple("0123456789"), 3, (32, 32)), []
    for step in range(1, ROUNDS + 1):
        state.step, began = step, time.perf_counter()
        saved = save_checkpoint(Storage(folder), state, config, info, Workers(), keep=2)
        seconds.append(time.perf_counter() - began)
    size = sum(len((saved / name).read()) for name in saved.list())
    return {
        CHECKPOINT_SIZE: {"measured": Figure(size / 1e6, "MB")},
        CHECKPOINT_SAVED: {"measured": median([1e3 * each for each in seconds], "ms")},
    }


def compare(numbers: Sequence[int], steps: int, show: Callable[[str], None] = print) -> Figures:
    """Planned and measured seconds of a step, with short and with long delays.

    What a collective takes without a delay is measured by steps that do nothing else.
    """
    parts = Parts(0.04, 0.08, 0.1)
    bare: Figures = {}
    compared: dict[str, Figures] = {"short delays": {}, "long delays": {}}
    delays = {"short delays": (0.002, 0.004), "long delays": (0.02, 0.05)}
    with nodes(max(numbers)):
        for number in numbers:
            with Group(number) as group:
                assert group.num_nodes() == number, "each worker has a node of its own"
                collective = group.step_seconds(Parts(0, 0, 0), (0, 0), steps) / (1 + LAYERS)
                bare[f"{number} workers, a collective without a delay"] = {"measured": Figure(1e3 * collective, "ms")}
                for name, (waits, sends) in delays.items():
                    planned = step_seconds(parts, number, waits + collective, [sends + collective] * LAYERS)
                    measured = group.step_seconds(parts, (waits, sends), steps)
                    compared[name][f"{number} workers, {name}"] = {
                        "planned": Figure(1e3 * planned, "ms"),
                        "measured": Figure(1e3 * measured, "ms"),
                        "measured / planned": Figure(measured / planned, at_least=0.9, at_most=1.1),
                    }
                    show(f"{number} workers, {name}: planned {planned:.3f} s, measured {measured:.3f} s")
    return bare | compared["short delays"] | compared["long delays"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--steps", type=int, default=60)
    add_save(parser, "scaling")
    given = parser.parse_args()
    torch.set_num_threads(1)  # a GPU copies its tensors without any
    with tempfile.TemporaryDirectory() as folder:
        figures = measure_checkpoint(folder)
    report("scaling", figures | compare(given.workers, given.steps), given.save)


if __name__ == "__main__":
    main()
