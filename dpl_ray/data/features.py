"""Folders of features that `dpl-ray embed` writes, as images are read: labelled, unlabelled and for tests.

<folder>/
  part-*.parquet          sample_id, error, label, pixels (a hash, by which copies are found); features (D,), and
                          with views weak (V D,), strong (V D,) float16
  _backbone/spec.json     the network that made them, and how it reads images (`Spec`)
  _backbone/weights.safetensors

Legend: N samples, D features, V stored weak views and as many strong ones.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
from numpy.typing import NDArray

from dpl_ray.config.schema import DataConfig
from dpl_ray.data.classes import find_class_names, find_targets
from dpl_ray.data.copies import without_copies
from dpl_ray.data.dataset import BadImage, ImageSet, Source, concatenate
from dpl_ray.data.files import Location, open_location
from dpl_ray.data.labeled import Records
from dpl_ray.data.labels import label_indices
from dpl_ray.store.file_systems import one_line
from dpl_ray.store.storage import Storage

BACKBONE_FOLDER = "_backbone"
SPEC_FILE, WEIGHTS_FILE = "spec.json", "weights.safetensors"
BACKBONE_SPEC, BACKBONE_WEIGHTS = "backbone.json", "backbone.safetensors"  # in a checkpoint
COLUMNS = ("features", "weak", "strong")


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
    location = open_location(field, given)
    place = backbone_storage(location) / SPEC_FILE
    try:
        return parse_spec(place.read())
    except FileNotFoundError:
        raise location.error(
            f"is no folder of features (it has no {BACKBONE_FOLDER}/{SPEC_FILE}); dpl-ray embed writes one"
        ) from None
    except (OSError, pa.ArrowException, ValueError, TypeError) as error:
        raise location.error(f"{BACKBONE_FOLDER}/{SPEC_FILE} is damaged ({one_line(error)}); embed anew") from None


def parse_spec(data: bytes) -> Spec:
    """The spec of a file; `ValueError` or `TypeError` where it is damaged."""
    spec = Spec(**json.loads(data))
    return replace(spec, class_names=spec.class_names and tuple(spec.class_names))


def read_backbone(field: str, given: str) -> dict[str, bytes]:
    """The files of the network that made the features of a folder, by their names in a checkpoint."""
    folder = backbone_storage(open_location(field, given))
    return {BACKBONE_SPEC: (folder / SPEC_FILE).read(), BACKBONE_WEIGHTS: (folder / WEIGHTS_FILE).read()}


def backbone_storage(location: Location) -> Storage:
    """The folder of the network that made the features of a place."""
    return Storage(location.name(location.path)) / BACKBONE_FOLDER


def read_features(data: DataConfig, *, reads_unlabeled: bool) -> Source:
    """The features of data.train, data.unlabeled and data.test, without copies where the folders have hashes of pixels.

    Raises:
        ValueError: a folder has none, has no labels where they are needed, or features of another network; or
            test images are among the labelled ones.
    """
    assert data.train is not None, "the configuration requires it"
    spec = read_spec("data.train", data.train)
    train = _read("data.train", data.train, spec)
    class_names = find_class_names(data, train.records)
    bad, hashes = list(train.bad), dict(train.hashes)
    train_set = train.images(find_targets(train.records, class_names))
    unlabeled, test = None, None
    if data.test is not None:
        read = _read("data.test", data.test, spec)
        test = read.images(find_targets(read.records, class_names, every=True))
        bad += read.bad
        hashes |= read.hashes
    if data.unlabeled is not None and reads_unlabeled:
        taken = set(train_set.ids.tolist()) | (set(test.ids.tolist()) if test else set())
        for given in [data.unlabeled] if isinstance(data.unlabeled, str) else data.unlabeled:
            read = _read("data.unlabeled", given, spec)
            known = [label if label in class_names else None for label in read.records.labels]
            whole = read.images(label_indices(known, class_names))
            part = whole.subset(np.flatnonzero([sample_id not in taken for sample_id in whole.ids.tolist()]))
            unlabeled = part if unlabeled is None else concatenate(unlabeled, part)
            taken |= set(part.ids.tolist())
            bad += read.bad
            hashes |= read.hashes
    source = Source(f"data.train={data.train}", class_names, train_set, unlabeled, test, tuple(bad))
    parts = [part for part in (train_set, unlabeled, test) if part is not None]
    if not all(sample_id in hashes for part in parts for sample_id in part.ids.tolist()):
        return source  # of a version that kept no hashes
    return without_copies(source, data, hash_of=lambda part: np.array([hashes[each] for each in part.ids], np.uint64))


def has_features(location: Location) -> bool:
    """Whether a place is a folder of features."""
    return (backbone_storage(location) / SPEC_FILE).exists()


def read_labeled_features(
    field: str, given: str, spec: Spec, class_names: tuple[str, ...]
) -> tuple[ImageSet, list[BadImage]]:
    """The labelled features of a folder that is none of a training's, and what could not be read.

    Args:
        spec: of the features that the model was trained on.

    Raises:
        ValueError: they are of another network, or a sample has no label or another class.
    """
    read = _read(field, given, replace(spec, num_views=read_spec(field, given).num_views), "the model")
    return read.images(find_targets(read.records, class_names, every=True)), read.bad


@dataclass(frozen=True)
class _Read:
    """One folder in memory."""

    records: Records  # ids and labels
    features: NDArray[np.float16]  # (N, 1 + 2 V, 1, D)
    bad: list[BadImage]
    hashes: dict[str, int]  # id -> of its pixels; empty in folders of older versions

    def images(self, targets: NDArray[np.int64]) -> ImageSet:
        return ImageSet(self.features, targets, np.array(self.records.ids, np.str_))


def _read(field: str, given: str, expected: Spec, owner: str = "data.train") -> _Read:
    location = open_location(field, given)
    spec = read_spec(field, given)
    if spec.digest != expected.digest:
        raise location.error(
            f"its features are of another network ({spec.model['architecture']}, {spec.digest}) than those of "
            f"{owner} ({expected.model['architecture']}, {expected.digest}); embed both with one"
        )
    if spec.num_views != expected.num_views:
        raise location.error(
            f"it has views={spec.num_views}, data.train has views={expected.num_views}; embed both with as many"
        )
    try:
        dataset = ds.dataset(location.path, filesystem=location.filesystem, format="parquet")
        columns = COLUMNS if spec.num_views else COLUMNS[:1]
        pixels = ["pixels"] if "pixels" in dataset.schema.names else []
        table = dataset.to_table(columns=["sample_id", "error", "label", *pixels, *columns])
    except (OSError, pa.ArrowException) as error:
        raise location.error(f"cannot be read ({one_line(error)})") from None
    errors = table["error"].to_pylist()
    bad = [BadImage(*row) for row in zip(table["sample_id"].to_pylist(), errors, strict=True) if row[1]]
    table = table.filter(pa.array([reason is None for reason in errors]))
    if not len(table):
        raise location.error("it has no features")
    parts = [_matrix(table[name], spec.num_features) for name in columns]
    features = np.concatenate(parts, axis=1)[:, :, None]
    ids, labels = table["sample_id"].to_pylist(), table["label"].to_pylist()
    records = Records(location, ids, labels, lambda: iter(()), spec.class_names)
    found = zip(ids, table["pixels"].to_pylist(), strict=True) if pixels else ()
    hashes = {sample_id: pixel_hash for sample_id, pixel_hash in found if pixel_hash is not None}
    return _Read(records, np.ascontiguousarray(features), bad, hashes)


def _matrix(column: pa.ChunkedArray, num_features: int) -> NDArray[np.float16]:
    """A column of lists as (N, views, D)."""
    chunks = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in column.chunks]
    return np.concatenate(chunks).reshape(len(column), -1, num_features)
