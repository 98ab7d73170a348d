"""Rows of features that `dpl-ray embed` wrote, as those of a pool: by file and row, into memory or streamed.

Legend: N rows, D features, V stored weak views and as many strong ones, P = 1 + 2 V.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from dpl_ray.data.dataset import UNLABELED, BadImage
from dpl_ray.data.files.kinds import FOREIGN, kind_of
from dpl_ray.data.files.location import Location
from dpl_ray.data.formats.parquet import MISSING, UNREADABLE, failing
from dpl_ray.data.formats.rows import PoolFiles, Row, list_pool
from dpl_ray.data.pool.windows import StreamedPool, Taken
from dpl_ray.store.file_systems import one_line

COLUMNS = ("features", "weak", "strong")
_LISTED = ("sample_id", "error", "label")
_Found = TypeVar("_Found")
_NUM_THREADS = 32  # that look at parts: they wait for files


@dataclass(frozen=True)
class FeatureFiles(PoolFiles):
    """The parts of a folder of features, as files of a pool. A sample's id is that of its image."""

    num_features: int = 0  # D
    num_views: int = 0  # V

    @classmethod
    def of(
        cls, location: Location, num_features: int, num_views: int, class_names: tuple[str, ...] | None
    ) -> FeatureFiles:
        """All parts of a folder; `ValueError` where there is none, or one cannot be opened."""
        files = list_pool(location, image_column=COLUMNS[0], label_column="label", class_names=class_names)
        if files.unopened:
            raise location.error(f"{files.name(files.unopened[0])} cannot be read; embed again, which writes it anew")
        own = vars(files) | {"left_out": Counter()}  # of what embed writes beside the parts
        return cls(**own, num_features=num_features, num_views=num_views)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(P, 1, D) of a row."""
        return 1 + 2 * self.num_views, 1, self.num_features

    @property
    def columns(self) -> tuple[str, ...]:
        """Of features."""
        return COLUMNS if self.num_views else COLUMNS[:1]

    def listings(self, find: Callable[[pa.Table], _Found]) -> Iterator[_Found]:
        """What is found in each part's sample_id, error and label, and pixels where it was written.

        Raises:
            ValueError: a part cannot be read, or lacks a column.
        """
        with ThreadPoolExecutor(_NUM_THREADS) as executor:
            yield from executor.map(lambda file: find(self.listing(file)), range(len(self.paths)))

    def listing(self, file: int) -> pa.Table:
        """That of one part."""
        try:
            with pq.ParquetFile(self.paths[file].as_py(), filesystem=self.location.filesystem) as opened:
                present = opened.schema_arrow.names
                if lacking := [name for name in (*_LISTED, *self.columns) if name not in present]:
                    raise self.location.error(f"{self.name(file)} cannot be read (it has no column {lacking[0]})")
                return opened.read([*_LISTED, *({"pixels"} & set(present))], use_threads=False)
        except (OSError, pa.ArrowException) as error:
            raise self.location.error(f"{self.name(file)} cannot be read ({one_line(error)})") from None

    def _ids(self, file: int, rows: NDArray[np.int64]) -> list[str]:
        """Those of the images; of a file that cannot be read any more, `file:row`."""
        try:
            ids: list[str] = self._table(file, rows, ["sample_id"], use_threads=False)["sample_id"].to_pylist()
        except (OSError, pa.ArrowException):
            return super()._ids(file, rows)
        return ids

    def rows(self, ids: Collection[str]) -> dict[int, list[int]]:
        """As of a pool of images; every sample id is read for it."""
        wanted = pa.array(list(ids), pa.string())
        return self._rows_where(lambda names: pc.is_in(names, value_set=wanted))

    def ids_ending(self, text: str) -> list[str]:
        """As of a pool of images; every sample id is read for it."""
        found = self._rows_where(lambda names: pc.ends_with(names, text))
        return [sample_id for file, rows in found.items() for sample_id in self._ids(file, np.array(rows))]

    def _rows_where(self, holds: Callable[[pa.ChunkedArray], pa.ChunkedArray]) -> dict[int, list[int]]:
        """File -> rows in it, ascending, of those left, whose sample ids are such."""
        found = self.listings(lambda table: np.flatnonzero(holds(table["sample_id"]).to_numpy()))
        inside = ((file, np.setdiff1d(rows, self.gone.get(file, rows[:0]))) for file, rows in enumerate(found))
        return {file: rows.tolist() for file, rows in inside if len(rows)}

    def read_rows(self, file: int, rows: NDArray[np.int64]) -> Iterator[Row]:
        """Sample id, features (P, 1, D) in place of an encoded image, and label; what has none raises why."""
        try:
            table = self._table(file, rows, [*_LISTED], use_threads=False)
            features, _ = self.samples(file, rows, use_threads=False)
        except (OSError, pa.ArrowException) as error:
            reason = MISSING if isinstance(error, FileNotFoundError) else UNREADABLE
            yield from ((sample_id, failing(reason), None) for sample_id in super()._ids(file, rows))
            return
        columns = (table[name].to_pylist() for name in _LISTED)
        for name, reason, label, sample in zip(*columns, features, strict=True):
            yield name, failing(reason) if reason else sample, label

    def samples(
        self,
        file: int,
        rows: NDArray[np.int64],
        class_names: tuple[str, ...] = (),
        *,
        out: NDArray[np.float16] | None = None,
        use_threads: bool = True,
    ) -> tuple[NDArray[np.float16], NDArray[np.int64]]:
        """Features (N, P, 1, D) and class indices (N,), UNLABELED where there is none, of rows of a file, ascending.

        Args:
            out: (N, P, 1, D) that the features are written to; None: a new array.

        Raises:
            OSError, ArrowException: the file cannot be read any more.
        """
        table = self._table(file, rows, [*self.columns, "label"], use_threads=use_threads)
        features, view = np.empty((len(rows), *self.shape), np.float16) if out is None else out, 0
        for name in self.columns:
            row = 0
            for chunk in table[name].chunks:
                views = chunk.flatten().to_numpy(zero_copy_only=False).reshape(len(chunk), -1, self.num_features)
                features[row : row + len(chunk), view : view + views.shape[1], 0] = views
                row += len(chunk)
            view += views.shape[1]
        indices = pc.index_in(table["label"], value_set=pa.array(class_names, pa.string()))
        return features, pc.fill_null(indices, UNLABELED).to_numpy().astype(np.int64)

    def _table(self, file: int, rows: NDArray[np.int64], columns: list[str], *, use_threads: bool) -> pa.Table:
        """These rows, ascending, of which there is one at least."""
        with pq.ParquetFile(self.paths[file].as_py(), filesystem=self.location.filesystem) as opened:
            metadata = opened.metadata
            starts = np.cumsum([0, *(metadata.row_group(group).num_rows for group in range(metadata.num_row_groups))])
            first, last = np.searchsorted(starts, rows[[0, -1]], side="right") - 1
            if last == metadata.num_row_groups:
                raise OSError("it has become shorter")
            table = opened.read_row_groups([*range(first, last + 1)], columns=columns, use_threads=use_threads)
        places = rows - starts[first]
        if len(places) == 1 + places[-1] - places[0]:
            return table.slice(places[0], len(places))
        return table.take(places)


def unusable(table: pa.Table) -> tuple[list[BadImage], Counter[str]]:
    """Images without features, of a listing, and by their extensions the files that were no images."""
    rows = table.filter(pc.is_valid(table["error"])).select(["sample_id", "error"]).to_pylist()
    bad = [BadImage(row["sample_id"], row["error"]) for row in rows if row["error"] != FOREIGN]
    return bad, Counter(kind_of(row["sample_id"]) for row in rows if row["error"] == FOREIGN)


def id_hashes(table: pa.Table) -> NDArray[np.uint64]:
    """(N,) 64 bits of each sample id of a listing, of which many are compared."""
    import pandas as pd

    hashes: NDArray[np.uint64] = pd.util.hash_array(table["sample_id"].to_numpy())
    return hashes


@dataclass(frozen=True, eq=False)
class StreamedFeatures(StreamedPool):
    """A pool of features that is read while it is trained on."""

    parts: tuple[FeatureFiles, ...]
    shape: tuple[int, int, int] = (1, 1, 0)  # (P, 1, D) of a row

    def bytes_per_image(self) -> int:
        return 2 * math.prod(self.shape)

    def take(self, start: int, count: int, seed: int, *, num_threads: int | None = None) -> Taken:
        """As of a pool of images: of features that can no longer be read, their rows are bad."""
        features = np.empty((count, *self.shape), np.float16)
        ids, targets = np.empty(count, np.int64), np.empty(count, np.int64)
        is_kept, bad, end = np.ones(count, bool), [], 0
        for number, file, first, taken, first_id in self.places(start, count, seed):
            part, here, end = self.parts[number], slice(end, end + taken), end + taken
            rows, use_threads = part.rows_in_file(file, first, taken), num_threads != 1
            ids[here] = np.arange(first_id, first_id + taken)
            try:
                _, targets[here] = part.samples(
                    file, rows, self.class_names, out=features[here], use_threads=use_threads
                )
            except (OSError, pa.ArrowException):
                is_kept[here] = False
                bad += [BadImage(f"{part.name(file)}:{row}", UNREADABLE) for row in rows]
        if bad:
            features, ids, targets = features[is_kept], ids[is_kept], targets[is_kept]
        return Taken(features, ids, targets, np.flatnonzero(is_kept), bad)
