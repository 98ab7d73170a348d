"""The figure of a search: accuracy against each searched field. Readable in black and white."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import Any

from dpl_ray.config import shown
from dpl_ray.trials import TrialResult
from dpl_ray.tuning_space import Domain, Space

PNG_DPI = 110
COLUMNS = 4
SPREAD, GOLDEN = 0.4, 0.618034  # of the trials of one choice; multiples of the latter fall far from each other
#: State -> marker, filled.
MARKERS = {"finished": ("o", True), "stopped": ("v", False)}


def draw_search(ranked: Sequence[TrialResult], space: Space, title: str) -> bytes:
    """A PNG with a panel per field.

    Args:
        ranked: results, the best first; what has no accuracy is left out.
    """
    from matplotlib.figure import Figure

    num_rows = math.ceil(len(space) / COLUMNS)
    num_columns = min(COLUMNS, len(space))
    figure = Figure(figsize=(max(6.0, 3.4 * num_columns), 0.9 + 2.9 * num_rows), layout="constrained")
    panels = figure.subplots(num_rows, num_columns, sharey=True, squeeze=False)
    shown_trials = [result for result in ranked if result.accuracy is not None]
    for place, axes in enumerate(panels.flat):
        if place >= len(space):
            axes.set_axis_off()
            continue
        field = list(space)[place]
        _panel(axes, shown_trials, field, space[field])
        if place % num_columns == 0:
            axes.set_ylabel("validation accuracy, %")
    handles, labels = panels.flat[0].get_legend_handles_labels()
    figure.suptitle(title, fontsize=11)
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels) or 1, frameon=False, fontsize=9)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=PNG_DPI)
    return buffer.getvalue()


def _panel(axes: Any, ranked: Sequence[TrialResult], field: str, domain: Domain) -> None:
    for state, (marker, filled) in MARKERS.items():
        found = [result for result in ranked if result.state == state]
        axes.plot(
            [_position(result, field, domain) for result in found],
            [_percent(result) for result in found],
            linestyle="none",
            marker=marker,
            markersize=6,
            color="black",
            markerfacecolor="0.35" if filled else "white",
            label=f"{state} (its last accuracy)" if state == "stopped" else state,
        )
    if ranked:
        axes.plot(
            [_position(ranked[0], field, domain)],
            [_percent(ranked[0])],
            "*",
            markersize=15,
            color="black",
            label="best",
        )
    axes.set_xlabel(field)
    axes.grid(color="0.92", linewidth=0.8)
    axes.set_axisbelow(True)
    if domain.kind == "choice":
        axes.set_xticks(range(len(domain.values)), [shown(value) for value in domain.values])
        axes.set_xlim(-0.5, len(domain.values) - 0.5)
    elif domain.kind == "loguniform":
        axes.set_xscale("log")
        axes.set_xlim(domain.values[0] / 1.1, domain.values[1] * 1.1)


def _position(result: TrialResult, field: str, domain: Domain) -> float:
    """Where choices are, a little beside them, the same in every panel: trials of one value may have one accuracy."""
    value = result.values[field]
    beside = SPREAD * ((result.number * GOLDEN) % 1 - 0.5)
    return domain.values.index(value) + beside if domain.kind == "choice" else float(value)


def _percent(result: TrialResult) -> float:
    return 100 * (result.accuracy or 0.0)
