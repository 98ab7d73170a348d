"""From the configuration to decoded and split images.

Follow `load_splits`: a standard data set (`standard.py`) or the user's files (`labeled/records.py`, those of
data.unlabeled `formats/rows.py`, decoded by `images/decode.py`) become a `Source`, which `split.py` splits.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from dpl_ray.config.schema import FILE_FORMS, DataConfig
from dpl_ray.config.section import in_short
from dpl_ray.data.dataset import BadImage, ImageSet, Source, Splits, concatenate
from dpl_ray.data.files.kinds import FOREIGN, kind_of
from dpl_ray.data.formats.rows import PoolFiles, Row
from dpl_ray.data.images.convert import DecodeSettings
from dpl_ray.data.images.decode import Payload
from dpl_ray.data.images.decode_many import check_same_size, decode_many
from dpl_ray.data.labeled.classes import check_class_names, find_class_names, find_targets
from dpl_ray.data.labeled.records import Records, list_records
from dpl_ray.data.labels import Label, clean_name, label_indices
from dpl_ray.data.pool.choice import list_unlabeled, should_stream, streamed_pool
from dpl_ray.data.splits.bad_images import most_bad
from dpl_ray.data.splits.copies import without_copies
from dpl_ray.data.splits.feature_splits import read_features
from dpl_ray.data.splits.pseudo_labels import PseudoLabels, read_pseudo_labels
from dpl_ray.data.splits.split import Plan, check_pool, plan_split, split, unlabeled_rest
from dpl_ray.data.splits.standard import read_standard


@in_short()
def load_splits(
    data: DataConfig,
    *,
    seed: int,
    uses_unlabeled: bool = True,
    reads_unlabeled: bool | None = None,
    read: Callable[[DataConfig], Source] | None = None,
) -> Splits:
    """Read, decode and split the data of a run.

    Args:
        data: where images and labels come from.
        seed: of the labelled subset and the validation split, where data.subset_seed is null.
        uses_unlabeled: whether an empty pool is a mistake.
        reads_unlabeled: whether data.unlabeled is read at all; None: where it is used.
        read: reads images in memory, which data=arrays takes.

    Raises:
        ValueError: one line with field, value and what would be right. Paths, columns and labels are checked
            before the first image is decoded.
    """
    if data.class_names is not None:
        names = tuple(map(clean_name, data.class_names))
        check_class_names(names, "data.class_names")
        data = data.changed(class_names=names)
    if data.labels_per_class is not None and data.labels is None:
        raise ValueError(
            f"data.labels_per_class={data.labels_per_class}: there are no pseudo-labels to choose from; set "
            "data.labels (of true labels, data.num_labels_per_class are kept)"
        )
    reads_unlabeled = uses_unlabeled if reads_unlabeled is None else reads_unlabeled
    if data.name == "arrays":
        if read is None:
            raise ValueError(
                "data=arrays: those images were in memory; fit_arrays of Python takes them, and files take "
                "data=image_folder, data=parquet or data=webdataset"
            )
        return split(without_copies(read(data), data), data, seed=seed, uses_unlabeled=uses_unlabeled)
    if data.name == "features":
        return read_features(data, seed=seed, uses_unlabeled=uses_unlabeled, reads_unlabeled=reads_unlabeled)
    if data.name not in FILE_FORMS:
        source = read_standard(data, reads_unlabeled=reads_unlabeled)
        return split(source, data, seed=seed, uses_unlabeled=uses_unlabeled)
    labels = read_pseudo_labels(data) if data.labels is not None else None
    if labels and data.unlabeled is None:
        data = data.changed(unlabeled=labels.pool)
    listed = _list_labeled(data, labels)
    files = list_unlabeled(data, listed.index_names) if reads_unlabeled and data.unlabeled is not None else None
    if should_stream(data, listed.train, len(listed.train.ids) + (len(files) if files else 0)):
        return _read_streamed(data, listed, files, seed=seed, uses_unlabeled=uses_unlabeled)
    source = without_copies(_read_own(data, listed, files, seed=seed, uses_unlabeled=uses_unlabeled), data)
    return split(source, data, seed=seed, uses_unlabeled=uses_unlabeled)


def read_labeled(data: DataConfig, field: str, given: str, class_names: tuple[str, ...]) -> tuple[ImageSet, Reader]:
    """The labelled images of a place that is none of a training's, and what was set aside of it.

    Args:
        data: how images and labels are read there; more of its form than data.name has no effect.
        class_names: all that there may be.

    Raises:
        ValueError: an image has no label or another class, or none can be read.
    """
    # Where data.class_names gives the classes of the files other names, those of the files are not known here.
    records = list_records(data, field, given, None if data.class_names else class_names)
    find_targets(records, class_names, every=True)
    reader = Reader(data, class_names, len(records.ids), records.left_out)
    images = reader.read_test(records)
    assert images is not None, "there are records"
    return images, reader


@dataclass(frozen=True)
class _Labeled:
    """What is listed of data.train, data.test and data.labels."""

    name: str
    class_names: tuple[str, ...]
    index_names: tuple[str, ...]  # of which integer labels in the files are the indices: data.class_names may rename
    train: Records  # the selected of data.labels where there is no data.train
    targets: NDArray[np.int64]  # of train; UNLABELED where a sample has none
    test: Records | None
    labels: PseudoLabels | None
    selected: Records | None  # of data.labels, beside data.train

    def ids(self) -> set[str]:
        """Those that are not taken from data.unlabeled."""
        ids = {sample_id for part in (self.train, self.test, self.selected) if part for sample_id in part.ids}
        return ids | (self.labels.unreadable if self.labels else frozenset())

    def left_out(self, files: PoolFiles | None) -> Counter[str]:
        """Of these and data.unlabeled; of a place that lies in another one, with that one."""
        parts = {part.location.path: part for part in (self.train, self.test, files) if part}
        places = [part.location for part in parts.values()]
        return sum(
            (part.left_out for path, part in parts.items() if not any(place.contains(path) for place in places)),
            Counter(),
        )

    def pseudo_labels(self, ids: Iterable[str]) -> NDArray[np.int64] | None:
        """(N,) of images of data.train, where they are not labelled; None where no such ones are used."""
        return self.labels.of(ids) if self.labels and self.selected else None


def _list_labeled(data: DataConfig, labels: PseudoLabels | None) -> _Labeled:
    train = list_records(data, "data.train", data.train) if data.train else None
    index_names = find_class_names(data, train) if train else labels.class_names if labels else ()
    if train and train.class_names and not set(train.class_names) <= set(index_names):
        index_names = train.class_names
    test = list_records(data, "data.test", data.test, index_names) if data.test else None
    train_ids = set(train.ids if train else ())
    if test and (shared := [sample_id for sample_id in test.ids if sample_id in train_ids]):
        raise test.location.error(f"{len(shared)} of its images are in data.train too, as {shared[0]}; test on others")
    selected = labels.records(data, train_ids | set(test.ids if test else ())) if labels else None
    if train is None:
        train, selected = selected, None
    assert train is not None, "the configuration requires data.train or data.labels"
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
    for records in filter(None, (test, selected)):
        find_targets(records, class_names, every=records is test)
    name = f"{train.location.field}={train.location.given}"
    return _Labeled(name, class_names, index_names, train, targets, test, labels, selected)


def _plan(data: DataConfig, listed: _Labeled, targets: NDArray[np.int64], seed: int, hint: str = "") -> Plan:
    alone = listed.test is None
    return plan_split(targets, listed.class_names, data, seed=seed, hold_out_test=alone, name=listed.name, hint=hint)


def _read_own(
    data: DataConfig, listed: _Labeled, files: PoolFiles | None, *, seed: int, uses_unlabeled: bool
) -> Source:
    """Everything decoded, in memory."""
    train, test, selected = listed.train, listed.test, listed.selected
    # A folder of everything beside a CSV of the labelled ones is usual, and right.
    pool = files.without(listed.ids()) if files else None

    def check(targets: NDArray[np.int64], pseudo_labels: NDArray[np.int64] | None, hint: str = "") -> None:
        rest = unlabeled_rest(_plan(data, listed, targets, seed, hint).unlabeled, pseudo_labels)
        if uses_unlabeled:
            check_pool(len(rest) + (len(pool) if pool else 0), data, listed.name)

    check(listed.targets, listed.pseudo_labels(train.ids))
    num_listed = sum(len(records.ids) for records in (train, test, selected) if records)
    num_listed += len(pool) if pool else 0
    reader = Reader(data, listed.class_names, num_listed, listed.left_out(files))
    train_set = reader.read(train.rows())
    pseudo_labels = listed.pseudo_labels(train_set.ids)
    check(train_set.targets, pseudo_labels, _hint(reader.bad))
    test_set = reader.read_test(test)
    pool_set = reader.read(pool.read_all()) if pool else None
    selected_set = reader.read(selected.rows()) if selected else None
    for other in filter(None, (test_set, pool_set, selected_set)):
        check_same_size((train_set.ids[0], train_set.images.shape[1:]), (other.ids[0], other.images.shape[1:]))
    return Source(
        listed.name,
        listed.class_names,
        train_set,
        pool_set,
        test_set,
        tuple(reader.bad),
        selected=selected_set,
        train_pseudo_labels=pseudo_labels,
        pseudo_labels_alone=data.train is None,
        left_out=reader.left_out,
    )


def _read_streamed(
    data: DataConfig, listed: _Labeled, files: PoolFiles | None, *, seed: int, uses_unlabeled: bool
) -> Splits:
    """What has a label that is used decoded, the pool as files."""
    plan = _plan(data, listed, listed.targets, seed)
    ids = np.array(listed.train.ids)
    pseudo_labels = listed.pseudo_labels(listed.train.ids)
    rest = unlabeled_rest(plan.unlabeled, pseudo_labels)
    in_pool, others = ids[rest].tolist(), listed.ids()
    if data.train is None:  # the labelled are images of data.unlabeled, and those whose label is not used go back there
        in_pool, others = [], others.difference(in_pool)
    pool = streamed_pool(data, listed.class_names, listed.train, in_pool, files, others)
    if uses_unlabeled:
        check_pool(len(pool), data, listed.name)
    chosen = np.setdiff1d(np.arange(len(ids)), rest)
    moved = np.setdiff1d(plan.unlabeled, rest)
    targets = listed.targets.copy()
    if pseudo_labels is not None:
        targets[moved] = pseudo_labels[moved]
    num_listed = sum(len(records.ids) for records in (listed.test, listed.selected) if records)
    reader = Reader(data, listed.class_names, len(chosen) + len(pool) + num_listed, listed.left_out(files))
    read = reader.read(listed.train.without(set(ids[rest].tolist())).rows(targets[chosen]))
    test, selected = reader.read_test(listed.test), reader.read(listed.selected.rows()) if listed.selected else None
    rank = np.full(len(read), -1)
    for place, rows in enumerate((plan.labeled, plan.validation, plan.test)):
        rank[np.isin(read.ids, ids[rows])] = place
    source = without_copies(
        Source(
            listed.name,
            listed.class_names,
            read,
            test=test,
            selected=selected,
            pseudo_labels_alone=data.train is None,
        ),
        data,
        rank,
    )
    read, selected = source.train, source.selected
    labeled, validation, held_out, pseudo_labeled = (
        read.subset(np.flatnonzero(np.isin(read.ids, ids[rows])))
        for rows in (plan.labeled, plan.validation, plan.test, moved)
    )
    without = set(range(len(listed.class_names))) - set(labeled.targets.tolist())
    if without:
        raise ValueError(
            f"{listed.name}: none of the labelled images drawn of class {listed.class_names[min(without)]} can be read"
            f"{_hint(reader.bad)}"
        )
    if selected:
        pseudo_labeled = concatenate(pseudo_labeled, selected)
    return Splits(
        labeled=concatenate(labeled, pseudo_labeled),
        unlabeled=pool,
        validation=validation,
        test=held_out if test is None else test,
        class_names=listed.class_names,
        bad=tuple(reader.bad),
        num_pseudo_labeled=len(pseudo_labeled if data.train else labeled),
        left_out=reader.left_out,
        copies=source.copies,
    )


@dataclass
class Reader:
    """Decodes images and collects the bad images; too many of them among all stop the run."""

    data: DataConfig
    class_names: tuple[str, ...]
    num_images: int  # of the run, listed
    left_out: Counter[str]  # of the listing, and what turns out to be no image and is not called one
    bad: list[BadImage] = field(default_factory=list)

    def read(self, rows: Iterable[Row]) -> ImageSet:
        """The images, with the classes that their labels say."""
        ids: list[str] = []
        labels: list[Label] = []

        def items() -> Iterator[tuple[str, Payload]]:
            for sample_id, payload, label in rows:
                ids.append(sample_id)
                labels.append(label)
                yield sample_id, payload

        images, kept, bad = decode_many(items(), DecodeSettings.from_config(self.data))
        self._add(bad)
        return ImageSet(images, label_indices(labels, self.class_names)[kept], np.array(ids, np.str_)[kept])

    def read_test(self, test: Records | None) -> ImageSet | None:
        if test is None:
            return None
        images = self.read(test.rows())
        if not len(images):
            raise test.location.error(f"none of its {len(test.ids)} images can be read{_hint(self.bad)}")
        return images

    def _add(self, bad: list[BadImage]) -> None:
        foreign = [kind_of(image.id) for image in bad if image.reason == FOREIGN]
        self.bad += [image for image in bad if image.reason != FOREIGN]
        self.left_out.update(foreign)
        self.num_images -= len(foreign)
        if len(self.bad) > most_bad(self.data.max_bad_fraction, self.num_images):
            share = len(self.bad) / max(1, self.num_images)
            raise ValueError(
                f"data.max_bad_fraction={self.data.max_bad_fraction}: {len(self.bad)} of {self.num_images} images "
                f"cannot be read ({share:.1%}), as {_reasons(self.bad)}; repair or remove them, or raise the limit"
            )


def _hint(bad: list[BadImage]) -> str:
    return f" ({len(bad)} images could not be read, as {_reasons(bad)})" if bad else ""


def _reasons(bad: list[BadImage]) -> str:
    return ", ".join(f"{image.id} ({image.reason})" for image in bad[:3])
