"""Markdown in which text of data is shown as it is."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from dpl_ray.page.console import inert

#: Signs that Markdown, or what shows it, may read as more than text. An underscore within a word is none.
SIGNS = re.compile(r"[\\`*<|$&~]|\](?=\()|:(?=\w+:)|(?<!\w)_|_(?!\w)")


def markdown(text: str) -> str:
    """Text on one line, its signs escaped."""
    return SIGNS.sub(r"\\\g<0>", inert(" ".join(text.split("\n"))))


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a table."""
    lines = [markdown_row(map(markdown, cells)) for cells in (columns, *rows)]
    return [lines[0], markdown_row(["---"] * len(columns)), *lines[1:]]


def markdown_row(cells: Iterable[str]) -> str:
    """Cells that are Markdown already."""
    return f"| {' | '.join(cells)} |"


def markdown_facts(facts: Mapping[str, str]) -> list[str]:
    """The lines of name and value; a command stands below, as it is typed."""
    lines = []
    for name, value in facts.items():
        lines += [f"    {value}", ""] if name == "command" else [f"- {markdown(name)}: {markdown(value)}"]
    return lines
