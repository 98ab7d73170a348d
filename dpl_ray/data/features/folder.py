"""Folders of features that `dpl-ray embed` writes, as images are read: labelled, unlabelled and for tests.

<folder>/
  part-*.parquet          sample_id, error, label, pixels (a hash, by which copies are found); features (D,), and
                          with views weak (V D,), strong (V D,) float16
  _backbone/spec.json     the network that made them, and how it reads images (`Spec`)
  _backbone/weights.safetensors

Parts are read as the files of a pool are (rows.py).

Legend: N samples, D features, V stored weak views and as many strong ones, P = 1 + 2 V.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import TypeAdapter

from dpl_ray.data.features.rows import FeatureFiles, id_hashes
from dpl_ray.data.files.kinds import read_file
from dpl_ray.data.files.location import Location, open_location
from dpl_ray.store.file_systems import one_line
from dpl_ray.store.records import parse_tree

BACKBONE_FOLDER = "_backbone"
SPEC_FILE, WEIGHTS_FILE = "spec.json", "weights.safetensors"
BACKBONE_SPEC, BACKBONE_WEIGHTS = "backbone.json", "backbone.safetensors"  # in a checkpoint


@dataclass(frozen=True)
class Spec:
    """What made the features of a folder."""

    digest: str  # of the network's tensors and of the way images are read: features of one digest belong together
    num_features: int  # D
    num_views: int  # V
    model: dict[str, Any]  # fields of ModelConfig
    channels: int
    image_size: int
    fit: str
    interpolation: str
    class_names: tuple[str, ...] | None  # in the order of their indices, of folders with labels

    def to_json(self) -> bytes:
        return json.dumps(asdict(self), indent=1).encode()


def read_spec(field: str, given: str) -> Spec:
    """The spec of a folder.

    Raises:
        ValueError: it is not there, or damaged.
    """
    return _spec_of(open_location(field, given))


def _spec_of(location: Location) -> Spec:
    try:
        return parse_spec(_read(location, SPEC_FILE))
    except (FileNotFoundError, NotADirectoryError):
        raise location.error(
            f"is no folder of features (it has no {BACKBONE_FOLDER}/{SPEC_FILE}); dpl-ray embed writes one"
        ) from None
    except (OSError, ValueError) as error:
        raise location.error(f"{BACKBONE_FOLDER}/{SPEC_FILE} is damaged ({one_line(error)}); embed anew") from None


def _read(location: Location, name: str) -> bytes:
    """A file of the network that made the features of a place."""
    return read_file(location.filesystem, f"{location.path}/{BACKBONE_FOLDER}/{name}")


def parse_spec(data: bytes) -> Spec:
    """The spec of a file; `ValueError` where it is damaged."""
    return TypeAdapter(Spec).validate_python(parse_tree(data))


def read_backbone(field: str, given: str) -> dict[str, bytes]:
    """The files of the network that made the features of a folder, by their names in a checkpoint."""
    location = open_location(field, given)
    return {BACKBONE_SPEC: _read(location, SPEC_FILE), BACKBONE_WEIGHTS: _read(location, WEIGHTS_FILE)}


def has_features(location: Location) -> bool:
    """Whether a place, or one of a list, is a folder of features."""
    try:
        places = [f"{place.path}/{BACKBONE_FOLDER}/{SPEC_FILE}" for place in location.listed or (location,)]
        return any(info.is_file for info in location.filesystem.get_file_info(places))
    except (OSError, pa.ArrowException):  # has its words where the place is listed
        return False


def list_features(location: Location, spec: Spec | None, owner: str = "the model") -> FeatureFiles:
    """The features of a folder, or of a list of them, that a model is to say something of: without their views.

    Args:
        spec: of the features that the model was trained on; None: it takes images.
        owner: of these, for messages.

    Raises:
        ValueError: they are of another network, or an image is in several of the folders.
    """
    if spec is None:
        raise location.error("is a folder of features, and the model takes images; give those")
    own = [(place, _spec_of(place)) for place in location.listed or (location,)]
    for place, found in own:
        _check_digest(place, found, spec, owner)
    files = FeatureFiles.of(location, spec.num_features, 0, own[0][1].class_names)
    if location.listed:
        hashes = np.concatenate(list(files.listings(id_hashes)))
        _, first, counts = np.unique(hashes, return_index=True, return_counts=True)
        for row in first[counts > 1][:1]:
            file = int(np.searchsorted(np.cumsum(files.num_rows), row, side="right"))
            name = files.names(file, np.array([row - files.num_rows[:file].sum()]))[0]
            raise location.error(f"{(counts > 1).sum():,} images are there more than once, as {name}; give each once")
    return files


def open_features(field: str, given: str, expected: Spec, owner: str = "data.train") -> FeatureFiles:
    """The parts of a folder; `ValueError` where its features are not those of the network of their owner."""
    location = open_location(field, given)
    spec = _spec_of(location)
    _check_digest(location, spec, expected, owner)
    if spec.num_views != expected.num_views:
        raise location.error(
            f"it has views={spec.num_views}, data.train has views={expected.num_views}; embed both with as many"
        )
    return FeatureFiles.of(location, spec.num_features, spec.num_views, spec.class_names)


def _check_digest(location: Location, spec: Spec, expected: Spec, owner: str) -> None:
    if spec.digest != expected.digest:
        raise location.error(
            f"its features are of another network ({spec.model['architecture']}, {spec.digest}) than those of "
            f"{owner} ({expected.model['architecture']}, {expected.digest}); embed both with one"
        )
