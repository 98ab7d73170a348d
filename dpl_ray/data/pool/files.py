"""The files of a pool as they were listed, and reading rows of them: into memory, streamed or to be labelled.

A pool is image files, each of one row, and parquet files of many. What is held of it is a name and a few numbers a
file, never anything a sample. Rows are called by (file, row); `sample_id` names them.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import compress, groupby, repeat
from operator import itemgetter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from dpl_ray.data.decode import MISSING, UNREADABLE, DecodeError, Payload
from dpl_ray.data.files import (
    Label,
    Location,
    are_images,
    are_parquet,
    as_label,
    find_files,
    is_parquet,
    no_image,
    read_file,
)
from dpl_ray.data.parquet import check_image_column, has_labels, image_column_error

ROWS_PER_SPAN = 1024  # least rows of a span of whole row groups
_BATCH_ROWS = 1024  # of a row group that are decompressed at a time: it may be a whole file
NOT_PARQUET = "not a readable parquet file"
_NUM_THREADS = 32  # that read footers: they wait for files
_FOOTERS_AT_A_TIME = 4096  # that wait for a thread
_MAX_NAMED = 20  # files in a message

Row = tuple[str, Payload, Label]
"""Sample id, encoded image and label."""
Rows = list[Row]


@dataclass(frozen=True)
class PoolFiles:
    """Files of a pool, in the order of their names, and the spans of their rows that belong to the pool.

    A parquet file whose footer cannot be read counts as one row, which cannot be read. Rows that are left out are not
    counted: row 3 of a file without its row 1 is row 2 of those left. So a span stays one, and is read in one go,
    however many of its rows are left out.
    """

    location: Location
    paths: pa.LargeStringArray  # (F,) in the location's file system
    sizes: NDArray[np.int64]  # (F,) bytes
    num_rows: NDArray[np.int64]  # (F,)
    spans: NDArray[np.int64]  # (S, 3) file, first row, number of rows, of those left; of a parquet file, row groups
    image_column: str = "image"
    label_column: str | None = None
    labels: NDArray[np.int64] | None = None  # (F,) class index of image files where it is known, else -1
    left_out: Mapping[int, NDArray[np.int64]] = field(default_factory=dict)  # file -> its rows, ascending
    unopened: tuple[int, ...] = ()  # parquet files whose footers could not be read

    def __len__(self) -> int:
        """Rows of the pool."""
        return int(self.spans[:, 2].sum())

    def name(self, file: int) -> str:
        """The file as the user would write it."""
        return self.location.name(self.paths[file].as_py())

    def sample_id(self, file: int, row: int) -> str:
        """`file:row` of a parquet file, else the file."""
        return f"{self.name(file)}:{row}" if is_parquet(self.paths[file].as_py()) else self.name(file)

    def fingerprint(self) -> str:
        """Hex digest of names, sizes and spans: the pixels of what does not fit into memory are not read for it."""
        digest = hashlib.blake2b(digest_size=16)
        for path in self.paths:
            digest.update(path.as_py().encode(errors="surrogateescape") + b"\0")
        digest.update(self.sizes.tobytes() + self.spans.tobytes())
        for file in sorted(self.left_out):
            digest.update(self.left_out[file].tobytes())
        return digest.hexdigest()

    def check_image_column(self, field: str) -> None:
        """`ValueError` naming the field where no parquet file has the column; one that lacks it costs its own rows."""
        first: tuple[str, pa.Schema] | None = None
        parquet = np.flatnonzero(are_parquet(self.paths)).tolist()
        for file in parquet:
            try:
                schema = pq.read_schema(self.paths[file].as_py(), filesystem=self.location.filesystem)
            except (pa.ArrowException, OSError):
                continue
            if image_column_error(schema, self.image_column) is None:
                return
            first = first or (self.name(file), schema)
        if first and len(parquet) == len(self.paths):
            check_image_column(*first, self.image_column, field)

    def check_unopened(self, field: str, limit: float) -> None:
        """`ValueError` where more than this share of the pool is lost in parquet files that cannot be opened.

        Nobody knows how many rows they had: each is taken to be as long as the others are on average.
        """
        if not self.unopened:
            return
        parquet = are_parquet(self.paths)
        readable = np.ones(len(parquet), bool)
        readable[list(self.unopened)] = False
        opened = self.num_rows[parquet & readable]
        lost = len(self.unopened) * (float(opened.mean()) if len(opened) else 1.0)
        whole = lost + float(self.num_rows[readable].sum())
        if lost > limit * whole:
            names = ", ".join(self.name(file) for file in self.unopened[:_MAX_NAMED])
            more = f" and {len(self.unopened) - _MAX_NAMED} more" if len(self.unopened) > _MAX_NAMED else ""
            raise ValueError(
                f"{field}={limit:g}: {len(self.unopened)} of {len(opened) + len(self.unopened)} parquet files of the "
                f"pool cannot be opened, some {lost / whole:.1%} of its images: {names}{more}; repair or remove them, "
                "or raise the limit"
            )

    def where(self, belongs: Callable[[int], bool]) -> PoolFiles:
        """The pool less the files that do not belong to it."""
        keep = np.array([belongs(file) for file in range(len(self.paths))], bool)
        return replace(self, spans=self.spans[keep[self.spans[:, 0]]])

    def rows(self, ids: Collection[str]) -> dict[int, list[int]]:
        """File -> rows in it, ascending, of the samples of these ids; ids that are not in the pool are passed over."""
        found = _rows_by_file(set(ids), self._files_named({*ids, *(_file_and_row(sample_id)[0] for sample_id in ids)}))
        inside: dict[int, list[int]] = {}
        for file, first, count in self.spans[np.isin(self.spans[:, 0], list(found))].tolist():
            if rows := sorted(found[file].intersection(self._rows_in_file(file, first, count).tolist())):
                inside.setdefault(file, []).extend(rows)
        return inside

    def _files_named(self, names: Collection[str]) -> dict[str, int]:
        """Name -> file, of those of these names that are files of the pool."""
        scheme = self.location.scheme
        paths = pa.array([name[len(scheme) :] for name in names if name.startswith(scheme)], pa.large_string())
        at = np.flatnonzero(pc.is_in(self.paths, value_set=paths).to_numpy(zero_copy_only=False)).tolist()
        return {self.name(file): file for file in at}

    def without(self, ids: Collection[str]) -> PoolFiles:
        """The pool less the samples of these ids; ids of others are passed over."""
        gone = {file: np.array(rows) for file, rows in self.rows(ids).items()}
        if not gone:
            return self
        before = {file: self.left_out.get(file, np.empty(0, np.int64)) for file in gone}
        left_out = {**self.left_out, **{file: np.union1d(before[file], rows) for file, rows in gone.items()}}
        spans = self.spans.copy()
        for span in np.flatnonzero(np.isin(spans[:, 0], list(gone))).tolist():
            file, first, count = spans[span].tolist()
            rows = self._rows_in_file(file, first, count)
            first = rows[0] - np.searchsorted(left_out[file], rows[0])
            spans[span, 1:] = first, count - np.isin(rows, gone[file]).sum()
        return replace(self, spans=spans[spans[:, 2] > 0], left_out=left_out)

    def _rows_in_file(self, file: int, first: int, count: int) -> NDArray[np.int64]:
        """(count,) which rows of the file these are, of those left."""
        rows = np.arange(first, first + count)
        left_out = self.left_out.get(file)
        if left_out is None:
            return rows
        # So many are left before each that is left out: a row is moved by those that this number does not exceed.
        return rows + np.searchsorted(left_out - np.arange(len(left_out)), rows, side="right")

    def read(self, file: int, first: int, count: int) -> Rows:
        """Rows first .. first + count - 1 of a file, encoded. What cannot be read is a payload that raises.

        Image files are opened by their payloads, parquet files here, one row group after the other: a broken one
        costs its own rows, from the break on.
        """
        return list(self._read(file, self._rows_in_file(file, first, count)))

    def read_all(self) -> Iterator[Row]:
        """Every row of the pool, in order. A file is opened once, and a batch of its rows is held at a time."""
        for file, spans in groupby((span.tolist() for span in self.spans), itemgetter(0)):
            yield from self._read(file, np.concatenate([self._rows_in_file(*span) for span in spans]))

    def _read(self, file: int, rows: NDArray[np.int64]) -> Iterator[Row]:
        """These rows of the file, which ascend."""
        path = self.paths[file].as_py()
        if not is_parquet(path):
            label = None if self.labels is None else as_label(int(self.labels[file]))
            yield self.name(file), partial(read_file, self.location.filesystem, path), label
            return
        first, end = int(rows[0]), int(rows[-1]) + 1
        found = enumerate(self._read_parquet(path, first, end - first), start=first)
        for row, (payload, label) in compress(found, np.isin(np.arange(first, end), rows)):
            yield self.sample_id(file, row), payload, label

    def _read_parquet(self, path: str, first: int, count: int) -> Iterator[tuple[Payload, Label]]:
        num_read, reason = 0, MISSING
        try:
            with pq.ParquetFile(path, filesystem=self.location.filesystem) as opened:
                for batch in self._batches(opened, first, count):
                    yield from batch
                    num_read += len(batch)
        except FileNotFoundError:
            pass
        except (pa.ArrowException, OSError):
            reason = NOT_PARQUET
        # Also the end of a file that has become shorter since it was listed.
        yield from repeat((_failing(reason), None), count - num_read)

    def _batches(self, opened: pq.ParquetFile, first: int, count: int) -> Iterator[list[tuple[Payload, Label]]]:
        schema = opened.schema_arrow
        if (problem := image_column_error(schema, self.image_column)) is not None:
            yield [(_failing(problem), None)] * count
            return
        columns = [self.image_column]
        if self.label_column is not None and has_labels(schema, self.label_column):
            columns.append(self.label_column)
        end = 0
        for group in range(opened.metadata.num_row_groups):
            start, end = end, end + opened.metadata.row_group(group).num_rows
            skip, stop = max(first - start, 0), min(first + count, end) - start
            if skip < stop:
                yield from _read_group(opened, group, columns, skip, stop)


def _read_group(
    opened: pq.ParquetFile, group: int, columns: list[str], skip: int, stop: int
) -> Iterator[list[tuple[Payload, Label]]]:
    """Rows skip .. stop - 1 of a row group; `columns` are that of the images and, where there is one, of the labels."""
    row, end = skip, 0
    with contextlib.suppress(pa.ArrowException, OSError):
        for batch in opened.iter_batches(_BATCH_ROWS, row_groups=[group], columns=columns):
            start, end = end, end + len(batch)
            if row < end:
                found = _rows_of(batch.slice(row - start, stop - row), columns)
                row += len(found)
                yield found
            if row == stop:
                return
    yield [(_failing(UNREADABLE), None)] * (stop - row)


def _rows_of(batch: pa.RecordBatch, columns: list[str]) -> list[tuple[Payload, Label]]:
    images = batch.column(columns[0])
    if pa.types.is_struct(images.type):
        images = pc.struct_field(images, "bytes")
    labels: list[Label] = [None] * len(batch)
    if len(columns) > 1:
        with contextlib.suppress(UnicodeDecodeError):  # such labels are of no use, but their images are
            labels = batch.column(columns[1]).to_pylist()
    return list(zip(images.to_pylist(), map(as_label, labels), strict=True))


def list_pool(
    location: Location, *, image_column: str, label_column: str | None = None, every_file: bool = False
) -> PoolFiles:
    """List a folder, a glob or one file, and read the footers of parquet files.

    Args:
        every_file: files count whatever they are called: what is no image is found when it is decoded.

    Raises:
        ValueError: there is no such place, or no file in it that is called as images or parquet files are, or they
            are parquet files without a row.
    """
    paths, sizes = find_files(location)
    called_so = are_images(paths) | are_parquet(paths)
    if not called_so.any():
        raise no_image(location, paths.to_pylist())
    if not every_file and not called_so.all():
        paths, sizes = paths.filter(pa.array(called_so)), sizes[called_so]
    parquet = np.flatnonzero(are_parquet(paths))
    row_groups = _read_footers(location, paths.take(pa.array(parquet)))
    spans_of = [list(_merge([1] if rows is None else rows)) for rows in row_groups]
    # An image file is a span of one row, a parquet file has its own.
    num_rows, num_spans = np.ones(len(paths), np.int64), np.ones(len(paths), np.int64)
    num_rows[parquet] = [sum(count for _, count in spans) for spans in spans_of]
    num_spans[parquet] = [len(spans) for spans in spans_of]
    files = np.repeat(np.arange(len(paths)), num_spans)
    spans = np.stack([files, np.zeros_like(files), np.ones_like(files)], axis=1)
    spans[np.isin(files, parquet), 1:] = np.array([span for spans in spans_of for span in spans]).reshape(-1, 2)
    if not len(spans):
        raise location.error("the parquet files have no rows")
    unopened = tuple(file for file, rows in zip(parquet.tolist(), row_groups, strict=True) if rows is None)
    return PoolFiles(location, paths, sizes, num_rows, spans, image_column, label_column, unopened=unopened)


def _read_footers(location: Location, paths: pa.LargeStringArray) -> list[list[int] | None]:
    """Rows of each row group of each parquet file; None of one that cannot be opened."""
    found: list[list[int] | None] = []
    with ThreadPoolExecutor(_NUM_THREADS) as executor:
        for start in range(0, len(paths), _FOOTERS_AT_A_TIME):
            some = paths.slice(start, _FOOTERS_AT_A_TIME).to_pylist()
            found += executor.map(partial(_row_groups, location), some)
    return found


def _row_groups(location: Location, path: str) -> list[int] | None:
    try:
        metadata = pq.read_metadata(path, filesystem=location.filesystem)
    except (pa.ArrowException, OSError):
        return None
    return [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]


def _merge(row_groups: list[int]) -> Iterator[tuple[int, int]]:
    """(first row, number of rows) of runs of row groups, ROWS_PER_SPAN rows or more where there are so many."""
    first = count = 0
    for index, rows in enumerate(row_groups):
        count += rows
        if count and (count >= ROWS_PER_SPAN or index == len(row_groups) - 1):
            yield first, count
            first, count = first + count, 0


def _rows_by_file(ids: set[str], files: dict[str, int]) -> dict[int, set[int]]:
    rows: dict[int, set[int]] = {}
    for sample_id in ids:
        name, row = (sample_id, 0) if sample_id in files else _file_and_row(sample_id)
        if name in files:
            rows.setdefault(files[name], set()).add(row)
    return rows


def _file_and_row(sample_id: str) -> tuple[str, int]:
    """Of `file:row`; of an image file itself and row 0."""
    name, _, number = sample_id.rpartition(":")
    return (name, int(number)) if number.isdecimal() else (sample_id, 0)


def _failing(reason: str) -> Callable[[], Any]:
    return partial(_fail, reason)


def _fail(reason: str) -> bytes:
    raise DecodeError(reason)
