"""What is kept of jobs: rows as lines of JSON, in files that grow; objects as JSON, one a file; tables as CSV.

Rows and objects carry a checksum: what is read is what was written, or an error that names the file.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import yaml
from pydantic import TypeAdapter

from dpl_ray.store.file_systems import one_line
from dpl_ray.store.storage import Storage

MAX_NODES, MAX_DEPTH = 100_000, 100  # of a YAML file
_YAML_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # in C, which is faster
T = TypeVar("T")
CHECKSUM = "checksum"  # of an object: of all its other keys
OTHER = "its checksum is another one"
REMEDY = "remove it: the same command writes it anew"


def to_lines(rows: Iterable[dict[str, Any]]) -> bytes:
    """One line a row, each with its checksum and its end."""
    return b"".join(_with_crc(json.dumps(row).encode()) for row in rows)


def _with_crc(line: bytes) -> bytes:
    return line[:-1] + b'%s"crc": %d}\n' % (b", " if len(line) > 2 else b"", zlib.crc32(line))


def from_lines(lines: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    """The rows, one at a time; a line that is damaged, or half written, as by a killed process, is passed over."""
    return (row for line in lines if line.strip() and (row := _row(line)) is not None)


def num_damaged(data: bytes) -> int:
    """How many lines `from_lines` passes over."""
    return sum(1 for line in data.split(b"\n") if line and _row(line) is None)


def _row(line: bytes) -> dict[str, Any] | None:
    """The row of a line; None where it is not the one that was written. Those of older versions have no checksum."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return None if not isinstance(row, dict) or _is_other(row, "crc", _crc) else row


def _crc(row: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(row).encode())


def _is_other(tree: dict[str, Any], name: str, checksum: Callable[[dict[str, Any]], Any]) -> bool:
    """Whether this is not the object that was written with its checksum under `name`, which is taken out.

    An object of an older version has none. One whose checksum has another name is damaged there.
    """
    if name in tree:
        return bool(tree.pop(name) != checksum(tree))
    *others, last = tree or ("",)
    return bool(tree) and tree[last] == checksum({key: tree[key] for key in others})


def read_lines(file: Storage) -> list[dict[str, Any]]:
    """The rows of a file; none where there is no file."""
    return list(from_lines(file.lines()))


def csv_text(rows: Iterable[Sequence[Any]]) -> str:
    """A CSV of these rows, of which the first has the names of the columns.

    A text that a spreadsheet would run as a formula, as a class that is called `=1+1`, gets an apostrophe before it.
    """
    text = io.StringIO()
    csv.writer(text).writerows([_inert(value) for value in row] for row in rows)
    return text.getvalue()


def from_cell(text: str) -> str:
    """The text that `csv_text` has written, without the apostrophe."""
    return text[1:] if text[:1] == "'" and _inert(text[1:]) == text else text


def _inert(value: Any) -> Any:
    is_formula = isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) and not _is_number(value)
    return f"'{value}" if is_formula else value


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def from_yaml(data: bytes) -> Any:
    """The tree that YAML writes down.

    Raises:
        ValueError: it is no YAML, too deep, or its aliases stand for more than MAX_NODES values.
    """
    try:
        depth = 0
        for event in yaml.parse(data, _YAML_LOADER):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > MAX_DEPTH:  # the loader in C would overflow its stack
                raise ValueError("lists in lists too deep")
        loader = _YAML_LOADER(data)
        node = loader.get_single_node()
        if node and _count(node, {}) > MAX_NODES:
            raise ValueError(f"its aliases stand for more than {MAX_NODES:,} values")
        return loader.construct_document(node) if node else None
    except yaml.YAMLError as error:
        raise ValueError(one_line(error)) from None


def _count(node: yaml.Node, known: dict[int, int]) -> int:
    """Values below a node, with those of its aliases; MAX_NODES and more of one that is below itself."""
    if id(node) not in known:
        known[id(node)] = MAX_NODES
        pairs = node.value if isinstance(node, yaml.CollectionNode) else ()
        below = (each for pair in pairs for each in (pair if isinstance(pair, tuple) else (pair,)))
        known[id(node)] = 1 + sum(_count(each, known) for each in below)
    return known[id(node)]


def write_json(file: Storage, value: Any) -> None:
    """A dataclass, or an object of JSON, with its checksum."""
    tree = dataclasses.asdict(value) if dataclasses.is_dataclass(value) and not isinstance(value, type) else value
    tree = json.loads(json.dumps(tree))  # as it is read: keys are texts
    file.write(json.dumps(tree | {CHECKSUM: _digest(tree)}, indent=1).encode())


def parse_tree(data: bytes) -> dict[str, Any]:
    """The object that `write_json` has written; that of an older version has no checksum.

    Raises:
        ValueError: it is not as it was written.
    """
    try:
        tree = json.loads(data, parse_int=_int64)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(tree, dict):
        raise ValueError("it is no object")
    if _is_other(tree, CHECKSUM, _digest):
        raise ValueError(OTHER)
    return tree


def _int64(text: str) -> int:
    """Larger numbers would fit into no array, and those of 4,300 digits not even into Python's."""
    if len(text) > 20 or not -(2**63) <= int(text) < 2**63:
        raise ValueError(f"it has the number {text[:20]}...")
    return int(text)


def read_tree(file: Storage, remedy: str = REMEDY) -> dict[str, Any]:
    """The object in a file, as `parse_tree` has it.

    Args:
        remedy: what to do about a damaged file, for the message.

    Raises:
        FileNotFoundError: there is no file.
        ValueError: it is not as it was written; naming it.
    """
    data = file.read()
    try:
        return parse_tree(data)
    except ValueError as error:
        raise damaged(file, error, remedy) from None


def read_json(file: Storage, kind: type[T], remedy: str = REMEDY) -> T | None:
    """The dataclass that was written; None where there is no file. A field that `kind` does not have is left out.

    Raises:
        ValueError: it is not as it was written: a field is missing that has no default, or of another type.
    """
    if not file.exists():
        return None
    tree = read_tree(file, remedy)
    try:
        return TypeAdapter(kind).validate_python(tree)
    except ValueError as error:
        raise damaged(file, error, remedy) from None


def damaged(file: Storage, reason: BaseException | str, remedy: str) -> ValueError:
    """That a file is not as it was written, and what to do about it."""
    return ValueError(f"{file}: is damaged ({one_line(reason)}); {remedy}")


def _digest(tree: dict[str, Any]) -> str:
    return hashlib.blake2b(json.dumps(tree, sort_keys=True).encode(), digest_size=8).hexdigest()
