"""The numbers of a comparison, against slow loops and by their properties."""

from __future__ import annotations

import csv
import io
import math
import statistics

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from dpl_ray.studies.comparison.cells import CellResult
from dpl_ray.studies.comparison.console import comparison_tables
from dpl_ray.studies.comparison.page import make_page
from dpl_ray.studies.comparison.table import (
    LEAST_SEEDS,
    MISSING,
    NUM_DRAWS,
    Reached,
    bootstrap_interval,
    first_reaching,
    make_rows,
    reached,
    to_csv,
    to_markdown,
)
from tests.page.test_html import anchors

DIFFERENCES = st.lists(st.floats(-1, 1), min_size=LEAST_SEEDS, max_size=6)


def cell(label: str, seed: int, accuracy: float, curve: tuple[float, ...] = (), **metrics: float) -> CellResult:
    """A cell whose curve has a point every 10 steps and every 2 seconds."""
    points = [(10 * (index + 1), value, 2.0 * (index + 1)) for index, value in enumerate(curve)]
    found = {"eval/accuracy": accuracy, "eval/balanced_accuracy": accuracy, "eval/ece": 0.1}
    found |= {f"pseudo/{key}": value for key, value in metrics.items()}
    return CellResult(label, {"name": label}, seed, 100, 7.5, found, points, "/there", {"commit": "abc"})


def slow_interval(differences: list[float]) -> tuple[float, float]:
    """The same draws, one by one, and their percentiles by sorting."""
    draws = np.random.default_rng(0).integers(0, len(differences), (NUM_DRAWS, len(differences)))
    means = sorted(sum(differences[index] for index in row) / len(differences) for row in draws.tolist())

    def percentile(share: float) -> float:
        place = share * (len(means) - 1)
        low = math.floor(place)
        return means[low] + (place - low) * (means[min(low + 1, len(means) - 1)] - means[low])

    return percentile(0.025), percentile(0.975)


@settings(max_examples=10)
@given(DIFFERENCES)
def test_the_interval_is_that_of_a_loop(differences: list[float]) -> None:
    found = bootstrap_interval(differences)
    assert found is not None
    assert (found.low, found.high) == pytest.approx(slow_interval(differences), abs=1e-9)
    assert found.mean == pytest.approx(statistics.fmean(differences), abs=1e-9)


@settings(max_examples=50)
@given(DIFFERENCES, st.floats(-1, 1))
def test_the_interval_lies_among_the_differences_and_moves_with_them(differences: list[float], shift: float) -> None:
    found = bootstrap_interval(differences)
    moved = bootstrap_interval([value + shift for value in differences])
    assert found is not None
    assert moved is not None
    tiny = 1e-9
    assert min(differences) - tiny <= found.low <= found.mean + tiny
    assert found.mean - tiny <= found.high <= max(differences) + tiny
    assert (moved.low, moved.high) == pytest.approx((found.low + shift, found.high + shift), abs=1e-6)


def test_the_interval_of_equal_differences_is_a_point_and_of_few_there_is_none() -> None:
    found = bootstrap_interval([0.25] * 4)
    assert found is not None
    assert (found.low, found.mean, found.high) == (0.25, 0.25, 0.25)
    for number in range(LEAST_SEEDS):
        assert bootstrap_interval([0.25] * number) is None


def test_the_interval_covers_the_true_mean_about_as_often_as_it_says() -> None:
    random = np.random.default_rng(5)
    covered = 0
    for _ in range(200):
        found = bootstrap_interval(random.normal(0.3, 1, 30).tolist(), num_draws=500)
        assert found is not None
        covered += found.low <= 0.3 <= found.high
    assert 0.88 <= covered / 200 <= 0.99


def test_the_first_point_at_or_above_the_references_last_one_counts() -> None:
    reference = cell("fixmatch", 0, 0.9, (0.2, 0.7, 0.5))
    assert first_reaching(cell("dpl", 0, 0.9, (0.1, 0.5, 0.4)), reference) == (20, 4.0), "at it is enough"
    assert first_reaching(cell("dpl", 0, 0.9, (0.1, 0.4, 0.49)), reference) is None
    assert first_reaching(reference, reference) == (20, 4.0), "its own earlier points count too"
    assert first_reaching(reference, cell("fixmatch", 0, 0.9)) is None


@given(st.lists(st.none() | st.floats(0, 100), min_size=1, max_size=7))
def test_seeds_that_never_reached_it_are_later_than_all_others(values: list[float | None]) -> None:
    found = reached(values)
    assert found is not None
    assert (found.num_reached, found.num_seeds) == (len([v for v in values if v is not None]), len(values))
    ordered = sorted(math.inf if value is None else value for value in values)
    middle = len(ordered) // 2
    expected = ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2
    assert found.median == (expected if math.isfinite(expected) else None)


def test_reached_of_no_seed_is_none() -> None:
    assert reached([]) is None


def cells() -> list[CellResult]:
    """Three policies: dpl is ahead on seeds 0 and 1, and has one seed more; the ablation has one seed alone."""
    pool = {"coverage": 0.8, "precision": 0.9, "high_entropy_share": 0.2}
    return [
        cell("fixmatch", 0, 0.80, (0.5, 0.7), **pool),
        cell("fixmatch", 1, 0.70, (0.4, 0.6), **pool),
        cell("dpl", 0, 0.84, (0.6, 0.7), **pool, high_entropy_precision=0.6),
        cell("dpl", 1, 0.72, (0.6, 0.7), **pool, high_entropy_precision=0.4),
        cell("dpl", 2, 0.99, (0.9, 0.9), **pool),
        cell("dpl(rule=band)", 1, 0.6, (0.1, 0.2)),
    ]


def three_seeds() -> list[CellResult]:
    return [*cells(), cell("fixmatch", 2, 0.93)]


def test_rows() -> None:
    dpl, fixmatch, band = make_rows(cells(), "fixmatch")
    assert (dpl.label, fixmatch.label, band.label) == ("dpl", "fixmatch", "dpl(rule=band)"), "by accuracy"
    assert dpl.seeds == (0, 1, 2)
    assert dpl.accuracy == pytest.approx(0.85)
    assert dpl.deviation == pytest.approx(statistics.stdev([0.84, 0.72, 0.99]))
    assert dpl.difference == pytest.approx(0.03), "of the seeds that both have"
    assert dpl.interval is None, "two are too few"
    assert dpl.steps == Reached(15, 2, 2), "seed 0 at its second point, seed 1 at its first"
    assert dpl.seconds == Reached(3.0, 2, 2)
    assert dpl.means["high_entropy_precision"] == pytest.approx(0.5), "of the cells that have it"
    assert (fixmatch.is_reference, fixmatch.difference, fixmatch.interval) == (True, None, None)
    assert fixmatch.means["high_entropy_precision"] is None
    assert (band.deviation, band.interval, band.steps) == (None, None, Reached(None, 0, 1))
    assert band.difference == pytest.approx(-0.1)


def test_three_seeds_have_an_interval() -> None:
    dpl, _, _ = make_rows(three_seeds(), "fixmatch")
    assert dpl.interval is not None
    assert (dpl.interval.low, dpl.interval.high) == pytest.approx((0.02, 0.06))
    assert dpl.difference == dpl.interval.mean == pytest.approx(0.04)


def test_rows_without_a_finished_reference() -> None:
    rows = make_rows([cell("dpl", 0, 0.5, (0.5,))], "fixmatch")
    assert (rows[0].difference, rows[0].interval, rows[0].steps) == (None, None, None)
    assert to_markdown(rows, "fixmatch", ["# x"]).count(f" {MISSING} |") >= 3


def test_the_order_of_the_cells_does_not_matter() -> None:
    assert make_rows(cells()[::-1], "fixmatch") == make_rows(cells(), "fixmatch")
    assert to_csv(cells()[::-1], "fixmatch") == to_csv(cells(), "fixmatch")


def test_csv_has_a_row_per_cell_with_all_its_metrics() -> None:
    rows = list(csv.DictReader(io.StringIO(to_csv(cells(), "fixmatch"))))
    assert [(row["policy"], row["seed"]) for row in rows] == [
        ("dpl", "0"), ("dpl", "1"), ("dpl", "2"), ("dpl(rule=band)", "1"), ("fixmatch", "0"), ("fixmatch", "1"),
    ]  # fmt: skip
    first, third = rows[0], rows[2]
    assert (first["steps_to_reference"], first["seconds_to_reference"]) == ("20", "4.0")
    assert (third["steps_to_reference"], third["pseudo/high_entropy_precision"]) == ("", "")
    assert (first["eval/accuracy"], first["pseudo/coverage"], first["curve/10"]) == ("0.84", "0.8", "0.6")
    assert (first["commit"], first["checkpoint"], first["seconds"]) == ("abc", "/there", "7.5")


def test_markdown_is_a_table_with_its_header_and_notes() -> None:
    text = to_markdown(make_rows(three_seeds(), "fixmatch"), "fixmatch", ["# a comparison"])
    lines = text.splitlines()
    assert lines[0] == "# a comparison"
    table = [line for line in lines if line.startswith("|")]
    assert len({line.count("|") for line in table}) == 1
    assert len(table) == 2 + 3
    assert "85.00 ± 13.53" in table[2]
    assert "+4.00 [+2.00, +6.00]" in table[2]
    assert "fixmatch (reference)" in table[3]
    assert "{" not in text


def test_the_console_shows_every_policy_and_number() -> None:
    output = io.StringIO()
    for table in comparison_tables(make_rows(three_seeds(), "fixmatch"), "fixmatch"):
        Console(file=output, width=160).print(table)
    shown = output.getvalue()
    for text in ("85.00 ± 13.53", "+4.00 [+2.00, +6.00]", "20 (2 of 3)", "- (0 of 1)", "dpl(rule=band)", "(reference)"):
        assert text in shown


@pytest.mark.parametrize("num_policies", [1, 10])
def test_the_page_is_made_of_any_number_of_policies(num_policies: int) -> None:
    found = [
        cell(f"p{index}", seed, 0.5 + index / 30, (0.3, 0.4)) for index in range(num_policies) for seed in (0, 1, 2)
    ]
    described, missing = {"command": "compare <x>", "data": "digits"}, {"p0-seed-3": "the node is gone"}
    made = make_page("first", found, make_rows(found, "p0"), "p0", described, missing, "all of 20 images")
    text = made.html
    assert anchors(made) == ["result", "missing", "figures", "noise", "comparison"]
    assert text.count("data:image/svg+xml") == 3
    policies = [f"p{index}" for index in range(num_policies)]
    for words in (*policies, "the node is gone", "compare &lt;x&gt;", "digits", "on the way, on all of 20 images."):
        assert words in text
    above = ", ".join(f"p{index}" for index in reversed(range(1, num_policies)))
    chance = "Chance alone puts 3 differences on one side in 25 %"
    finding = f"Above p0, with all of the 95 % interval: {above}. {chance}"
    assert (finding if num_policies > 1 else "no difference to p0 has an interval") in text
