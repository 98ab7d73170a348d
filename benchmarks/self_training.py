"""Rounds of self-training on digits written as PNGs in parquet files: `python -m benchmarks.self_training --help`.

Each round's test accuracy, and the pseudo-labels of the first and the last one: mean and standard deviation over seeds,
in %. A loop that has stopped counts with its last round.
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

from benchmarks.figures import Figure, Figures, add_save, mean_deviation, report
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


#: Column -> metric of a round.
POOL_METRICS = {"pool": "round/pool_accuracy", "selected": "round/selected_share", "their precision": "round/precision"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("runs/self_training"), help="of data and runs")
    parser.add_argument("--labels", type=int, default=4, help="labels a class")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    add_save(parser, "self_training")
    given = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    console = Console(stderr=True)
    figures: Figures = {}
    for variant in given.variants:
        loops: list[list[dict[str, float]]] = []
        for seed in range(given.seeds):
            data = write_digits(given.folder / f"{given.labels}-{seed}", given.labels, seed)
            name = "".join(letter if letter.isalnum() else "-" for letter in f"{variant}-{given.labels}-{seed}")
            places = [f"data.train={data}/labelled.parquet", f"data.unlabeled={data}/pool"]
            places += [f"data.test={data}/test.parquet", f"run.storage_path={given.folder}", f"run.name={name}"]
            sizes = (f"train.num_steps={given.steps}", f"train.seed={seed}", f"rounds={given.rounds}")
            result = self_train(*load_self_training([*FIELDS, *places, *sizes, *VARIANTS[variant]]), console=console)
            found = [each.metrics for each in result.rounds]
            loops.append(found + [found[-1]] * (given.rounds + 1 - len(found)))
        figures[variant] = columns(loops)
    report("self_training", figures, given.save)


def columns(loops: list[list[dict[str, float]]]) -> dict[str, Figure]:
    """Of the metrics of every seed's rounds."""

    places = {f"round {number}": ("round/accuracy", number) for number in range(len(loops[0]))}
    for name, metric in POOL_METRICS.items():
        places |= {f"{name}, round 0": (metric, 0), f"{name}, last": (metric, -1)}
    found = {}
    for name, (metric, number) in places.items():
        # Pseudo-labels have no precision in a round that has selected nothing.
        if values := [100 * rounds[number][metric] for rounds in loops if metric in rounds[number]]:
            found[name] = mean_deviation(values)
    return found


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
