"""The splits of a run on folders of features, with the pool in memory or streamed: as those of images are.

Legend: N samples, D features, V stored weak views and as many strong ones, P = 1 + 2 V.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from dpl_ray.config.schema import DataConfig
from dpl_ray.data.dataset import UNLABELED, BadImage, ImageSet, Source, Splits, concatenate, empty_like
from dpl_ray.data.features.folder import open_features, read_spec
from dpl_ray.data.features.rows import FeatureFiles, StreamedFeatures, id_hashes, unusable
from dpl_ray.data.images.convert import DecodeSettings
from dpl_ray.data.images.decode_many import decode_many
from dpl_ray.data.labeled.classes import find_class_names, find_targets
from dpl_ray.data.labeled.records import Records
from dpl_ray.data.labels import label_indices
from dpl_ray.data.pool.choice import reason_to_stream
from dpl_ray.data.splits.copies import without_copies
from dpl_ray.data.splits.pseudo_labels import PseudoLabels, check_memory, read_pseudo_labels
from dpl_ray.data.splits.split import check_pool, split
from dpl_ray.store.file_systems import one_line


def read_features(data: DataConfig, *, seed: int, uses_unlabeled: bool, reads_unlabeled: bool) -> Splits:
    """The splits of data.train, data.unlabeled and data.test, with the pool in memory or streamed.

    Copies are left out where the folders have hashes of pixels.

    Raises:
        ValueError: a folder has none, has no labels where they are needed, or features of another network; or
            test images are among the labelled ones; or data.labels is no output for this pool.
    """
    labels = read_pseudo_labels(data) if data.labels is not None else None
    if labels and data.unlabeled is None:
        data = data.changed(unlabeled=labels.pool)
    assert data.train is not None, "the configuration requires it"
    spec = read_spec("data.train", data.train)
    train = _list(open_features("data.train", data.train, spec))
    test = None if data.test is None else _list(open_features("data.test", data.test, spec))
    given = [data.unlabeled] if isinstance(data.unlabeled, str) else data.unlabeled or ()
    pools = [open_features("data.unlabeled", each, spec) for each in given if reads_unlabeled or labels]
    class_names = find_class_names(data, train.records)
    if labels:
        labels.check_class_names(class_names, "data.train")
    num_images = sum(map(len, (train.files, *([test.files] if test else ()), *pools)))
    streams = reason_to_stream(data, num_images, lambda: 2 * math.prod(train.files.shape)) is not None
    images = _Listed.without_features if streams else _Listed.images
    labelled = [part for part in (train, test) if part]
    source = Source(
        f"data.train={data.train}",
        class_names,
        images(train, find_targets(train.records, class_names)),
        test=images(test, find_targets(test.records, class_names, every=True)) if test else None,
        bad=tuple(image for part in labelled for image in part.bad),
        train_pseudo_labels=labels.of(train.records.ids) if labels else None,
        left_out=sum((part.left_out for part in labelled), Counter()),
    )
    if streams:
        return _streamed(source, labelled, pools, data, labels, seed=seed, uses_unlabeled=uses_unlabeled)
    source = _in_memory(source, labelled, [_list(files) for files in pools], data, labels)
    source = source if reads_unlabeled else replace(source, unlabeled=None)
    return split(source, data, seed=seed, uses_unlabeled=uses_unlabeled)


def stored_hashes(data: DataConfig, *, with_pool: bool) -> dict[str, int] | None:
    """Id -> hash of the pixels, of the images of data.train, data.test and, if asked for, data.unlabeled.

    None where a folder is of a version that kept none.
    """
    unlabeled = data.unlabeled if with_pool else None
    places = {"data.train": data.train, "data.test": data.test, "data.unlabeled": unlabeled}
    given = [(name, (place,) if isinstance(place, str) else place or ()) for name, place in places.items()]
    spec = read_spec("data.train", data.train or "")
    hashes: dict[str, int] = {}
    for name, folders in given:
        for folder in folders:
            found = _list(open_features(name, folder, spec)).hashes
            if found is None:
                return None
            hashes |= found
    return hashes


def read_labeled_features(files: FeatureFiles, class_names: tuple[str, ...]) -> tuple[ImageSet, list[BadImage]]:
    """The labelled features of files that are none of a training's, and what could not be read.

    Raises:
        ValueError: a sample has no label or another class.
    """
    listed = _list(files)
    return listed.images(find_targets(listed.records, class_names, every=True)), listed.bad


@dataclass(frozen=True)
class _Listed:
    """The N rows of a folder that have features: what is in memory of them also where a pool is streamed."""

    files: FeatureFiles
    records: Records  # ids and labels
    at: NDArray[np.int64]  # (N, 2) file and row, ascending
    hashes: dict[str, int] | None  # id -> of its pixels; None in folders of older versions
    bad: list[BadImage]
    left_out: Counter[str]

    @cached_property
    def numbers(self) -> dict[str, int]:
        """Id -> its number among the rows."""
        return {sample_id: number for number, sample_id in enumerate(self.records.ids)}

    def images(self, targets: NDArray[np.int64], numbers: NDArray[np.int64] | None = None) -> ImageSet:
        """All rows, or those of these numbers, with their class indices."""
        numbers = np.arange(len(self.at)) if numbers is None else numbers
        features = np.empty((len(numbers), *self.files.shape), np.float16)
        for file, places, rows in _by_file(self.at[numbers]):
            try:
                features[places] = self.files.samples(file, rows)[0]
            except (OSError, pa.ArrowException) as error:
                raise self.files.location.error(f"{self.files.name(file)} cannot be read ({one_line(error)})") from None
        return ImageSet(features, targets, np.array(self.records.ids, np.str_)[numbers])

    def without_features(self, targets: NDArray[np.int64]) -> ImageSet:
        """All rows, which are split before their features are read: without a view."""
        features = np.empty((len(targets), 0, *self.files.shape[1:]), np.float16)
        return ImageSet(features, targets, np.array(self.records.ids, np.str_))

    def fill(self, part: ImageSet) -> ImageSet:
        """Some rows `without_features`, with them."""
        return self.images(part.targets, np.array([self.numbers[each] for each in part.ids.tolist()], np.int64))

    def only(self, ids: Collection[str]) -> FeatureFiles:
        """The files with the rows of these ids alone."""
        gone = self.at[[sample_id not in ids for sample_id in self.records.ids]]
        return self.files.without_rows({file: rows for file, _, rows in _by_file(gone)})


def _by_file(at: NDArray[np.int64]) -> Iterator[tuple[int, NDArray[np.int64], NDArray[np.int64]]]:
    """Of (N, 2) files and rows each file, the places where it is, and its rows, ascending."""
    order = np.lexsort((at[:, 1], at[:, 0]))
    for places in np.split(order, np.flatnonzero(np.diff(at[order, 0])) + 1) if len(at) else ():
        yield int(at[places[0], 0]), places, at[places, 1]


def _list(files: FeatureFiles) -> _Listed:
    """Everything of a folder but the features."""
    tables = list(files.listings(lambda table: table))
    usable = [np.flatnonzero(pc.is_null(table["error"]).to_numpy()) for table in tables]
    found = [unusable(table) for table in tables]
    hashed = all("pixels" in table.column_names for table in tables)
    table = pa.concat_tables(
        table.select(["sample_id", "label", *(["pixels"] if hashed else [])]).take(rows)
        for table, rows in zip(tables, usable, strict=True)
    )
    if not len(table):
        raise files.location.error("it has no features")
    ids: list[str] = table["sample_id"].to_pylist()
    gone = {file: np.setdiff1d(np.arange(len(each)), usable[file]) for file, each in enumerate(tables)}
    return _Listed(
        files.without_rows({file: rows for file, rows in gone.items() if len(rows)}),
        Records(files.location, ids, table["label"].to_pylist(), lambda: iter(()), files.class_names),
        np.concatenate([np.column_stack([np.full_like(rows, file), rows]) for file, rows in enumerate(usable)]),
        dict(zip(ids, table["pixels"].to_pylist(), strict=True)) if hashed else None,
        [image for bad, _ in found for image in bad],
        sum((left_out for _, left_out in found), Counter()),
    )


def _in_memory(
    source: Source,
    labelled: Sequence[_Listed],
    pools: Sequence[_Listed],
    data: DataConfig,
    labels: PseudoLabels | None,
) -> Source:
    """With what the folders of data.unlabeled have beyond the labelled ones."""
    taken = {sample_id for part in labelled for sample_id in part.records.ids}
    unlabeled, selected = None, None
    for pool in pools:
        new = np.flatnonzero([sample_id not in taken for sample_id in pool.records.ids])
        known = [label if label in source.class_names else None for label in pool.records.labels]
        part = pool.images(label_indices(known, source.class_names)[new], new)
        unlabeled = part if unlabeled is None else concatenate(unlabeled, part)
        taken |= set(part.ids.tolist())
    if labels:
        labels.check_found(labels.labels.keys() - taken, data)
    if labels and unlabeled:
        targets = labels.of(unlabeled.ids)
        chosen, rest = (np.flatnonzero((targets != UNLABELED) == has_label) for has_label in (True, False))
        selected = replace(unlabeled.subset(chosen), targets=targets[chosen])
        unlabeled = unlabeled.subset(rest)
    source = replace(
        source,
        unlabeled=unlabeled,
        selected=selected,
        bad=(*source.bad, *(image for pool in pools for image in pool.bad)),
        left_out=sum((pool.left_out for pool in pools), Counter(source.left_out)),
    )
    return _without_copies(source, [*labelled, *pools], data)


def _without_copies(source: Source, listed: Sequence[_Listed], data: DataConfig) -> Source:
    """The source less its copies; the source itself where a folder is of a version that kept no hashes."""
    hashes: dict[str, int] = {}
    for part in listed:
        if part.hashes is None:
            return source
        hashes |= part.hashes
    return without_copies(source, data, hash_of=lambda part: np.array([hashes[each] for each in part.ids], np.uint64))


def _streamed(
    source: Source,
    labelled: Sequence[_Listed],
    pools: Sequence[FeatureFiles],
    data: DataConfig,
    labels: PseudoLabels | None,
    *,
    seed: int,
    uses_unlabeled: bool,
) -> Splits:
    """The same splits; what has a label that is used is read, the pool is left where it is.

    Args:
        source: of the labelled parts, without features.
    """
    train, test = labelled[0], labelled[-1]
    splits = split(_without_copies(source, labelled, data), data, seed=seed, uses_unlabeled=False)
    assert isinstance(splits.unlabeled, ImageSet), "of data.train, whose ids are in memory"
    found = _scan(pools, source, labelled, data, labels.labels if labels else ())
    selected = empty_like(source.train)
    if labels:
        taken = {sample_id for part in labelled for sample_id in part.records.ids}
        labels.check_found(labels.labels.keys() - taken.union(*(each.selected_ids for each in found)), data)
        check_memory(len(labels.labels), 2 * math.prod(train.files.shape), labels.location)
        for each in found:
            selected = concatenate(selected, each.read_selected(labels))
    rest = train.only(set(splits.unlabeled.ids.tolist()))
    parts = tuple(files for files in (rest, *(each.files for each in found)) if len(files))
    pool = StreamedFeatures(parts, DecodeSettings(), source.class_names, train.files.shape)
    copies = replace(splits.copies, num_pool=splits.copies.num_pool + sum(each.num_copies for each in found))
    if uses_unlabeled:
        check_pool(len(pool), data, source.name, num_copies=copies.num_pool)
    return replace(
        splits,
        labeled=concatenate(train.fill(splits.labeled), selected),
        unlabeled=pool,
        validation=train.fill(splits.validation),
        test=test.fill(splits.test),
        bad=(*splits.bad, *(image for each in found for image in each.bad)),
        num_pseudo_labeled=splits.num_pseudo_labeled + len(selected),
        left_out=sum((each.left_out for each in found), Counter(splits.left_out)),
        copies=copies,
    )


@dataclass(frozen=True)
class _Scanned:
    """A folder of the pool without what is not of it: images that are labelled, copies of these, and bad ones."""

    files: FeatureFiles
    selected: dict[int, NDArray[np.int64]]  # file -> its rows with pseudo-labels, which are not of the pool either
    selected_ids: set[str]  # of these, and of copies that have pseudo-labels
    num_copies: int
    bad: list[BadImage]
    left_out: Counter[str]

    def read_selected(self, labels: PseudoLabels) -> ImageSet:
        """What has pseudo-labels."""
        items = [row[:2] for file, rows in self.selected.items() for row in self.files.read_rows(file, rows)]
        features, kept, bad = decode_many(items, DecodeSettings())
        self.bad.extend(bad)
        ids = np.array([items[row][0] for row in kept], np.str_)
        return ImageSet(features, labels.of(ids.tolist()), ids)


class _Part(NamedTuple):
    """What `_scan` finds in a part."""

    gone: NDArray[np.int64]  # rows that are not of the pool
    selected: NDArray[np.int64]  # of these, rows that are trained on with their pseudo-labels
    selected_ids: list[str]
    num_copies: int
    hashes: NDArray[np.uint64]  # of ids
    unusable: tuple[list[BadImage], Counter[str]]


def _scan(
    pools: Sequence[FeatureFiles],
    source: Source,
    labelled: Sequence[_Listed],
    data: DataConfig,
    pseudo_labeled: Collection[str],
) -> list[_Scanned]:
    """Find it in folders of which nothing is kept in memory a row; of several 8 bytes, to take each image once."""
    taken = pa.array([sample_id for part in labelled for sample_id in part.records.ids], pa.string())
    wanted = pa.array(list(pseudo_labeled), pa.string())
    known = np.empty(0, np.uint64)
    if not data.allow_overlap and all(part.hashes is not None for part in labelled):
        used = [source.train.ids[source.train.targets != UNLABELED], *([source.test.ids] if source.test else [])]
        pairs = [(part.hashes or {}, sample_id) for part, ids in zip(labelled, used, strict=True) for sample_id in ids]
        known = np.array([hashes[sample_id] for hashes, sample_id in pairs], np.uint64)
    before = np.empty(0, np.uint64)  # of ids in the folders before, ascending

    def look(table: pa.Table) -> _Part:
        usable, hashes = pc.is_null(table["error"]).to_numpy(), np.empty(0, np.uint64)
        inside = usable & ~pc.is_in(table["sample_id"], value_set=taken).to_numpy()
        if len(pools) > 1:
            hashes = id_hashes(table)
            inside &= before.searchsorted(hashes) == before.searchsorted(hashes, side="right")
        pixels = table["pixels"].to_numpy() if "pixels" in table.column_names else np.empty(0, np.uint64)
        copies = inside & np.isin(pixels, known) if len(pixels) else np.zeros_like(inside)
        chosen = inside & pc.is_in(table["sample_id"], value_set=wanted).to_numpy()
        return _Part(
            gone=np.flatnonzero(~inside | copies | chosen),
            selected=np.flatnonzero(chosen & ~copies),
            selected_ids=table["sample_id"].filter(pa.array(chosen)).to_pylist(),
            num_copies=int(copies.sum()),
            hashes=hashes[usable[: len(hashes)]],
            unusable=unusable(table),
        )

    scanned = []
    for files in pools:
        parts = list(files.listings(look))
        scanned.append(
            _Scanned(
                files.without_rows({file: part.gone for file, part in enumerate(parts) if len(part.gone)}),
                {file: part.selected for file, part in enumerate(parts) if len(part.selected)},
                {sample_id for part in parts for sample_id in part.selected_ids},
                sum(part.num_copies for part in parts),
                [image for part in parts for image in part.unusable[0]],
                sum((part.unusable[1] for part in parts), Counter()),
            )
        )
        before = np.sort(np.concatenate([before, *(part.hashes for part in parts)]))
    return scanned
