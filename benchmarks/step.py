"""Where the time of a training step goes, and what the step costs beside the peers' form of it.

    python -m benchmarks.step                      shares of the phases, WRN-28-2, B=16, mu=7, 2 workers
    python -m benchmarks.step --features 384 --workers 1 --batch-size 448     the same of stored features, one view each
    python -m benchmarks.step --workers 1 --classes 10000     the same with so many classes
    python -m benchmarks.step --speedup            2 workers of one thread each beside one, the same global batch
    python -m benchmarks.step --open-set           dpl that looks for foreign images beside dpl, one worker
    python -m benchmarks.step --compare            our step / the peers' form, coverage 1 and 0.7, B=8, mu=7

The peers' form (USB): labelled, weak and strong views of every image go through the network with gradient in one
batch. Views, optimizer, teacher and policy are the same in both forms; they alternate in one run.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor
from torch.profiler import ProfilerActivity, profile, record_function

from benchmarks.figures import Figure, Figures, add_save, median, quartiles, report
from benchmarks.plain_form import plain_step
from dpl_ray.algorithm.dpl import DynamicPseudoLabels
from dpl_ray.algorithm.pseudo_labels import PseudoLabels
from dpl_ray.config.parse import parse_config
from dpl_ray.config.schema import Config
from dpl_ray.data.batches.feed import BatchFeed
from dpl_ray.data.dataset import ImageSet
from dpl_ray.runs.history_writer import HistoryWriter
from dpl_ray.store.storage import Storage
from dpl_ray.training.distributed import Workers
from dpl_ray.training.memory import keep_freed_memory
from dpl_ray.training.records import Record, Window
from dpl_ray.training.state import TrainState, build_state
from dpl_ray.training.step import train_step

PHASES = (
    "data wait",
    "weak view",
    "weak forward",
    "heads and policy",
    "collective",
    "strong view",
    "forward and backward",
    "gradient average",
    "optimizer and EMA",
    "records",
)
#: Number of classes -> bound on the share of heads, policy, collective and records, in %.
BOUNDS = {10: 2, 1_000: 2, 10_000: 5}
SPEEDUP_ROUNDS = 5


class FixedCoverage(DynamicPseudoLabels):
    """DPL with all its work, but a known share of the samples gets weight 1 and the rest none."""

    coverage: ClassVar[float] = 1.0

    def weights(self, pseudo: PseudoLabels) -> Tensor:
        super().weights(pseudo)
        places = torch.arange(len(pseudo.labels), device=pseudo.confidence.device)
        return (places < round(self.coverage * len(places))).to(pseudo.confidence.dtype)


def _setup(
    arguments: argparse.Namespace, workers: Workers, coverage: float | None, *, open_set: bool = False
) -> tuple[Config, TrainState, BatchFeed]:
    if workers.device.type == "cpu":
        keep_freed_memory()  # as a training does
    on_features = {"data": {"name": "features", "train": "random"}} if arguments.features else {}
    head = {"name": "head", "num_features": arguments.features}
    config = parse_config(
        {
            **on_features,
            "policy": {"name": "dpl", "open_set": open_set},
            "model": head if arguments.features else {"depth": arguments.depth, "width": arguments.width},
            "train": {
                "batch_size": arguments.batch_size,
                "mu": arguments.mu,
                "num_steps": 10**6,
                "precision": arguments.precision,
                "weak_precision": arguments.weak_precision,
            },
            "scale": {"num_workers": workers.world_size},
        }
    )
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (2000, 3, arguments.size, arguments.size), dtype=np.uint8)
    if arguments.features:
        images = random.standard_normal((20_000, 3, 1, arguments.features), np.float32).astype(np.float16)
    pool = ImageSet(images, random.integers(0, arguments.classes, len(images)), np.arange(len(images)).astype(str))
    state = build_state(config, 3, arguments.classes, workers)
    if coverage is not None:
        state.policy.__class__ = type("Fixed", (FixedCoverage,), {"coverage": coverage})
    return config, state, BatchFeed(config, pool, pool, workers.rank, workers.world_size)


def measure_phases(rank: int, arguments: argparse.Namespace, port: int) -> None:
    """Report the share of every phase of the step, as worker 0 of `arguments.workers` sees it."""
    torch.set_num_threads(max(1, arguments.threads))
    if arguments.workers > 1:
        dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=arguments.workers)
    workers = Workers.current()
    config, state, feed = _setup(arguments, workers, coverage=1.0)
    for _ in range(2):
        train_step(state, feed(state.step), config, workers)
    rows, folder = [], tempfile.TemporaryDirectory()
    history = HistoryWriter(Storage(folder.name))
    names = tuple(map(str, range(arguments.classes)))

    def record(news: Record) -> None:
        history.add(news)

    window = Window(workers, record, config.policy.name, config.train.num_steps, names, state.sums)
    for _ in range(arguments.steps):
        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            began = time.perf_counter()
            with record_function("data wait"):
                batch = feed(state.step)
            window.add(train_step(state, batch, config, workers), state.step, len(batch), 0.0)
            total = time.perf_counter() - began
        began = time.perf_counter()
        window.close(state.step, state.policy.thresholds())
        records = (time.perf_counter() - began) / config.train.log_every
        times = {event.key: event.cpu_time_total / 1e6 for event in profiler.key_averages() if event.key in PHASES}
        rows.append(times | {"records": records, "total": total + records})
    folder.cleanup()
    if rank == 0:
        _report_phases(rows, arguments)
    if arguments.workers > 1:
        dist.destroy_process_group()


def _report_phases(rows: list[dict[str, float]], arguments: argparse.Namespace) -> None:
    def share(*phases: str, **bounds: float | None) -> Figure:
        shares = [100 * sum(row.get(phase, 0.0) for phase in phases) / row["total"] for row in rows]
        return median(shares, "%", **bounds)

    def milliseconds(phase: str) -> Figure:
        return median([1e3 * row.get(phase, 0.0) for row in rows], "ms")

    figures: Figures = {phase: {"share": share(phase)} for phase in PHASES}
    if not arguments.features:  # a step so short that it is a busy machine's more than its own
        if arguments.classes == 10:
            figures = {phase: {"median": milliseconds(phase)} | columns for phase, columns in figures.items()}
            figures["whole step"] = {"median": milliseconds("total")}
            others = [phase for phase in PHASES if phase not in ("weak forward", "forward and backward")]
            figures["everything but the network together"] = {"share": share(*others, at_most=6)}
        together = share("heads and policy", "collective", "records", at_most=BOUNDS.get(arguments.classes))
        figures["heads, policy, collective and records together"] = {"share": together}
    report("step", figures, arguments.save)


def time_steps(rank: int, arguments: argparse.Namespace, port: int, num_workers: int, times: Any) -> None:
    """Put the seconds of `arguments.steps` steps, as worker 0 sees them, into the queue."""
    torch.set_num_threads(1)
    if num_workers > 1:
        dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=num_workers)
    workers = Workers.current()
    config, state, feed = _setup(arguments, workers, coverage=1.0)
    for step in range(arguments.steps + 2):
        if step == 2:
            began = time.perf_counter()
        train_step(state, feed(state.step), config, workers)
    if rank == 0:
        times.put(time.perf_counter() - began)
    if num_workers > 1:
        dist.destroy_process_group()


def measure_speedup(arguments: argparse.Namespace) -> None:
    """Report the images/s of two workers over those of one; they alternate, in processes of their own."""
    times, found = mp.get_context("spawn").SimpleQueue(), []
    for _ in range(SPEEDUP_ROUNDS):
        pair = []
        for num_workers in (1, 2):
            mp.spawn(time_steps, (arguments, _free_port(), num_workers, times), nprocs=num_workers)
            pair.append(times.get())
        found.append(pair)
    images = arguments.steps * arguments.batch_size * (1 + arguments.mu)
    one, two = ([images / pair[place] for pair in found] for place in (0, 1))
    ratio = median([pair[0] / pair[1] for pair in found], at_least=1.8)
    figures: Figures = {
        "1 worker": {"rate": median(one, "images/s")},
        "2 workers": {"rate": median(two, "images/s"), "2 workers / 1 worker": ratio},
    }
    report("step", figures, arguments.save)


def compare_forms(arguments: argparse.Namespace) -> None:
    """Report the time of our step over the peers' form, alternating, at coverage 1 and 0.7."""
    torch.set_num_threads(max(1, arguments.threads))
    figures: Figures = {}
    workers = Workers(device=torch.device(arguments.device))
    for coverage, bound in ((1.0, 0.65), (0.7, 0.55)):
        config, ours, feed = _setup(arguments, workers, coverage)
        _, peers, _ = _setup(arguments, workers, coverage)
        pairs = []
        for index in range(arguments.steps + 2):
            batch = feed(index).to(workers.device)
            seconds = [
                _seconds(partial(step, state, batch, config, workers))
                for step, state in ((train_step, ours), (plain_step, peers))
            ]
            if index >= 2:
                pairs.append(seconds)
        ratios = [pair[0] / pair[1] for pair in pairs]
        mine, theirs = (quartiles([1e3 * each for each in column], "ms") for column in zip(*pairs, strict=True))
        columns = {"ours": mine, "peers' form": theirs}
        figures[f"coverage {coverage}"] = columns | {"ours / peers' form": quartiles(ratios, at_most=bound)}
    report("step", figures, arguments.save)


def compare_open_set(arguments: argparse.Namespace) -> None:
    """Report the time of a step that looks for foreign images over one that does not, alternating, coverage 1."""
    torch.set_num_threads(max(1, arguments.threads))
    workers, pairs = Workers(), []
    both = [_setup(arguments, workers, 1.0, open_set=open_set) for open_set in (True, False)]
    for index in range(arguments.steps + 2):
        batch = both[0][2](index)
        seconds = [_seconds(partial(train_step, state, batch, config, workers)) for config, state, _ in both]
        if index >= 2:
            pairs.append(seconds)
    columns = [median([1e3 * value for value in column], "ms") for column in zip(*pairs, strict=True)]
    ratio = quartiles([mine / plain for mine, plain in pairs], at_most=1.02)
    named = {"open_set=true": columns[0], "dpl": columns[1], "open_set=true / dpl": ratio}
    report("step", {"a step": named}, arguments.save)


def _seconds(call: Callable[[], object]) -> float:
    """Of a call, with what it leaves to a GPU."""
    _wait()
    began = time.perf_counter()
    call()
    _wait()
    return time.perf_counter() - began


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compare", action="store_true", help="our step beside the peers' form of it")
    parser.add_argument("--open-set", action="store_true", help="dpl that looks for foreign images beside dpl")
    parser.add_argument("--speedup", action="store_true", help="2 workers of one thread each beside one")
    parser.add_argument("--depth", type=int, default=28)
    parser.add_argument("--width", type=int, default=2)
    parser.add_argument("--size", type=int, default=32, help="side of the images in pixels")
    parser.add_argument("--features", type=int, help="stored features in place of images, so many of each")
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--batch-size", type=int, help="global labelled batch; default 16, with --compare 8")
    parser.add_argument("--mu", type=int, default=7)
    parser.add_argument("--workers", type=int, help="gloo processes; default 2, with --compare 1")
    parser.add_argument("--threads", type=int, default=1, help="of each worker")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="with --compare")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--weak-precision", choices=["float32", "bfloat16"], help="default: that of the step")
    add_save(parser, "step")
    arguments = parser.parse_args()
    arguments.batch_size = arguments.batch_size or (8 if arguments.compare else 16)
    arguments.workers = arguments.workers or (1 if arguments.compare else 2)
    if arguments.compare:
        compare_forms(arguments)
    elif arguments.open_set:
        compare_open_set(arguments)
    elif arguments.speedup:
        measure_speedup(arguments)
    elif arguments.workers == 1:
        measure_phases(0, arguments, 0)
    else:
        mp.spawn(measure_phases, (arguments, _free_port()), nprocs=arguments.workers)


def _free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


if __name__ == "__main__":
    main()
