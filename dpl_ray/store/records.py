"""Rows as JSON, one a line, in files that grow."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any


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
