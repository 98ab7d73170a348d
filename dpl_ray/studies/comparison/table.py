"""The numbers of a comparison: finished cells to a row per policy, to CSV and to Markdown. Pure functions.

The bootstrap resamples seeds, because a seed is what the policies of a pair share: labelled images, initial weights
and order of batches. With few seeds its intervals are too narrow; the tables say how many seeds there are.
"""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dpl_ray.page.markdown import markdown, markdown_table
from dpl_ray.report.health import study_line
from dpl_ray.studies.comparison.cells import CellResult

NUM_DRAWS = 10_000
LEAST_SEEDS = 3  # of an interval: two differences that happen to be equal would have one without width
#: Column -> metric of a cell, of which the table has the mean over seeds.
MEANS = {
    "coverage": "pseudo/coverage",
    "precision": "pseudo/precision",
    "high_entropy_share": "pseudo/high_entropy_share",
    "high_entropy_precision": "pseudo/high_entropy_precision",
    "ece": "eval/ece",
    "balanced_accuracy": "eval/balanced_accuracy",
}
MISSING = "-"


@dataclass(frozen=True)
class Interval:
    """A mean and its 95 % interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Reached:
    """When the reference's final accuracy was reached, over seeds."""

    median: float | None  # None where half of the seeds or more did not reach it
    num_reached: int
    num_seeds: int


@dataclass(frozen=True)
class Row:
    """A policy over its seeds."""

    label: str
    is_reference: bool
    seeds: tuple[int, ...]
    accuracy: float
    deviation: float | None  # of the sample; None with one seed
    difference: float | None  # to the reference, mean over the seeds that both have
    interval: Interval | None  # of the difference; None with fewer than LEAST_SEEDS such seeds
    steps: Reached | None  # to the reference's final accuracy; None where no seed has the reference
    seconds: Reached | None
    means: dict[str, float | None]  # in the columns of MEANS


def make_rows(cells: Sequence[CellResult], reference: str) -> list[Row]:
    """One row per policy, the most accurate first."""
    by_label: dict[str, dict[int, CellResult]] = {}
    for cell in cells:
        by_label.setdefault(cell.label, {})[cell.seed] = cell
    base = by_label.get(reference, {})
    rows = [_row(label, found, base, label == reference) for label, found in by_label.items()]
    return sorted(rows, key=lambda row: (-row.accuracy, row.label))


def _row(label: str, found: dict[int, CellResult], base: dict[int, CellResult], is_reference: bool) -> Row:
    accuracies = [_accuracy(cell) for cell in found.values()]
    shared = sorted(found.keys() & base.keys())
    differences = [_accuracy(found[seed]) - _accuracy(base[seed]) for seed in shared]
    points = [first_reaching(found[seed], base[seed]) for seed in shared]
    return Row(
        label=label,
        is_reference=is_reference,
        seeds=tuple(sorted(found)),
        accuracy=statistics.fmean(accuracies),
        deviation=statistics.stdev(accuracies) if len(accuracies) > 1 else None,
        difference=None if is_reference or not shared else statistics.fmean(differences),
        interval=None if is_reference else bootstrap_interval(differences),
        steps=reached([point and point[0] for point in points]),
        seconds=reached([point and point[1] for point in points]),
        means={column: _mean(found, key) for column, key in MEANS.items()},
    )


def _accuracy(cell: CellResult) -> float:
    return cell.metrics["eval/accuracy"]


def _mean(found: dict[int, CellResult], key: str) -> float | None:
    """Over the cells that have the metric: a policy that took no high-entropy sample has no precision of them."""
    values = [cell.metrics[key] for cell in found.values() if key in cell.metrics]
    return statistics.fmean(values) if values else None


def bootstrap_interval(differences: Sequence[float], num_draws: int = NUM_DRAWS) -> Interval | None:
    """The 95 % percentile interval of the mean over seeds drawn with replacement; None of fewer than LEAST_SEEDS."""
    if len(differences) < LEAST_SEEDS:
        return None
    values = np.asarray(differences, dtype=np.float64)
    draws = np.random.default_rng(0).integers(0, len(values), (num_draws, len(values)))
    low, high = np.percentile(values[draws].mean(axis=1), [2.5, 97.5])
    return Interval(float(values.mean()), float(low), float(high))


def first_reaching(cell: CellResult, reference: CellResult) -> tuple[float, float] | None:
    """(step, seconds) of the first point of a curve at or above the reference's last point; None if there is none."""
    if not reference.curve:
        return None
    target = reference.curve[-1][1]
    return next(((step, seconds) for step, accuracy, seconds in cell.curve if accuracy >= target), None)


def reached(values: Sequence[float | None]) -> Reached | None:
    """The median over seeds, those that did not reach it counted as later than all others; None of no seed."""
    if not values:
        return None
    median = statistics.median(math.inf if value is None else value for value in values)
    num_reached = sum(value is not None for value in values)
    return Reached(median if math.isfinite(median) else None, num_reached, len(values))


def chance_line(cells: Sequence[CellResult]) -> str | None:
    """That no cell is better than guessing; None where one is."""
    return study_line([_accuracy(cell) for cell in cells], cells[0].facts, "test")


def to_csv(cells: Sequence[CellResult], reference: str) -> str:
    """One row per cell: all its metrics, and what it was measured with."""
    base = {cell.seed: cell for cell in cells if cell.label == reference}
    rows: list[dict[str, Any]] = []
    for cell in sorted(cells, key=lambda cell: (cell.label, cell.seed)):
        point = first_reaching(cell, base[cell.seed]) if cell.seed in base else None
        rows.append(
            {"policy": cell.label, "seed": cell.seed, "steps": cell.steps, "seconds": round(cell.seconds, 3)}
            | {"steps_to_reference": "" if point is None else point[0]}
            | {"seconds_to_reference": "" if point is None else round(point[1], 3)}
            | {f"curve/{step}": accuracy for step, accuracy, _ in cell.curve}
            | {key: value for key, value in cell.metrics.items() if not key.startswith("curve/")}
            | {"checkpoint": cell.checkpoint}
            | cell.facts
        )
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)), restval="")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


#: Heading -> what stands below it, of a row.
Columns = dict[str, Callable[[Row], str]]


def tables(reference: str) -> dict[str, Columns]:
    """Title -> columns of every table beside the policies' names; Markdown has them in one."""
    return {
        "Last teacher on the test split, over seeds, in %": {
            "seeds": lambda row: str(len(row.seeds)),
            "accuracy": lambda row: _with_deviation(row.accuracy, row.deviation),
            f"minus {reference} [95 %]": _difference,
            "balanced accuracy": lambda row: _percent(row.means["balanced_accuracy"]),
            "ECE": lambda row: _percent(row.means["ece"]),
        },
        "Speed: median over seeds, and how many came there": {
            f"steps to {reference}'s accuracy": lambda row: _reached(row.steps, ",.0f"),
            "seconds to it": lambda row: _reached(row.seconds, ",.1f"),
        },
        "Use of the pool: last record, mean over seeds, in %": {
            "coverage": lambda row: _percent(row.means["coverage"]),
            "precision": lambda row: _percent(row.means["precision"]),
            "high-entropy share": lambda row: _percent(row.means["high_entropy_share"]),
            "their precision": lambda row: _percent(row.means["high_entropy_precision"]),
        },
    }


def shown_label(row: Row) -> str:
    return row.label + (" (reference)" if row.is_reference else "")


def to_markdown(rows: Sequence[Row], reference: str, header: Sequence[str]) -> str:
    """A header of lines, and the table: one row per policy."""
    columns: Columns = {"policy": shown_label}
    for part in tables(reference).values():
        columns |= part
    shown = [[show(row) for show in columns.values()] for row in rows]
    notes = "\n".join(NOTES).replace("{reference}", markdown(reference))
    return "\n".join([*header, "", *markdown_table(list(columns), shown), "", notes]) + "\n"


NOTES = (
    "In %, but for steps and seconds. Accuracy, balanced accuracy and ECE: the last teacher on the whole test",
    "split; mean ± standard deviation over seeds. Minus {reference}: the mean difference over the seeds that both",
    "policies have, and in brackets the 95 % percentile interval of a bootstrap over those seeds (10,000 draws),",
    f"which is too narrow where seeds are few, and not there below {LEAST_SEEDS}. Steps and seconds to the final",
    "accuracy of {reference}: the first point of the curve, of at most train.curve_images images of the test split,",
    "at or above {reference}'s last point of the same seed; the median over seeds, and how many came there. Seconds",
    "are those of training steps, beside the cells that ran at the same time. Coverage (mean weight) of the pool,",
    "precision of the pseudo-labels, and share and precision of those with a confidence below 0.95: the last record",
    "of a cell, mean over seeds. What is shown is rounded, differences are not made of it.",
)


def _percent(value: float | None) -> str:
    return MISSING if value is None else f"{100 * value:.1f}"


def _with_deviation(mean: float, deviation: float | None) -> str:
    return f"{100 * mean:.2f}" + ("" if deviation is None else f" ± {100 * deviation:.2f}")


def _difference(row: Row) -> str:
    if row.difference is None:
        return MISSING
    interval = "" if row.interval is None else f" [{100 * row.interval.low:+.2f}, {100 * row.interval.high:+.2f}]"
    return f"{100 * row.difference:+.2f}{interval}"


def _reached(found: Reached | None, form: str) -> str:
    if found is None:
        return MISSING
    return (
        f"{MISSING if found.median is None else format(found.median, form)} ({found.num_reached} of {found.num_seeds})"
    )
