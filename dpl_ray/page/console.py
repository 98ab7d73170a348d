"""What a person sees of a run: one line that moves, then a table."""

from __future__ import annotations

import time
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

if TYPE_CHECKING:
    from dpl_ray.training.records import Record

SECONDS_BETWEEN_LINES = 5.0
COLUMNS_OF_ALL = 120


class LiveProgress:
    """Shows the bar of a subclass while its block runs, where the output is a terminal."""

    console: Console
    _progress: Progress

    def __enter__(self) -> Self:
        if self.console.is_terminal and not self.console.quiet:
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.console.is_terminal and not self.console.quiet:
            self._progress.stop()


class ProgressLine(LiveProgress):
    """A bar with images/s and time left; plain lines now and then where the output is no terminal."""

    def __init__(self, console: Console) -> None:
        self.console = console
        # On a narrow terminal the bar and the measures give way; steps, rate and time left stay.
        wide = console.width >= COLUMNS_OF_ALL
        self._progress = Progress(
            TextColumn("{task.fields[phase]:>10}"),
            *([BarColumn(bar_width=30)] if wide else []),
            MofNCompleteColumn(),
            TextColumn("steps  {task.fields[rate]:>8,.0f} images/s "),
            TimeRemainingColumn(),
            TextColumn("left  {task.fields[news]}" if wide else "left"),
            console=console,
        )
        self._tasks: dict[str, TaskID] = {}
        self._news: dict[str, str] = {}
        self._last_line = 0.0
        self._began: dict[str, tuple[float, int]] = {}

    def show(self, record: Record) -> None:
        """Move the line to what a record says."""
        if "train/loss_labeled" in record.metrics:
            self._news[record.phase] = _news(record.metrics)
        news = self._news.get(record.phase, "")
        if not self.console.is_terminal:
            self._print(record, news)
            return
        if record.phase not in self._tasks:
            self._tasks[record.phase] = self._progress.add_task(
                "", total=record.num_steps, phase=record.phase, rate=0.0, news=""
            )
        self._progress.update(
            self._tasks[record.phase], completed=record.step, rate=record.images_per_second, news=news
        )

    def _print(self, record: Record, news: str) -> None:
        now = time.monotonic()
        began, first_step = self._began.setdefault(record.phase, (now, record.step))
        finished = record.step == record.num_steps and "train/loss_labeled" in record.metrics
        if not finished and now - self._last_line < SECONDS_BETWEEN_LINES:
            return
        self._last_line = now
        done = record.step - first_step
        seconds = (now - began) / done * (record.num_steps - record.step) if done else 0.0
        left = time.strftime("%H:%M:%S", time.gmtime(seconds)) if done or finished else "--:--:--"
        print(
            f"{record.phase:>10}  {record.step:>6}/{record.num_steps} steps  {record.images_per_second:>8,.0f} images/s"
            f"  {left} left  {news}".rstrip(),
            file=self.console.file,
            flush=True,
        )


def _news(metrics: dict[str, float]) -> str:
    parts = [f"loss {metrics['train/loss_labeled']:.3f}"]
    for label, key in (("coverage", "pseudo/coverage"), ("precision", "pseudo/precision")):
        if key in metrics:
            parts.append(f"{label} {metrics[key]:.2f}")
    return "  ".join(parts)


def result_table(
    phase: str, metrics: dict[str, float], baseline: dict[str, float] | None, thresholds: dict[str, dict[str, float]]
) -> list[Table]:
    """The headline numbers, and the thresholds of every class."""
    headline = Table(title="Last teacher on the test split", title_justify="left")
    headline.add_column("")
    headline.add_column(phase, justify="right")
    if baseline is not None:
        headline.add_column("supervised", justify="right")
    rows = (
        ("accuracy", "eval/accuracy", True),
        ("balanced accuracy", "eval/balanced_accuracy", True),
        ("calibration error (ECE)", "eval/ece", True),
        ("accuracy on the validation split", "validation/accuracy", True),
        ("coverage of the pool (mean weight)", "pseudo/coverage", False),
        ("precision of the pseudo-labels", "pseudo/precision", False),
        ("share of high-entropy samples in it", "pseudo/high_entropy_share", False),
    )
    for label, key, both in rows:
        if key in metrics:
            cells = [f"{100 * metrics[key]:.1f} %"]
            if baseline is not None:
                cells.append(f"{100 * baseline[key]:.1f} %" if both and key in baseline else "")
            headline.add_row(label, *cells)
    tables = [headline]
    if thresholds:
        by_class = Table(title="Thresholds of every class (confidence)", title_justify="left")
        by_class.add_column("class")
        for name in thresholds:
            by_class.add_column(f"{name}-confident" if name in ("over", "under") else name, justify="right")
        for class_name in next(iter(thresholds.values())):
            by_class.add_row(class_name, *(f"{values[class_name]:.3f}" for values in thresholds.values()))
        tables.append(by_class)
    return tables
