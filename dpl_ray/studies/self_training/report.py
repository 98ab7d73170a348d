"""What a person sees of self-training: a table and a CSV of its rounds, and the figure. Readable in black and white."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.table import Table

from dpl_ray.page.console import console_table
from dpl_ray.page.plots import cut, draw_png
from dpl_ray.store.records import csv_text
from dpl_ray.studies.self_training.folder import Round

#: Metric -> (heading, line style, marker), in the order of table and legend.
SHARES = {
    "round/accuracy": ("test accuracy", "-", "o"),
    "round/selected_share": ("selected", "--", "s"),
    "round/changed_share": ("changed", ":", "^"),
    "round/precision": ("precision", "-.", "D"),
    "round/pool_accuracy": ("pool accuracy", "-", "x"),
}


def rounds_table(rounds: Sequence[Round]) -> Table:
    """A row per round, with how many pseudo-labels its student was trained on; unknown columns are left out."""
    keys = [key for key in SHARES if any(key in each.metrics for each in rounds)]
    columns = ["round", "pseudo-labels", *(SHARES[key][0] for key in keys)]
    rows = []
    for each in rounds:
        shares = [f"{100 * each.metrics[key]:.2f} %" if key in each.metrics else "-" for key in keys]
        rows.append([str(each.number), f"{each.num_pseudo_labeled:,}", *shares])
    return console_table("Rounds of self-training", columns, rows, num_text_columns=0)


def rounds_csv(rounds: Sequence[Round]) -> str:
    """A row per round; a metric that a round does not have is empty."""
    metrics = list(dict.fromkeys(key for each in rounds for key in each.metrics))
    counts = ("num_pseudo_labeled", "num_samples", "num_unreadable", "num_selected")
    rows: list[list[Any]] = [["round", *counts, *metrics]]
    for each in rounds:
        values = [getattr(each, name) for name in counts]
        rows.append([each.number, *values, *(each.metrics.get(key, "") for key in metrics)])
    return csv_text(rows)


def draw_rounds(rounds: Sequence[Round], title: str) -> bytes:
    """A PNG of the shares by round."""

    def fill(figure: Any) -> None:
        axes = figure.subplots()
        for key, (name, style, marker) in SHARES.items():
            points = [(each.number, 100 * each.metrics[key]) for each in rounds if key in each.metrics]
            if points:
                axes.plot(*zip(*points, strict=True), linestyle=style, marker=marker, color="black", label=name)
        axes.set_title(cut(title, 80), fontsize=10)
        axes.set_xticks([each.number for each in rounds])
        axes.set_xlabel("round")
        axes.set_ylabel("%")
        axes.set_ylim(-2, 102)
        axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=3)

    return draw_png(fill, width=7, height=4.5)
