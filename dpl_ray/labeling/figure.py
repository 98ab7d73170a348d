"""The figure of a labelled pool: classes, confidence, entropy, what could not be read; readable in black and white."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dpl_ray.labeling.parts import NUM_BINS, Counts, histogrammed
from dpl_ray.page.plots import cut, draw_png

MAX_CLASSES = 40
ROOM = 1.05  # of an axis, in its largest bars
MIN_REASONS = 5  # for which there is room: a single bar would fill the panel
LABELS = {"entropy": "entropy (nats)", "foreign": "how foreign they look"}
STYLES = {"selected": {"color": "0.35"}, "rejected": {"color": "white", "hatch": "///"}}


def draw_summary(counts: Counts, class_names: Sequence[str], title: str) -> bytes:
    """A PNG of four panels or five; the bars of selected and rejected images stand on each other."""
    shown = _largest(counts)

    def fill(figure: Any) -> None:
        figure.suptitle(cut(title, 140), fontsize=11)
        columns = figure.add_gridspec(1, 2)
        classes, reasons = columns[0].subgridspec(2, 1).subplots()
        _classes(classes, counts, class_names, shown)
        _reasons(reasons, counts)
        found = histogrammed(len(class_names))
        if not counts.knows_foreign:
            del found["foreign"]
        histograms = columns[1].subgridspec(len(found), 1).subplots()
        for axes, (column, highest) in zip(histograms, found.items(), strict=True):
            _histogram(axes, counts, column, highest, LABELS.get(column, column))

    return draw_png(fill, width=13, height=max(7.0, 3.6 + 0.2 * len(shown)))


def _largest(counts: Counts) -> list[int]:
    """The classes with the most images, in the order of their indices."""
    numbers = np.add(counts.selected, counts.rejected)
    return sorted(np.argsort(-numbers, kind="stable")[:MAX_CLASSES].tolist())


def _classes(axes: Any, counts: Counts, class_names: Sequence[str], shown: list[int]) -> None:
    left = np.zeros(len(shown))
    for name, style in STYLES.items():
        widths = np.array([getattr(counts, name)[index] for index in shown], float)
        axes.barh(range(len(shown)), widths, left=left, edgecolor="black", label=name, **style)
        left += widths
    axes.set_yticks(range(len(shown)), [cut(class_names[index], 24) for index in shown], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, ROOM * max(1.0, *left))
    axes.set_xlabel("images by pseudo-label")
    if len(shown) < len(class_names):
        axes.set_title(f"the largest {len(shown)} of {len(class_names)} classes", fontsize=9)
    axes.legend(fontsize=8)


def _histogram(axes: Any, counts: Counts, column: str, highest: float, label: str) -> None:
    edges = np.linspace(0, highest, NUM_BINS + 1)
    bottom = np.zeros(NUM_BINS)
    for name, style in STYLES.items():
        heights = np.array(getattr(counts, f"{column}_{name}"), float)
        axes.bar(
            edges[:-1], heights, np.diff(edges), bottom=bottom, align="edge", edgecolor="black", label=name, **style
        )
        bottom += heights
    axes.set_xlim(0, highest)
    axes.set_ylim(0, ROOM * max(1.0, *bottom))
    axes.set_xlabel(label)
    axes.set_ylabel("images")
    axes.legend(fontsize=8)


def _reasons(axes: Any, counts: Counts) -> None:
    axes.set_title("unreadable or left out, by reason", fontsize=9)
    if not counts.unreadable:
        axes.set_axis_off()
        axes.text(0.5, 0.5, "none", ha="center", va="center")
        return
    bars = axes.barh(range(len(counts.unreadable)), list(counts.unreadable.values()), color="0.7", edgecolor="black")
    axes.bar_label(bars, fmt="{:,.0f}", fontsize=8, padding=3)
    axes.set_yticks(range(len(counts.unreadable)), [cut(reason, 60) for reason in counts.unreadable], fontsize=8)
    axes.set_ylim(max(MIN_REASONS, len(counts.unreadable)) - 0.5, -0.5)
    axes.margins(x=0.15)
    axes.set_xlabel("files or rows")
