"""What is kept of jobs: rows as lines of JSON, in files that grow; dataclasses as JSON, one a file; tables as CSV."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

from pydantic import TypeAdapter

from dpl_ray.store.storage import Storage

T = TypeVar("T")


def to_lines(rows: Iterable[dict[str, Any]]) -> bytes:
    """One line a row, each with its end."""
    return "".join(f"{json.dumps(row)}\n" for row in rows).encode()


def from_lines(data: bytes) -> list[dict[str, Any]]:
    """The rows; half a line, as a process that was killed or a full disk leaves it, is passed over."""
    found = []
    for line in filter(None, data.decode(errors="replace").split("\n")):
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


def read_lines(file: Storage) -> list[dict[str, Any]]:
    """The rows of a file; none where there is no file."""
    return from_lines(file.read()) if file.exists() else []


def csv_text(rows: Iterable[Sequence[Any]]) -> str:
    """A CSV of these rows, of which the first has the names of the columns.

    A text that a spreadsheet would run as a formula, as a class that is called `=1+1`, gets an apostrophe before it.
    """
    text = io.StringIO()
    csv.writer(text).writerows([[_inert(value) for value in row] for row in rows])
    return text.getvalue()


def _inert(value: Any) -> Any:
    is_formula = isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) and not _is_number(value)
    return f"'{value}" if is_formula else value


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def write_json(file: Storage, value: Any) -> None:
    """A dataclass, or what `json` takes."""
    tree = dataclasses.asdict(value) if dataclasses.is_dataclass(value) and not isinstance(value, type) else value
    file.write(json.dumps(tree, indent=1).encode())


def read_json(file: Storage, kind: type[T]) -> T | None:
    """The dataclass that was written; None where there is no file. A field that `kind` does not have is left out.

    Raises:
        ValueError: a field is missing that has no default, or of another type.
    """
    return TypeAdapter(kind).validate_json(file.read()) if file.exists() else None
