"""The page of a comparison, `comparison.html`: tables, figures, and what the numbers do not say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dpl_ray.page.html import Page, Section, Table, render_page
from dpl_ray.studies.comparison.cells import CellResult
from dpl_ray.studies.comparison.figure import draw_comparison
from dpl_ray.studies.comparison.table import NOTES, Row, chance_line, shown_label, tables


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
    subsets, trainings = {cell.key[0] for cell in cells}, {cell.key for cell in cells}
    made = [
        Table(
            title, ["policy", *columns], [[shown_label(row), *(show(row) for show in columns.values())] for row in rows]
        )
        for title, columns in tables(reference).items()
    ]
    sections = {
        "result": Section(
            title="Result",
            findings=[*filter(None, [chance_line(cells)]), _finding(rows, reference, len(subsets))],
            tables=made,
        ),
        "figures": Section(title="Figures", drawings=draw_comparison(cells, rows), curve_of=curve_of),
        "noise": Section(
            title="What the numbers do not say",
            num_subsets=len(subsets),
            num_trainings=len(trainings),
            notes=" ".join(NOTES).replace("{reference}", reference),
        ),
        "comparison": Section(title="The comparison", facts=described),
    }
    if missing:
        lost = Table("Cells that have not finished", ["cell", "why"], list(missing.items()), 2)
        sections = {"result": sections["result"], "missing": Section(title="Missing", table=lost)} | sections
    design = f"{len(trainings)} trainings of each on {len(subsets)} labelled subset{'s' * (len(subsets) > 1)}"
    subtitle = f"{len(rows)} policies, {design}, {cells[0].steps:,} steps each; "
    return render_page("studies/comparison/page.html", name, subtitle + f"compared to {reference}", sections)


def _finding(rows: Sequence[Row], reference: str, num_subsets: int) -> str:
    """Who is above or below the reference by more than the interval, counted and not judged beyond it."""
    told = [row for row in rows if row.interval is not None]
    if not told:
        return (
            f"With {num_subsets} labelled subset{'s' * (num_subsets > 1)} no difference to {reference} has an "
            "interval, so that none can be told from noise: subsets=5 gives them one."
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
    seen = [100 * row.interval.detectable for row in told if row.interval]
    least, most = f"{min(seen):.1f}", f"{max(seen):.1f}"
    power = f" With 80 % power this design sees true differences of at least {least} points"
    power += f", and of some policies only those of {most}" if most != least else ""
    return f"{sentence[0].upper()}{sentence[1:]}.{power}."
