"""What one thread and a thread for each core are worth to a training in one process, and on a busy machine.

    python -m benchmarks.threads            WRN-28-2, 32 px, B=16, mu=7

A machine is made busy by a program for each core that computes without end; otherwise it is as it is, and should have
nothing else to do. The two numbers of threads alternate in one run.
Each row also says which number of threads a training would have taken by itself.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from benchmarks.figures import Figure, Figures, add_save, median, report
from dpl_ray.config.parse import parse_config
from dpl_ray.data.batches.feed import BatchFeed
from dpl_ray.data.dataset import ImageSet
from dpl_ray.training.distributed import Workers
from dpl_ray.training.memory import keep_freed_memory
from dpl_ray.training.state import build_state
from dpl_ray.training.step import train_step
from dpl_ray.training.threads import free_cores


def compute() -> None:
    while True:
        pass


@contextmanager
def busy(num_programs: int) -> Iterator[None]:
    """So many programs compute meanwhile."""
    processes = [multiprocessing.get_context("spawn").Process(target=compute, daemon=True) for _ in range(num_programs)]
    for process in processes:
        process.start()
    time.sleep(2.0 * bool(processes))  # until Python has started in them
    try:
        yield
    finally:
        for process in processes:
            process.terminate()


def rates(arguments: argparse.Namespace, choices: list[int]) -> dict[int, list[float]]:
    """Threads -> images a second of each step."""
    size = {"depth": arguments.depth, "width": arguments.width}
    train = {"batch_size": 16, "mu": 7, "num_steps": 10**6}
    config = parse_config({"model": size, "train": train, "scale": {"num_workers": 0}})
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (2000, 3, arguments.size, arguments.size), dtype=np.uint8)
    images = ImageSet(pixels, random.integers(0, 10, 2000), np.arange(2000).astype(str))
    workers = Workers()
    keep_freed_memory()  # as a training does
    state, feed = build_state(config, 3, 10, workers), BatchFeed(config, images, images, 0, 1)
    found: dict[int, list[float]] = {threads: [] for threads in choices}
    for number in range((arguments.steps + 1) * len(choices)):
        threads = choices[number % len(choices)]
        torch.set_num_threads(threads)
        batch = feed(state.step)
        began = time.perf_counter()
        train_step(state, batch, config, workers)
        found[threads].append(len(batch) / (time.perf_counter() - began))
    return {threads: values[1:] for threads, values in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depth", type=int, default=28)
    parser.add_argument("--width", type=int, default=2)
    parser.add_argument("--size", type=int, default=32, help="side of the images in pixels")
    parser.add_argument("--steps", type=int, default=10, help="for each number of threads")
    add_save(parser, "threads")
    arguments = parser.parse_args()
    num_cores = os.cpu_count() or 1
    choices, usual = [1, num_cores], torch.get_num_threads()
    figures: Figures = {}
    for name, num_programs in (("as it is", 0), (f"with {num_cores} busy programs", num_cores)):
        with busy(num_programs):
            torch.set_num_threads(usual)
            taken = free_cores()
            found = rates(arguments, choices)
        row = {
            f"{threads} threads".replace("1 threads", "1 thread"): median(found[threads], "images/s")
            for threads in choices
        }
        row["threads that a training takes"] = Figure(taken)
        best = max(statistics.median(values) for values in found.values())
        if taken in found:
            row["its rate / the better one"] = Figure(statistics.median(found[taken]) / best, at_least=0.9)
        figures[name] = row
    report("threads", figures, arguments.save)


if __name__ == "__main__":
    main()
