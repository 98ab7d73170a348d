"""The numbers of a comparison, against slow loops and by their properties."""

from __future__ import annotations

import csv
import io
import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from dpl_ray.studies.comparison.cells import CellResult
from dpl_ray.studies.comparison.console import comparison_tables
from dpl_ray.studies.comparison.page import make_page
from dpl_ray.studies.comparison.table import (
    MISSING,
    Reached,
    first_reaching,
    make_rows,
    reached,
    to_csv,
    to_markdown,
)
from dpl_ray.studies.comparison.two_level import two_level_interval
from tests.page.test_html import anchors


def cell(
    label: str, seed: int, accuracy: float, curve: tuple[float, ...] = (), subset: int | None = None, **metrics: float
) -> CellResult:
    """A cell whose curve has a point every 10 steps and every 2 seconds."""
    points = [(10 * (index + 1), value, 2.0 * (index + 1)) for index, value in enumerate(curve)]
    found = {"eval/accuracy": accuracy, "eval/balanced_accuracy": accuracy, "eval/ece": 0.1}
    found |= {f"pseudo/{key}": value for key, value in metrics.items()}
    return CellResult(label, {"name": label}, seed, 100, 7.5, found, points, "/there", {"commit": "abc"}, subset)


def test_the_first_point_at_or_above_the_references_last_one_counts() -> None:
    reference = cell("fixmatch", 0, 0.9, (0.2, 0.7, 0.5))
    assert first_reaching(cell("dpl", 0, 0.9, (0.1, 0.5, 0.4)), reference) == (20, 4.0), "at it is enough"
    assert first_reaching(cell("dpl", 0, 0.9, (0.1, 0.4, 0.49)), reference) is None
    assert first_reaching(reference, reference) == (20, 4.0), "its own earlier points count too"
    assert first_reaching(reference, cell("fixmatch", 0, 0.9)) is None


@given(st.lists(st.none() | st.floats(0, 100), min_size=1, max_size=7))
def test_trainings_that_never_reached_it_are_later_than_all_others(values: list[float | None]) -> None:
    found = reached(values)
    assert found is not None
    assert (found.num_reached, found.num_trained) == (len([v for v in values if v is not None]), len(values))
    ordered = sorted(math.inf if value is None else value for value in values)
    middle = len(ordered) // 2
    expected = ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2
    assert found.median == (expected if math.isfinite(expected) else None)


def test_reached_of_no_training_is_none() -> None:
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
    assert dpl.interval is None, "two subsets are too few"
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
    # 0.04 ± 4.3027 · 0.02 / √3, by a table of t with 2 degrees of freedom; and 1.0607 of these in addition.
    assert (dpl.interval.low, dpl.interval.high) == pytest.approx((-0.00968, 0.08968), abs=1e-5)
    assert dpl.interval.detectable == pytest.approx(0.04968 + 0.01225, abs=1e-5)
    assert dpl.difference == dpl.interval.mean == pytest.approx(0.04)


def test_pairs_have_subset_and_seed_in_common_and_a_subset_counts_once() -> None:
    # Subset 0 has three repeats of which the reference lacks one, the others have one.
    dpl = [cell("dpl", seed, 0.5, subset=subset) for subset, seed in ((0, 0), (0, 1000), (0, 2000), (1, 1), (2, 2))]
    base = [
        cell("fixmatch", seed, accuracy, subset=subset)
        for subset, seed, accuracy in ((0, 0, 0.5), (0, 1000, 0.3), (1, 1, 0.3), (2, 2, 0.2))
    ]
    row = next(row for row in make_rows([*dpl, *base], "fixmatch") if row.label == "dpl")
    assert (row.subsets, row.seeds) == ((0, 1, 2), (0, 1, 2, 1000, 2000))
    assert row.difference == pytest.approx((0.1 + 0.2 + 0.3) / 3)
    assert row.interval == two_level_interval({0: [0.0, 0.2], 1: [0.2], 2: [0.3]})
    shown = to_markdown(make_rows([*dpl, *base], "fixmatch"), "fixmatch", [])
    assert "| dpl | 3 (5 trainings) |" in shown
    assert "| fixmatch (reference) | 3 (4 trainings) |" in shown


def test_rows_without_a_finished_reference() -> None:
    rows = make_rows([cell("dpl", 0, 0.5, (0.5,))], "fixmatch")
    assert (rows[0].difference, rows[0].interval, rows[0].steps) == (None, None, None)
    assert to_markdown(rows, "fixmatch", ["# x"]).count(f" {MISSING} |") >= 3


def test_the_order_of_the_cells_does_not_matter() -> None:
    assert make_rows(cells()[::-1], "fixmatch") == make_rows(cells(), "fixmatch")
    assert to_csv(cells()[::-1], "fixmatch") == to_csv(cells(), "fixmatch")


def test_csv_has_a_row_per_cell_with_all_its_metrics() -> None:
    rows = list(csv.DictReader(io.StringIO(to_csv(three_seeds(), "fixmatch"))))
    assert [(row["policy"], row["subset"], row["seed"]) for row in rows] == [
        *(("dpl", seed, seed) for seed in "012"), ("dpl(rule=band)", "1", "1"),
        *(("fixmatch", seed, seed) for seed in "012"),
    ]  # fmt: skip
    assert [row["detectable_difference"] for row in rows] == ["0.06193"] * 3 + [""] * 4
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
    assert "+4.00 [-0.97, +8.97] | 6.2 |" in table[2]
    assert "fixmatch (reference)" in table[3]
    assert "{" not in text


def test_the_console_shows_every_policy_and_number() -> None:
    output = io.StringIO()
    for table in comparison_tables(make_rows(three_seeds(), "fixmatch"), "fixmatch"):
        Console(file=output, width=160).print(table)
    shown = output.getvalue()
    for text in (
        "85.00 ± 13.53",
        "+4.00 [-0.97, +8.97]",
        "6.2",
        "20 (2 of 3)",
        "- (0 of 1)",
        "dpl(rule=band)",
        "(reference)",
    ):
        assert text in shown


@pytest.mark.rendered
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
    power = "With 80 % power this design sees true differences of at least 0.0 points."
    finding = f"Above p0, with all of the 95 % interval: {above}. {power}"
    assert (finding if num_policies > 1 else "no difference to p0 has an interval") in text
    assert "There are 3 labelled subsets and 3 trainings" in text
