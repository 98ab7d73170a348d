"""The phases of `benchmarks/gpu.sh`: what each measures. They run on a CPU, too, at sizes that it can bear."""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch

from benchmarks.gpu_rows import Rows
from dpl_ray.config.parse import parse_config
from dpl_ray.config.schema import Config
from dpl_ray.data.batches.feed import Batch, BatchFeed
from dpl_ray.data.dataset import ImageSet
from dpl_ray.training.capture import NUM_PLAIN_STEPS, Captured
from dpl_ray.training.determinism import algorithms
from dpl_ray.training.distributed import Workers
from dpl_ray.training.prefetch import DeviceFeed
from dpl_ray.training.state import TrainState, build_state
from dpl_ray.training.step import train_step

NUM_CLASSES = 10
COVERAGES = (1.0, 0.7)
NUM_ROUNDS = 5


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def step_config(given: argparse.Namespace, **groups: dict[str, Any]) -> Config:
    tree: dict[str, Any] = {
        "model": {"depth": given.depth, "width": given.width},
        "train": {"batch_size": given.batch_size, "mu": given.mu, "num_steps": 10**6, "precision": "bfloat16"},
        "scale": {"num_workers": 0},
    }
    return parse_config(tree | {name: tree.get(name, {}) | fields for name, fields in groups.items()})


def random_images(given: argparse.Namespace, number: int) -> ImageSet:
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (number, 3, given.size, given.size), dtype=np.uint8)
    return ImageSet(images, random.integers(0, NUM_CLASSES, number), np.arange(number).astype(str))


class Bench:
    """A state, its feed and a step at a known coverage."""

    def __init__(
        self,
        given: argparse.Namespace,
        coverage: float,
        *,
        compiled: bool = False,
        fixed: bool = True,
        deterministic: bool = False,
    ) -> None:
        from benchmarks.step import FixedCoverage

        torch.manual_seed(0)
        train = {"compile": compiled, "deterministic": deterministic}
        self.config, self.workers = step_config(given, train=train), Workers(device=device())
        images = random_images(given, 5000)
        self.state: TrainState = build_state(self.config, 3, NUM_CLASSES, self.workers, pool_size=len(images))
        self.state.policy.__class__ = type("Fixed", (FixedCoverage,), {"coverage": coverage})
        self.feed = BatchFeed(self.config, images, images, 0, 1)
        self.batch: Batch = self.feed(0).to(self.workers.device)
        if not fixed:
            self.state.fixed = None
        self.captured = Captured(self.state, self.config, self.workers)

    def plain(self) -> None:
        train_step(self.state, self.batch, self.config, self.workers)

    def graph(self) -> None:
        self.captured(train_step, self.batch)

    def adapt(self) -> None:
        """Take the room that the coverage wants."""
        self.plain()
        if self.state.fixed is not None:
            self.state.fixed.adapt()


def milliseconds(call: Callable[[], object], number: int, repeats: int = NUM_ROUNDS) -> list[float]:
    """Of one call, `repeats` times, each the mean of `number` calls without waiting in between."""
    found = []
    for _ in range(repeats):
        wait()
        began = time.perf_counter()
        for _ in range(number):
            call()
        wait()
        found.append(1e3 * (time.perf_counter() - began) / number)
    return found


def add_times(rows: Rows, name: str, times: list[float], **more: Any) -> None:
    rows.add(name, statistics.median(times), "ms", low=min(times), high=max(times), **more)


# The phases.


def machine(rows: Rows, given: argparse.Namespace) -> None:
    """Names, versions, and the two rates that bound everything."""
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    rows.add("device", text=name, cores=os.cpu_count())
    rows.add("versions", text=f"Python {sys.version.split()[0]}, torch {torch.__version__}")
    values = torch.randn(given.copy_numbers, device=device())
    other = torch.empty_like(values)
    times = milliseconds(lambda: other.copy_(values), 10)
    rows.add("copy", 2 * values.numel() * 4 / statistics.median(times) / 1e6, "GB/s")
    a, b = (torch.randn(given.matrix, given.matrix, device=device(), dtype=torch.bfloat16) for _ in range(2))
    times = milliseconds(lambda: a @ b, 10)
    rows.add("matrix product", 2 * given.matrix**3 / statistics.median(times) / 1e9, "TFLOP/s")


def tests(rows: Rows, _given: argparse.Namespace) -> None:
    """The tests that need a GPU."""
    command = [sys.executable, "-m", "pytest", "tests/test_gpu.py", "-q", "--no-header", "--tb=short"]
    began = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    print(done.stdout[-12000:], done.stderr[-2000:], flush=True)
    end = f"status {done.returncode}" if done.returncode else "no failure"
    text = next((line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))), end)
    rows.add("pytest", text=text, status=done.returncode, seconds=round(time.perf_counter() - began, 1))


def step(rows: Rows, given: argparse.Namespace, *, compiled: bool = False) -> None:
    """Times of a step: launched one by one, and as a graph."""
    name = "compiled, " if compiled else ""
    for coverage in COVERAGES:
        if not compiled and coverage == 1.0:  # shapes of the data, for which the host waits
            bench = Bench(given, coverage, fixed=False)
            bench.plain()
            add_times(rows, "host waits for shapes", milliseconds(bench.plain, 10), coverage=coverage)
        bench = Bench(given, coverage, compiled=compiled)
        began = time.perf_counter()
        bench.adapt()
        bench.plain()
        wait()
        rows.add(f"{name}first two steps", time.perf_counter() - began, "s", coverage=coverage)
        more = {"coverage": coverage, "room": bench.state.fixed.capacity if bench.state.fixed else None}
        add_times(rows, f"{name}one by one", milliseconds(bench.plain, 10), **more)
        began = time.perf_counter()
        for _ in range(NUM_PLAIN_STEPS + 1):
            bench.graph()
        wait()
        rows.add(f"{name}capture", time.perf_counter() - began, "s", **more)
        add_times(rows, f"{name}graph", milliseconds(bench.graph, given.steps), **more)
        if torch.cuda.is_available():
            rows.add(f"{name}memory", torch.cuda.max_memory_allocated() / 2**30, "GiB", **more)
            torch.cuda.reset_peak_memory_stats()


def deterministic_step(rows: Rows, given: argparse.Namespace) -> None:
    """The graph with deterministic algorithms: the same weights from every start."""
    with algorithms(deterministic=True):
        bench = Bench(given, 1.0, deterministic=True)
        bench.adapt()
        for _ in range(NUM_PLAIN_STEPS + 1):
            bench.graph()
        wait()
        add_times(rows, "deterministic, graph", milliseconds(bench.graph, given.steps), coverage=1.0)


def warm(_rows: Rows, given: argparse.Namespace) -> None:
    """Compile for the phases that follow, beside the first ones: what is compiled is found in the folder of caches."""
    for coverage in COVERAGES:
        bench = Bench(given, coverage, compiled=True)
        bench.adapt()
        bench.plain()


def kernels(rows: Rows, given: argparse.Namespace, *, compiled: bool = False) -> None:
    """Time of the kernels of a step: by part of the step, and the longest by name."""
    from torch.profiler import ProfilerActivity, profile

    bench = Bench(given, 1.0, compiled=compiled)
    for _ in range(3):
        bench.plain()
    wait()
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * torch.cuda.is_available()
    with profile(activities=activities) as profiler:
        for _ in range(3):
            bench.plain()
        wait()
    from benchmarks.step import PHASES as PARTS

    for event in profiler.key_averages():
        if event.key in PARTS and event.device_type == torch.autograd.DeviceType.CPU:
            rows.add("part", event.device_time_total / 3e3, "ms", part=event.key)
    for _ in range(NUM_PLAIN_STEPS + 2):
        bench.graph()
    wait()
    with profile(activities=activities) as profiler:
        for _ in range(3):
            bench.graph()
        wait()
    found = [event for event in profiler.key_averages() if event.device_type == torch.autograd.DeviceType.CUDA]
    found.sort(key=lambda event: -event.self_device_time_total)
    rows.add("all kernels", sum(event.self_device_time_total for event in found) / 3e3, "ms")
    rows.add("number of kernels", sum(event.count for event in found) / 3)
    for event in found[:45]:
        rows.add("kernel", event.self_device_time_total / 3e3, "ms", kernel=event.key[:140], calls=event.count / 3)


def feed(rows: Rows, given: argparse.Namespace) -> None:
    """What the batches of a thread cost beside one batch that is there."""
    bench = Bench(given, 1.0, compiled=True)
    for _ in range(NUM_PLAIN_STEPS + 2):
        bench.graph()
    images = random_images(given, given.pool)
    batches = BatchFeed(bench.config, images, images, 0, 1)
    add_times(rows, "a batch on the host", milliseconds(lambda: batches(7), 10))
    source = DeviceFeed(batches, bench.workers.device, 10**6)
    numbers = iter(range(10**6))
    shares = []
    for _ in range(NUM_ROUNDS):
        fed = statistics.median(milliseconds(lambda: bench.captured(train_step, source(next(numbers))), given.steps, 3))
        alone = statistics.median(milliseconds(bench.graph, given.steps, 3))
        shares.append(100 * (fed - alone) / fed)
    source.close()
    rows.add("data wait", statistics.median(shares), "%", low=min(shares), high=max(shares))


def accuracy(rows: Rows, given: argparse.Namespace) -> None:
    """CIFAR-10 with 25 labels a class: as many steps as the time allows, and the test accuracy of the last teacher."""
    from benchmarks.gpu_accuracy import run

    run(rows, given, device())


#: Phase -> what measures it.
CALLS: dict[str, Callable[[Rows, argparse.Namespace], None]] = {
    "machine": machine,
    "tests": tests,
    "step": step,
    "step-deterministic": deterministic_step,
    "warm": warm,
    "step-compiled": partial(step, compiled=True),
    "kernels": kernels,
    "kernels-compiled": partial(kernels, compiled=True),
    "feed": feed,
    "accuracy": accuracy,
}


def measure(phase: str, rows: Rows, given: argparse.Namespace) -> None:
    if torch.cuda.is_available():
        torch.backends.cudnn.benchmark = True
    CALLS[phase](rows, given)
