"""From the configuration to decoded and split images.

Follow `load_splits`: a standard data set (`standard.py`) or the user's files (`files.py` and `parquet.py`, decoded
by `decode.py`) become a `Source`, which `split.py` splits.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from dpl_ray.config import DataConfig
from dpl_ray.data.classes import check_class_names, find_class_names, find_targets, find_test_targets
from dpl_ray.data.dataset import BadImage, ImageSet, Source, Splits
from dpl_ray.data.decode import DecodeSettings, decode_many
from dpl_ray.data.files import (
    Records,
    is_image,
    is_parquet,
    list_files,
    open_location,
    read_csv,
    read_folder,
)
from dpl_ray.data.labels import PseudoLabels, read_pseudo_labels
from dpl_ray.data.parquet import read_parquet
from dpl_ray.data.split import check_pool, plan_split, split
from dpl_ray.data.standard import read_standard


def load_splits(
    data: DataConfig, *, seed: int, uses_unlabeled: bool = True, reads_unlabeled: bool | None = None
) -> Splits:
    """Read, decode and split the data of a run.

    Args:
        data: where images and labels come from.
        seed: of the labelled subset and the validation split, where data.subset_seed is null.
        uses_unlabeled: whether an empty pool is a mistake.
        reads_unlabeled: whether data.unlabeled is read at all; None: where it is used.

    Raises:
        ValueError: one line with field, value and what would be right. Paths, columns and labels are checked
            before the first image is decoded.
    """
    check_class_names(data.class_names, "data.class_names")
    if data.labels_per_class is not None and data.labels is None:
        raise ValueError(
            f"data.labels_per_class={data.labels_per_class}: there are no pseudo-labels to choose from; set "
            "data.labels (of true labels, data.num_labels_per_class are kept)"
        )
    reads_unlabeled = uses_unlabeled if reads_unlabeled is None else reads_unlabeled
    if data.name in ("image_folder", "parquet"):
        source = _read_own(data, seed=seed, uses_unlabeled=uses_unlabeled, reads_unlabeled=reads_unlabeled)
    else:
        source = read_standard(data, reads_unlabeled=reads_unlabeled)
    return split(source, data, seed=seed, uses_unlabeled=uses_unlabeled)


def _read_own(data: DataConfig, *, seed: int, uses_unlabeled: bool, reads_unlabeled: bool) -> Source:
    labels = read_pseudo_labels(data) if data.labels is not None else None
    if labels and data.unlabeled is None:
        data = data.model_copy(update={"unlabeled": labels.pool})
    train, test, pool, selected = _list_own(data, labels, reads_unlabeled=reads_unlabeled)
    name = f"{train.location.field}={train.location.given}"
    class_names = find_class_names(data, train)
    if labels:
        labels.check_class_names(class_names, "data.train" if data.train else "data.class_names")
        if data.train is None and test is None:
            warnings.warn(
                "data.test=null: the test split is held out of the pseudo-labelled images; accuracy on it is agreement "
                "with pseudo-labels, not with true labels",
                stacklevel=3,
            )
    targets = find_targets(train, class_names)
    test_targets = find_test_targets(test, class_names, data) if test else None

    def check(train_targets: NDArray[np.int64], pseudo_labels: NDArray[np.int64] | None, hint: str = "") -> None:
        plan = plan_split(train_targets, class_names, data, seed=seed, hold_out_test=test is None, name=name, hint=hint)
        if uses_unlabeled:
            rest = plan.unlabeled if pseudo_labels is None else plan.unlabeled[pseudo_labels[plan.unlabeled] < 0]
            check_pool(len(rest) + (len(pool.ids) if pool else 0), data, name)

    check(targets, labels.of(train.ids) if labels and selected else None)
    reader = _Reader(data, sum(len(records.ids) for records in (train, test, pool, selected) if records))
    train_set = reader.read(train, targets)
    pseudo_labels = labels.of(train_set.ids) if labels and selected else None
    check(train_set.targets, pseudo_labels, _hint(reader.bad))
    test_set = reader.read(test, test_targets) if test and test_targets is not None else None
    if test and test_set is not None and not len(test_set):
        raise test.location.error(f"none of its {len(test.ids)} images can be read{_hint(reader.bad)}")
    pool_set = reader.read(pool, find_targets(pool, class_names, strict=False)) if pool else None
    selected_set = reader.read(selected, find_targets(selected, class_names)) if selected else None
    _check_shapes(train_set, test_set, pool_set, selected_set)
    return Source(
        name,
        class_names,
        train_set,
        pool_set,
        test_set,
        tuple(reader.bad),
        selected=selected_set,
        train_pseudo_labels=pseudo_labels,
        pseudo_labels_alone=data.train is None,
    )


def _list_own(
    data: DataConfig, labels: PseudoLabels | None, *, reads_unlabeled: bool
) -> tuple[Records, Records | None, Records | None, Records | None]:
    """The records of data.train, data.test, data.unlabeled and data.labels, each sample in the first that has it.

    Those of data.labels are the first ones where there is no data.train.
    """
    train = _records(data, "data.train", data.train) if data.train else None
    test = _records(data, "data.test", data.test) if data.test else None
    pool = _records(data, "data.unlabeled", data.unlabeled) if data.unlabeled and reads_unlabeled else None
    train_ids = set(train.ids if train else ())
    if test and (shared := [sample_id for sample_id in test.ids if sample_id in train_ids]):
        raise test.location.error(f"{len(shared)} of its images are in data.train too, as {shared[0]}; test on others")
    taken = train_ids | set(test.ids if test else ())
    selected = labels.records(data, taken) if labels else None
    if pool:
        # A folder of everything beside a CSV of the labelled ones is usual, and right.
        pool = pool.without(taken | set(selected.ids if selected else ()))
    if train is None:
        assert selected is not None, "the configuration requires data.train or data.labels"
        return selected, test, pool, None
    return train, test, pool, selected


def _records(data: DataConfig, field_name: str, given: str) -> Records:
    """List what one of the three fields names, by what is found there."""
    location = open_location(field_name, given)
    labeled = field_name != "data.unlabeled"
    paths = list_files(location)
    has_images, has_parquet = any(map(is_image, paths)), any(map(is_parquet, paths))
    if labeled and data.name == "image_folder" and has_parquet and not has_images:
        raise location.error("holds parquet files, which data=parquet reads")
    if labeled and data.name == "parquet" and not has_parquet:
        raise location.error("holds no parquet file (.parquet, .pq); image files take data=image_folder")
    if has_parquet and (not has_images or (labeled and data.name == "parquet")):
        return read_parquet(
            location, paths, image_column=data.image_column, label_column=data.label_column, need_labels=labeled
        )
    if paths == [location.path] and labeled:
        if location.path.lower().endswith(".csv"):
            return read_csv(location)
        raise location.error("is one file; it takes a folder with a subfolder per class, or a CSV of path,label")
    return read_folder(location, paths, labeled=labeled)


@dataclass
class _Reader:
    """Decodes records and collects the bad images; too many of them among all stop the run."""

    data: DataConfig
    num_images: int  # in all records of the run
    bad: list[BadImage] = field(default_factory=list)

    def read(self, records: Records, targets: NDArray[np.int64]) -> ImageSet:
        items = zip(records.ids, records.read(), strict=True)
        images, kept, bad = decode_many(items, DecodeSettings.from_config(self.data))
        self.bad += bad
        share = len(self.bad) / max(1, self.num_images)
        if share > self.data.max_bad_fraction:
            raise ValueError(
                f"data.max_bad_fraction={self.data.max_bad_fraction}: {len(self.bad)} of {self.num_images} images "
                f"cannot be read ({share:.1%}), as {_reasons(self.bad)}; repair or remove them, or raise the limit"
            )
        ids = np.array(records.ids, dtype=np.str_) if records.ids else np.empty(0, np.str_)
        return ImageSet(images, targets[kept], ids[kept])


def _hint(bad: list[BadImage]) -> str:
    return f" ({len(bad)} images could not be read, as {_reasons(bad)})" if bad else ""


def _reasons(bad: list[BadImage]) -> str:
    return ", ".join(f"{image.id} ({image.reason})" for image in bad[:3])


def _check_shapes(train: ImageSet, *others: ImageSet | None) -> None:
    """Without data.image_size the images of all fields must agree, as those of one do."""
    for other in others:
        if other is not None and len(other) and other.images.shape[1:] != train.images.shape[1:]:
            sizes = [f"{part.images.shape[3]}x{part.images.shape[2]}" for part in (train, other)]
            raise ValueError(
                f"data.image_size=null: images differ in size ({train.ids[0]} is {sizes[0]}, {other.ids[0]} is "
                f"{sizes[1]}); set the side to resize them to, as data.image_size=32"
            )
