"""What the console shows of a comparison: a line per finished cell, how far all of it is, and then the tables."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from dpl_ray.page.console import Progress, console_table, show
from dpl_ray.studies.comparison.cells import Cell, CellResult
from dpl_ray.studies.comparison.table import Row, shown_label, tables


class CellsProgress(Progress):
    """Training steps of all cells, and how many cells are done and running."""

    def __init__(self, console: Console, cells: Sequence[Cell], num_steps: int, num_finished: int) -> None:
        """
        Args:
            cells: those that are to be run.
            num_finished: cells that were finished before.
        """
        super().__init__(console, "steps")
        self.console, self.num_steps = console, num_steps
        self.num_cells, self.num_done = len(cells) + num_finished, num_finished
        self._steps = {cell.name: 0 for cell in cells}

    def show(self, cell: str, step: int) -> None:
        """A running cell has come to a step."""
        self._steps[cell] = step
        self.update(sum(self._steps.values()), len(self._steps) * self.num_steps, self._state())

    def finish(self, cell: Cell, result: CellResult | None, cause: str = "") -> None:
        """A cell has finished, or failed."""
        what = f"failed: {cause}"
        if result:
            self.num_done += 1
            accuracy = 100 * result.metrics["eval/accuracy"]
            what = f"accuracy {accuracy:.1f} %, {result.steps:,} steps in {result.seconds:,.0f} s"
        show(self.console, f"{cell.label} with seed {cell.seed}: {what}")
        self.show(cell.name, self.num_steps)

    def _state(self) -> str:
        running = sum(0 < step < self.num_steps for step in self._steps.values())
        return f"{self.num_done} of {self.num_cells} cells done, {running} running"


def comparison_tables(rows: Sequence[Row], reference: str) -> list[Table]:
    """Accuracy, speed, and use of the pool."""
    return [
        console_table(
            title,
            ["policy", *columns],
            [[make(row) for make in (shown_label, *columns.values())] for row in rows],
        )
        for title, columns in tables(reference).items()
    ]
