"""The files of a pool as they were listed, and reading rows of them: into memory, streamed or to be labelled.

A pool is image files, each of one row, and shards of many: parquet files and tars. What is held of it is a name and a
few numbers a file, never anything a sample. Rows are called by (file, row); `sample_id` names them.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import groupby
from operator import itemgetter
from typing import Any, NamedTuple, Self, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from dpl_ray.data.files.kinds import as_text, read_image_file
from dpl_ray.data.files.listing import Listing, list_files
from dpl_ray.data.files.location import Location
from dpl_ray.data.files.shards import are_parquet, are_shards, is_parquet, is_tar, split_id
from dpl_ray.data.formats import parquet, tar
from dpl_ray.data.images.decode import Payload
from dpl_ray.data.labels import Label, as_label
from dpl_ray.store.ahead import map_ahead

ROWS_PER_SPAN = 1024  # least rows of a span of whole row groups
_NUM_THREADS = 32  # that look at shards: they wait for files
_SHARDS_AT_A_TIME = 4096  # that wait for a thread
_PATHS_AT_A_TIME = 65_536  # that are text
_MAX_NAMED = 20  # files in a message
SECONDS_UNTOLD = 3.0  # of looking at shards
_tell: ContextVar[Callable[[int, int], None]] = ContextVar("tell", default=lambda _done, _total: None)

R = TypeVar("R")
Row = tuple[str, Payload, Label]
"""Sample id, encoded image and label."""
Rows = list[Row]


@dataclass(frozen=True)
class PoolFiles:
    """Files of a pool, in the order of their names, and the spans of their rows that belong to the pool.

    A parquet file whose footer cannot be read counts as one row, which cannot be read, and so does what follows in a
    tar from where it is damaged. Rows that are gone are not
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
    class_names: tuple[str, ...] | None = None  # of which integer labels are the indices
    labels: NDArray[np.int64] | None = None  # (F,) class index of image files where it is known, else -1
    gone: Mapping[int, NDArray[np.int64]] = field(default_factory=dict)  # file -> its rows that are left out, ascending
    unopened: tuple[int, ...] = ()  # shards that could not be read, or not to their end
    left_out: Counter[str] = field(default_factory=Counter)  # of the listing

    def __len__(self) -> int:
        """Rows of the pool."""
        return int(self.spans[:, 2].sum())

    def name(self, file: int) -> str:
        """The file as the user would write it."""
        return self.location.name(self.paths[file].as_py())

    def sample_id(self, file: int, row: int) -> str:
        """`file:row` of a parquet file, `file:member` of a tar, else the file."""
        return self._ids(file, np.array([row]))[0]

    def names(self, file: int, rows: NDArray[np.int64]) -> list[str]:
        """Sample ids of rows of a file, of those left."""
        return self._ids(file, self._in_file(file, rows))

    def _ids(self, file: int, rows: NDArray[np.int64]) -> list[str]:
        """Sample ids of rows of a file, which ascend."""
        path, name = self.paths[file].as_py(), self.name(file)
        if is_tar(path):
            return [f"{name}:{member}" for member in tar.names_of(self.location, path, rows, self.label_column)]
        return [f"{name}:{row}" for row in rows.tolist()] if is_parquet(path) else [name] * len(rows)

    def fingerprint(self) -> str:
        """Hex digest of names, sizes and spans: the pixels of what does not fit into memory are not read for it."""
        digest = hashlib.blake2b(digest_size=16)
        for start in range(0, len(self.paths), _PATHS_AT_A_TIME):
            some = self.paths.slice(start, _PATHS_AT_A_TIME).to_pylist()
            digest.update("\0".join([*some, ""]).encode(errors="surrogateescape"))
        digest.update(np.ascontiguousarray(self.sizes).data)
        digest.update(np.ascontiguousarray(self.spans).data)
        for file in sorted(self.gone):
            digest.update(self.gone[file].tobytes())
        return digest.hexdigest()

    def check_image_column(self, field: str) -> None:
        """`ValueError` naming the field where no parquet file has the column; one that lacks it costs its own rows."""
        first: tuple[str, pa.Schema] | None = None
        files = np.flatnonzero(are_parquet(self.paths)).tolist()
        for file in files:
            try:
                with parquet.open_table(self.location, self.paths[file].as_py()) as opened:
                    schema = opened.schema_arrow
            except (pa.ArrowException, OSError):
                continue
            if parquet.image_column_error(schema, self.image_column) is None:
                return
            first = first or (self.name(file), schema)
        if first and len(files) == len(self.paths):
            parquet.check_image_column(*first, self.image_column, field)

    def check_unopened(self, field: str, limit: float) -> None:
        """`ValueError` where more than this share of the pool is lost in shards that cannot be read to their end.

        Nobody knows how many rows they had: each is taken to be as long as the others are on average.
        """
        if not self.unopened:
            return
        shards = are_shards(self.paths)
        readable = np.ones(len(shards), bool)
        readable[list(self.unopened)] = False
        opened, begun = self.num_rows[shards & readable], self.num_rows[~readable] - 1
        lost = float(np.maximum(1.0, (opened.mean() if len(opened) else 1.0) - begun).sum())
        whole = lost + float(self.num_rows[readable].sum() + begun.sum())
        if lost > limit * whole:
            names = ", ".join(self.name(file) for file in self.unopened[:_MAX_NAMED])
            more = f" and {len(self.unopened) - _MAX_NAMED} more" if len(self.unopened) > _MAX_NAMED else ""
            kind = "tars" if any(is_tar(self.paths[file].as_py()) for file in self.unopened) else "parquet files"
            raise ValueError(
                f"{field}={limit:g}: {len(self.unopened)} of {len(opened) + len(self.unopened)} {kind} of the "
                f"pool cannot be opened, some {lost / whole:.1%} of its images: {names}{more}; repair or remove them, "
                "or raise the limit"
            )

    def where(self, belongs: Callable[[int], bool]) -> PoolFiles:
        """The pool less the files that do not belong to it."""
        keep = np.array([belongs(file) for file in range(len(self.paths))], bool)
        return replace(self, spans=self.spans[keep[self.spans[:, 0]]])

    def rows(self, ids: Collection[str]) -> dict[int, list[int]]:
        """File -> rows in it, ascending, of the samples of these ids; ids that are not in the pool are passed over."""
        found = self._rows_by_file(set(ids))
        inside: dict[int, list[int]] = {}
        for file, first, count in self.spans[np.isin(self.spans[:, 0], list(found))].tolist():
            if rows := sorted(found[file].intersection(self.rows_in_file(file, first, count).tolist())):
                inside.setdefault(file, []).extend(rows)
        return inside

    def ids_ending(self, text: str) -> list[str]:
        """Sample ids in the pool that are the text, or end with it."""
        file, row = split_id(text)
        at = np.flatnonzero(pc.ends_with(self.paths, file.removeprefix(self.location.scheme)).to_numpy(False)).tolist()
        ids = [self.name(number) if row is None else f"{self.name(number)}:{row}" for number in at]
        return [sample_id for sample_id in ids if sample_id.endswith(text) and self.rows([sample_id])]

    def _rows_by_file(self, ids: set[str]) -> dict[int, set[int]]:
        parts = {sample_id: split_id(sample_id) for sample_id in ids}
        files = self._files_named({*ids, *(file for file, _ in parts.values())})
        rows: dict[int, set[int]] = {}
        members: dict[int, list[str]] = {}
        for sample_id, (name, row) in parts.items():
            if sample_id in files:
                rows.setdefault(files[sample_id], set()).add(0)
            elif row is None or name not in files:
                continue
            elif is_tar(name):
                members.setdefault(files[name], []).append(row)
            else:
                rows.setdefault(files[name], set()).add(int(row))
        for file, names in members.items():
            path = self.paths[file].as_py()
            rows[file] = set(tar.rows_of(self.location, path, names, self.label_column).tolist())
        return rows

    def _files_named(self, names: Collection[str]) -> dict[str, int]:
        """Name -> file, of those of these names that are files of the pool."""
        scheme = self.location.scheme
        paths = pa.array([name[len(scheme) :] for name in names if name.startswith(scheme)], pa.large_string())
        at = np.flatnonzero(pc.is_in(self.paths, value_set=paths).to_numpy(zero_copy_only=False)).tolist()
        return {self.name(file): file for file in at}

    def without(self, ids: Collection[str]) -> Self:
        """The pool less the samples of these ids; ids of others are passed over."""
        return self.without_rows({file: np.array(rows) for file, rows in self.rows(ids).items()})

    def without_rows(self, excluded: Mapping[int, NDArray[np.int64]]) -> Self:
        """The pool less these rows of files, ascending, which are in it."""
        if not excluded:
            return self
        nothing = np.empty(0, np.int64)
        gone = {**self.gone, **{file: np.union1d(self.gone.get(file, nothing), excluded[file]) for file in excluded}}
        spans = self.spans.copy()
        for span in np.flatnonzero(np.isin(spans[:, 0], list(excluded))).tolist():
            file, first, count = spans[span].tolist()
            rows = self.rows_in_file(file, first, count)
            first = rows[0] - np.searchsorted(gone[file], rows[0])
            spans[span, 1:] = first, count - np.isin(rows, excluded[file]).sum()
        return replace(self, spans=spans[spans[:, 2] > 0], gone=gone)

    def rows_in_file(self, file: int, first: int, count: int) -> NDArray[np.int64]:
        """(count,) which rows of the file these are, of those left."""
        return self._in_file(file, np.arange(first, first + count))

    def _in_file(self, file: int, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Which rows of the file these are, of those left."""
        gone = self.gone.get(file)
        if gone is None:
            return rows
        # So many are left before each that is gone: a row is moved by those that this number does not exceed.
        return rows + np.searchsorted(gone - np.arange(len(gone)), rows, side="right")

    def read(self, file: int, first: int, count: int) -> Rows:
        """Rows first .. first + count - 1 of a file, encoded. What cannot be read is a payload that raises.

        Image files are opened by their payloads, parquet files here, one row group after the other: a broken one
        costs its own rows, from the break on.
        """
        return list(self.read_rows(file, self.rows_in_file(file, first, count)))

    def read_all(self) -> Iterator[Row]:
        """Every row of the pool, in order. A file is opened once, and a batch of its rows is held at a time."""
        for file, spans in groupby((span.tolist() for span in self.spans), itemgetter(0)):
            yield from self.read_rows(file, np.concatenate([self.rows_in_file(*span) for span in spans]))

    def read_rows(self, file: int, rows: NDArray[np.int64]) -> Iterator[Row]:
        """These rows of the file, which ascend."""
        path = self.paths[file].as_py()
        if is_tar(path):
            found = tar.read_rows(self.location, path, rows, self.label_column, self.class_names)
        elif is_parquet(path):
            columns = self.image_column, self.label_column, self.class_names
            found = parquet.read_rows(self.location, path, rows, *columns)
        else:
            label = None if self.labels is None else as_label(int(self.labels[file]))
            found = iter([(partial(read_image_file, self.location.filesystem, path), label)])
        for sample_id, (payload, label) in zip(self._ids(file, rows), found, strict=True):
            yield sample_id, payload, label


class ShardRows(NamedTuple):
    """What a listing has to know of a shard."""

    groups: list[int]  # rows that are best read together, each: row groups of a parquet file
    is_broken: bool = False  # it cannot be read, or not to its end; the last row stands for what is lost
    left_out: Mapping[str, int] = {}  # members of a tar


def list_pool(
    location: Location,
    *,
    image_column: str,
    label_column: str | None = None,
    class_names: tuple[str, ...] | None = None,
) -> PoolFiles:
    """List a folder, a glob or one file, and read the footers of parquet files and the indexes of tars.

    Args:
        class_names: of which integer labels are to be the indices, where files name their own classes.

    Raises:
        ValueError: there is no such place, or no file in it that may be an image or is called as shards are, or they
            are shards without an image.
    """
    return pool_of(location, list_files(location), image_column, label_column, class_names=class_names)


def pool_of(
    location: Location,
    listing: Listing,
    image_column: str = "image",
    label_column: str | None = None,
    *,
    class_names: tuple[str, ...] | None = None,
    shard_rows: list[ShardRows] | None = None,
) -> PoolFiles:
    """The pool of these files.

    Args:
        shard_rows: of each shard; None: they are looked at.
    """
    paths = listing.paths
    is_shard = are_shards(paths)
    shards = np.flatnonzero(is_shard)
    shard_rows = shard_rows or _look_at(location, paths.take(pa.array(shards)), label_column)
    spans_of = [list(_merge(rows.groups)) for rows in shard_rows]
    # An image file is a span of one row, a shard has its own.
    num_rows, num_spans = np.ones(len(paths), np.int64), np.ones(len(paths), np.int64)
    num_rows[shards] = [sum(count for _, count in spans) for spans in spans_of]
    num_spans[shards] = [len(spans) for spans in spans_of]
    spans = np.empty((int(num_spans.sum()), 3), np.int64)
    spans[:, 0], spans[:, 1:] = np.repeat(np.arange(len(paths)), num_spans), (0, 1)
    spans[np.repeat(is_shard, num_spans), 1:] = np.array([span for spans in spans_of for span in spans]).reshape(-1, 2)
    del num_spans
    if len(paths) and not len(spans):
        if are_parquet(paths).all():
            raise location.error("the parquet files have no rows; give files with an image in each row")
        inside = as_text(sum((Counter(rows.left_out) for rows in shard_rows), Counter())) or "nothing"
        raise location.error(f"no image in the tars ({inside} left out); give tars of .jpg, .png or .webp files")
    return PoolFiles(
        location,
        paths,
        listing.sizes,
        num_rows,
        spans,
        image_column,
        label_column,
        class_names,
        unopened=tuple(file for file, rows in zip(shards.tolist(), shard_rows, strict=True) if rows.is_broken),
        left_out=sum((Counter(rows.left_out) for rows in shard_rows), listing.left_out),
    )


def _look_at(location: Location, paths: pa.LargeStringArray, label_column: str | None) -> list[ShardRows]:
    """The rows of each shard: from the footers of parquet files and the indexes of tars."""

    def look(item: pa.LargeStringScalar) -> ShardRows:
        path = item.as_py()
        if is_tar(path):
            found = tar.summarize(location, path, label_column)
            return ShardRows(rows_of_tar(found.num_rows), found.is_broken, found.left_out)
        rows = parquet.row_groups(location, path)
        return ShardRows([1], is_broken=True) if rows is None else ShardRows(rows)

    return list(each_shard(look, paths))


def each_shard(look: Callable[[Any], R], paths: Sequence[Any]) -> Iterator[R]:
    """What `look` finds in each shard, in order, by threads; says how far it is where that takes long."""
    tell, began = _tell.get(), time.monotonic()
    for done, found in enumerate(map_ahead(look, paths, _NUM_THREADS, _SHARDS_AT_A_TIME), start=1):
        if time.monotonic() - began > SECONDS_UNTOLD:
            tell(done, len(paths))
        yield found


@contextmanager
def shards_told(tell: Callable[[int, int], None]) -> Iterator[None]:
    """Of shards that are listed within, say how many are looked at and how many there are, where that takes long.

    The index of a large tar takes a request for each of its images.
    """
    token = _tell.set(tell)
    try:
        yield
    finally:
        _tell.reset(token)


def rows_of_tar(num_rows: int) -> list[int]:
    """Rows of a tar that are read together: as many as of a parquet file."""
    whole, rest = divmod(num_rows, ROWS_PER_SPAN)
    return [ROWS_PER_SPAN] * whole + [rest] * bool(rest)


def _merge(row_groups: list[int]) -> Iterator[tuple[int, int]]:
    """(first row, number of rows) of runs of row groups, ROWS_PER_SPAN rows or more where there are so many."""
    first = count = 0
    for index, rows in enumerate(row_groups):
        count += rows
        if count and (count >= ROWS_PER_SPAN or index == len(row_groups) - 1):
            yield first, count
            first, count = first + count, 0
