"""The figure of a run: losses, use of the pool, and the thresholds of every class over time."""

from __future__ import annotations

import io
import math
from typing import TYPE_CHECKING, Any

from dpl_ray.run_folder import RunFolder
from dpl_ray.storage import Storage

if TYPE_CHECKING:
    from dpl_ray.training.loop import Outcome

MAX_CLASSES = 20


def write_report(folder: RunFolder, class_names: tuple[str, ...], outcomes: list[Outcome]) -> Storage:
    """Write `report.png` of a finished run into its folder and return where it is."""
    from matplotlib.figure import Figure

    main = outcomes[-1]
    # A run that went on after an interruption has told of some steps twice: the last telling counts.
    rows = {
        row["step"]: row["metrics"]
        for row in folder.history
        if row["phase"] == main.phase and "train/loss_labeled" in row["metrics"]
    }
    steps = sorted(rows)
    shown = class_names[:MAX_CLASSES] if main.thresholds else ()
    num_columns = 5
    num_class_rows = math.ceil(len(shown) / num_columns)
    figure = Figure(figsize=(13, 4.2 + 2.3 * num_class_rows), layout="constrained")
    figure.suptitle(_title(folder.name, outcomes), fontsize=11)
    top, *below = figure.subfigures(
        2 if shown else 1, 1, height_ratios=[4, 2.3 * num_class_rows][: 2 if shown else 1], squeeze=False
    )[:, 0]
    panels = top.subplots(1, 3)
    _lines(
        panels[0], steps, rows, {"train/loss_labeled": "labelled", "train/loss_unlabeled": "unlabelled"}, "loss (nats)"
    )
    uses = {
        "pseudo/coverage": "coverage (mean weight)",
        "pseudo/precision": "precision",
        "pseudo/high_entropy_share": "share of high entropy",
    }
    _lines(panels[1], steps, rows, uses, "share")
    panels[1].set_ylim(0, 1.02)
    _bars(panels[2], outcomes)
    if shown:
        _thresholds(below[0], steps, rows, shown, tuple(main.thresholds), num_class_rows, num_columns)
        if len(class_names) > MAX_CLASSES:
            below[0].supxlabel(f"first {MAX_CLASSES} of {len(class_names)} classes", fontsize=8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    report = folder.storage / "report.png"
    report.write(buffer.getvalue())
    return report


def _title(name: str, outcomes: list[Outcome]) -> str:
    parts = [
        f"{outcome.phase} {100 * outcome.metrics['eval/accuracy']:.1f} %"
        for outcome in reversed(outcomes)
        if "eval/accuracy" in outcome.metrics
    ]
    return f"{name}: test accuracy {', '.join(parts)}" if parts else name


def _lines(axes: Any, steps: list[int], rows: dict[int, dict[str, float]], keys: dict[str, str], label: str) -> None:
    styles = ("-", "--", ":")
    for (key, name), style in zip(keys.items(), styles, strict=False):
        points = [(step, rows[step][key]) for step in steps if key in rows[step]]
        if points:
            axes.plot(*zip(*points, strict=True), linestyle=style, color="black", label=name)
    axes.set_xlabel("step")
    axes.set_ylabel(label)
    if axes.lines:
        axes.legend(fontsize=8)


def _bars(axes: Any, outcomes: list[Outcome]) -> None:
    keys = {"eval/accuracy": "accuracy", "eval/balanced_accuracy": "balanced\naccuracy", "eval/ece": "ECE"}
    width = 0.8 / len(outcomes)
    for index, outcome in enumerate(outcomes):
        heights = [outcome.metrics.get(key, 0.0) for key in keys]
        places = [place + index * width for place in range(len(keys))]
        bars = axes.bar(
            places,
            heights,
            width,
            label=outcome.phase,
            color="white" if index else "0.6",
            edgecolor="black",
            hatch="//" if index else "",
        )
        axes.bar_label(bars, fmt="%.3f", fontsize=7)
    axes.set_xticks([place + 0.4 - width / 2 for place in range(len(keys))], list(keys.values()), fontsize=8)
    axes.set_ylim(0, 1.1)
    axes.set_ylabel("share, last teacher, test split")
    axes.legend(fontsize=8)


def _thresholds(
    figure: Any,
    steps: list[int],
    rows: dict[int, dict[str, float]],
    class_names: tuple[str, ...],
    names: tuple[str, ...],
    num_rows: int,
    num_columns: int,
) -> None:
    grid = figure.subplots(num_rows, num_columns, sharex=True, sharey=True, squeeze=False)
    for place, axes in enumerate(grid.flat):
        if place >= len(class_names):
            axes.set_axis_off()
            continue
        curves = {name: [rows[step][f"threshold/{name}/{class_names[place]}"] for step in steps] for name in names}
        for (name, curve), style in zip(curves.items(), ("-", "--", ":"), strict=False):
            axes.plot(
                steps,
                curve,
                linestyle=style,
                color="black",
                label=f"{name}-confident" if name in ("over", "under") else name,
                linewidth=1,
            )
        if len(names) == 2:
            axes.fill_between(steps, *curves.values(), color="0.85")
        axes.set_title(class_names[place], fontsize=9)
        axes.set_ylim(0, 1.02)
        if place == 0:
            axes.legend(fontsize=7, loc="lower right")
        if place % num_columns == 0:
            axes.set_ylabel("confidence", fontsize=8)
        if place >= len(class_names) - num_columns:
            axes.set_xlabel("step", fontsize=8)
