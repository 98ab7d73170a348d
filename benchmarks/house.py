"""How large the product was at some commits: `python -m benchmarks.house 2a826f7 10767b3 HEAD`.

Lines, rooms and the longest file of dpl_ray/, its Python alone, go to docs/results/house.csv. `python -m
benchmarks.results` makes the table.
"""

from __future__ import annotations

import argparse
import subprocess
from pathlib import PurePosixPath

from benchmarks.tables import CsvRows, read, table, write

COLUMNS = ("commit", "date", "lines", "rooms", "longest file", "files at the root")


def git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], capture_output=True, check=True, text=True).stdout


def measure(commit: str) -> list[str]:
    """A row of the table. A room is a folder right below dpl_ray/."""
    names = git("ls-tree", "-r", "--name-only", commit, "dpl_ray").splitlines()
    lines = {
        path: git("show", f"{commit}:{path}").count("\n") for path in map(PurePosixPath, names) if path.suffix == ".py"
    }
    rooms = {path.parts[1] for path in lines if len(path.parts) > 2}
    at_root = sum(len(path.parts) == 2 for path in lines)
    counts = (sum(lines.values()), len(rooms), max(lines.values()), at_root)
    return [*git("log", "-1", "--format=%h %cs", commit).split(), *map(str, counts)]


def house(rows: CsvRows) -> str:
    """A row for each commit, the oldest first."""
    body = [[row["commit"], row["date"], *(f"{int(row[column]):,}" for column in COLUMNS[2:])] for row in rows]
    return table(COLUMNS, body)


TABLES = {"house": lambda: house(read("house"))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commits", nargs="+", help="the oldest first")
    for commit in parser.parse_args().commits:
        row = measure(commit)
        write("house", COLUMNS, [row], replaces={"commit": row[0]})


if __name__ == "__main__":
    main()
