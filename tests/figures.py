"""How tests look at figures that are drawn and not rendered."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from matplotlib.ticker import FixedLocator

Points = list[tuple[float, float]]


def check_names(figure: Any) -> None:
    """Every axis has a name, or names at its ticks."""
    for axes in (axes for axes in figure.axes if axes.axison):
        names_at_ticks = isinstance(axes.yaxis.get_major_locator(), FixedLocator)
        assert axes.get_ylabel() or names_at_ticks
        assert axes.get_xlabel() or not axes.get_subplotspec().is_last_row()


def lines(axes: Any) -> dict[str, Points]:
    """Label -> points, of the lines that have one."""
    return {
        line.get_label(): list(zip(map(float, line.get_xdata()), map(float, line.get_ydata()), strict=True))
        for line in axes.get_lines()
        if not line.get_label().startswith("_")
    }


def bars(container: Any, width: float) -> dict[int, tuple[float, float]]:
    """Place -> (bottom, height), of the bars that have one and stand in bins of this width."""
    return {
        int((bar.get_x() + bar.get_width() / 2) / width): (bar.get_y(), bar.get_height())
        for bar in container
        if bar.get_height()
    }


def legend(axes: Any) -> list[str]:
    return [text.get_text() for text in axes.get_legend().get_texts()]


def points(*values: Any) -> Any:
    return pytest.approx(np.array(values, float))
