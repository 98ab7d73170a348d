"""Pictures of two classes, features of them by a small network, and runs on these, which tests share."""

from __future__ import annotations

from pathlib import Path

import safetensors.torch
import timm
import torch
from rich.console import Console

from dpl_ray.checking.settings import settle_model
from dpl_ray.config.compose import load_config
from dpl_ray.data.dataset import ImageSet, Splits
from dpl_ray.data.features.rows import StreamedFeatures
from dpl_ray.data.splits.sources import load_splits
from dpl_ray.embedding.config import EmbedConfig
from dpl_ray.embedding.job import EmbedResult, embed
from tests.labeling.jobs import picture

NETWORK = "test_vit"  # timm's smallest
SIZE = 16
CLASSES = ("ant", "bee")


def write_weights(path: Path) -> str:
    torch.manual_seed(0)
    safetensors.torch.save_file(timm.create_model(NETWORK).state_dict(), path)
    return str(path)


def write_pictures(root: Path) -> None:
    """train/ant, train/bee, test/..., rest/: pictures darker or lighter, so that there is something to learn."""
    for place, number, first in (("train", 6, 0), ("test", 5, 100), ("rest", 20, 200)):
        for index in range(2 * number):
            folder = root / place if place == "rest" else root / place / CLASSES[index % 2]
            folder.mkdir(parents=True, exist_ok=True)
            picture(first + index, (SIZE, SIZE)).point(lambda level, add=90 * (index % 2): level // 2 + add).save(
                folder / f"{place}{index:02}.png"
            )


def run(weights: str, pool: Path, output: Path, *more: str, console: Console | None = None) -> EmbedResult:
    given = [
        "model=timm",
        f"model.architecture={NETWORK}",
        f"model.weights={weights}",
        f"image_size={SIZE}",
        "rows_per_part=8",
        "scale.num_workers=0",
        f"pool={pool}",
        f"output={output}",
    ]
    return embed(EmbedConfig.load([*given, *more]), console=console)


def write_features(weights: str, images: Path, output: Path) -> None:
    """Folders train, test, rest with two views of each kind."""
    for place in ("train", "test"):
        run(weights, images / place, output / place, "views=2", "labelled=true")
    run(weights, images / "rest", output / "rest", "views=2")


def overrides(embedded: Path, *more: str) -> list[str]:
    places = {"train": "train", "unlabeled": "rest", "test": "test"}
    fields = [f"data.{field}={embedded / place}" for field, place in places.items()]
    small = ["train.batch_size=4", "train.mu=2", "train.num_steps=12", "scale.num_workers=0", "tracking.enabled=false"]
    return ["data=features", *fields, *small, *more]


def splits_of(embedded: Path, *more: str) -> Splits:
    return load_splits(settle_model(load_config(overrides(embedded, *more))).data, seed=0)


def pool_of(splits: Splits) -> dict[str, bytes]:
    """Sample id -> features, of a pool in memory or of a pass of one that is streamed."""
    pool = splits.unlabeled
    if isinstance(pool, ImageSet):
        return {str(name): row.tobytes() for name, row in zip(pool.ids, pool.images, strict=True)}
    assert isinstance(pool, StreamedFeatures)
    taken = pool.take(0, len(pool), seed=0)
    return {name: row.tobytes() for name, row in zip(pool.names(taken.ids), taken.images, strict=True)}
