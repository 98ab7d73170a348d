"""CIFAR-10 with 25 labels a class on one GPU, in a time that is given; the test split chooses nothing.

The number of steps is what the time left allows, by the time of a step in which every strong view is used. The test
accuracy that counts is that of the last teacher on all test images; the curve on the way is for the reader.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from typing import TYPE_CHECKING, Any

import torch

from dpl_ray.config.parse import parse_config
from dpl_ray.config.schema import Config
from dpl_ray.data.batches import BatchFeed
from dpl_ray.data.dataset import ImageSet, Splits
from dpl_ray.data.sources import load_splits
from dpl_ray.store.storage import Storage
from dpl_ray.training import loop
from dpl_ray.training.capture import Captured
from dpl_ray.training.distributed import Workers
from dpl_ray.training.records import Record
from dpl_ray.training.state import TrainState, build_state
from dpl_ray.training.step import train_step

if TYPE_CHECKING:
    from benchmarks.gpu import Rows

SPARE_SECONDS = 12.0  # of the time given: evaluation, captures, what is slower than the probe


def accuracy_config(given: argparse.Namespace, seed: int, num_steps: int) -> Config:
    """The recipe: FreeMatch (or the policy given), SGD 0.03, a teacher of decay 0.999, bfloat16."""
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
            "train": {
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


def build_compiled(*arguments: Any, **named: Any) -> TrainState:
    state = build_state(*arguments, **named)
    state.student.compile(dynamic=False)
    return state


def seconds_of_a_step(given: argparse.Namespace, splits: Splits, workers: Workers, number: int) -> float:
    """With every strong view, as a graph."""
    assert isinstance(splits.unlabeled, ImageSet)
    config = accuracy_config(given, 0, 10**6)
    build = build_compiled if given.compile else build_state
    state = build(config, 3, len(splits.class_names), workers, pool_size=len(splits.unlabeled))
    captured = Captured(state, config, workers)
    batch = BatchFeed(config, splits.labeled, splits.unlabeled, 0, 1)(0).to(workers.device)
    for _ in range(6):
        captured(train_step, batch)
    if workers.device.type == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(number):
        captured(train_step, batch)
    if workers.device.type == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - began) / number


def run(rows: Rows, given: argparse.Namespace, device: torch.device) -> None:
    """Train with each seed in its share of the minutes given."""
    began = time.perf_counter()
    workers = Workers(device=device)
    found = []
    for seed in range(given.seeds):
        config = accuracy_config(given, seed, 1000)
        splits = load_splits(config.data, seed=seed)
        rows.add("images", len(splits.labeled), pool=len(splits.unlabeled), test=len(splits.test))
        rows.add("seconds before training", time.perf_counter() - began, "s")
        per_step = seconds_of_a_step(given, splits, workers, given.steps)
        rows.add("step of the probe", 1e3 * per_step, "ms")
        left = 60 * given.minutes - (time.perf_counter() - began) - SPARE_SECONDS
        num_steps = given.num_steps or max(1, int(left / (given.seeds - seed) / per_step))
        rows.add("steps", num_steps, seed=seed)
        found.append(train_once(rows, accuracy_config(given, seed, num_steps), splits, workers, given, began))
    rows.add("mean accuracy", 100 * sum(found) / len(found), "%", seeds=given.seeds)


def train_once(
    rows: Rows, config: Config, splits: Splits, workers: Workers, given: argparse.Namespace, began: float
) -> float:
    last: dict[str, float] = {}

    def record(news: Record) -> None:
        last.update(news.metrics)
        if "curve/accuracy" in news.metrics:
            names = ("curve/accuracy", "pseudo/coverage", "pseudo/precision", "time/step", "time/data_wait")
            more = {name: round(last[name], 6) for name in names if name in last}
            rows.add("curve", 100 * news.metrics["curve/accuracy"], "%", step=news.step, **more)

    if given.compile:
        loop.build_state = build_compiled
    with tempfile.TemporaryDirectory() as folder:
        at = time.perf_counter()
        outcome = loop.train(config, splits, workers, Storage(folder), record)
    accuracy = outcome.metrics["eval/accuracy"]
    rows.add(
        "test accuracy",
        100 * accuracy,
        "%",
        seed=config.train.seed,
        policy=config.policy.name,
        steps=config.train.num_steps,
        seconds=round(time.perf_counter() - at, 1),
        seconds_with_reading=round(time.perf_counter() - began, 1),
        metrics={name: value for name, value in outcome.metrics.items() if "/" in name and "threshold" not in name},
    )
    return accuracy
