"""The labels of a pool as a review reads them: by their books, of which it needs a few numbers of each part.

A *cell* is a pseudo-label, a bin of confidence (`labeling.parts.CONFIDENCE_EDGES`), and whether the label is selected.
How many labels of each cell there are stands in the books, so that labels are drawn without a look at the others.

Legend: C classes, K bins (1 where an older version has counted none), M = 2 C K cells, I inputs, P parts, N rows of a
part.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dpl_ray.config.schema import DataConfig
from dpl_ray.config.section import shown
from dpl_ray.data.files.location import Location, open_location
from dpl_ray.data.files.reach import OutOfReachError, check_addresses
from dpl_ray.data.formats.parquet import open_table
from dpl_ray.data.labels import clean_name
from dpl_ray.data.splits.pseudo_labels import NO_OUTPUT, SUMMARY_FILE, read_job
from dpl_ray.labeling.ledger import read_manifests
from dpl_ray.labeling.parts import CONFIDENCE_EDGES, Counts, cell_of
from dpl_ray.labeling.plan import part_name
from dpl_ray.store.file_systems import one_line
from dpl_ray.store.records import read_tree
from dpl_ray.store.storage import Storage

COLUMNS = (
    "sample_id", "pseudo_label", "confidence", "selected",
    "second_label", "second_confidence", "third_label", "third_confidence",
)  # fmt: skip


@dataclass(frozen=True)
class Labels:
    """A finished output of dpl-ray label."""

    storage: Storage
    location: Location
    identity: str  # a digest of all that the labels depend on
    class_names: tuple[str, ...]
    pool: str | list[str]  # as it was given
    image_column: str
    counts: NDArray[np.int32]  # (I, M) labels of each cell, as `cells`
    num_rows: NDArray[np.int32]  # (P,) of the parts, in the order of the inputs
    first_parts: NDArray[np.int64]  # (I + 1,) of each input, and of one that would follow
    num_bins: int

    def parts_of(self, number: int) -> range:
        """The parts of an input."""
        return range(*self.first_parts[number : number + 2].tolist())

    def part_name(self, part: int) -> str:
        number = int(np.searchsorted(self.first_parts, part, side="right")) - 1
        return part_name(number, part - int(self.first_parts[number]))

    def part_names(self) -> Iterator[str]:
        return map(self.part_name, range(len(self.num_rows)))

    def open_pool(self, given: str | None) -> Location:
        """The pool where it lies now, or where it lay.

        Raises:
            ValueError: the labels, which may be somebody else's, say an address that the user has not named.
        """
        names = [self.pool] if isinstance(self.pool, str) else self.pool
        if given is None:
            self._check(f"its pool is {shown(self.pool)}", names, "pool")
        return open_location("pool", given or self.pool)

    def checkpoint(self) -> str:
        """The checkpoint that made the labels; `ValueError` as of the pool."""
        found = str(read_tree(self.storage / SUMMARY_FILE).get("checkpoint"))
        self._check(f"its checkpoint is {found}", [found], "checkpoint")
        return found

    def _check(self, what: str, names: Sequence[str], field: str) -> None:
        try:
            check_addresses(names, self.location, DataConfig())
        except OutOfReachError as error:
            raise self.location.error(f"{what}: {error.reason}; give it as {field}= to read it") from None

    def cells(self, counts: Counts) -> NDArray[np.int64]:
        """(M,) labels of each cell: those that are selected first, by class and then by confidence."""
        return _cells(counts, of_bins=self.num_bins > 1)

    def read(self, part: str, columns: Sequence[str]) -> pa.Table:
        """Those of the columns that a part has.

        Raises:
            ValueError: the part cannot be read.
        """
        try:
            place = replace(self.location, filesystem=self.storage.filesystem)
            with open_table(place, (self.storage / part).path) as file:
                return file.read(columns=[name for name in columns if name in file.schema_arrow.names])
        except (pa.ArrowException, OSError) as error:
            raise self.location.error(f"{part} cannot be read ({one_line(error)})") from None

    def rows(self, part: str) -> tuple[pa.Table, NDArray[np.int64]]:
        """`read` of COLUMNS, and the cell (N,) of each row, -1 of an unreadable image."""
        table = self.read(part, COLUMNS)
        labels = table["pseudo_label"].fill_null(-1).to_numpy()
        if (labels >= len(self.class_names)).any():
            raise self.location.error(f"{part} has labels of more than its {len(self.class_names)} classes")
        cells = labels
        if self.num_bins > 1:
            cells = cell_of(labels, table["confidence"].fill_null(0).to_numpy())
        cells = cells + np.where(table["selected"].to_numpy(), 0, len(self.class_names) * self.num_bins)
        return table, np.where(labels < 0, -1, cells)


def open_labels(field: str, given: str) -> Labels:
    """
    Raises:
        ValueError: there is no output of dpl-ray label, or an unfinished or damaged one.
    """
    location = open_location(field, given)
    job = read_job(location)
    storage = Storage(given)
    class_names = tuple(map(clean_name, job["class_names"]))
    counts: list[NDArray[np.int32]] = []
    num_rows: list[NDArray[np.int32]] = [np.empty(0, np.int32)]
    has_bins = True
    try:
        for manifest in read_manifests(storage):
            knows_bins = bool(manifest.counts.cells_selected)
            has_bins = has_bins and knows_bins
            counts.append(_cells(manifest.counts, of_bins=knows_bins).astype(np.int32))
            num_rows.append(np.array([part.num_rows for part in manifest.parts], np.int32))
        num_bins = len(CONFIDENCE_EDGES) + 1 if has_bins and counts else 1
        shape = (2 * len(class_names), num_bins, -1)  # bins that some do not know are left out of the others
        found = [each.reshape(shape).sum(axis=2).ravel() for each in counts]
    except (OSError, ValueError, LookupError, TypeError, OverflowError) as error:
        raise location.error(f"{NO_OUTPUT} (a damaged manifest: {one_line(error)})") from None
    return Labels(
        storage=storage,
        location=location,
        identity=digest(job),
        class_names=class_names,
        pool=job["pool"],
        image_column=job.get("image_column", "image"),
        counts=np.array(found, np.int32).reshape(len(found), 2 * len(class_names) * num_bins),
        num_rows=np.concatenate(num_rows),
        first_parts=np.cumsum([len(rows) for rows in num_rows]),
        num_bins=num_bins,
    )


def _cells(counts: Counts, *, of_bins: bool) -> NDArray[np.int64]:
    selected, rejected = (
        (counts.cells_selected, counts.cells_rejected) if of_bins else (counts.selected, counts.rejected)
    )
    return np.array(selected + rejected, np.int64)


def digest(tree: object) -> str:
    """Eight characters that name what `json` can write."""
    return hashlib.blake2b(json.dumps(tree, sort_keys=True).encode(), digest_size=4).hexdigest()
