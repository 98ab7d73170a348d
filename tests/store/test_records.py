"""Rows and objects are read as they were written, or named as damaged: every bit of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dpl_ray.store.records import from_lines, num_damaged, parse_tree, to_lines, write_json
from dpl_ray.store.storage import Storage

TREE = {"name": "a", "numbers": [1, 2.5], "nothing": None}


def flipped(data: bytes) -> list[bytes]:
    """The data with each of its bits flipped, one at a time."""
    return [data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :] for at in range(len(data)) for bit in range(8)]


def test_an_object_with_any_bit_flipped_is_refused_or_the_same(tmp_path: Path) -> None:
    file = Storage(str(tmp_path / "a.json"))
    write_json(file, TREE)
    assert parse_tree(file.read()) == TREE
    for data in flipped(file.read()):
        try:
            found = parse_tree(data)
        except ValueError:
            continue
        assert found == TREE, data


def test_a_row_with_any_bit_flipped_is_passed_over_and_counted_or_the_same() -> None:
    (line,) = to_lines([TREE]).splitlines(keepends=True)
    assert [*from_lines([line])] == [TREE]
    for data in flipped(line):
        found = [*from_lines(data.split(b"\n"))]
        assert found == [TREE] or (not found and num_damaged(data) > 0), data


@pytest.mark.parametrize("tree", [{}, TREE])
def test_what_older_versions_wrote_without_a_checksum_is_read(tree: dict[str, object]) -> None:
    data = json.dumps(tree).encode()
    assert parse_tree(data) == tree
    assert [*from_lines([data])] == [tree]
