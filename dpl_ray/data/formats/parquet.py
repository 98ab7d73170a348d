"""Rows of parquet files of encoded images, with or without labels, as Hugging Face and others write them.

Images are bytes, or structs of bytes and path; where there are no bytes, the path is that of a file beside the parquet
file. What cannot be read is a payload that raises: it costs its own rows. Labels that all must be there are read
by `read_labels`.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager
from functools import partial
from itertools import repeat
from typing import TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pyarrow import fs

from dpl_ray.config.section import suggest
from dpl_ray.data.files.kinds import read_image_file
from dpl_ray.data.files.location import Location
from dpl_ray.data.files.reach import OutOfReachError, follow
from dpl_ray.data.files.shards import is_lance
from dpl_ray.data.files.spelling import Spelling
from dpl_ray.data.formats.lance import LanceTable
from dpl_ray.data.formats.parquet_pages import CheckedPages
from dpl_ray.data.images.decode import MISSING, UNREADABLE, DecodeError, Payload
from dpl_ray.data.labels import Label, as_label, clean_name, in_order_of
from dpl_ray.store.file_systems import one_line, open_file

NOT_PARQUET = "not a readable parquet file"
_BATCH_ROWS = 1024  # of a row group that are decompressed at a time, at most: it may be a whole file
_BATCH_BYTES = 2**29  # of as many values as the group's largest could be
_MAX_UNPACKED, _MAX_RATIO = 2**28, 100  # bytes of a column's part in a row group, and to one byte of the file
_ROWS_PER_BYTE = 64
Opened: TypeAlias = pq.ParquetFile | LanceTable
_Row = tuple[Payload, Label]


def _fail(reason: str) -> bytes:
    raise DecodeError(reason)


def failing(reason: str) -> Payload:
    """Of what cannot be read."""
    return partial(_fail, reason)


def open_table(location: Location, path: str, label_column: str | None = None) -> AbstractContextManager[Opened]:
    """
    Args:
        label_column: of which a text of a parquet file stays one, however often it is there.

    Raises:
        OSError, pa.ArrowException: it cannot be opened, or says that it unpacks to more than a file of its size may.
    """
    if is_lance(path):
        return LanceTable(location.name(path))
    return _open_parquet(location.filesystem, path, label_column)


@contextlib.contextmanager
def _open_parquet(filesystem: fs.FileSystem, path: str, label_column: str | None) -> Iterator[pq.ParquetFile]:
    with open_file(filesystem, path) as file:
        metadata, size = pq.read_metadata(file), file.size()
        parts = [
            metadata.row_group(group).column(column)
            for group in range(metadata.num_row_groups)
            for column in range(metadata.num_columns)
        ]
        unpacked = [
            part.total_uncompressed_size
            for part in parts
            if part.total_uncompressed_size > max(_MAX_UNPACKED, _MAX_RATIO * min(size, part.total_compressed_size))
        ]
        if unpacked or metadata.num_rows > _ROWS_PER_BYTE * size:
            what = f"{max(unpacked):,} bytes in a column" if unpacked else f"{metadata.num_rows:,} rows"
            raise pa.ArrowInvalid(f"it would unpack to {what}, of {size:,} bytes")
        texts = {part.path_in_schema for part in parts if part.physical_type == "BYTE_ARRAY"} & {label_column}
        packed = {
            _start(part): (part.total_compressed_size, part.total_uncompressed_size)
            for part in parts
            if part.compression != "UNCOMPRESSED" and part.num_values  # else it may begin nowhere
        }
        yield pq.ParquetFile(CheckedPages(file, packed), metadata=metadata, read_dictionary=list(texts))


def _start(part: pq.ColumnChunkMetaData) -> int:
    """The first byte of the part of a column in a row group, as Arrow has it."""
    dictionary: int | None = part.dictionary_page_offset
    return min(part.data_page_offset, dictionary) if dictionary else int(part.data_page_offset)


def group_rows(opened: Opened) -> list[int]:
    """Rows of each row group."""
    if isinstance(opened, LanceTable):
        return opened.group_rows
    return [opened.metadata.row_group(group).num_rows for group in range(opened.metadata.num_row_groups)]


def row_groups(location: Location, path: str) -> list[int] | None:
    """Rows of each row group; None of a file that cannot be opened."""
    try:
        with open_table(location, path) as opened:
            return group_rows(opened)
    except (pa.ArrowException, OSError):
        return None


def check_image_column(name: str, schema: pa.Schema, column: str, field: str = "data.image_column") -> None:
    """`ValueError` unless the column of this file holds encoded images."""
    if image_column_error(schema, column) is None:
        return
    found = _one_column(f"{field}={column}: {name}", schema, column, suggest(column, schema.names) or "; choose one")
    raise ValueError(
        f"{field}={column}: {name} has {_short_type(found.type)} there; images are encoded bytes (binary) or a struct "
        "of bytes and path"
    )


def image_column_error(schema: pa.Schema, column: str) -> str | None:
    """Why the column holds no encoded images; None if it does."""
    if len(schema.get_all_field_indices(column)) != 1:
        return f"columns {column} are several" if column in schema.names else f"no column {column}"
    type_ = schema.field(column).type
    if pa.types.is_struct(type_):
        kinds = {"bytes": _is_encoded, "path": _is_text}
        members = [(member.type, kinds[member.name]) for member in type_ if member.name in kinds]
        holds = bool(members) and all(pa.types.is_null(kind) or is_it(kind) for kind, is_it in members)
    else:
        holds = _is_encoded(type_)
    return None if holds else f"column {column} is no encoded image"


def find_image_column(location: Location, path: str, column: str) -> str:
    """The column, or where the file has none of this name, the only one that holds encoded images."""
    try:
        with open_file(location.filesystem, path) as file:
            schema = pq.read_schema(file)
    except (pa.ArrowException, OSError):
        return column
    fitting = [name for name in schema.names if image_column_error(schema, name) is None]
    return fitting[0] if len(fitting) == 1 and column not in schema.names else column


def read_labels(
    location: Location,
    path: str,
    *,
    image_column: str,
    label_column: str | None,
    class_names: Collection[str] = (),
) -> tuple[list[int], list[Label], tuple[str, ...] | None]:
    """Rows of each row group, the label of every row, and the class names that the file gives the indices.

    Args:
        class_names: those that are listed outside of the file.

    Raises:
        ValueError: the file cannot be read, or a column is missing or odd: nobody could say which labels are lost.
    """
    name = location.name(path)
    try:
        with open_table(location, path, label_column) as opened:
            schema = opened.schema_arrow
            check_image_column(name, schema, image_column)
            groups = group_rows(opened)
            if label_column is None:
                return groups, [None] * sum(groups), None
            if not has_labels(schema, label_column) or _has_fractions(opened, label_column):
                whole = f"data.label_column={label_column}: {name}"
                found = _one_column(whole, schema, label_column, suggest(label_column, schema.names))
                raise ValueError(
                    f"{whole} has {_short_type(found.type)} there; labels are integers (class indices), also as whole "
                    "floats, or strings (class names)"
                )
            return groups, *labels_of(opened, label_column, class_names)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise location.error(f"{name} is {NOT_PARQUET} ({one_line(error)})") from None


def labels_of(
    opened: Opened, column: str, class_names: Collection[str] = ()
) -> tuple[list[Label], tuple[str, ...] | None]:
    """The label of every row, and the names of Hugging Face's `ClassLabel`; others are listed as `class_names`."""
    names = _hugging_face_names(opened.schema_arrow, column)
    known = {*class_names, *(names or ())}
    labels: list[Label] = []
    for chunk in opened.read(columns=[column]).column(0).chunks:
        if not pa.types.is_dictionary(chunk.type):
            labels += [as_label(label, known) for label in chunk.to_pylist()]
            continue
        of_index = {index: as_label(text, known) for index, text in enumerate(chunk.dictionary.to_pylist())}
        labels += map(of_index.get, chunk.indices.to_pylist())
    return labels, names


def _has_fractions(opened: Opened, column: str) -> bool:
    """Whether it is a column of floats that are not all whole, NaN or null; pandas writes integers with gaps so."""
    if not pa.types.is_floating(opened.schema_arrow.field(column).type):
        return False
    values = opened.read(columns=[column]).column(0).drop_null().to_numpy().astype(np.float64)
    return not (np.isnan(values) | (values == np.floor(values)) & np.isfinite(values)).all()


def has_labels(schema: pa.Schema, column: str) -> bool:
    """Whether there is one column of numbers or strings (or of nulls only) by this name."""
    if len(schema.get_all_field_indices(column)) != 1:
        return False
    type_ = schema.field(column).type
    if pa.types.is_dictionary(type_):
        type_ = type_.value_type
    return pa.types.is_integer(type_) or pa.types.is_floating(type_) or _is_text(type_) or pa.types.is_null(type_)


def read_rows(
    location: Location,
    path: str,
    rows: NDArray[np.int64],
    image_column: str,
    label_column: str | None = None,
    class_names: tuple[str, ...] | None = None,
) -> Iterator[_Row]:
    """Image and label of these rows of the file, one row group after the other; a batch of them is held at a time.

    Args:
        rows: ascending.
        label_column: None, or no such column of labels in the file: every label is None.
        class_names: integer labels are indices of these, where the file names its own classes.
    """
    num_left, reason = len(rows), MISSING
    try:
        with open_table(location, path) as opened:
            schema = opened.schema_arrow
            if (problem := image_column_error(schema, image_column)) is not None:
                yield from repeat((failing(problem), None), num_left)
                return
            rows_of = partial(
                _rows_of,
                image_column=image_column,
                beside=partial(_beside, location, path, Spelling(location.filesystem)),
            )
            columns = [image_column]
            if label_column is not None and has_labels(schema, label_column):
                columns.append(label_column)
                names = _hugging_face_names(schema, label_column)
                rows_of = partial(rows_of, label_column=label_column, names=names, class_names=class_names)
            for row in _wanted(opened, columns, rows, rows_of):
                yield row
                num_left -= 1
    except FileNotFoundError:
        pass
    except (pa.ArrowException, OSError):
        reason = NOT_PARQUET
    # Also the end of a file that has become shorter since it was listed.
    yield from repeat((failing(reason), None), num_left)


def _wanted(
    opened: Opened,
    columns: list[str],
    rows: NDArray[np.int64],
    rows_of: Callable[[pa.RecordBatch], list[_Row]],
) -> Iterator[_Row]:
    """The rows of each row group, as far as it can be read."""
    end = 0
    for group, num_rows in enumerate(group_rows(opened)):
        start, end = end, end + num_rows
        wanted = rows[slice(*np.searchsorted(rows, [start, end]))] - start
        begin = done = 0
        with contextlib.suppress(pa.ArrowException, OSError):
            size = _batch_rows(opened, group)
            for batch in opened.iter_batches(size, row_groups=[group], columns=columns) if len(wanted) else ():
                places = wanted[done : np.searchsorted(wanted, begin + len(batch))] - begin
                if len(places):
                    found = rows_of(batch.slice(places[0], places[-1] - places[0] + 1))
                    done += len(places)
                    yield from (found[place] for place in places - places[0])
                if done == len(wanted):
                    break
                begin += len(batch)
        yield from repeat((failing(UNREADABLE), None), len(wanted) - done)


def _batch_rows(opened: Opened, group: int) -> int:
    """So many rows that they fit into memory if each had the largest value: a dictionary has it once in the file."""
    if isinstance(opened, LanceTable):
        return _BATCH_ROWS
    columns = opened.metadata.row_group(group)
    largest = max((columns.column(column).total_uncompressed_size for column in range(columns.num_columns)), default=0)
    return min(_BATCH_ROWS, max(8, _BATCH_BYTES // max(1, largest)))


def _rows_of(
    batch: pa.RecordBatch,
    *,
    image_column: str,
    beside: Callable[[str], Payload],
    label_column: str | None = None,
    names: tuple[str, ...] | None = None,
    class_names: tuple[str, ...] | None = None,
) -> list[_Row]:
    images = batch.column(image_column)
    paths: list[str | None] = [None] * len(batch)
    labels: list[Label] = [None] * len(batch)
    with contextlib.suppress(UnicodeDecodeError):  # such labels are of no use, but their images are
        if label_column is not None:
            known = {*(names or ()), *(class_names or ())}
            labels = [as_label(label, known) for label in batch.column(label_column).to_pylist()]
    if names and class_names and names != class_names:
        labels = in_order_of(labels, names, class_names)
    if pa.types.is_struct(images.type):
        members = [member.name for member in images.type]
        with contextlib.suppress(UnicodeDecodeError):
            paths = pc.struct_field(images, "path").to_pylist() if "path" in members else paths
        images = pc.struct_field(images, "bytes") if "bytes" in members else pa.nulls(len(batch))
    payloads = (
        beside(path) if content is None and path else content
        for content, path in zip(images.to_pylist(), paths, strict=True)
    )
    return list(zip(payloads, labels, strict=True))


def _beside(location: Location, parquet: str, spelled: Spelling, path: str) -> Payload:
    """The image file of this path, which is relative to the parquet file's folder."""
    try:
        place = follow(location, parquet, path, spelled)
    except OutOfReachError as error:
        return failing(error.reason)
    return partial(read_image_file, place.filesystem, place.path)


def _one_column(whole: str, schema: pa.Schema, column: str, near: str) -> pa.Field:
    """The column of this name; `ValueError`, which `whole` begins, where there is none or several."""
    if (number := len(schema.get_all_field_indices(column))) == 1:
        return schema.field(column)
    if number:
        raise ValueError(f"{whole} has {number} columns of this name; rename all but one")
    if {"sample_id", "features"} <= set(schema.names):
        raise ValueError(
            f"{whole} has features that dpl-ray embed wrote, and no images; give the images themselves, or where "
            "features are taken their whole folder"
        )
    present = ", ".join(f"{field.name}: {_short_type(field.type)}" for field in schema)
    raise ValueError(f"{whole} has no such column but {present}{near}")


def _is_encoded(type_: pa.DataType) -> bool:
    if pa.types.is_dictionary(type_):
        type_ = type_.value_type
    return pa.types.is_binary(type_) or pa.types.is_large_binary(type_) or pa.types.is_binary_view(type_)


def _is_text(type_: pa.DataType) -> bool:
    return pa.types.is_string(type_) or pa.types.is_large_string(type_) or pa.types.is_string_view(type_)


def _short_type(type_: pa.DataType) -> str:
    text = str(type_.value_type if pa.types.is_dictionary(type_) else type_)
    return text if len(text) <= 60 else text[:57] + "..."


def _hugging_face_names(schema: pa.Schema, column: str) -> tuple[str, ...] | None:
    """The class names that Hugging Face's `datasets` writes into the schema's metadata."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return tuple(clean_name(str(name)) for name in features[column]["names"])
    except (KeyError, TypeError, ValueError, RecursionError):
        return None
