"""What a terminal or a log file is shown: text as it is, tables, and how far something is.

Text of data (names of classes, paths, causes) is never read as rich's markup, emoji or something to be coloured:
everything that is shown goes through `show`, `Progress` or `console_table`. Nor does a terminal obey it.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Sequence
from datetime import timedelta
from importlib.util import find_spec
from typing import Self

import rich.progress
from rich.console import Console
from rich.progress import BarColumn, Task, TextColumn
from rich.table import Column, Table
from rich.text import Text

SECONDS_BETWEEN_LINES = 5.0  # of a log file
#: Control characters, but for the end of a line and the tab; and those by which a name could look like another one.
_SPELLED = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}
_SPELLED |= {code: f"\\u{code:04x}" for code in (*range(0x2028, 0x202F), *range(0x2066, 0x206A))}
WIDE = 120  # columns of a terminal that has room for a bar beside the text


def program(name: str) -> str:
    """How the command of this name is called: as a module where this process runs one, or else as installed."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    is_module = spec is not None and spec.name.startswith("pipelines.")
    return f"python -m pipelines.{name.replace('-', '_')}" if is_module else f"dpl-ray {name}"


def open_console(console: Console | bool | None) -> Console:
    """The console itself; True: standard output, or the cell of a notebook; None and False: one that shows nothing."""
    return console if isinstance(console, Console) else Console(quiet=not console)


def show(console: Console, text: str, *, style: str = "", wraps: bool = False) -> None:
    """Text as it is; a pipe gets whole lines.

    Args:
        wraps: on a terminal, between words.
    """
    console.print(Text(inert(text), style=style), soft_wrap=not (wraps and console.is_terminal))


def inert(text: str) -> str:
    """Text with the signs spelled out that a terminal obeys, or that turn the order of others: ESC as \\x1b."""
    return text.translate(_SPELLED)


def console_table(
    title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], *, num_text_columns: int = 1
) -> Table:
    """A table of text as it is; the first columns are set left, the others, of numbers, right."""
    table = Table(title=Text(inert(title)), title_justify="left", show_header=any(columns))
    for place, name in enumerate(columns):
        table.add_column(Text(inert(name)), justify="left" if place < num_text_columns else "right", overflow="fold")
    for row in rows:
        table.add_row(*(Text(inert(cell)) for cell in row))
    return table


def _has_widgets(console: Console) -> bool:
    """Whether it is a notebook in which rich can draw over what it has drawn."""
    return console.is_jupyter and find_spec("ipywidgets") is not None


class Progress:
    """How far something is: a line that moves on a terminal and in a notebook, a line now and then elsewhere.

        with Progress(console, "images") as progress:
            progress.update(1_000, 20_000, "5 unreadable")

    The speed is measured from the first update on, so that neither a start nor what was done before counts.
    """

    def __init__(self, console: Console, unit: str, *, shows_speed: bool = False) -> None:
        """
        Args:
            unit: of what is counted, as "steps".
            shows_speed: units per second too.
        """
        self._console, self._unit, self._shows_speed = console, unit, shows_speed
        text = TextColumn("{task.fields[line]}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis"))
        self._bars = rich.progress.Progress(
            *([BarColumn(bar_width=30)] if console.width >= WIDE else []),
            text,
            console=console,
            disable=console.quiet or not (console.is_terminal or _has_widgets(console)),
            speed_estimate_period=math.inf,
        )
        self._tasks: dict[str, Task] = {}
        self._printed, self._printed_at = "", console.get_time()

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def update(self, done: int, total: int, state: str = "", *, name: str = "") -> None:
        """So many units are done.

        Args:
            state: what else there is to say.
            name: of what is counted, where that is more than one thing.
        """
        if name not in self._tasks:
            task_id = self._bars.add_task(name, total=total, line="")
            self._tasks[name] = self._bars.tasks[task_id]
        task = self._tasks[name]
        self._bars.update(task.id, total=total, completed=done)
        line = self._line(task, state)
        self._bars.update(task.id, line=line)
        if not self._bars.disable:
            return
        now = self._console.get_time()
        if now - self._printed_at >= SECONDS_BETWEEN_LINES or (done >= total and line != self._printed):
            self._printed, self._printed_at = line, now
            show(self._console, line)

    def _line(self, task: Task, state: str) -> str:
        """What counts most stands first: a narrow terminal cuts the end."""
        total = f"{task.total:,.0f}"
        left = task.time_remaining
        parts = [task.description, f"{task.completed:>{len(total)},.0f}/{total} {self._unit}"]
        parts.append(f"{'-:--:--' if left is None else timedelta(seconds=left)} left")
        if self._shows_speed and task.speed:
            parts.append(f"{task.speed:,.0f} {self._unit}/s")
        return inert("  ".join(filter(None, [*parts, state])))
