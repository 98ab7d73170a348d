"""The page of a comparison, `comparison.html`: tables, figures, and what the numbers do not say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dpl_ray.page.html import Page, Section, code, facts, figure, grid, note, paragraph, table
from dpl_ray.studies.comparison.cells import CellResult
from dpl_ray.studies.comparison.figure import draw_comparison
from dpl_ray.studies.comparison.table import NOTES, Row, shown_label, tables

CAPTIONS = {
    "Accuracy": "A grey dot is one seed; the black bar is the mean, with a standard deviation to each side.",
    "How fast": "Mean over seeds of the teacher's accuracy on the way, on {curve_of}.",
    "Use of the pool": "Circles: all that counts; triangles: of it what has a confidence below 0.95, which FixMatch "
    "would leave out. Filled: precision.",
}


def make_page(
    name: str,
    cells: Sequence[CellResult],
    rows: Sequence[Row],
    reference: str,
    described: Mapping[str, str],
    missing: Mapping[str, str],
    curve_of: str,
) -> Page:
    """
    Args:
        described: name -> value of what the table was measured with.
        missing: name of a cell that has not finished -> why.
        curve_of: the test images that the curves are made of, in words.
    """
    seeds = sorted({cell.seed for cell in cells})
    made = [
        table(
            title, ["policy", *columns], [[shown_label(row), *(show(row) for show in columns.values())] for row in rows]
        )
        for title, columns in tables(reference).items()
    ]
    captions = CAPTIONS | {"How fast": CAPTIONS["How fast"].replace("{curve_of}", curve_of)}
    pictures = [figure(svg, title, captions[title]) for title, svg in draw_comparison(cells, rows).items()]
    sections = [
        Section("result", "Result", paragraph(_finding(rows, reference, len(seeds))), *made),
        Section("figures", "Figures", grid(pictures)),
        Section("noise", "What the numbers do not say", paragraph(_noise(len(seeds))), note(_notes(reference))),
    ]
    if missing:
        lost = table("Cells that have not finished", ["cell", "why"], list(missing.items()), text_columns=2)
        sections.insert(1, Section("missing", "Missing", lost))
    values = {key: code(value) if key == "command" else value for key, value in described.items()}
    sections.append(Section("comparison", "The comparison", facts(values)))
    subtitle = f"{len(rows)} policies, {len(seeds)} seed{'s' * (len(seeds) > 1)}, {cells[0].steps:,} steps each; "
    return Page(name, subtitle + f"compared to {reference}", sections, "Written by dpl_ray. The file needs no network.")


def _finding(rows: Sequence[Row], reference: str, num_seeds: int) -> str:
    """Who is above or below the reference by more than the interval, counted and not judged beyond it."""
    told = [row for row in rows if row.interval is not None]
    if not told:
        return (
            f"With {num_seeds} seed{'s' * (num_seeds > 1)} no difference to {reference} has an interval, so that none "
            "can be told from noise: seeds=5 gives them one."
        )
    above = [row.label for row in told if row.interval and row.interval.low > 0]
    below = [row.label for row in told if row.interval and row.interval.high < 0]
    open_ = [row.label for row in told if row.label not in above + below]
    parts = [
        f"{what} {reference}, with all of the 95 % interval: {', '.join(labels)}"
        for what, labels in (("above", above), ("below", below))
        if labels
    ]
    parts += [f"not told apart from it: {', '.join(open_)}"] if open_ else []
    sentence = "; ".join(parts)
    number = min(len(row.seeds) for row in told)
    chance = f" Chance alone puts {number} differences on one side in {200 * 0.5**number:.2g} % of comparisons."
    return sentence[0].upper() + sentence[1:] + "." + (chance if above or below else "")


def _noise(num_seeds: int) -> str:
    few = "is too narrow with so few" if num_seeds < 10 else "resamples them"
    return (
        f"A seed decides which images are labelled, the initial weights and the order of batches; all policies of a "
        f"seed share these. There are {num_seeds} here, and an interval that is a bootstrap over seeds {few}. The "
        "accuracy of one seed has besides the noise of its test images, about the square root of p(1 - p) / n. "
        "Parameters and number of steps are those of this comparison: another schedule may turn the order around."
    )


def _notes(reference: str) -> str:
    return " ".join(NOTES).replace("{reference}", reference)
