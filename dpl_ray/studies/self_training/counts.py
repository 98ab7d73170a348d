"""What outputs of dpl-ray label add up to, and how much of them has changed: part by part, never all in memory.

Legend: N samples of a part.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from dpl_ray.config.schema import DataConfig
from dpl_ray.config.section import shown
from dpl_ray.data.dataset import UNLABELED
from dpl_ray.data.features.folder import list_features, read_spec
from dpl_ray.data.files.location import Location, open_location
from dpl_ray.data.files.shards import is_tar, split_id
from dpl_ray.data.formats.parquet import has_labels, labels_of, open_table
from dpl_ray.data.formats.tar import read_labels
from dpl_ray.data.labels import in_order_of, label_indices
from dpl_ray.data.splits.pseudo_labels import part_files
from dpl_ray.store.file_systems import one_line


@dataclass(frozen=True)
class LabelCounts:
    """Samples of an output. Those of known labels are none where the pool has no label column."""

    num_samples: int = 0
    num_readable: int = 0
    num_selected: int = 0
    num_changed: int = 0  # readable ones whose pseudo-label is another one than in the output before
    num_known: int = 0  # readable ones whose true label is known
    num_correct: int = 0  # of these, with a pseudo-label that is the true one
    num_selected_known: int = 0
    num_selected_correct: int = 0


def count_labels(
    output: str, data: DataConfig, class_names: tuple[str, ...], *, before: str | None = None
) -> LabelCounts:
    """Count a finished output, against the one before it where there is one.

    Args:
        data: its label column is where true labels are looked for, in the shards of the pool; features have the labels
            of their images.

    Raises:
        ValueError: the two outputs do not have the same samples.
    """
    location = open_location("labels", output)
    parts = part_files(location)
    earlier = open_location("labels", before) if before is not None else None
    names = [path[len(location.path) :] for path in parts]
    if earlier and names != [path[len(earlier.path) :] for path in part_files(earlier)]:
        raise _changed_pool(data)
    true_labels = _FeatureLabels(data, class_names) if data.name == "features" else _TrueLabels(data, class_names)
    counts: Counter[str] = Counter()
    for path, name in zip(parts, names, strict=True):
        table = _read(location, path, ["sample_id", "pseudo_label", "selected"])
        labels, selected = _targets(table), table.column("selected").to_numpy().astype(bool)
        readable, changed = labels != UNLABELED, np.zeros(len(labels), bool)
        if earlier:
            old = _read(earlier, earlier.path + name, ["sample_id", "pseudo_label"])
            if not old.column("sample_id").equals(table.column("sample_id")):
                raise _changed_pool(data)
            changed = readable & (labels != _targets(old))
        true = true_labels.of(table.column("sample_id").to_pylist())
        known, correct = readable & (true != UNLABELED), readable & (labels == true)
        found = {"readable": readable, "selected": selected, "changed": changed, "known": known, "correct": correct}
        found |= {"selected_known": known & selected, "selected_correct": correct & selected}
        counts.update({f"num_{name}": int(rows.sum()) for name, rows in found.items()}, num_samples=len(labels))
    return LabelCounts(**counts)


class _TrueLabels:
    """The labels of the pool's shards, of which those of one are held at a time."""

    def __init__(self, data: DataConfig, class_names: tuple[str, ...]) -> None:
        self._column, self._class_names = data.label_column, class_names
        self._location = open_location("data.unlabeled", data.unlabeled) if data.unlabeled else None
        self._file, self._targets = "", dict[str, int]()

    def of(self, ids: list[str]) -> NDArray[np.int64]:
        """(N,) class index of each sample, UNLABELED where it is not known."""
        targets = np.full(len(ids), UNLABELED, np.int64)
        if self._column is None or self._location is None:
            return targets
        for position, sample_id in enumerate(ids):
            file, row = split_id(sample_id)
            if row is None:
                continue
            if file != self._file:
                self._file, self._targets = file, self._read(self._location, file, self._column)
            targets[position] = self._targets.get(row, UNLABELED)
        return targets

    def _read(self, location: Location, file: str, column: str) -> dict[str, int]:
        """Row or member -> class index."""
        path = file.removeprefix(location.scheme)
        try:
            if is_tar(file):
                members, labels, _ = read_labels(location, path, column, self._class_names)
                return dict(zip(members, label_indices(labels, self._class_names).tolist(), strict=True))
            with open_table(location, path) as opened:
                if not has_labels(opened.schema_arrow, column):
                    return {}
                labels, names = labels_of(opened, column, self._class_names)
        except (pa.ArrowException, OSError, ValueError):
            return {}
        if names and set(names) <= set(self._class_names):
            labels = in_order_of(labels, names, self._class_names)
        return {str(row): target for row, target in enumerate(label_indices(labels, self._class_names).tolist())}


class _FeatureLabels:
    """The labels of a pool of features, of which those of one part are held at a time.

    A part of an output is of one part of the features, and both are in the same order.
    """

    def __init__(self, data: DataConfig, class_names: tuple[str, ...]) -> None:
        assert data.train is not None, "the configuration requires it"
        assert data.unlabeled is not None, "it was labelled"
        location = open_location("data.unlabeled", data.unlabeled)
        self._files = list_features(location, read_spec("data.train", data.train), "data.train")
        self._names, self._file = pa.array(class_names), 0
        self._table = self._files.listing(0)

    def of(self, ids: list[str]) -> NDArray[np.int64]:
        """(N,) class index of each sample, UNLABELED where it is not known."""
        for _ in self._files.paths:
            at = pc.index_in(pa.array(ids, pa.string()), value_set=self._table["sample_id"].combine_chunks())
            if at.null_count < len(at):
                targets = pc.index_in(self._table["label"].take(at), value_set=self._names)
                found: NDArray[np.int64] = targets.fill_null(UNLABELED).to_numpy().astype(np.int64)
                return found
            self._file = (self._file + 1) % len(self._files.paths)
            self._table = self._files.listing(self._file)
        return np.full(len(ids), UNLABELED, np.int64)


def _read(location: Location, path: str, columns: list[str]) -> pa.Table:
    try:
        return pq.read_table(path, filesystem=location.filesystem, columns=columns, partitioning=None)
    except (pa.ArrowException, OSError) as error:
        raise location.error(f"{location.name(path)} cannot be read ({one_line(error)})") from None


def _targets(table: pa.Table) -> NDArray[np.int64]:
    return table.column("pseudo_label").fill_null(UNLABELED).to_numpy()


def _changed_pool(data: DataConfig) -> ValueError:
    return ValueError(
        f"data.unlabeled={shown(data.unlabeled)}: its files have changed between two rounds, whose pseudo-labels "
        "cannot be compared; take another run.name"
    )
