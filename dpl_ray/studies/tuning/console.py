"""What the console shows of a search: a line per trial that ends, how far all of it is, and then the table."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from dpl_ray.page.console import Progress, console_table, show
from dpl_ray.studies.tuning.space import Space
from dpl_ray.studies.tuning.table import COLUMNS, rows
from dpl_ray.studies.tuning.trials import Trial, TrialResult


class TrialsProgress(Progress):
    """Trials ended, the best of them, and what was reported last."""

    def __init__(self, console: Console, num_trials: int, ended: Sequence[TrialResult]) -> None:
        """
        Args:
            ended: before.
        """
        super().__init__(console, "trials ended")
        self.console, self.num_trials, self.num_ended = console, num_trials, len(ended)
        self.best = max(ended, key=lambda result: result.rank, default=None)

    def show(self, trial: Trial, step: int, accuracy: float) -> None:
        """A trial has reported."""
        self._show(f"trial {trial.number}: {_percent(accuracy)} at step {step:,}")

    def finish(self, trial: Trial, result: TrialResult | None, cause: str = "") -> None:
        """A trial has ended, or failed."""
        what = f"failed: {cause}"
        if result:
            self.num_ended += 1
            if self.best is None or result.rank > self.best.rank:
                self.best = result
            what = f"{result.state} at step {result.steps:,}"
            what += f": {result.cause}" if result.cause else f" with {_percent(result.accuracy)}"
        show(self.console, f"trial {trial.number} {what}")
        self._show()

    def _show(self, *told: str) -> None:
        best = [f"best {_percent(self.best.accuracy)} (trial {self.best.number})"] if self.best else []
        self.update(self.num_ended, self.num_trials, ", ".join([*best, *told]))


def search_table(ranked: Sequence[TrialResult], space: Space) -> Table:
    """The best trials."""
    last_names = [field.rpartition(".")[2] for field in space]
    names = last_names if len(set(last_names)) == len(last_names) else list(space)
    made = []
    for row in rows(ranked, space):
        values = row[len(COLUMNS) :]
        # With spaces, at which a narrow terminal may break the line: half a number would be read as a whole one.
        made.append(
            [*row[: len(COLUMNS)], ", ".join(f"{name} = {value}" for name, value in zip(names, values, strict=True))]
        )
    table = console_table("trials, by accuracy on held-out labelled images", [*COLUMNS, "values"], made)
    for column in table.columns:
        column.justify = "left" if str(column.header) in ("state", "values") else "right"
    return table


def _percent(accuracy: float | None) -> str:
    return "no accuracy" if accuracy is None else f"{100 * accuracy:.1f} %"
