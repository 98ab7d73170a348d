"""What the figures of comparison, search, labelling and self-training draw: the numbers of their tables."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from dpl_ray.labeling.figure import MIN_REASONS, draw_summary
from dpl_ray.labeling.parts import NUM_BINS as NUM_LABELING_BINS
from dpl_ray.labeling.parts import Counts
from dpl_ray.studies.comparison.figure import draw_comparison
from dpl_ray.studies.comparison.table import make_rows
from dpl_ray.studies.self_training.folder import Round
from dpl_ray.studies.self_training.report import SHARES, draw_rounds
from dpl_ray.studies.tuning.figure import draw_curves, draw_fields, draw_progress, draw_seconds
from dpl_ray.studies.tuning.space import parse_space
from dpl_ray.studies.tuning.trials import TrialResult
from tests.figures import bars, legend, lines, points
from tests.studies.test_comparison_table import cell

CELLS = [
    cell("dpl", 0, 0.84, (0.6, 0.7), coverage=0.9, precision=0.8, high_entropy_share=0.7, high_entropy_precision=0.6),
    cell("dpl", 1, 0.72, (0.5, 0.8), coverage=0.7, precision=0.6, high_entropy_share=0.5, high_entropy_precision=0.4),
    cell("fixmatch", 0, 0.91, (0.3, 0.4), coverage=0.2, precision=0.95, high_entropy_share=0.0),
]


def test_the_figures_of_a_comparison_have_the_numbers_of_its_table(figures: list[Figure]) -> None:
    table = make_rows(CELLS, "fixmatch")
    assert [row.label for row in table] == ["fixmatch", "dpl"]
    draw_comparison(CELLS, table)
    (accuracy,), (curves,), (uses,) = (figure.axes for figure in figures)
    dots = [line for line in accuracy.get_lines() if line.get_marker() == "o"]
    assert [list(line.get_xdata()) for line in dots] == [points(91), points(84, 72)]
    assert [round(float(np.mean(line.get_ydata()))) for line in dots] == [0, 1]
    means = [(float(c.lines[0].get_xdata()[0]), float(c.lines[0].get_ydata()[0])) for c in accuracy.containers]
    assert means == [points(100 * row.accuracy, place) for place, row in enumerate(table)]
    (whisker,) = accuracy.containers[1].lines[2]
    assert table[1].deviation is not None
    middle, deviation = 100 * table[1].accuracy, 100 * table[1].deviation
    assert whisker.get_segments()[0][:, 0] == points(middle - deviation, middle + deviation)
    assert lines(accuracy)["mean of fixmatch"] == points((91, 0), (91, 1))
    assert lines(curves) == {
        "fixmatch (reference)": points((10, 30), (20, 40)),
        "dpl": points((10, 55), (20, 75)),
    }
    assert (curves.get_xlabel(), curves.get_ylabel()) == ("training step", "accuracy on test images, %")
    assert legend(curves) == ["fixmatch (reference)", "dpl"]
    drawn = {name: {round(y): x for x, y in found} for name, found in lines(uses).items()}
    fixmatch, dpl = ({name: 100 * value for name, value in row.means.items() if value is not None} for row in table)
    assert drawn == {
        "coverage (mean weight)": pytest.approx({0: fixmatch["coverage"], 1: dpl["coverage"]}),
        "precision": pytest.approx({0: fixmatch["precision"], 1: dpl["precision"]}),
        "share of high entropy": pytest.approx({0: 0, 1: dpl["high_entropy_share"]}),
        "precision of those": pytest.approx({1: dpl["high_entropy_precision"]}),
    }
    for axes in (accuracy, uses):
        assert [label.get_text() for label in axes.get_yticklabels()] == ["fixmatch", "dpl"]
        assert axes.get_ylim() == (1.5, -0.5), "the first row above"


SPACE = parse_space({"train.mu": {"choice": [3, 5, 7]}, "optim.learning_rate": {"loguniform": [0.01, 0.1]}})


def trial(number: int, mu: int, rate: float, state: Any, *accuracies: float) -> TrialResult:
    reports = [(10 * step, accuracy) for step, accuracy in enumerate(accuracies, 1)]
    return TrialResult(number, {"train.mu": mu, "optim.learning_rate": rate}, state, reports, 1.5 + number)


RANKED = [
    trial(2, 5, 0.05, "finished", 0.5, 0.8),
    trial(0, 7, 0.02, "stopped", 0.7),
    trial(1, 5, 0.03, "stopped", 0.3),
    dataclasses.replace(trial(3, 3, 0.09, "diverged", 0.2), seconds=0.0),
]


def test_the_panels_of_a_search_have_its_trials_at_their_values(figures: list[Figure]) -> None:
    assert list(draw_fields(RANKED, SPACE)) == list(SPACE)
    (rate,), (mu,) = (figure.axes for figure in figures)
    assert lines(rate) == {"stopped": points((0.02, 70), (0.03, 30)), "best (trial 2)": points((0.05, 80))}
    assert (rate.get_xlabel(), rate.get_ylabel()) == ("optim.learning_rate, logarithmic", "validation accuracy (%)")
    assert rate.get_xscale() == "log"
    marks = lines(mu)
    assert marks["best (trial 2)"] == points((1, 80)), "on its choice"
    assert [round(x) for x, _ in marks["stopped"]] == [2, 1]
    assert all(0 < abs(x - round(x)) < 0.15 for x, _ in marks["stopped"]), "a little beside it"
    assert [label.get_text() for label in mu.get_xticklabels()] == ["3", "5", "7"]
    assert mu.get_ylim() == rate.get_ylim()


@pytest.mark.parametrize(
    ("draw", "names", "labels"),
    [
        (draw_curves, ("training step", "validation accuracy (%)"), ["best (trial 2)", "stopped", "diverged"]),
        (draw_progress, ("trial number", "validation accuracy (%)"), ["best so far", "stopped", "best (trial 2)"]),
        (draw_seconds, ("trial number", "seconds in training steps"), ["finished", "stopped"]),
    ],
)
def test_a_legend_names_what_is_drawn(
    figures: list[Figure], draw: Callable[[list[TrialResult]], bytes], names: tuple[str, str], labels: list[str]
) -> None:
    draw(RANKED)
    (axes,) = figures[0].axes
    assert (axes.get_xlabel(), axes.get_ylabel()) == names
    assert legend(axes) == labels


def test_the_ways_of_the_trials_are_their_reports(figures: list[Figure]) -> None:
    draw_curves(RANKED)
    ways = [list(zip(line.get_xdata(), line.get_ydata(), strict=True)) for line in figures[0].axes[0].get_lines()]
    assert ways == [points(*((step, 100 * value) for step, value in result.reports)) for result in RANKED]


def test_more_trials_bring_what_the_search_would_have_chosen(figures: list[Figure]) -> None:
    draw_progress(RANKED)
    drawn = lines(figures[0].axes[0])
    assert drawn["best so far"] == points((0, 70), (1, 70), (2, 80))
    assert drawn["stopped"] == points((0, 70), (1, 30))
    assert drawn["best (trial 2)"] == points((2, 80))


def test_the_bars_of_seconds_stand_at_their_trials(figures: list[Figure]) -> None:
    draw_seconds(RANKED)
    finished, stopped = figures[0].axes[0].containers
    found = [
        {round(bar.get_x() + bar.get_width() / 2): bar.get_height() for bar in group} for group in (finished, stopped)
    ]
    assert found == [{2: 3.5}, {0: 1.5, 1: 2.5}]


def test_the_figure_of_a_labelled_pool_has_its_counts(figures: list[Figure]) -> None:
    counts = Counts.none(3)
    counts.selected, counts.rejected, counts.unreadable = [5, 0, 7], [1, 2, 0], {"broken": 4, "empty": 3}
    numbers = range(1, NUM_LABELING_BINS + 1)
    counts.confidence_selected, counts.confidence_rejected = list(numbers), [2 * n for n in numbers]
    counts.entropy_selected, counts.entropy_rejected = [3 * n for n in numbers], [4 * n for n in numbers]
    draw_summary(counts, ["ant", "bee", "cat"], "a pool")
    classes, reasons, confidence, entropy = figures[0].axes
    selected, rejected = classes.containers
    assert [bar.get_width() for bar in selected] == [5, 0, 7]
    assert [(bar.get_x(), bar.get_width()) for bar in rejected] == [(5, 1), (0, 2), (7, 0)]
    assert [label.get_text() for label in classes.get_yticklabels()] == ["ant", "bee", "cat"]
    low, high = sorted(reasons.get_ylim())
    assert high - low == MIN_REASONS, "two bars do not fill the panel"
    for axes, first, second, highest in ((confidence, 1, 2, 1.0), (entropy, 3, 4, math.log(3))):
        width = highest / NUM_LABELING_BINS
        below, above = (bars(container, width) for container in axes.containers)
        assert below == {n - 1: points(0, first * n) for n in numbers}
        assert above == {n - 1: points(first * n, second * n) for n in numbers}
        assert legend(axes) == ["selected", "rejected"]
        assert axes.get_ylabel() == "images"
    assert (confidence.get_xlabel(), entropy.get_xlabel()) == ("confidence", "entropy (nats)")
    assert [bar.get_width() for bar in reasons.containers[0]] == [4, 3]
    assert [label.get_text() for label in reasons.get_yticklabels()] == ["broken", "empty"]
    assert (classes.get_xlabel(), reasons.get_xlabel()) == ("images by pseudo-label", "files or rows")

    counts.foreign_selected, counts.foreign_rejected = [5 * n for n in numbers], [6 * n for n in numbers]
    draw_summary(counts, ["ant", "bee", "cat"], "a pool")
    *_, foreign = figures[1].axes
    assert foreign.get_xlabel() == "how foreign they look"
    below, above = (bars(container, 1 / NUM_LABELING_BINS) for container in foreign.containers)
    assert below == {n - 1: points(0, 5 * n) for n in numbers}
    assert above == {n - 1: points(5 * n, 6 * n) for n in numbers}


def test_the_rounds_of_self_training_are_drawn_as_they_were(figures: list[Figure]) -> None:
    metrics = [{key: (place + 1 + number) / 10 for place, key in enumerate(SHARES)} for number in range(2)]
    del metrics[0]["round/changed_share"]
    draw_rounds([Round(number, "", "", 1, 2, 0, 1, found) for number, found in enumerate(metrics)], "title")
    (axes,) = figures[0].axes
    assert lines(axes) == {
        name: points(*((number, 100 * found[key]) for number, found in enumerate(metrics) if key in found))
        for key, (name, _, _) in SHARES.items()
    }
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("round", "%")
