"""How well the study's models are calibrated, before and after a temperature: `python -m benchmarks.calibration`.

Reads the newest checkpoints that benchmarks/study.py has left of its balanced settings. NUM_LABELS images of the test
split fit the temperature, and the calibration error (ECE) is of the others; both are means over NUM_DRAWS draws of
these labels. The numbers go to docs/results/calibration.csv, from which `python -m benchmarks.results` makes the table.
"""

from __future__ import annotations

import argparse
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.foreign import load_teacher
from benchmarks.study import BASES
from benchmarks.tables import write
from dpl_ray.config.schema import DataConfig
from dpl_ray.data.dataset import ImageSet
from dpl_ray.data.splits.sources import load_splits
from dpl_ray.inference.temperature import fit_temperature
from dpl_ray.studies.comparison.cells import read_cells
from dpl_ray.training.checkpoint_folder import open_checkpoint
from dpl_ray.training.evaluation import classification_metrics, predict_logits

COLUMNS = ("setting", "policy", "subset", "seed", "labels", "temperature", "ece", "calibrated")
NUM_LABELS, NUM_DRAWS = 100, 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/study"), help="of benchmarks/study.py")
    folder = parser.parse_args().folder
    for setting in BASES:
        for cell in read_cells(str(folder / setting)):
            model, config = load_teacher(open_checkpoint(str(folder / setting / cell.cell.name)))
            test = load_test(config.data, cell.key[0])
            found = measure(predict_logits(model, test.images).numpy(), test.targets)
            own = dict(zip(COLUMNS, (setting, cell.label, *map(str, cell.key), str(NUM_LABELS)), strict=False))
            write("calibration", COLUMNS, [[*own.values(), *(f"{value:.4f}" for value in found)]], replaces=own)


@lru_cache(maxsize=8)
def load_test(data: DataConfig, subset: int) -> ImageSet:
    """All policies have the same few."""
    return load_splits(data, seed=subset, uses_unlabeled=False, reads_unlabeled=False).test


def measure(logits: NDArray[np.float32], targets: NDArray[np.int64]) -> NDArray[np.float64]:
    """(3,) temperature, ECE without and with it: means over the draws."""
    found, random = [], np.random.default_rng(0)
    for _ in range(NUM_DRAWS):
        fitting, rest = np.split(random.permutation(len(targets)), [NUM_LABELS])
        temperature = fit_temperature(logits[fitting], targets[fitting])
        errors = (
            classification_metrics(
                torch.from_numpy(logits[rest] / divisor).softmax(dim=1), torch.from_numpy(targets[rest])
            )
            for divisor in (1, temperature)
        )
        found.append([temperature, *(error["eval/ece"] for error in errors)])
    return np.mean(found, axis=0)


if __name__ == "__main__":
    main()
