"""The figures of a comparison: accuracy, curves, and the use of the pool. Readable in black and white."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dpl_ray.page.plots import cut, draw, legend_above
from dpl_ray.studies.comparison.cells import CellResult
from dpl_ray.studies.comparison.table import Row

#: Column of a row -> (name, marker, filled): circles are of the whole pool, triangles of its high-entropy part.
USES = {
    "coverage": ("coverage (mean weight)", "o", False),
    "precision": ("precision", "o", True),
    "high_entropy_share": ("share of high entropy", "^", False),
    "high_entropy_precision": ("precision of those", "^", True),
}
LINES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "x", "P", "*", "<", ">")
MAX_LABEL = 32  # characters of a policy
SPREAD = 0.25  # of the dots of a policy's trainings, in rows


def draw_comparison(cells: Sequence[CellResult], rows: Sequence[Row]) -> dict[str, bytes]:
    """Name -> SVG; the policies stand in the order of the rows."""
    height = max(3.6, 1.7 + 0.42 * len(rows))
    return {
        "accuracy": draw(lambda axes: _accuracies(axes, cells, rows), height=height, width=4.6),
        "how-fast": draw(lambda axes: _curves(axes, cells, rows), height=height, width=4.6),
        "use-of-the-pool": draw(lambda axes: _uses(axes, rows), height=height, width=4.6),
    }


def _accuracies(axes: Any, cells: Sequence[CellResult], rows: Sequence[Row]) -> None:
    """A dot per training, and the mean with one standard deviation to each side."""
    for place, row in enumerate(rows):
        values = [100 * cell.metrics["eval/accuracy"] for cell in cells if cell.label == row.label]
        offsets = np.linspace(-SPREAD, SPREAD, len(values)) if len(values) > 1 else np.zeros(1)
        axes.plot(values, place + offsets, "o", markersize=4, color="0.6", label="" if place else "one training")
        axes.errorbar(
            100 * row.accuracy,
            place,
            xerr=None if row.deviation is None else 100 * row.deviation,
            fmt="|",
            color="black",
            markersize=14,
            markeredgewidth=2,
            capsize=4,
            label="" if place else "mean ± standard deviation",
        )
    reference = next((row for row in rows if row.is_reference), None)
    if reference:
        name = f"mean of {cut(reference.label, MAX_LABEL)}"
        axes.axvline(100 * reference.accuracy, color="0.6", linewidth=1, linestyle=":", zorder=0, label=name)
    axes.set_xlabel("accuracy of the last teacher on the test split, %")
    _policies_below(axes, rows)


def _curves(axes: Any, cells: Sequence[CellResult], rows: Sequence[Row]) -> None:
    """Mean over trainings at every step that all of a policy have; the reference's is the thick one."""
    for place, row in enumerate(rows):
        curves = [{step: value for step, value, _ in cell.curve} for cell in cells if cell.label == row.label]
        steps = sorted(set.intersection(*map(set, curves)))
        axes.plot(
            steps,
            [100 * float(np.mean([curve[step] for curve in curves])) for step in steps],
            linestyle=LINES[place % len(LINES)],
            marker=MARKERS[place % len(MARKERS)],
            markevery=max(1, len(steps) // 6),
            markersize=5,
            color="black" if row.is_reference else ("0.15", "0.5")[place % 2],
            linewidth=2.2 if row.is_reference else 1.1,
            label=cut(row.label, MAX_LABEL) + (" (reference)" if row.is_reference else ""),
        )
    axes.set_xlabel("training step")
    axes.set_ylabel("accuracy on test images, %")
    legend_above(axes)


def _uses(axes: Any, rows: Sequence[Row]) -> None:
    """What a policy took of the pool and how much of it was right, its high-entropy part a little below."""
    for column, (name, marker, filled) in USES.items():
        found = [(100 * value, place) for place, row in enumerate(rows) if (value := row.means[column]) is not None]
        below = 0.18 if marker == "^" else -0.1
        axes.plot(
            [value for value, _ in found],
            [place + below for _, place in found],
            linestyle="none",
            marker=marker,
            markersize=7,
            color="black",
            markerfacecolor="black" if filled else "white",
            label=name,
        )
    axes.set_xlim(-3, 103)
    axes.set_xlabel("last record, mean over trainings, %")
    _policies_below(axes, rows)


def _policies_below(axes: Any, rows: Sequence[Row]) -> None:
    """The policies from top to bottom."""
    axes.set_yticks(range(len(rows)), [cut(row.label, MAX_LABEL) for row in rows], fontsize=9)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.grid(axis="y", color="0.9", linewidth=0.8)
    legend_above(axes)
