"""Tars of images as WebDataset has them: an index of each, made once of its headers, and images read by byte ranges.

A sample is members that follow each other and have one key, their path up to the first dot of the name: `7.jpg` is an
image, `7.cls`, `7.json` or `7.txt` its label (the first of these that says one, of JSON the field `label_column`). Of
a member that comes again, the last one counts, as when a tar is unpacked.

An index is a table with a row an image, in the order of the tar. Where a tar is damaged or cut off, one more row stands
for all that follows; it is named by the byte at which that begins.
"""

from __future__ import annotations

import hashlib
import io
import json
import posixpath
import tarfile
import threading
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import repeat

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pyarrow import fs

from dpl_ray.data.files.kinds import IMAGE_EXTENSIONS, passed_over
from dpl_ray.data.files.location import Location
from dpl_ray.data.files.reach import OUTSIDE
from dpl_ray.data.formats.parquet import failing
from dpl_ray.data.images.decode import MAX_PIXELS, MISSING, UNREADABLE, Payload
from dpl_ray.data.labels import Label, as_label
from dpl_ray.store.file_systems import open_file
from dpl_ray.store.records import from_lines, to_lines
from dpl_ray.store.storage import Storage

INDEX_FOLDER = ".tar-index"  # of a run's storage_path or an output; made anew where it was removed
NOT_TAR = "not a readable tar file"
BROKEN = "the tar file is damaged or cut off from here on"
MAX_IMAGE_BYTES = 8 * MAX_PIXELS  # an image of so many pixels takes no more, even without compression
TOO_LONG = f"more than {MAX_IMAGE_BYTES // 2**20} MiB"
MAX_LABEL_BYTES = 2**16
_MAX_HEADER_BYTES = 2**20  # of a long name, or of PAX records
_HEADER_RANGE = 2**13  # bytes read at a time: a header, and mostly the label and the header that follow
_RANGE, _GAP = 2**23, 2**16  # bytes of a range of several images, and of what nobody wants between two of them
_NUM_RECENT = 64  # indexes in memory
_LABELS = ("cls", "json", "txt")
_SCHEMA = pa.schema(
    {"name": pa.string(), "offset": pa.int64(), "size": pa.int64(), "error": pa.string(), "label": pa.string()}
)
_SUMMARY = b"dpl_ray.summary"  # of the schema's metadata
_Key = tuple[str, str | None, str | None]
_Row = tuple[int, int, str | None, str | None]
"""Offset and size in bytes, why it cannot be read, and label."""
_recent: dict[_Key, pa.Table] = {}
_lock = threading.Lock()


class _BrokenError(Exception):
    """What begins at this byte is no header, or more than there is."""

    def __init__(self, offset: int) -> None:
        self.offset = offset


class _Headers(io.BufferedReader):
    """A file for `tarfile`, which reads as many bytes as a header declares."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or not 0 <= size <= _MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return super().read(size)


@dataclass(frozen=True)
class Summary:
    """What a listing has to know of a tar."""

    num_rows: int
    is_broken: bool
    left_out: Counter[str]  # members that are neither images nor labels


def summarize(location: Location, path: str, label_column: str | None) -> Summary:
    """Of a tar as it is now: its index is made, or made anew where the tar has changed since."""
    key, kept = _key(location, path, label_column), _kept(location, path, label_column)
    version = b""
    with suppress(OSError, pa.ArrowException):
        version = _version(location.filesystem, path)
        table = _recent.get(key)
        if table is not None and (found := _summary(table.schema.metadata, version)):
            return found
        if kept and kept.exists():
            footer = pq.read_metadata(kept.path, filesystem=kept.filesystem)
            if found := _summary(footer.metadata or {}, version):
                with _lock:
                    _recent.pop(key, None)
                return found
    table = _make(location, path, label_column, version)
    made = _summary(table.schema.metadata, version)
    assert made is not None
    return made


def _summary(metadata: Mapping[bytes, bytes], version: bytes) -> Summary | None:
    """What an index says; None where it is of another version of the tar, or is damaged."""
    for row in from_lines([metadata.get(_SUMMARY, b"")]):
        if row.get("version") == version.decode():
            return Summary(row["num_rows"], row["is_broken"], Counter(row["left_out"]))
    return None


def read_labels(
    location: Location, path: str, label_column: str | None, class_names: Collection[str] = ()
) -> tuple[list[str], list[Label], Counter[str]]:
    """Member and label of every image, and the other members.

    Raises:
        ValueError: the tar is not whole: nobody could say which labels are lost.
    """
    summary, table = summarize(location, path, label_column), _index(location, path, label_column)
    names: list[str] = table.column("name").to_pylist()
    if summary.is_broken:
        raise location.error(f"{location.name(path)}: {table.column('error')[-1]} (byte {names[-1]})")
    labels = [as_label(label, class_names) for label in table.column("label").to_pylist()]
    return names, labels, summary.left_out


def names_of(location: Location, path: str, rows: NDArray[np.int64], label_column: str | None) -> list[str]:
    """The members of these rows; of a row that is not there its number."""
    names = _index(location, path, label_column).column("name")
    found = iter(names.take(rows[rows < len(names)]).to_pylist())
    return [next(found) if row < len(names) else str(row) for row in rows.tolist()]


def rows_of(location: Location, path: str, names: Collection[str], label_column: str | None) -> NDArray[np.int64]:
    """The rows of the members of these names, ascending."""
    found = pc.is_in(_index(location, path, label_column).column("name"), value_set=pa.array(names, pa.string()))
    return np.flatnonzero(found.to_numpy())


def read_rows(
    location: Location,
    path: str,
    rows: NDArray[np.int64],
    label_column: str | None = None,
    class_names: Collection[str] | None = None,
) -> Iterator[tuple[Payload, Label]]:
    """Image and label of these rows, which ascend; a range of them is held at a time.

    What cannot be read is a payload that raises.
    """
    table = _index(location, path, label_column)
    table = table.take(rows[rows < len(table)])
    labels = [as_label(label, class_names or ()) for label in table.column("label").to_pylist()]
    yield from zip(_read_images(location.filesystem, path, table), labels, strict=True)
    yield from repeat((failing(MISSING), None), len(rows) - len(table))


def _read_images(filesystem: fs.FileSystem, path: str, table: pa.Table) -> Iterator[Payload]:
    """The images of these rows, in ranges of those that lie close together."""
    offsets, sizes, errors = (table.column(name).to_pylist() for name in ("offset", "size", "error"))
    done, reason = 0, UNREADABLE
    try:
        with open_file(filesystem, path) as file:
            while done < len(table):
                first, start, end = done, offsets[done], offsets[done] + sizes[done]
                while done < len(table) and offsets[done] - end <= _GAP:
                    if done > first and offsets[done] + sizes[done] - start > _RANGE:
                        break
                    end = offsets[done] + sizes[done]
                    done += 1
                content = b""
                with suppress(OSError, pa.ArrowException):
                    content = file.read_at(end - start, start)
                for offset, size, error in zip(offsets[first:done], sizes[first:done], errors[first:done], strict=True):
                    image = content[offset - start : offset - start + size]
                    error = error or (UNREADABLE if len(image) < size else None)
                    yield failing(error) if error else image
    except FileNotFoundError:
        reason = MISSING
    except (OSError, pa.ArrowException):
        pass
    yield from (failing(error or reason) for error in errors[done:])


def _index(location: Location, path: str, label_column: str | None) -> pa.Table:
    """The index as it was when the tar was listed; made here where it was not kept."""
    key = _key(location, path, label_column)
    if (table := _recent.get(key)) is not None:
        return table
    with suppress(OSError, pa.ArrowException):
        if kept := _kept(location, path, label_column):
            table = pq.read_table(pa.BufferReader(kept.read()), page_checksum_verification=True)
            if table.schema.equals(_SCHEMA):
                return _remember(key, table)
    return _make(location, path, label_column, b"")


def _make(location: Location, path: str, label_column: str | None, version: bytes) -> pa.Table:
    """Walk the headers of a tar, and keep what is found: not of a tar that could not be read to its end this time."""
    rows: dict[str, _Row] = {}
    left_out = Counter[str]()
    error, end, is_lasting = None, 0, bool(version)
    try:
        with open_file(location.filesystem, path) as file, _Headers(file, _HEADER_RANGE) as headers:
            for name, row in _walk(headers, file.size(), label_column, left_out):
                rows.pop(name, None)  # so that it is at its new place
                rows[name] = row
    except (pa.ArrowException, OSError):
        error, is_lasting = UNREADABLE, False
    except _BrokenError as broken:
        end = broken.offset
        error = BROKEN if end else NOT_TAR
    if error:
        rows[str(end)] = (end, 0, error, None)
    columns = [list(rows), *zip(*rows.values(), strict=True)] if rows else [[]] * len(_SCHEMA)
    found = {"version": version.decode(), "num_rows": len(rows), "is_broken": error is not None, "left_out": left_out}
    table = pa.table(columns, schema=_SCHEMA.with_metadata({_SUMMARY: to_lines([found])}))
    if is_lasting and (kept := _kept(location, path, label_column)):
        sink = io.BytesIO()
        pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
        with suppress(OSError, pa.ArrowException):  # as on a full disk: it is made anew where it is needed
            kept.write(sink.getvalue())
    return _remember(_key(location, path, label_column), table)


def _walk(headers: _Headers, size: int, label_column: str | None, left_out: Counter[str]) -> Iterator[tuple[str, _Row]]:
    """Name and row of each image; what is no image and no label is counted.

    Raises:
        _BrokenError: the tar is damaged or cut off.
    """
    key, images, labels = ("", ""), dict[str, tuple[int, int, str | None]](), dict[str, str | None]()
    broken = None
    try:
        for member in _members(headers, size):
            name = posixpath.normpath(member.name)
            is_outside = name.startswith(("/", "../"))
            kind = None if is_outside else passed_over(name, member.isdir())
            if member.isdir() or kind is not None:
                left_out.update([kind] if kind and not member.isdir() else [])
                continue
            stem, _, extension = posixpath.basename(name).partition(".")
            if (posixpath.dirname(name), stem) != key:
                yield from ((name, (*row, _label(labels))) for name, row in images.items())
                key, images, labels = (posixpath.dirname(name), stem), {}, {}
            extension = extension.lower()
            if not member.isreg() or member.issparse():
                left_out["link" if member.islnk() or member.issym() else "special file"] += 1
            elif f".{extension}" in IMAGE_EXTENSIONS:
                error = OUTSIDE if is_outside else TOO_LONG if member.size > MAX_IMAGE_BYTES else None
                images[name] = member.offset_data, 0 if error else member.size, error
            elif extension not in _LABELS:
                left_out[f".{extension}" if extension else "without extension"] += 1
            elif label_column is not None and member.size <= MAX_LABEL_BYTES:
                headers.seek(member.offset_data)
                labels[extension] = _parse(extension, headers.read(member.size), label_column)
    except _BrokenError as error:
        broken = error
    yield from ((name, (*row, _label(labels))) for name, row in images.items())
    if broken:
        raise broken


def _members(headers: _Headers, size: int) -> Iterator[tarfile.TarInfo]:
    """The members of a tar of this size.

    Raises:
        _BrokenError: the tar is damaged or cut off.
    """
    following = 0
    try:
        tar = tarfile.TarFile(fileobj=headers, encoding="utf-8", errors="replace")
        while following < size and (member := tar.next()) is not None:
            length = member.size if member.isreg() else 0
            if tar.offset <= following or length < 0 or member.offset_data + length > size:
                raise _BrokenError(following)
            following = tar.offset
            yield member
            tar.members.clear()  # type: ignore[attr-defined]  # of which it would keep all,
            tar.pax_headers = {}  # and what is said of all members
        headers.seek(following)
        block = headers.read(tarfile.BLOCKSIZE) if following < size else b""
        if block.strip(b"\0") or 0 < len(block) < tarfile.BLOCKSIZE:  # tarfile takes a damaged header for the end
            raise _BrokenError(following)
    # What tarfile lets out that a damaged or a malicious header provokes.
    except (tarfile.TarError, ValueError, ArithmeticError, RecursionError, EOFError):
        raise _BrokenError(following) from None


def _parse(extension: str, content: bytes, label_column: str) -> str | None:
    """The label that a file of a sample says."""
    try:
        if extension != "json":
            return content.decode().strip() or None
        value = json.loads(content)[label_column]
    except (ValueError, LookupError, TypeError, RecursionError):
        return None
    return str(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else None


def _label(labels: Mapping[str, str | None]) -> str | None:
    return next(filter(None, map(labels.get, _LABELS)), None)


def _version(filesystem: fs.FileSystem, path: str) -> bytes:
    """What changes with the content of a file."""
    if isinstance(filesystem, fs.PyFileSystem):  # of fsspec, some of whose file systems know no times
        return str(filesystem.handler.fs.ukey(path)).encode()
    info = filesystem.get_file_info(path)
    return f"{info.size} {info.mtime_ns}".encode()


def _kept(location: Location, path: str, label_column: str | None) -> Storage | None:
    if location.indexes is None:
        return None
    digest = hashlib.blake2b(repr((location.name(path), label_column)).encode(errors="surrogateescape"), digest_size=16)
    with suppress(OSError, ValueError):  # as of a bucket that does not answer
        return Storage(location.indexes) / INDEX_FOLDER / f"{digest.hexdigest()}.parquet"
    return None


def _key(location: Location, path: str, label_column: str | None) -> _Key:
    return location.name(path), label_column, location.indexes


def _remember(key: _Key, table: pa.Table) -> pa.Table:
    with _lock:
        _recent.pop(key, None)
        _recent[key] = table
        while len(_recent) > _NUM_RECENT:
            del _recent[next(iter(_recent))]
    return table
