"""Parquet files of encoded images, as Hugging Face exports them, as `Records`.

Hugging Face's CIFAR-10 names its columns img and label: it takes data.image_column=img.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from typing import TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dpl_ray.config.schema import suggest
from dpl_ray.data.decode import Payload
from dpl_ray.data.files import Label, Location, Records, as_label, is_parquet, read_class_names
from dpl_ray.store.file_systems import one_line

T = TypeVar("T")


def read_parquet(location: Location, paths: list[str], *, image_column: str, label_column: str | None) -> Records:
    """Parquet files with a column of encoded bytes or {bytes, path} structs, and one of labels unless that is None.

    A file that cannot be read is an error, as is a missing or odd column: nobody could say which labels are lost.
    Class names come from Hugging Face's metadata, else from class_names.txt beside the files.
    """
    paths = [path for path in paths if is_parquet(path)]
    ids: list[str] = []
    labels: list[Label] = []
    class_names: tuple[str, ...] | None = None
    for path in paths:
        name = location.name(path)
        with _open_parquet(location, path) as file:
            schema = file.schema_arrow
            check_image_column(name, schema, image_column)
            num_rows = file.metadata.num_rows
            ids += [f"{name}:{row}" for row in range(num_rows)]
            if label_column is None:
                labels += [None] * num_rows
                continue
            _check_label_column(name, schema, label_column)
            column = _guarded(location, path, partial(file.read, columns=[label_column]))
            labels += [as_label(label) for label in column.column(0).to_pylist()]
            class_names = class_names or _hugging_face_names(schema, label_column)
    if not ids:
        raise location.error("the parquet files have no rows")
    class_names = class_names or read_class_names(location, paths[0])
    return Records(location, ids, labels, partial(_parquet_images, location, paths, image_column), class_names)


def _open_parquet(location: Location, path: str) -> pq.ParquetFile:
    return _guarded(location, path, lambda: pq.ParquetFile(location.filesystem.open_input_file(path)))


def _guarded(location: Location, path: str, read: Callable[[], T]) -> T:
    try:
        return read()
    except (pa.ArrowException, OSError) as error:
        raise location.error(f"{location.name(path)} is not a readable parquet file ({one_line(error)})") from None


def check_image_column(name: str, schema: pa.Schema, column: str, field: str = "data.image_column") -> None:
    """`ValueError` unless the column of this file holds encoded images."""
    if image_column_error(schema, column) is None:
        return
    if column not in schema.names:
        present = ", ".join(f"{field.name}: {_short_type(field.type)}" for field in schema)
        near = suggest(column, schema.names) or "; choose the one of the images"
        raise ValueError(f"{field}={column}: {name} has no such column but {present}{near}")
    raise ValueError(
        f"{field}={column}: {name} has {_short_type(schema.field(column).type)} there; "
        "images are encoded bytes (binary) or a struct of bytes and path"
    )


def image_column_error(schema: pa.Schema, column: str) -> str | None:
    """Why the column holds no encoded images; None if it does."""
    if column not in schema.names:
        return f"no column {column}"
    type_ = schema.field(column).type
    if pa.types.is_struct(type_) and type_.get_field_index("bytes") >= 0:
        type_ = type_.field("bytes").type
    if not (pa.types.is_binary(type_) or pa.types.is_large_binary(type_)):
        return f"column {column} is no encoded image"
    return None


def _check_label_column(name: str, schema: pa.Schema, column: str) -> None:
    if column not in schema.names:
        raise ValueError(
            f"data.label_column={column}: {name} has no such column but {', '.join(schema.names)}"
            f"{suggest(column, schema.names)}"
        )
    if not has_labels(schema, column):
        raise ValueError(
            f"data.label_column={column}: {name} has {_short_type(schema.field(column).type)} there; "
            "labels are integers (class indices) or strings (class names)"
        )


def has_labels(schema: pa.Schema, column: str) -> bool:
    """Whether there is a column of integers or strings (or of nulls only) by this name."""
    if column not in schema.names:
        return False
    type_ = schema.field(column).type
    if pa.types.is_dictionary(type_):
        type_ = type_.value_type
    kinds = (pa.types.is_integer, pa.types.is_string, pa.types.is_large_string, pa.types.is_null)
    return any(kind(type_) for kind in kinds)


def _short_type(type_: pa.DataType) -> str:
    text = str(type_)
    return text if len(text) <= 60 else text[:57] + "..."


def _hugging_face_names(schema: pa.Schema, column: str) -> tuple[str, ...] | None:
    """The class names that Hugging Face's `datasets` writes into the schema's metadata."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return tuple(str(name) for name in features[column]["names"])
    except (KeyError, TypeError, ValueError):
        return None


def _parquet_images(location: Location, paths: list[str], column: str) -> Iterator[Payload]:
    for path in paths:
        with _open_parquet(location, path) as file:
            batches = file.iter_batches(batch_size=1024, columns=[column])
            while (batch := _guarded(location, path, partial(next, batches, None))) is not None:
                images = batch.column(0)
                if pa.types.is_struct(images.type):
                    images = pc.struct_field(images, "bytes")
                yield from images.to_pylist()
