"""CIFAR-10 with 25 labels a class on one GPU, in a time that is given; the test split chooses nothing.

The time is that of the whole process. Of what reading the images, compiling and measuring a step leave, the number of
steps is planned, by the time of a step in which every strong view is used. The test accuracy that counts is that of the
last teacher on all test images; the curve on the way is for the reader.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from benchmarks.gpu_phases import NUM_CLASSES, milliseconds, random_images
from benchmarks.gpu_rows import Rows
from dpl_ray.config.parse import parse_config
from dpl_ray.config.schema import Config
from dpl_ray.data.batches.feed import BatchFeed
from dpl_ray.data.dataset import Splits
from dpl_ray.data.splits.sources import load_splits
from dpl_ray.store.storage import Storage
from dpl_ray.training import fixed_shapes
from dpl_ray.training.capture import NUM_PLAIN_STEPS, Captured
from dpl_ray.training.distributed import Workers
from dpl_ray.training.loop import train
from dpl_ray.training.records import Record
from dpl_ray.training.state import build_state
from dpl_ray.training.step import train_step

SPARE_SECONDS = 8.0  # of the time given: evaluation, captures, what is slower than the probe


def accuracy_config(given: argparse.Namespace, seed: int, num_steps: int) -> Config:
    """The recipe: FreeMatch (or the policy given), SGD 0.05 down to 0, a teacher of decay 0.999, bfloat16."""
    images = given.images
    return parse_config(
        {
            "data": {
                "name": "parquet",
                "train": str(images / "train-*.parquet"),
                "test": str(images / "test-*.parquet"),
                "image_column": "img",
                "num_labels_per_class": 25,
                "image_size": given.size,
                "allow_overlap": True,
            },
            "model": {"depth": given.depth, "width": given.width},
            "policy": {"name": given.policy},
            "optim": {"learning_rate": 0.05, "cosine": 8, "num_warmup_steps": min(500, num_steps // 2)},
            "train": {
                "compile": torch.cuda.is_available(),
                "batch_size": given.batch_size,
                "mu": given.mu,
                "num_steps": num_steps,
                "seed": seed,
                "precision": "bfloat16",
                "log_every": 200,
                "curve_every": max(1, num_steps // 12),
                "checkpoint_every": 10**9,
                "checkpoint_seconds": 10**9,
            },
            "scale": {"num_workers": 0, "use_gpu": torch.cuda.is_available()},
        }
    )


def seconds_of_a_step(given: argparse.Namespace, workers: Workers) -> float:
    """With every strong view, as a graph: on random images, while others are read."""
    images = random_images(given, 2000)
    config = accuracy_config(given, 0, 10**6)
    state = build_state(config, 3, NUM_CLASSES, workers, pool_size=len(images))
    captured = Captured(state, config, workers)
    batch = BatchFeed(config, images, images, 0, 1)(0).to(workers.device)
    for _ in range(NUM_PLAIN_STEPS + 2):
        captured(train_step, batch)
    # The fastest of some: tests may run beside it.
    return min(milliseconds(lambda: captured(train_step, batch), given.steps)) / 1e3


def run(rows: Rows, given: argparse.Namespace, device: torch.device) -> None:
    """Train with each seed in its share of the minutes given; without time for a step of it a row says so."""
    began = time.perf_counter()
    workers = Workers(device=device)
    fixed_shapes.NUM_SIZES = 1  # room for all strong views: another size would be compiled in the time given
    found = []
    seeds = range(given.first_seed, given.first_seed + given.seeds)
    with ThreadPoolExecutor() as threads:
        config = accuracy_config(given, 0, 10**6)
        reading = [threads.submit(load_splits, config.data, seed=seed) for seed in seeds]
        per_step = seconds_of_a_step(given, workers)
        rows.add("step of the probe", 1e3 * per_step, "ms", seconds=round(time.perf_counter() - began, 1))
        for seed, read in zip(seeds, reading, strict=True):
            splits = read.result()
            for name, part in (("labelled", splits.labeled), ("pool", splits.unlabeled), ("test", splits.test)):
                rows.add(f"{name} images", len(part), seed=seed)
            if seed == seeds[0]:
                rows.add("minutes before training", (time.perf_counter() - began) / 60, "min", seed=seed)
            left = 60 * given.minutes - (time.perf_counter() - began) - SPARE_SECONDS
            num_steps = given.num_steps or int(left / (seeds.stop - seed) / per_step)
            if num_steps < 1:
                rows.add("skipped", text=f"of {given.minutes:g} minutes no time is left to train", seed=seed)
                break
            rows.add("steps", num_steps, seed=seed)
            found.append(train_once(rows, accuracy_config(given, seed, num_steps), splits, workers))
    if found:
        rows.add("mean accuracy", 100 * sum(found) / len(found), "%", policy=given.policy)


#: Column of a row -> metric.
METRICS = {
    "coverage": "pseudo/coverage",
    "precision": "pseudo/precision",
    "seconds_per_step": "time/step",
    "seconds_of_data": "time/data_wait",
}


def train_once(rows: Rows, config: Config, splits: Splits, workers: Workers) -> float:
    """The test accuracy of one training, of which there are rows for the curve, the end and each metric."""
    names: dict[str, Any] = {"policy": config.policy.name, "seed": config.train.seed}
    last: dict[str, float] = {}

    def columns(metrics: dict[str, float]) -> dict[str, float]:
        return {column: round(metrics[metric], 6) for column, metric in METRICS.items() if metric in metrics}

    def record(news: Record) -> None:
        last.update(news.metrics)
        if "curve/accuracy" in news.metrics:
            rows.add("curve", 100 * news.metrics["curve/accuracy"], "%", step=news.step, **names, **columns(last))

    with tempfile.TemporaryDirectory() as folder:
        at = time.perf_counter()
        outcome = train(config, splits, workers, Storage(folder), record)
    accuracy = outcome.metrics["eval/accuracy"]
    rows.add(
        "test accuracy",
        100 * accuracy,
        "%",
        steps=config.train.num_steps,
        seconds=round(time.perf_counter() - at, 1),
        **names,
        **columns(outcome.metrics),
    )
    for name, value in outcome.metrics.items():
        if "/" in name and "threshold" not in name:
            rows.add(name, value, **names)
    return accuracy
