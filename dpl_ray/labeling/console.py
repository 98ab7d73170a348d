"""What a person sees of a labelling: how far it is, and then what has become of the pool."""

from __future__ import annotations

import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from dpl_ray.labeling.parts import Counts
from dpl_ray.page.console import LiveProgress

SECONDS_BETWEEN_LINES = 5.0


class LabelProgress(LiveProgress):
    """Images done, images/s and time left; a bar on a terminal, plain lines now and then elsewhere."""

    def __init__(self, console: Console, num_rows: int, num_done: int) -> None:
        """
        Args:
            num_rows: of the pool.
            num_done: of them, before this start.
        """
        self.console, self.num_rows, self.num_done = console, num_rows, num_done
        self._printed = time.monotonic()
        self._first: tuple[float, int] | None = None  # when the first block was done: Ray's start is no measure
        self._progress = Progress(
            BarColumn(bar_width=30), MofNCompleteColumn(), TextColumn("images  {task.description}"), console=console
        )
        self._task = self._progress.add_task("", total=num_rows, completed=num_done)

    def add(self, num_rows: int) -> None:
        """So many rows more are done."""
        now = time.monotonic()
        self.num_done += num_rows
        self._first = self._first or (now, self.num_done)
        state = self._state(now)
        self._progress.update(self._task, completed=self.num_done, description=state)
        finished = self.num_done == self.num_rows
        if not self.console.is_terminal and (finished or now - self._printed > SECONDS_BETWEEN_LINES):
            self._printed = now
            self.console.print(Text(f"{self.num_done:,}/{self.num_rows:,} images  {state}"), soft_wrap=True)

    def _state(self, now: float) -> str:
        began, first = self._first or (now, self.num_done)
        rate = (self.num_done - first) / (now - began) if now > began else 0.0
        left = "--:--:--"
        if rate or self.num_done == self.num_rows:
            seconds = (self.num_rows - self.num_done) / rate if rate else 0.0
            left = f"{int(seconds // 3600):02}:{int(seconds // 60 % 60):02}:{int(seconds % 60):02}"
        return f"{rate:,.0f} images/s  {left} left" if rate else f"{left} left"


def label_table(counts: Counts) -> Table:
    """What has become of the pool."""
    table = Table(title="The pool", title_justify="left")
    table.add_column("")
    table.add_column("images", justify="right")
    table.add_column("share", justify="right")
    rows = [("selected", counts.num_selected), ("rejected", counts.num_rejected)]
    rows += [(f"unreadable: {reason}", number) for reason, number in counts.unreadable.items()]
    for name, number in [*rows, ("all", counts.num_rows)]:
        table.add_row(Text(name), f"{number:,}", f"{100 * number / max(1, counts.num_rows):.1f} %")
    return table
