"""The numbers of a comparison: finished cells to a row per policy, to CSV and to Markdown. Pure functions.

Policies are compared in pairs that have the labelled subset and the seed of all else in common (`two_level.py`).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from dpl_ray.page.markdown import markdown, markdown_table
from dpl_ray.report.health import study_line
from dpl_ray.store.records import csv_text
from dpl_ray.studies.comparison.cells import CellResult
from dpl_ray.studies.comparison.two_level import LEAST_SUBSETS, Interval, two_level_interval

#: Column -> metric of a cell, of which the table has the mean over its trainings.
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
class Reached:
    """When the reference's final accuracy was reached, over trainings."""

    median: float | None  # None where half of them or more did not reach it
    num_reached: int
    num_trained: int


@dataclass(frozen=True)
class Row:
    """A policy over its labelled subsets and seeds."""

    label: str
    is_reference: bool
    subsets: tuple[int, ...]
    seeds: tuple[int, ...]  # of all trainings
    accuracy: float
    deviation: float | None  # of the sample of trainings; None of one
    difference: float | None  # to the reference, mean over the subsets that both have, of each over its repeats
    interval: Interval | None  # of the difference; None with fewer than LEAST_SUBSETS such subsets
    steps: Reached | None  # to the reference's final accuracy; None where the reference has none in common
    seconds: Reached | None
    means: dict[str, float | None]  # in the columns of MEANS


#: (subset, seed) -> the cell of a policy.
Trainings = dict[tuple[int, int], CellResult]


def make_rows(cells: Sequence[CellResult], reference: str) -> list[Row]:
    """One row per policy, the most accurate first."""
    by_label: dict[str, Trainings] = {}
    for cell in cells:
        by_label.setdefault(cell.label, {})[cell.key] = cell
    base = by_label.get(reference, {})
    rows = [_row(label, found, base, label == reference) for label, found in by_label.items()]
    return sorted(rows, key=lambda row: (-row.accuracy, row.label))


def _row(label: str, found: Trainings, base: Trainings, is_reference: bool) -> Row:
    accuracies = [_accuracy(cell) for cell in found.values()]
    shared = sorted(found.keys() & base.keys())
    differences: dict[int, list[float]] = {}
    for key in shared:
        differences.setdefault(key[0], []).append(_accuracy(found[key]) - _accuracy(base[key]))
    points = [first_reaching(found[key], base[key]) for key in shared]
    return Row(
        label=label,
        is_reference=is_reference,
        subsets=tuple(sorted({subset for subset, _ in found})),
        seeds=tuple(sorted(seed for _, seed in found)),
        accuracy=statistics.fmean(accuracies),
        deviation=statistics.stdev(accuracies) if len(accuracies) > 1 else None,
        difference=(
            None if is_reference or not shared else statistics.fmean(map(statistics.fmean, differences.values()))
        ),
        interval=None if is_reference else two_level_interval(differences),
        steps=reached([point and point[0] for point in points]),
        seconds=reached([point and point[1] for point in points]),
        means={column: _mean(found, key) for column, key in MEANS.items()},
    )


def _accuracy(cell: CellResult) -> float:
    return cell.metrics["eval/accuracy"]


def _mean(found: Trainings, key: str) -> float | None:
    """Over the cells that have the metric: a policy that took no high-entropy sample has no precision of them."""
    values = [cell.metrics[key] for cell in found.values() if key in cell.metrics]
    return statistics.fmean(values) if values else None


def first_reaching(cell: CellResult, reference: CellResult) -> tuple[float, float] | None:
    """(step, seconds) of the first point of a curve at or above the reference's last point; None if there is none."""
    if not reference.curve:
        return None
    target = reference.curve[-1][1]
    return next(((step, seconds) for step, accuracy, seconds in cell.curve if accuracy >= target), None)


def reached(values: Sequence[float | None]) -> Reached | None:
    """The median over trainings, those that did not reach it counted as later than all others; None of none."""
    if not values:
        return None
    median = statistics.median(math.inf if value is None else value for value in values)
    num_reached = sum(value is not None for value in values)
    return Reached(median if math.isfinite(median) else None, num_reached, len(values))


def chance_line(cells: Sequence[CellResult]) -> str | None:
    """That no cell is better than guessing; None where one is."""
    return study_line([_accuracy(cell) for cell in cells], cells[0].facts, "test")


def to_csv(cells: Sequence[CellResult], reference: str) -> str:
    """One row per cell: all its metrics, and what it was measured with; and of its policy what could have been seen."""
    base = {cell.key: cell for cell in cells if cell.label == reference}
    intervals = {row.label: row.interval for row in make_rows(cells, reference)}
    rows: list[dict[str, Any]] = []
    for cell in sorted(cells, key=lambda cell: (cell.label, cell.key)):
        point = first_reaching(cell, base[cell.key]) if cell.key in base else None
        interval = intervals[cell.label]
        rows.append(
            {"policy": cell.label, "subset": cell.key[0], "seed": cell.seed}
            | {"steps": cell.steps, "seconds": round(cell.seconds, 3)}
            | {"detectable_difference": "" if interval is None else round(interval.detectable, 6)}
            | {"steps_to_reference": "" if point is None else point[0]}
            | {"seconds_to_reference": "" if point is None else round(point[1], 3)}
            | {f"curve/{step}": accuracy for step, accuracy, _ in cell.curve}
            | {key: value for key, value in cell.metrics.items() if not key.startswith("curve/")}
            | {"checkpoint": cell.checkpoint}
            | cell.facts
        )
    columns = list(dict.fromkeys(key for row in rows for key in row))
    return csv_text([columns, *([row.get(column, "") for column in columns] for row in rows)])


#: Heading -> what stands below it, of a row.
Columns = dict[str, Callable[[Row], str]]


def tables(reference: str) -> dict[str, Columns]:
    """Title -> columns of every table beside the policies' names; Markdown has them in one."""
    return {
        "Last teacher on the test split, in %": {
            "subsets x repeats": _design,
            "accuracy": lambda row: _with_deviation(row.accuracy, row.deviation),
            f"minus {reference} [95 %]": _difference,
            "detectable [80 %]": lambda row: _percent(None if row.interval is None else row.interval.detectable),
        },
        "Balance and calibration: mean over trainings, in %": {
            "balanced accuracy": lambda row: _percent(row.means["balanced_accuracy"]),
            "ECE": lambda row: _percent(row.means["ece"]),
        },
        "Speed: median over trainings, and how many came there": {
            f"steps to {reference}'s accuracy": lambda row: _reached(row.steps, ",.0f"),
            "seconds to it": lambda row: _reached(row.seconds, ",.1f"),
        },
        "Use of the pool: last record, mean over trainings, in %": {
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
    "split; mean ± standard deviation over all trainings. Minus {reference}: the mean difference over the labelled",
    "subsets, of each over its repeats, in pairs with one subset and seed. In brackets: the 95 % interval of a",
    "two-level model, in which subsets are random and repeats lie within them: mean ± t[0.975] SE, where SE is the",
    "standard deviation of the subsets' means divided by the root of their number S, and t has S - 1 degrees of",
    f"freedom; not there below {LEAST_SUBSETS} subsets. Detectable [80 %]: the smallest true difference that this",
    "design would have told from 0 with 80 % power, (t[0.975] + t[0.8]) SE. Steps and seconds to the final accuracy of",
    "{reference}: the first point of the curve, of at most train.curve_images images of the test split, at or above",
    "{reference}'s last point of the same subset and seed; the median over trainings, and how many came there. Seconds",
    "are those of training steps, beside the cells that ran at the same time. Coverage (mean weight) of the pool,",
    "precision of the pseudo-labels, and share and precision of those with a confidence below 0.95: the last record",
    "of a cell, mean over trainings. What is shown is rounded, differences are not made of it.",
)


def describe_design(num_subsets: int, num_repeats: int) -> str:
    return f"{num_subsets} subset{'s' * (num_subsets > 1)} x {num_repeats} repeat{'s' * (num_repeats > 1)}"


def _design(row: Row) -> str:
    """`5 x 3`; the number of trainings where the subsets have different numbers of repeats."""
    repeats, rest = divmod(len(row.seeds), len(row.subsets))
    return f"{len(row.subsets)} ({len(row.seeds)} trainings)" if rest else f"{len(row.subsets)} x {repeats}"


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
    median = MISSING if found.median is None else format(found.median, form)
    return f"{median} ({found.num_reached} of {found.num_trained})"
