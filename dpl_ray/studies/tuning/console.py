"""What a person sees of a search: a line per trial that ends, and then the table."""

from __future__ import annotations

import time
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from dpl_ray.studies.tuning.space import Space
from dpl_ray.studies.tuning.table import COLUMNS, rows
from dpl_ray.studies.tuning.trials import Trial, TrialResult

SECONDS_BETWEEN_LINES = 30.0


class TrialsProgress:
    """Trials ended, running and left."""

    def __init__(self, console: Console, num_trials: int, ended: Sequence[TrialResult]) -> None:
        """
        Args:
            ended: before.
        """
        self.console, self.num_trials, self.num_ended = console, num_trials, len(ended)
        self.best = max(ended, key=lambda result: result.rank, default=None)
        self._running: dict[int, tuple[int, float | None]] = {}
        self._num_here = 0
        self._began: float | None = None  # when the first trial began: Ray's start is no measure of the rest
        self._printed = time.monotonic()

    def start(self, trial: Trial) -> None:
        self._began = self._began or time.monotonic()
        self._running[trial.number] = (0, None)

    def show(self, trial: Trial, step: int, accuracy: float) -> None:
        """A trial has reported; told where nothing has been told for some time."""
        self._running[trial.number] = (step, accuracy)
        if time.monotonic() - self._printed > SECONDS_BETWEEN_LINES:
            self._print(f"trial {trial.number}: {_percent(accuracy)} at step {step:,}; {self._state()}")

    def finish(self, trial: Trial, result: TrialResult | None, cause: str = "") -> None:
        """A trial has ended, or failed."""
        self._running.pop(trial.number, None)
        self._num_here += 1
        what = f"failed: {cause}"
        if result:
            self.num_ended += 1
            if self.best is None or result.rank > self.best.rank:
                self.best = result
            what = f"{result.state} at step {result.steps:,}"
            what += f": {result.cause}" if result.cause else f" with {_percent(result.accuracy)}"
        self._print(f"trial {trial.number} {what}; {self._state()}")

    def _state(self) -> str:
        left = ""
        rest = self.num_trials - self.num_ended
        if self._began and self._num_here and rest:
            seconds = (time.monotonic() - self._began) / self._num_here * rest
            left = f", about {time.strftime('%H:%M:%S', time.gmtime(seconds))} left"
        best = f", best {_percent(self.best.accuracy)} (trial {self.best.number})" if self.best else ""
        return f"{self.num_ended} of {self.num_trials} trials ended{best}{left}"

    def _print(self, text: str) -> None:
        self._printed = time.monotonic()
        self.console.print(Text(text), soft_wrap=True)


def search_table(ranked: Sequence[TrialResult], space: Space) -> Table:
    """The best trials."""
    table = Table(title=Text("trials, by accuracy on held-out labelled images"), title_justify="left")
    for name in (*COLUMNS, "values"):
        table.add_column(Text(name), justify="left" if name in ("state", "values") else "right", overflow="fold")
    last_names = [field.rpartition(".")[2] for field in space]
    names = last_names if len(set(last_names)) == len(last_names) else list(space)
    for row in rows(ranked, space):
        values = row[len(COLUMNS) :]
        # With spaces, at which a narrow terminal may break the line: half a number would be read as a whole one.
        listed = ", ".join(f"{name} = {value}" for name, value in zip(names, values, strict=True))
        table.add_row(*map(Text, (*row[: len(COLUMNS)], listed)))
    return table


def _percent(accuracy: float | None) -> str:
    return "no accuracy" if accuracy is None else f"{100 * accuracy:.1f} %"
