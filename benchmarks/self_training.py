"""Rounds of self-training on digits written as PNGs in parquet files: `python -m benchmarks.self_training --help`.

Prints a table of each round's test accuracy and pseudo-labels, for policies and seeds.
"""

from __future__ import annotations

import argparse
import io
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console

from dpl_ray.studies.self_training.config import load_self_training
from dpl_ray.studies.self_training.job import self_train

NUM_TEST = 359  # the same for every seed
ROWS_PER_FILE = 700
#: Name -> fields.
VARIANTS = {
    "dpl": (),
    "dpl, 20 a class": ("data.labels_per_class=20",),
    "fixmatch": ("policy=fixmatch",),
    "supervised": ("policy=supervised",),
    "supervised, 20 a class": ("policy=supervised", "data.labels_per_class=20"),
}
FIELDS = (
    "data=parquet", "data.image_size=8", "data.channels=1", "data.views.horizontal_flip=false", "model.depth=10",
    "scale.num_workers=0", "scale.threads_per_worker=1", "tracking.enabled=false",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("runs/self_training"), help="of data and runs")
    parser.add_argument("--labels", type=int, default=4, help="labels a class")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    given = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    console = Console(stderr=True)
    print("| policy | seed | round | pseudo-labels | test accuracy | selected | their precision | changed |")
    print("|---|---|---|---|---|---|---|---|")
    for variant in given.variants:
        for seed in range(given.seeds):
            data = write_digits(given.folder / f"{given.labels}-{seed}", given.labels, seed)
            name = "".join(letter if letter.isalnum() else "-" for letter in f"{variant}-{given.labels}-{seed}")
            places = [f"data.train={data}/labelled.parquet", f"data.unlabeled={data}/pool"]
            places += [f"data.test={data}/test.parquet", f"run.storage_path={given.folder}", f"run.name={name}"]
            sizes = (f"train.num_steps={given.steps}", f"train.seed={seed}", f"rounds={given.rounds}")
            result = self_train(*load_self_training([*FIELDS, *places, *sizes, *VARIANTS[variant]]), console=console)
            for each in result.rounds:
                shares = [each.metrics.get(f"round/{key}") for key in ("accuracy", "selected_share", "precision")]
                shown = ["-" if share is None else f"{100 * share:.2f}" for share in (*shares, each.changed_share)]
                print(f"| {variant} | {seed} | {each.number} | {each.num_pseudo_labeled} | {' | '.join(shown)} |")


def write_digits(folder: Path, labels_per_class: int, seed: int) -> Path:
    """labelled.parquet, pool/ and test.parquet, unless they are there; the pool's true labels are written too."""
    from sklearn.datasets import load_digits

    if (folder / "test.parquet").exists():
        return folder
    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    test, rest = order[:NUM_TEST], order[NUM_TEST:]
    rest = rest[np.random.default_rng([1, seed]).permutation(len(rest))]
    labeled = np.concatenate([rest[digits.target[rest] == index][:labels_per_class] for index in range(10)])
    pool = np.setdiff1d(rest, labeled)
    parts = {"labelled": labeled, "test": test}
    for start in range(0, len(pool), ROWS_PER_FILE):
        parts[f"pool/{start // ROWS_PER_FILE}"] = pool[start : start + ROWS_PER_FILE]
    for name, rows in parts.items():
        path = folder / f"{name}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        images = [_png(digits.images[row]) for row in rows]
        pq.write_table(pa.table({"image": pa.array(images, pa.binary()), "label": digits.target[rows].tolist()}), path)
    return folder


def _png(pixels: NDArray[np.float64]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray((pixels * 255 / 16).round().astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


if __name__ == "__main__":
    main()
