"""Writes the tables of results into README.md and docs/ from the files of docs/results/.

    python -m benchmarks.results            write them
    python -m benchmarks.results --check    say which differ; status 1 if any does

A table stands between `<!-- results: NAME -->` and `<!-- /results -->`. NAME is one of `TABLES` in
benchmarks/tables.py, backbones.py, study_table.py, study_goals.py or house.py, or `bench/FILE` for the figures of
docs/results/bench/FILE.json.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks import backbones, house, study_goals, study_table, tables
from benchmarks.figures import FOLDER, Measurement

TABLES = tables.TABLES | backbones.TABLES | study_table.TABLES | study_goals.TABLES | house.TABLES
ROOT = Path(__file__).parent.parent
BLOCK = re.compile(r"(<!-- results: (?P<name>\S+) -->\n)(?P<table>.*?)(<!-- /results -->)", re.DOTALL)
START = "<!-- results:"


def render(name: str) -> str:
    """The Markdown of a table.

    Raises:
        ValueError: no such table.
    """
    if name in TABLES:
        return TABLES[name]()
    file = name.removeprefix("bench/")
    if file != name and (FOLDER / f"{file}.json").is_file():
        return Measurement.load(file).to_markdown()
    raise ValueError(f"no table of results is called {name}; known: {', '.join(known())}")


def known() -> list[str]:
    """The names of all tables."""
    return [*TABLES, *(f"bench/{path.stem}" for path in sorted(FOLDER.glob("*.json")))]


def update(text: str, render: Callable[[str], str] = render) -> tuple[str, list[str]]:
    """The text with its tables as they should be, and the names of those that differed.

    Raises:
        ValueError: a table has no end, or its name is unknown.
    """
    differ: list[str] = []

    def replace(found: re.Match[str]) -> str:
        new = f"\n{render(found['name'])}\n\n"
        if new != found["table"]:
            differ.append(found["name"])
        return found[1] + new + found[4]

    if len(BLOCK.findall(text)) != text.count(START):
        raise ValueError(f"a table of results must stand between `{START} NAME -->` and `<!-- /results -->`")
    return BLOCK.sub(replace, text), differ


def documents() -> list[Path]:
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; status 1 where a table differs")
    check = parser.parse_args(arguments).check
    wrong = False
    for path in documents():
        before = path.read_text(encoding="utf-8")
        name = path.relative_to(ROOT)
        try:
            after, differ = update(before)
        except ValueError as error:
            print(f"{name}: {error}", file=sys.stderr)
            wrong = True
            continue
        if differ and check:
            print(f"{name}: not as `python -m benchmarks.results` writes it: {', '.join(differ)}", file=sys.stderr)
            wrong = True
        elif differ:
            path.write_text(after, encoding="utf-8")
            print(f"{name}: {', '.join(differ)}")
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())
