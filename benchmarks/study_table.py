"""The table of docs/results/study.csv: `TABLES`, name -> function."""

from __future__ import annotations

from benchmarks.tables import OURS, SUPERVISED, cell, read, settings, table
from dpl_ray.studies.comparison.table import Row, make_rows

REPORTED = range(5, 10)  # labelled subsets that nothing was chosen by
HEADING = ("setting", "subsets", SUPERVISED, "best rival", OURS, f"minus {SUPERVISED}", "minus the rival")


def study() -> str:
    """A row for each setting: `dpl` beside `supervised` and the most accurate other policy, in %."""
    found = [row for row in read("study") if int(row["subset"]) in REPORTED]
    body = []
    for setting in settings(found):
        cells = [cell(row, []) for row in found if row["setting"] == setting]
        rows = {row.label: row for row in make_rows(cells, OURS)}
        if not {OURS, SUPERVISED} < rows.keys():
            continue
        ours, supervised = rows[OURS], rows[SUPERVISED]
        # Every policy is on the subsets that all of them have, or a mean is not that of the same subsets.
        if any(row.subsets != ours.subsets for row in rows.values()):
            continue
        rival = next(row for row in rows.values() if "(" not in row.label and row.label not in (OURS, SUPERVISED))
        body.append(
            [
                setting,
                str(len(ours.subsets)),
                f"{100 * supervised.accuracy:.1f}",
                f"{rival.label} {100 * rival.accuracy:.1f}",
                f"{100 * ours.accuracy:.1f}",
                _minus(supervised),
                _minus(rival),
            ]
        )
    return table(HEADING, body)


def variants() -> str:
    """A row for each policy of a setting in which `dpl` was trained with parameters too, the best first."""
    found = [row for row in read("study") if int(row["subset"]) in REPORTED]
    tried = {row["setting"] for row in found if row["policy"].startswith(f"{OURS}(")}
    body = []
    for setting in sorted(tried):
        for row in make_rows([cell(each, []) for each in found if each["setting"] == setting], OURS):
            minus = "-" if row.label == OURS else _minus(row, of_ours=False)
            body.append([setting, row.label, str(len(row.subsets)), f"{100 * row.accuracy:.1f}", minus])
    return table(("setting", "policy", "subsets", "accuracy", f"minus {OURS} [95 %]"), body)


def _minus(row: Row, *, of_ours: bool = True) -> str:
    """`dpl` minus this policy, or the other way round, in points with the interval."""
    assert row.difference is not None
    sign = -100 if of_ours else 100
    if row.interval is None:
        return f"{sign * row.difference:+.1f}"
    low, high = sorted((sign * row.interval.low, sign * row.interval.high))
    return f"{sign * row.difference:+.1f} [{low:+.1f}, {high:+.1f}]"


TABLES = {"study": study, "study-variants": variants}
