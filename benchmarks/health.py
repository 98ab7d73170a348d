"""Trains small runs, ten and more that are well and one of every kind that is not, and keeps what they have measured.

    nice -n 19 python -m benchmarks.health FOLDER --cifar10 /path/to/parquet          all
    nice -n 19 python -m benchmarks.health FOLDER collapsed dpl-0                     these

FOLDER is for the runs, and is needed no more when tests/recorded/health/NAME.json is written, which the tests of
dpl_ray/report/health.py read. A run takes one to three minutes on one core; one that has finished is only measured
again.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from dpl_ray.config.compose import load_config
from dpl_ray.data.dataset import ImageSet, Splits
from dpl_ray.data.splits.sources import load_splits
from dpl_ray.jobs.phases import train_phases
from dpl_ray.report import health
from dpl_ray.report.health import Measured, find_health
from dpl_ray.report.measure import measure
from dpl_ray.report.page import find_verdict
from dpl_ray.report.pool import label_sample
from dpl_ray.runs.folder import RunFolder, run_storage
from dpl_ray.training.distributed import Workers

RECORDED = Path(__file__).parent.parent / "tests" / "recorded" / "health"
ALWAYS = "train.baseline=false scale.num_workers=0 tracking.enabled=false model.depth=10 train.log_every=20"
DIGITS = "data=digits model.width=1 train.batch_size=8 train.mu=4 train.num_steps=600"
CIFAR = (
    "data=parquet data.train={cifar10}/train-00000*.parquet data.test={cifar10}/test-*.parquet data.image_column=img "
    "data.image_size=16 data.interpolation=area data.num_labels_per_class=200 train.num_steps=600 train.mu=2"
)


@dataclass(frozen=True)
class Case:
    """A run, what is wrong with it, and what is done to its data before."""

    overrides: str
    kind: str | None = None
    change: Callable[[Splits], Splits] = lambda splits: splits


def relabelled(splits: Splits, share: float) -> Splits:
    """With other labels, drawn at random, for a share of the labelled images."""
    random = np.random.default_rng(0)
    targets = splits.labeled.targets.copy()
    drawn = random.random(len(targets)) < share
    targets[drawn] = random.integers(0, len(splits.class_names), drawn.sum())
    return dataclasses.replace(splits, labeled=dataclasses.replace(splits.labeled, targets=targets))


def is_zero(splits: Splits) -> Splits:
    """Two classes, of which one has nine images in ten."""

    def changed(images: ImageSet) -> ImageSet:
        return dataclasses.replace(images, targets=(images.targets > 0).astype(np.int64))

    assert isinstance(splits.unlabeled, ImageSet)
    return dataclasses.replace(
        splits,
        labeled=changed(splits.labeled),
        unlabeled=changed(splits.unlabeled),
        validation=changed(splits.validation),
        test=changed(splits.test),
        class_names=("zero", "other"),
    )


def few_test_images(splits: Splits) -> Splits:
    return dataclasses.replace(splits, test=splits.test.subset(np.arange(20)))


CASES = {
    "dpl-0": Case(f"{DIGITS} policy=dpl"),
    "dpl-1": Case(f"{DIGITS} policy=dpl train.seed=1 data.num_labels_per_class=10"),
    "fixmatch": Case(f"{DIGITS} policy=fixmatch data.num_labels_per_class=10"),
    "flexmatch": Case(f"{DIGITS} policy=flexmatch data.num_labels_per_class=10"),
    "freematch": Case(f"{DIGITS} policy=freematch train.seed=2"),
    "softmatch": Case(f"{DIGITS} policy=softmatch data.num_labels_per_class=25"),
    "adamatch": Case(f"{DIGITS} policy=adamatch data.num_labels_per_class=10"),
    "supervised": Case(f"{DIGITS} policy=supervised data.num_labels_per_class=25 train.batch_size=16"),
    "validation": Case(f"{DIGITS} policy=dpl train.seed=3 data.num_labels_per_class=15 data.validation_fraction=0.2"),
    "imbalanced": Case(f"{DIGITS} policy=dpl data.num_labels_per_class=10", change=is_zero),
    "cifar10-dpl": Case(f"{CIFAR} policy=dpl"),
    "cifar10-supervised": Case(f"{CIFAR} policy=supervised"),
    "labels-mean-nothing": Case(
        f"{DIGITS} policy=supervised", health.AT_CHANCE, change=lambda splits: relabelled(splits, 1.0)
    ),
    "collapsed": Case(
        f"{DIGITS} policy=fixmatch policy.threshold=0 data.num_labels_per_class=1 train.lambda_u=50 "
        "train.num_steps=300",
        health.COLLAPSED,
    ),
    "crossed": Case(f"{DIGITS} policy=dpl policy.cut=own train.num_steps=200", health.CROSSED),
    "pool-ignored": Case(f"{DIGITS} policy=fixmatch policy.threshold=0.99999", health.IGNORED),
    "over-fitted": Case(
        f"{DIGITS} policy=supervised data.num_labels_per_class=40 train.batch_size=64 train.ema_decay=0.9",
        health.OVER_FITTED,
        change=lambda splits: relabelled(splits, 0.5),
    ),
    "loss-still-falling": Case(
        f"{DIGITS} policy=supervised data.num_labels_per_class=100 optim.learning_rate=0.003 train.batch_size=64 "
        "train.num_steps=200 train.log_every=10",
        health.FALLING,
    ),
    "too-short": Case(f"{DIGITS} policy=dpl train.num_steps=60 train.log_every=5", health.TOO_SHORT),
    "behind": Case(
        f"{DIGITS} policy=fixmatch policy.threshold=0 data.num_labels_per_class=4 train.lambda_u=10 "
        "train.num_steps=200 train.baseline=true",
        health.BEHIND,
    ),
    "few-test-images": Case(
        f"{DIGITS} policy=supervised data.num_labels_per_class=10 train.num_steps=200",
        health.FEW_HELD_OUT,
        change=few_test_images,
    ),
    "badly-calibrated": Case(
        f"{DIGITS} policy=fixmatch policy.threshold=0 data.num_labels_per_class=2 train.lambda_u=10 "
        "train.num_steps=200",
        health.MISCALIBRATED,
    ),
    "starved": Case(
        "data=image_folder data.train={folder}/photos/labelled data.unlabeled={folder}/photos/pool "
        "data.pool.mode=stream data.image_size=8 data.channels=1 model.width=1 train.batch_size=8 train.mu=7 "
        "policy=fixmatch policy.threshold=0.8 train.num_steps=20 train.log_every=2 data.pool.shuffle_rows=56",
        health.STARVED,
    ),
}


def write_photos(folder: Path, side: int = 700) -> None:
    """Digits as large images, which take longer to decode than a small network needs for a step."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    for number in range(500):
        label = digits.target[number]
        place = folder / (f"labelled/{label}" if number < 250 else "pool")
        place.mkdir(parents=True, exist_ok=True)
        file = place / f"{number}.png"
        if not file.exists():
            Image.fromarray((digits.images[number] * 15).astype("uint8")).resize((side, side)).save(file)


def run(case: Case, name: str, folder: Path, cifar10: str) -> Measured:
    """What a case has measured, trained or found finished."""
    if "{folder}" in case.overrides:
        write_photos(folder / "photos")
    overrides = f"{ALWAYS} {case.overrides}".format(folder=folder, cifar10=cifar10).split()
    config = load_config([*overrides, f"run.storage_path={folder}", f"run.name={name}"])
    splits = case.change(
        load_splits(config.data, seed=config.train.seed, uses_unlabeled=config.policy.name != "supervised")
    )
    made = RunFolder(run_storage(config), config, splits)
    outcomes = train_phases(config, splits, made.storage, Workers(), lambda _: None)
    outcome = outcomes[-1]
    sample = None if outcome.phase == "supervised" else label_sample(outcome.checkpoint, splits)
    return measure(config, splits, made.history, outcome, sample, find_verdict(splits, outcomes))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="for the runs")
    parser.add_argument("names", nargs="*", help="of the cases; none: all")
    parser.add_argument("--cifar10", default="", help="folder of CIFAR-10 as parquet files")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for name in arguments.names or CASES:
        case, began = CASES[name], time.monotonic()
        measured = run(case, name, arguments.folder.absolute(), arguments.cifar10)
        kept = {"overrides": case.overrides, "kind": case.kind, "measured": dataclasses.asdict(measured)}
        rounded = json.loads(json.dumps(kept), parse_float=lambda text: round(float(text), 5))
        (RECORDED / f"{name}.json").write_text(json.dumps(rounded) + "\n")
        print(
            f"{name}: {time.monotonic() - began:.0f} s, {[found.name for found in find_health(measured)]}", flush=True
        )


if __name__ == "__main__":
    main()
