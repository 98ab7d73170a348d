"""What is measured on a GPU: FOLDER/rows.csv, to which each process of a call appends a row at once."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

FILE = "rows.csv"
#: Columns of text; what the others have is a number.
TEXTS = ("phase", "name", "unit", "text", "part", "kernel", "policy")
COLUMNS = (
    *("phase", "name", "value", "unit", "low", "high", "text", "seconds", "status", "cores"),
    *("room", "part", "kernel", "calls"),
    *("policy", "seed", "steps", "step", "coverage", "precision", "seconds_per_step", "seconds_of_data"),
)
Row = dict[str, Any]
"""Column -> text or float, without the columns that are empty."""


class Rows:
    """Appends the rows of one phase."""

    def __init__(self, folder: Path, phase: str) -> None:
        self.path, self.phase = folder / FILE, phase
        if not self.path.exists():  # the process that starts the others comes first
            with self.path.open("x", newline="") as file:
                csv.writer(file, lineterminator="\n").writerow(COLUMNS)

    def add(self, name: str, value: float | None = None, unit: str = "", **more: float | str | None) -> None:
        """A row of these columns.

        Raises:
            ValueError: there is no such column.
        """
        with self.path.open("a", newline="") as file:
            row = {"phase": self.phase, "name": name, "value": value, "unit": unit} | more
            csv.DictWriter(file, COLUMNS, lineterminator="\n").writerow(row)
        shown = "" if value is None else f"{value:,.4g} {unit}"
        print(f"{self.phase}: {name}: {shown} {more or ''}", flush=True)


def read_rows(folder: Path) -> list[Row]:
    """The rows of a folder, in the order in which they were measured."""
    with (folder / FILE).open(newline="") as file:
        return [
            {column: text if column in TEXTS else float(text) for column, text in row.items() if text}
            for row in csv.DictReader(file)
        ]
