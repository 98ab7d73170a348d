"""What a report draws of the records of a run: accuracy, losses, use of the pool, thresholds of the classes."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from typing import Any

from dpl_ray.page.html import Section, Table
from dpl_ray.page.plots import curves, draw, thinned

MAX_PANELS = 12  # classes whose thresholds are drawn
MAX_ROWS = 20  # classes of a table that is not folded

Points = list[tuple[int, float]]


class History:
    """The metrics of one phase, by step: 16 bytes a number, as long runs have many."""

    def __init__(self, rows: Iterable[dict[str, Any]], phase: str, most: int | None = None) -> None:
        """
        Args:
            most: points of a metric that are kept, spread over all steps; None: all.
        """
        self.phase = phase
        self._columns: dict[str, tuple[array[int], array[float]]] = {}  # metric -> steps, values
        gaps: dict[str, int] = {}  # metric -> fewest steps between two points, once some were left out
        for row in rows:
            for key, value in row["metrics"].items() if row["phase"] == phase else ():
                steps, values = self._columns.setdefault(key, (array("q"), array("d")))
                # What was told before an interruption and is told again counts as it is told last.
                while steps and steps[-1] >= row["step"]:
                    steps.pop()
                    values.pop()
                if steps and row["step"] - steps[-1] < gaps.get(key, 0):
                    continue
                steps.append(row["step"])
                values.append(value)
                if len(steps) == most:
                    del steps[1::2], values[1::2]
                    gaps[key] = steps[1] - steps[0]

    def points(self, key: str, scale: float = 1.0) -> Points:
        """(step, value) of a metric."""
        steps, values = self._columns.get(key, ((), ()))
        return [(step, scale * value) for step, value in zip(steps, values, strict=True)]


def training_section(
    main: History, baseline: History | None, *, num_curve_images: int, num_test: int, num_validation: int
) -> Section:
    """Curves of accuracy and of loss.

    Args:
        num_curve_images: images of the test split that the curve is made of, at most num_test.
    """
    phases = [main, *([baseline] if baseline else [])]
    test = {f"{phase.phase}, test": phase.points("curve/accuracy", 100) for phase in phases}
    validation = {f"{phase.phase}, validation": phase.points("validation/accuracy", 100) for phase in phases}
    # A run that is evaluated at its end only has a single point of validation.
    validation = {name: points for name, points in validation.items() if len(points) > 1}
    losses = {f"labelled, {main.phase}": main.points("train/loss_labeled")}
    losses |= {f"labelled, {baseline.phase}": baseline.points("train/loss_labeled")} if baseline else {}
    for name, shown in (("unlabeled", "unlabelled"), ("auxiliary", "policy's own")):
        points = main.points(f"train/loss_{name}")
        losses |= {f"{shown}, {main.phase}": points} if any(value for _, value in points) else {}
    told = []
    if any(test.values()):
        told.append(f"Test: {curve_split(num_curve_images, num_test)}, by which nothing is chosen.")
    if validation:
        told.append(f"Validation: {num_validation:,} labelled images that are held out, by which a search chooses.")
    accuracy = test | validation
    drawings = {"accuracy": draw(lambda axes: _shares(axes, accuracy, "accuracy (%)"))} if told else {}
    drawings["loss"] = draw(lambda axes: _losses(axes, losses))
    return Section(title="Training", drawings=drawings, told=" ".join(told))


def curve_split(num_curve_images: int, num_test: int) -> str:
    """What the curve of accuracy is made of, in words."""
    part = "the whole" if num_curve_images >= num_test else f"a fixed part ({num_curve_images:,} images) of the"
    return f"{part} test split of {num_test:,}"


def _shares(axes: Any, lines: dict[str, Points], label: str) -> None:
    curves(axes, lines)
    axes.set_ylabel(label)


def _losses(axes: Any, lines: dict[str, Points]) -> None:
    from matplotlib.ticker import LogLocator

    curves(axes, lines)
    if any(value > 0 for points in lines.values() for _, value in points):
        axes.set_yscale("log", nonpositive="mask")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("")
    axes.set_ylabel("loss (nats)")


def pseudo_section(main: History) -> Section:
    """Coverage and precision of the pseudo-labels over time."""
    coverage = {
        "coverage (mean weight)": main.points("pseudo/coverage", 100),
        "of it below confidence 0.95": main.points("pseudo/high_entropy_share", 100),
    }
    precision = {
        "all": main.points("pseudo/precision", 100),
        "confidence below 0.95": main.points("pseudo/high_entropy_precision", 100),
    }
    drawings = {"coverage": draw(lambda axes: _percent(axes, coverage, "share (%)"))}
    if any(precision.values()):
        drawings["precision"] = draw(lambda axes: _percent(axes, precision, "precision (%)"))
    return Section(title="Pseudo-labels over time", drawings=drawings)


def _percent(axes: Any, lines: dict[str, Points], label: str) -> None:
    _shares(axes, lines, label)
    axes.set_ylim(-2, 102)


def thresholds_section(main: History, class_names: Sequence[str], thresholds: dict[str, list[float]]) -> Section:
    """The thresholds of the classes over time, the band between two of them, and the last ones as a table.

    Args:
        thresholds: the last ones, (C,) each.
    """
    names = {name: f"{name}-confident" if name in ("over", "under") else name for name in thresholds}
    lasts = list(thresholds.values())
    same = all(len(set(values)) == 1 for values in lasts)
    shown, which = _selection(lasts, len(class_names))
    if same:
        shown, which = [0], "All classes have the same threshold."
    drawings, names_drawn = {}, []
    width, height = (4.4, 3.0) if same else (2.2, 1.9)
    for place in shown:
        lines = {label: main.points(f"threshold/{name}/{class_names[place]}") for name, label in names.items()}
        # The class by its number: its name may be none for a file.
        drawings["all-classes" if same else f"class-{place}"] = draw(
            lambda axes, lines=lines: _band(axes, lines), width=width, height=height
        )
        names_drawn.append("All classes" if same else class_names[place])
    columns = ["class", *names.values(), *(["band between them"] if len(lasts) == 2 else [])]
    rows = [
        [name, *(f"{value:.3f}" for value in values), *([f"{values[0] - values[1]:.3f}"] if len(values) == 2 else [])]
        for name, values in zip(class_names, zip(*lasts, strict=True), strict=True)
    ]
    return Section(
        title="Thresholds of the classes",
        drawings=drawings,
        names_drawn=names_drawn,
        which=which,
        is_band=list(thresholds) == ["over", "under"],
        is_same=same,
        is_long=len(rows) > MAX_ROWS,
        table=Table("Thresholds at the last step (confidence)", columns, rows),
    )


def _selection(lasts: list[list[float]], num_classes: int) -> tuple[list[int], str]:
    """The classes that are drawn, and the sentence that says which they are."""
    if num_classes <= MAX_PANELS:
        return list(range(num_classes)), "All classes are drawn."
    widths = [values[0] - values[-1] if len(values) == 2 else values[0] for values in zip(*lasts, strict=True)]
    order = sorted(range(num_classes), key=lambda place: (-widths[place], place))
    half = MAX_PANELS // 2
    what = ("widest", "narrowest", "band") if len(lasts) == 2 else ("highest", "lowest", "threshold")
    sentence = f"Of {num_classes} classes {MAX_PANELS} are drawn: the {half} with the {what[0]} {what[2]} at the last "
    sentence += f"step, then the {half} with the {what[1]}; the table below has all."
    return order[:half] + order[-half:], sentence


def _band(axes: Any, lines: dict[str, Points]) -> None:
    # A single record is a point; more are lines, which dots would hide in a drawing so small.
    single = all(len(points) == 1 for points in lines.values())
    curves(axes, lines, marker="o" if single else None, color="0")
    if len(lines) == 2:
        over, under = (thinned(points) for points in lines.values())
        axes.fill_between([step for step, _ in over], [v for _, v in over], [v for _, v in under], color="0.85")
    axes.set_ylim(0, 1.02)
    axes.set_ylabel("confidence")
    if axes.get_legend():
        axes.get_legend().remove()  # the sentence above the panels says it once
