"""Training on images in memory: `fit` for arrays, tensors, data sets, and lists of paths and images."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from rich.console import Console

from dpl_ray.config.compose import load_config
from dpl_ray.config.given import read_given
from dpl_ray.config.schema import Config, DataConfig
from dpl_ray.data.splits.arrays import InMemory, gather, has_columns
from dpl_ray.jobs.fit import FitResult, run_training
from dpl_ray.page.console import open_console


def fit_arrays(
    images: Any,
    labels: Any = None,
    unlabeled: Any = None,
    *,
    test: Any = None,
    config: Config | Sequence[str] = (),
    console: Console | bool | None = None,
    **keywords: Any,
) -> FitResult:
    """Train a model on images in memory. A run of the same name goes on where it stopped, if the images are the same.

    Images are an array or a tensor, (N, H, W), (N, C, H, W) or (N, H, W, C), uint8 or floats in [0, 1]; a data set of
    PyTorch, of (image, label) or of images; a data set of Hugging Face, read by data.image_column and
    data.label_column; or a list of paths, URIs, encoded bytes, images of Pillow or arrays. Arrays keep their size and
    channels, all others become data.image_size=32, as files do, unless the configuration says otherwise.

    Args:
        images: those to train on.
        labels: (N,) integers or names; -1, None and NaN mean unlabelled. None: those of the data set.
        unlabeled: further images without labels. Labels that a data set has are used to measure alone.
        test: labelled test images, as (images, labels) or as a data set; None: data.test_fraction of the labelled ones.
        config: a configuration with data=arrays, or overrides, as in `fit`.
        console: where progress and tables are shown, as in `fit`.
        keywords: further overrides, as in `fit`.

    Raises:
        ValueError: an argument, a field or the resources do not fit; before any worker starts.
        Exception: everything else that `fit` raises.
    """
    given, memory = compose(images, labels, unlabeled, test, config, keywords)
    return run_training(given, open_console(console), memory.read)


def compose(
    images: Any, labels: Any, unlabeled: Any, test: Any, config: Config | Sequence[str], keywords: dict[str, Any]
) -> tuple[Config, InMemory]:
    """The configuration of a run on these images, and the images; arguments as those of `fit_arrays`."""
    with_columns = any(map(has_columns, (images, unlabeled, test)))
    data = read_given(config, keywords, _load).data if with_columns else DataConfig()  # which has their names
    memory = gather(images, labels, unlabeled, test, data)
    found = read_given(config, keywords, partial(_load, defaults=memory.overrides()))
    if found.data.name != "arrays":
        raise ValueError(f"data={found.data.name}: the images are those that are given; leave data out, or data=arrays")
    return found, memory


def _load(overrides: Sequence[str], start: Config | None, defaults: Sequence[str] = ()) -> Config:
    is_whole = start or any(text.startswith("config=") for text in overrides)
    return load_config(overrides if is_whole else ["data=arrays", *defaults, *overrides], start)
