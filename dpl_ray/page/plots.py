"""Drawings: one look for all of them, readable in black and white; text of data is drawn as it is, `$` too."""

from __future__ import annotations

import gc
import io
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

LINES = ("-", "--", ":", "-.")
MAX_POINTS = 300  # of a curve that is drawn: more are not seen, and cost kilobytes
PNG_DPI = 110
_STYLE = {
    "text.parse_math": False,
    "font.size": 9.5,
    "axes.titlesize": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "0.35",
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "0.92",
    "legend.frameon": False,
    "legend.fontsize": 9.0,
    "legend.handlelength": 2.4,
    "legend.columnspacing": 1.2,
    "hatch.linewidth": 0.6,
    "svg.fonttype": "none",  # the browser has letters for all languages
    "svg.hashsalt": "dpl_ray",  # the same drawing is the same file
}


def draw(
    plot: Callable[..., None],
    *,
    width: float = 4.4,
    height: float = 3.0,
    heights: Sequence[float] = (1,),
) -> bytes:
    """An SVG that `plot(axes, ...)` fills.

    Args:
        width, height: in inches, with letters of 9.5 pt. A page sets a drawing as wide as its column, which on a
            telephone is some 360 pixels: letters of 10 of these need a width of 4.6 or less.
        heights: of the axes that stand below each other on one horizontal axis.
    """

    def fill(drawing: Any) -> None:
        plot(*drawing.subplots(len(heights), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0])
        _fit_legends(drawing)

    return _render(fill, width, height, format="svg", metadata={"Date": None}, transparent=True)


def draw_png(fill: Callable[[Any], None], *, width: float, height: float) -> bytes:
    """A PNG of a figure of matplotlib, so many inches large, that `fill(figure)` fills."""
    return _render(fill, width, height, format="png", dpi=PNG_DPI)


@contextmanager
def _freed() -> Iterator[None]:
    """Frees a figure, which has cycles, at once: Python searches the many objects of a training for garbage seldom."""
    is_on = gc.isenabled()
    gc.disable()  # or what is new would be counted among what is old
    try:
        yield
    finally:
        gc.collect(0)
        if is_on:
            gc.enable()


@_freed()
def _render(fill: Callable[[Any], None], width: float, height: float, **options: Any) -> bytes:
    import matplotlib
    from matplotlib.figure import Figure

    buffer = io.BytesIO()
    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        # A letter that no font here has is drawn as a box, and is no reason to warn at the end of a run.
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        drawing = Figure(figsize=(width, height), layout="constrained")
        fill(drawing)
        drawing.savefig(buffer, **options)
    return buffer.getvalue()


def curves(axes: Any, lines: Mapping[str, Sequence[tuple[float, float]]], **style: Any) -> None:
    """One line for each name, of (step, value) pairs, told apart by its dashes; names without a point are left out."""
    from matplotlib.ticker import MaxNLocator

    drawn = [(name, points) for name, points in lines.items() if points]
    for place, (name, points) in enumerate(drawn):
        steps, values = zip(*thinned(points), strict=True)
        look: dict[str, Any] = {"linestyle": LINES[place % len(LINES)], "color": ("0", "0.4")[place % 2]}
        look |= {"marker": "o", "markersize": 3} if len(steps) < 25 else {}
        axes.plot(steps, values, label=name, linewidth=1.4, **look | style)
    axes.set_xlabel("training step")
    axes.xaxis.set_major_locator(MaxNLocator(nbins="auto", steps=[1, 2, 2.5, 5, 10], integer=True))
    axes.set_xlim(left=0)
    if len(drawn) > 1:
        legend_above(axes)


def legend_above(axes: Any, num_columns: int = 4) -> None:
    """A legend that hides nothing that is drawn; `draw` takes fewer columns where there is no room for so many."""
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=num_columns, borderaxespad=0.3)


def _fit_legends(drawing: Any) -> None:
    """The most columns for which a legend does not reach beyond the drawing."""
    with_legend = [axes for axes in drawing.axes if axes.get_legend()]
    for axes in with_legend:
        axes.get_legend().set_in_layout(False)
    if with_legend:
        drawing.get_layout_engine().execute(drawing)  # from here on the axes have their place
    for axes in with_legend:
        for num_columns in (4, 2, 1):
            legend_above(axes, num_columns)
            if axes.bbox.x0 + axes.get_legend().get_window_extent().width < drawing.bbox.x1:
                break


def thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most MAX_POINTS of them, the first and the last one among them."""
    if len(points) <= MAX_POINTS:
        return list(points)
    return [points[place] for place in np.linspace(0, len(points) - 1, MAX_POINTS).round().astype(int)]


def cut(text: str, length: int) -> str:
    """The text, without its middle where it is longer: names that begin alike often end differently."""
    half = length // 2
    return text if len(text) <= length else f"{text[: length - half - 1]}…{text[-half:]}"
