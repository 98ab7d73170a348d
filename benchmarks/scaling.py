"""A step on 8 to 1,024 GPUs on paper, and the same arithmetic against workers with delays in their collectives.

    python -m benchmarks.scaling --save      2, 4 and 8 workers on as many nodes of Ray, made up on this machine

The arithmetic is that of benchmarks/scaling_model.py. `plan` puts in what was measured: the step of one GPU, the feed
beside a GPU, the parts of a step on a CPU, and a checkpoint, which this benchmark writes. The links between GPUs, how
much computing varies and the cores for each GPU are assumed. The workers are those of benchmarks/scaling_cluster.py.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from benchmarks.figures import Figure, Figures, Measurement, add_save, median, report, shown
from benchmarks.scaling_cluster import LAYERS, Group, nodes
from benchmarks.scaling_model import LINKS, Parts, all_reduce_seconds, checkpoint_seconds, left_over, step_seconds
from dpl_ray.config.parse import parse_config
from dpl_ray.config.schema import TrainConfig
from dpl_ray.page.markdown import markdown_row
from dpl_ray.store.storage import Storage
from dpl_ray.training.checkpoint import save_checkpoint
from dpl_ray.training.checkpoint_folder import ModelInfo
from dpl_ray.training.distributed import Workers
from dpl_ray.training.state import build_state

NUM_GPUS = (8, 64, 256, 1024)
BATCH_SIZE, MU = 64, 7  # of a step on one GPU; the labelled images are in memory
GRADIENT_BYTES, BUCKET_BYTES = 4 * 1_466_320, 2**22  # WRN-28-2
STATISTICS_BYTES = 8 * 200
SPREAD = 0.02  # standard deviation of a worker's computing, as a share of it; assumed
# Rows and columns of docs/results/bench: of gpu.json, step.json, pool_feed_h100.json and scaling.json.
ONE_BY_ONE, GRAPH = "compiled, launched one by one", "compiled, one CUDA graph"
FIRST = ("weak view", "weak forward", "heads and policy")  # before the statistics
SECOND = ("strong view", "forward and backward", "optimizer and EMA")
FEED, CORES = "feed, windows_ahead=null (48)", 16  # of its machine; as many are assumed for each GPU
CHECKPOINT_SIZE, CHECKPOINT_SAVED = "size of a checkpoint, WRN-28-2", "saving it on this disk"
CHECKPOINT_ROUNDS = 7


# The plan.


@dataclass(frozen=True)
class Measured:
    """What the plan puts in."""

    alone: dict[str, float]  # seconds of a step on one GPU, by how it is launched
    first_share: float  # of the computing, before the statistics
    feed_rate: float  # images/s that a core feeds
    saving: float  # seconds of a checkpoint

    @classmethod
    def load(cls) -> Measured:
        """From the files of docs/results/bench."""
        gpu, step = Measurement.load("gpu").figures, Measurement.load("step").figures
        first, second = (sum(step[part]["median"].value for part in parts) for parts in (FIRST, SECOND))
        return cls(
            {launched: gpu[launched]["coverage 1"].value / 1e3 for launched in (ONE_BY_ONE, GRAPH)},
            first / (first + second),
            Measurement.load("pool_feed_h100").figures[FEED]["rate"].value / CORES,
            Measurement.load("scaling").figures[CHECKPOINT_SAVED]["measured"].value / 1e3,
        )


@dataclass(frozen=True)
class Planned:
    """A step of one of so many GPUs, in seconds: its computing and what comes to that."""

    alone: float
    statistics: float
    stragglers: float
    gradients_left: float
    wait_for_feed: float
    checkpoints: float
    feeding_cores: float  # cores for each GPU below which the step waits for the feed

    @property
    def whole(self) -> float:
        return self.alone + sum(self.costs().values())

    def costs(self) -> dict[str, float]:
        """Heading of a column -> seconds."""
        return {
            "statistics": self.statistics,
            "stragglers": self.stragglers,
            "gradients left": self.gradients_left,
            "wait for the feed": self.wait_for_feed,
            "checkpoints": self.checkpoints,
        }


def planned_step(measured: Measured, launched: str, workers: int, cores: int = CORES) -> Planned:
    """
    Args:
        cores: that feed each GPU.
    """
    alone = measured.alone[launched]
    parts = Parts(measured.first_share * alone, (1 - measured.first_share) * alone, SPREAD)
    gathered = all_reduce_seconds(STATISTICS_BYTES, workers)
    buckets = math.ceil(GRADIENT_BYTES / BUCKET_BYTES)
    sends = [all_reduce_seconds(GRADIENT_BYTES / buckets, workers)] * buckets
    fed = step_seconds(parts, workers, gathered, sends)
    slower = parts.slower(workers)
    whole = max(fed, BATCH_SIZE * MU / (cores * measured.feed_rate))
    return Planned(
        alone,
        gathered,
        (slower - 1) * alone,
        left_over(sends, slower * parts.second),
        whole - fed,
        checkpoint_seconds(measured.saving, whole, TrainConfig()),
        BATCH_SIZE * MU / fed / measured.feed_rate,
    )


def plan() -> str:
    """The table of docs/scale.md."""
    measured = Measured.load()
    steps = {
        (launched, workers): planned_step(measured, launched, workers)
        for launched in (ONE_BY_ONE, GRAPH)
        for workers in (1, *NUM_GPUS)
    }
    columns = list(steps[GRAPH, 1].costs())
    heading = ["GPUs", "step", "images/s of each", *columns, "cores that the feed needs"]
    lines = [markdown_row(heading), markdown_row(["---"] * len(heading))]
    for (launched, workers), step in steps.items():
        rate = BATCH_SIZE * (1 + MU) / step.whole
        costs = map(_milliseconds, step.costs().values())
        cells = [_milliseconds(step.whole), shown(rate), *costs, shown(step.feeding_cores)]
        lines.append(markdown_row([f"{workers:,}, {launched}", *cells]))
    inside, between = (
        f"{bandwidth / 1e9:g} GB/s and {1e6 * latency:g} µs"
        for bandwidth, latency in zip(LINKS.bandwidth, LINKS.latency, strict=True)
    )
    assumed = (
        f"Assumed: {inside} for each GPU in a node of {LINKS.per_node}, {between} between nodes; a standard deviation "
        f"of {100 * SPREAD:g} % of a worker's computing; {shown(100 * measured.first_share)} % of the computing before "
        f"the statistics, as measured on a CPU; {CORES} cores that feed each GPU with {shown(measured.feed_rate)} "
        f"images/s each, as measured beside an H100; {shown(measured.saving)} s for a checkpoint, as measured below."
    )
    return "\n".join([*lines, "", bottlenecks(steps), "", assumed])


def bottlenecks(steps: dict[tuple[str, int], Planned]) -> str:
    """What costs most beside the computing, and what is next where a graph saves the launches."""
    few, many = NUM_GPUS[0], NUM_GPUS[-1]
    launches = {"launches": steps[ONE_BY_ONE, few].alone - steps[GRAPH, few].alone}
    sentences = [f"First bottleneck on {few} GPUs: {_ranked(steps[ONE_BY_ONE, few], launches)}."]
    sentences += [f"With a graph on {workers:,}: {_ranked(steps[GRAPH, workers])}." for workers in (few, many)]
    return " ".join(sentences)


def _ranked(step: Planned, more: dict[str, float] | None = None) -> str:
    """Of the costs of a step those that are not 0, the largest first."""
    ranked = sorted((step.costs() | (more or {})).items(), key=lambda cost: -cost[1])
    first, *others = (f"{name} {_milliseconds(seconds)}" for name, seconds in ranked if seconds)
    return f"{first} of {_milliseconds(step.whole)}, then {', '.join(others)}"


def _milliseconds(seconds: float) -> str:
    return f"{shown(1e3 * seconds)} ms"


# The same arithmetic with workers.


def measure_checkpoint(folder: str) -> Figures:
    """Bytes of a checkpoint of WRN-28-2 after a step, and the time that saving it takes."""
    config = parse_config({"model": {"depth": 28, "width": 2}})
    state = build_state(config, 3, 10, Workers())
    for parameter in state.learner.parameters():
        parameter.grad = torch.zeros_like(parameter)
    state.optimizer.step()  # so that there is momentum to save
    info, seconds = ModelInfo(tuple("0123456789"), 3, (32, 32)), []
    for step in range(1, CHECKPOINT_ROUNDS + 1):
        state.step, began = step, time.perf_counter()
        saved = save_checkpoint(Storage(folder), state, config, info, Workers(), keep=2)
        seconds.append(time.perf_counter() - began)
    size = sum(len((saved / name).read()) for name in saved.list())
    return {
        CHECKPOINT_SIZE: {"measured": Figure(size / 1e6, "MB")},
        CHECKPOINT_SAVED: {"measured": median([1e3 * each for each in seconds], "ms")},
    }


def compare(numbers: Sequence[int], rounds: int, steps: int, show: Callable[[str], None] = print) -> Figures:
    """Planned and measured seconds of a step, with short and with long delays, which alternate.

    What a collective takes without a delay is measured in each round by steps that do nothing else.
    """
    parts = Parts(0.04, 0.08, 0.1)
    bare: Figures = {}
    compared: dict[str, Figures] = {"short delays": {}, "long delays": {}}
    delays = {"short delays": (0.002, 0.004), "long delays": (0.02, 0.05)}
    with nodes(max(numbers)):
        for number in numbers:
            collectives: list[float] = []
            found: dict[str, list[tuple[float, float]]] = {name: [] for name in delays}
            with Group(number) as group:
                assert group.num_nodes() == number, "each worker has a node of its own"
                for index in range(rounds):
                    nothing = group.step_seconds(Parts(0, 0, 0), (0, 0), steps, index)
                    collectives.append(nothing / (1 + LAYERS))
                    for name, (waits, sends) in delays.items():
                        sent = [sends + collectives[-1]] * LAYERS
                        planned = step_seconds(parts, number, waits + collectives[-1], sent)
                        measured = group.step_seconds(parts, (waits, sends), steps, index)
                        found[name].append((planned, measured))
                        show(f"{number} workers, {name}: planned {planned:.3f} s, measured {measured:.3f} s")
            bare[f"{number} workers, a collective without a delay"] = {"measured": _median_of(collectives)}
            for name, pairs in found.items():
                planned_all, measured_all = zip(*pairs, strict=True)
                ratios = [measured / planned for planned, measured in pairs]
                compared[name][f"{number} workers, {name}"] = {
                    "planned": _median_of(planned_all),
                    "measured": _median_of(measured_all),
                    "measured / planned": median(ratios, at_least=0.9, at_most=1.1),
                }
    return bare | compared["short delays"] | compared["long delays"]


def _median_of(seconds: Sequence[float]) -> Figure:
    return median([1e3 * each for each in seconds], "ms")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=12, help="of a measurement")
    add_save(parser, "scaling")
    given = parser.parse_args()
    torch.set_num_threads(1)  # a GPU copies its tensors without any
    with tempfile.TemporaryDirectory() as folder:
        figures = measure_checkpoint(folder)
    report("scaling", figures | compare(given.workers, given.rounds, given.steps), given.save)


if __name__ == "__main__":
    main()
