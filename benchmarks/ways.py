"""Four policies from pretrained weights and from random ones, on images: the ways beside frozen features.

    python -m benchmarks.ways --cifar10 FOLDER --fashion-mnist FOLDER --subsets 3

takes the images, labels and weights of benchmarks/frozen.py. `fine-tuned` trains the last three layers of the network,
`scratch` a small network of random weights. Each cell has one thread. Its row is added to docs/results/ways.csv
when it has finished; the same command leaves those out that are there.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.pools import LITE0, add_pools, first_rows, open_pools
from benchmarks.tables import METRICS, read, rounded, write
from dpl_ray.checking.settings import settle_model
from dpl_ray.data.splits.sources import load_splits
from dpl_ray.studies.comparison.cells import run_cell
from dpl_ray.studies.comparison.config import load_comparison, make_plan

TEST_IMAGES = 1_000
POLICIES = "supervised,fixmatch,freematch,dpl"
COMMON = (
    "data=parquet",
    "data.image_column=img",
    "train.batch_size=8",
    "train.ema_decay=0.99",
    "train.curve_images=0",
    "scale.threads_per_worker=1",
)
WAYS = {
    "fine-tuned": (
        *LITE0,
        "model.train=last:3",
        "optim.layer_decay=0.75",
        "data.image_size=96",
        "train.mu=2",
        "train.num_steps=200",
    ),
    "scratch": ("model.depth=10", "data.image_size=null", "train.mu=4", "train.num_steps=300"),
}
#: Data set and labels a class -> ways. The others from scratch are in policies.csv, with more steps.
CELLS = {
    ("cifar10", 4): ("fine-tuned", "scratch"),
    ("cifar10", 25): ("fine-tuned",),
    ("fashion_mnist", 4): ("fine-tuned",),
}
COLUMNS = (
    "data", "setting", "way", "policy", "seed", "steps", "batch_size", "mu", "pixels", "pool", "test_images",
    "core_seconds", *METRICS,
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--subsets", type=int, default=3)
    add_pools(parser)
    given = parser.parse_args()
    pools = open_pools(given)
    for seed in range(given.subsets):
        for pool in pools:
            test = first_rows(pool.test, TEST_IMAGES, given.folder / "test")
            for (data, number), ways in CELLS.items():
                for way in ways if data == pool.name else ():
                    images = (f"data.train={pool.train}", f"data.test={test}", f"data.num_labels_per_class={number}")
                    run(data, f"{data}-{number}", way, seed, images, given.folder / "runs")


def run(data: str, setting: str, way: str, seed: int, images: Sequence[str], storage: Path) -> None:
    """Train the policies that have no row yet."""
    own = {"setting": setting, "way": way, "seed": str(seed)}
    config, options = load_comparison(
        [*COMMON, *WAYS[way], *images, f"train.seed={seed}", "subsets=1", f"policies=[{POLICIES}]"]
    )
    config = settle_model(config)
    done = {row["policy"] for row in read("ways") if own.items() <= row.items()}
    missing = [cell for cell in make_plan(config, options).cells if cell.label not in done]
    if not missing:
        return
    splits = load_splits(config.data, seed=seed, uses_unlabeled=True)
    for cell in missing:
        before = time.process_time()
        result = run_cell(config, cell, splits, str(storage / f"{way}-{setting}"))
        row = [
            data, setting, way, cell.label, seed, result.steps, config.train.batch_size, config.train.mu,
            splits.labeled.images.shape[-1], len(splits.unlabeled), len(splits.test),
            round(time.process_time() - before), *rounded(result),
        ]  # fmt: skip
        write("ways", COLUMNS, [row], replaces={**own, "policy": cell.label})
        print(*row, flush=True)


if __name__ == "__main__":
    main()
