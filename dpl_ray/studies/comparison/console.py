"""What a person sees of a comparison: a line per finished cell, how far all of it is, and then the tables."""

from __future__ import annotations

import time
from collections.abc import Sequence

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from dpl_ray.page.console import LiveProgress
from dpl_ray.studies.comparison.cells import Cell, CellResult
from dpl_ray.studies.comparison.table import Row, shown_label, tables

SECONDS_BETWEEN_LINES = 30.0


class CellsProgress(LiveProgress):
    """Cells done, running and left; a bar of training steps where the output is a terminal."""

    def __init__(self, console: Console, cells: Sequence[Cell], num_steps: int, num_finished: int) -> None:
        """
        Args:
            cells: those that are to be run.
            num_finished: cells that were finished before.
        """
        self.console, self.num_steps = console, num_steps
        self.num_cells, self.num_done = len(cells) + num_finished, num_finished
        self._first: dict[str, int] = {}  # of a cell: the step that was told first, and last
        self._last = {cell.name: 0 for cell in cells}
        self._printed = time.monotonic()
        self._began: float | None = None  # when the first cell told of a step: Ray's start is no measure of the rest
        self._progress = Progress(BarColumn(bar_width=30), TextColumn("{task.description}"), console=console)
        self._task = self._progress.add_task(self._state(), total=max(1, len(cells) * num_steps))

    def show(self, cell: str, step: int) -> None:
        """A running cell has come to a step."""
        self._began = self._began or time.monotonic()
        self._first.setdefault(cell, step)
        self._last[cell] = step
        self._progress.update(self._task, completed=sum(self._last.values()), description=self._state())
        if not self.console.is_terminal and time.monotonic() - self._printed > SECONDS_BETWEEN_LINES:
            self._print(self._state())

    def finish(self, cell: Cell, result: CellResult | None, cause: str = "") -> None:
        """A cell has finished, or failed."""
        self._first.setdefault(cell.name, self._last[cell.name])
        self._last[cell.name] = self.num_steps
        what = f"failed: {cause}"
        if result:
            self.num_done += 1
            accuracy = 100 * result.metrics["eval/accuracy"]
            what = f"accuracy {accuracy:.1f} %, {result.steps:,} steps in {result.seconds:,.0f} s"
        self._progress.update(self._task, completed=sum(self._last.values()), description=self._state())
        self._print(f"{cell.label} with seed {cell.seed}: {what}; {self._state()}")

    def _state(self) -> str:
        running = sum(self._last[cell] < self.num_steps for cell in self._first)
        done = sum(self._last[cell] - first for cell, first in self._first.items())
        rest = sum(self.num_steps - step for step in self._last.values())
        seconds = (time.monotonic() - self._began) / done * rest if done and self._began else None
        left = "--:--:--" if seconds is None else time.strftime("%H:%M:%S", time.gmtime(seconds))
        return f"{self.num_done} of {self.num_cells} cells done, {running} running, {left} left"

    def _print(self, text: str) -> None:
        self._printed = time.monotonic()
        self.console.print(Text(text), soft_wrap=True)


def comparison_tables(rows: Sequence[Row], reference: str) -> list[Table]:
    """Accuracy, speed, and use of the pool."""
    made = []
    for title, columns in tables(reference).items():
        table = Table(title=Text(title), title_justify="left")
        table.add_column("policy", overflow="fold")
        for name in columns:
            table.add_column(Text(name), justify="right")
        for row in rows:
            # As Text, because a label may have brackets, which are no markup.
            table.add_row(*(Text(show(row)) for show in (shown_label, *columns.values())))
        made.append(table)
    return made
