"""Labelled images that a trained model is judged by: any place of them, read as the model reads images.

Imports no torch, so that a wrong path, label or class is answered before it is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, get_args

import numpy as np

from dpl_ray.config.schema import FILE_FORMS, DataConfig, DataName
from dpl_ray.data.dataset import BadImage, ImageSet
from dpl_ray.data.features.folder import has_features, list_features
from dpl_ray.data.files.listing import list_files
from dpl_ray.data.files.location import open_location
from dpl_ray.data.labeled.records import form_of
from dpl_ray.data.labels import some
from dpl_ray.data.splits.feature_splits import read_labeled_features
from dpl_ray.data.splits.sources import load_splits, read_labeled
from dpl_ray.runs.folder import run_of
from dpl_ray.runs.splits import read_splits
from dpl_ray.store.storage import Storage
from dpl_ray.training.checkpoint_folder import feature_spec, load_config_and_info

STANDARD = tuple(name for name in get_args(DataName) if name not in (*FILE_FORMS, "arrays", "features"))


@dataclass(frozen=True)
class LabeledImages:
    """The images of a place with their classes, as the model's indices."""

    images: ImageSet  # every one has a target
    bad: tuple[BadImage, ...] = ()
    left_out: Mapping[str, int] = field(default_factory=dict)  # files that are no images, by extension
    num_seen: int | None = None  # of these, labelled ones that the model was trained on; None: its run has kept none


def read_labeled_images(
    checkpoint: Storage,
    field: str,
    given: str,
    *,
    image_column: str | None = None,
    label_column: str | None = None,
    allow_overlap: bool = False,
    allow_outside: bool = False,
    allowed_hosts: tuple[str, ...] = (),
) -> LabeledImages:
    """Read a folder with a subfolder a class, a CSV of path,label, shards, a folder of features, or a name of
    STANDARD, of which the test split is taken.

    Args:
        field: that names the place in messages.
        image_column, label_column: of parquet files; None: those of the training.
        allow_overlap: whether the model may have been trained on some of these images with labels.
        allow_outside, allowed_hosts: as of `DataConfig`.

    Raises:
        ValueError: an image has no label or a class that the model does not know; there are no images, of another size
            than the model takes, or of other features; or the model was trained on some of them.
    """
    config, info = load_config_and_info(checkpoint)
    names, data = info.class_names, config.data
    settings = info.decode_settings(data)
    # Images that cannot be read are counted, and cost no others.
    fields: dict[str, Any] = {"image_size": settings.image_size, "channels": info.channels, "max_bad_fraction": 1.0}
    columns = {"image_column": image_column, "label_column": label_column}
    fields |= {name: value for name, value in columns.items() if value}
    if given in STANDARD:
        own = {} if given != data.name else {"root": data.root, "class_names": data.class_names}
        read_as = {"fit": data.fit, "interpolation": data.interpolation, "download": data.download}
        splits = load_splits(
            DataConfig(name=given).changed(**fields, **read_as, **own),
            seed=config.train.seed,
            uses_unlabeled=False,
            reads_unlabeled=False,
        )
        if splits.class_names != names:
            raise ValueError(f"{field}={given}: its classes are {some(splits.class_names)}, not {some(names)}")
        found = LabeledImages(splits.test)
    elif has_features(location := open_location(field, given)):
        images, bad = read_labeled_features(list_features(location, feature_spec(checkpoint, config)), names)
        found = LabeledImages(images, tuple(bad))
    else:
        # Where data may lead is said by who evaluates, not by the checkpoint.
        fields |= {"train": None, "unlabeled": None, "test": None}
        fields |= {"allow_outside": allow_outside, "allowed_hosts": allowed_hosts}
        data = data.changed(name=form_of(list_files(location)), **fields)
        images, reader = read_labeled(data, field, given, names)
        shape = (info.channels, *info.image_size)
        if images.images.shape[1:] != shape:
            sizes = [f"{width}x{height}" for height, width in (images.images.shape[2:], info.image_size)]
            raise location.error(f"its images have {sizes[0]} pixels; the model takes {sizes[1]}, as they are")
        found = LabeledImages(images, tuple(reader.bad), reader.left_out)
    known = read_splits(run_of(checkpoint))
    if known is None:
        return found
    seen = known["labelled"].has(found.images)
    if seen.any() and not allow_overlap:
        raise ValueError(
            f"{field}={given}: the model was trained on {seen.sum():,} of its {len(seen):,} images, as "
            f"{found.images.ids[np.flatnonzero(seen)[0]]}, and what is measured on them is false; remove them"
        )
    return LabeledImages(found.images, found.bad, found.left_out, int(seen.sum()))
