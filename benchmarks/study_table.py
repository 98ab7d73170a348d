"""The table of docs/results/study.csv: `TABLES`, name -> function."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import mean

from benchmarks import plain_form as plain
from benchmarks.study import CONSTANT, WEAK_BFLOAT16
from benchmarks.tables import OURS, REFERENCE, SUPERVISED, CsvRows, cell, read, settings, table
from dpl_ray.studies.comparison.cells import CellResult
from dpl_ray.studies.comparison.table import Row, make_rows

REPORTED = range(5, 10)  # labelled subsets that nothing was chosen by
TAILS = tuple(f"frozen-{labels}-{tail}" for labels in (4, 25) for tail in ("lt20", "lt20r", "lt100", "lt100r"))
GOAL = 2  # points above the best other policy on long-tailed pools, and below the cleaned pool among foreign images
COMPARED = (OURS, REFERENCE, "freematch", "softmatch", "adamatch")  # policies that a falling weight is measured with
OPEN_RIVALS = ("openmatch", "iomatch")
OPEN_SET = f"{OURS}(open_set=true)"
HEADING = (
    "setting", "subsets", SUPERVISED, "best rival", OURS, f"minus {SUPERVISED}", "minus the rival",
    "could have seen", f"share of the run to {REFERENCE}'s accuracy",
)  # fmt: skip


@dataclass(frozen=True)
class Standing:
    """`dpl` in a setting, on the labelled subsets that all of its policies have; differences are to `dpl`."""

    setting: str
    ours: Row
    supervised: Row
    rival: Row  # the most accurate of the others
    least_error: bool  # whether its calibration error is the lowest
    share: float | None  # of the run, to the reference's final accuracy; inf: never; None: there are no curves


def standings() -> list[Standing]:
    found = [row for row in reported() if "(" not in row["policy"]]  # variants may have fewer subsets
    standing = []
    for setting in settings(found):
        rows = {row.label: row for row in make_rows(shared_cells(found, setting), OURS)}
        if {OURS, SUPERVISED} < rows.keys():
            rival = next(row for row in rows.values() if row.label not in (OURS, SUPERVISED))
            share = _share_to_reference(found, setting)
            errors = {label: row.means["ece"] for label, row in rows.items()}
            mine = errors[OURS]
            least = mine is not None and all(error is None or mine <= error for error in errors.values())
            standing.append(Standing(setting, rows[OURS], rows[SUPERVISED], rival, least, share))
    return standing


def study() -> str:
    """A row for each setting: `dpl` beside `supervised` and the most accurate other policy, in %."""
    found = standings()
    body = [
        [
            each.setting,
            str(len(each.ours.subsets)),
            f"{100 * each.supervised.accuracy:.1f}",
            f"{each.rival.label} {100 * each.rival.accuracy:.1f}",
            f"{100 * each.ours.accuracy:.1f}",
            minus_text(each.supervised),
            minus_text(each.rival),
            "-" if each.rival.interval is None else f"{100 * each.rival.interval.detectable:.1f}",
            "-" if each.share is None else "never" if math.isinf(each.share) else f"{each.share:.2f}",
        ]
        for each in found
    ]
    above_supervised = sum(each.ours.accuracy > each.supervised.accuracy for each in found)
    above_rival = sum(each.ours.accuracy > each.rival.accuracy for each in found)
    summary = (
        f"`{OURS}` is above `{SUPERVISED}` in {above_supervised} of {len(body)} settings, and above the most accurate "
        f"other policy in {above_rival}."
    )
    return f"{table(HEADING, body)}\n\n{summary}"


def precision() -> str:
    """A row for each setting and policy that was also trained with bfloat16 in the pass without gradient."""
    found, body = [row for row in read("study") if int(row["subset"]) in REPORTED], []
    for setting in (name for name in settings(found) if name.endswith(WEAK_BFLOAT16)):
        base = setting.removesuffix(WEAK_BFLOAT16)
        for policy in sorted({row["policy"] for row in found if row["setting"] == setting}):
            if rows := _of_two(found, base, setting, policy):
                accuracies = [f"{100 * rows[name].accuracy:.1f}" for name in (base, setting)]
                body.append([base, policy, str(len(rows[base].subsets)), *accuracies, minus_text(rows[base])])
    return table(("setting", "policy", "subsets", "float32", "bfloat16", "bfloat16 minus float32"), body)


def plain_form() -> str:
    """A row for each setting and policy that was trained in other forms of the step: accuracies, in %.

    Our form is the study's where it was not trained beside the others.
    """
    beside, of_study = read(plain.FILE), [row | {"form": plain.OURS} for row in read("study")]
    forms = {tuple(row[name] for name in plain.COLUMNS[: plain.KEY]): row for row in [*of_study, *beside]}
    found, body = [row for row in forms.values() if int(row["subset"]) in REPORTED], []
    for setting, policy in sorted({(row["setting"], row["policy"]) for row in beside}):
        same = [row for row in found if (row["setting"], row["policy"]) == (setting, policy)]
        cells = shared_cells([row | {"policy": row["form"]} for row in same], setting)
        rows = {row.label: row for row in make_rows(cells, plain.OURS)}
        if plain.OURS in rows and len(rows) > 1:
            accuracies = [f"{100 * rows[form].accuracy:.1f}" if form in rows else "-" for form in plain.FORMS]
            differences = [
                minus_text(rows[form], of_ours=form == plain.ONE_BATCH) if form in rows else "-"
                for form in (plain.ONE_BATCH, plain.FIXED)
            ]
            body.append([setting, policy, str(len(rows[plain.OURS].subsets)), *accuracies, *differences])
    minus = f"{plain.OURS} minus {plain.ONE_BATCH} [95 %]", f"{plain.FIXED} minus {plain.OURS} [95 %]"
    return table(("setting", "policy", "subsets", *plain.FORMS, *minus), body)


def falling() -> str:
    """A row for each setting that was also trained with a constant weight of the unlabelled loss: what the fall adds.

    In points of accuracy.
    """
    found = [row for row in read("study") if int(row["subset"]) in REPORTED]
    added: dict[str, list[float]] = {}
    for setting in (name for name in settings(found) if name.endswith(CONSTANT)):
        base = setting.removesuffix(CONSTANT)
        differences = [row[base].difference for policy in COMPARED if (row := _of_two(found, base, setting, policy))]
        if len(differences) == len(COMPARED):
            added[base] = [100 * difference for difference in differences if difference is not None]
    means = {"mean": [mean(column) for column in zip(*added.values(), strict=True)]} if added else {}
    body = [[name, *(f"{each:+.1f}" for each in numbers)] for name, numbers in (added | means).items()]
    return table(("setting", *COMPARED), body)


def tails() -> str:
    """A row for each policy and a column for each long-tailed pool of frozen features: mean accuracy, in %."""
    found = [row for row in read("study") if int(row["subset"]) in REPORTED and row["setting"] in TAILS]
    columns = {
        setting: {row.label: row.accuracy for row in make_rows(shared_cells(found, setting), SUPERVISED)}
        for setting in settings(found)
    }
    policies = set.intersection(*map(set, columns.values())) if columns else set()
    means = {policy: mean(column[policy] for column in columns.values()) for policy in policies}
    body = [
        [policy, *(f"{100 * column[policy]:.1f}" for column in columns.values()), f"{100 * means[policy]:.1f}"]
        for policy in sorted(policies, key=lambda policy: -means[policy])
    ]
    above = ", ".join(f"`{policy}`" for policy, *_ in body if means[policy] > means[SUPERVISED]) or "none"
    return f"{table(('policy', *columns, 'mean'), body)}\n\nAbove `{SUPERVISED}` in the mean: {above}."


def ceiling() -> str:
    """A row for each setting whose pool was also trained on with its true labels: mean accuracies, in %."""
    above: dict[str, list[float]] = {}
    for row in read("ceiling"):
        above.setdefault(row["setting"], []).append(100 * float(row["accuracy"]))
    found = [row for row in read("study") if int(row["subset"]) in REPORTED and row["setting"] in above]
    body, short = [], []
    for setting in settings(found):
        rows = {row.label: 100 * row.accuracy for row in make_rows(shared_cells(found, setting), OURS)}
        rival = max((label for label in rows if "(" not in label and label != OURS), key=rows.__getitem__)
        most = mean(above[setting])
        if most < rows[rival] + GOAL:
            short.append(setting)
        numbers = (rows[SUPERVISED], rows[OURS], most, most - rows[rival])
        shown = [f"{number:.1f}" for number in numbers]
        body.append([setting, shown[0], f"{rival} {rows[rival]:.1f}", *shown[1:3], f"{numbers[3]:+.1f}"])
    heading = ("setting", SUPERVISED, "best rival", OURS, "true labels", "true labels minus the rival")
    summary = f"Less than {GOAL} points above the rival with the true labels: {', '.join(short) or 'none'}."
    return f"{table(heading, body)}\n\n{summary}"


def variants() -> str:
    """A row for each variant of `dpl` of a setting that has any, and `supervised`, the best first."""
    found = [
        row for row in reported() if row["policy"].partition("(")[0] in (OURS, SUPERVISED) and row["policy"] != OPEN_SET
    ]
    measured = {row["setting"] for row in found if row["policy"] == OURS}.difference(TAILS)
    tried = {row["setting"] for row in found if row["policy"].startswith(f"{OURS}(")} & measured
    body = []
    for setting in sorted(tried):
        for row in make_rows(shared_cells(found, setting), OURS):
            minus = "-" if row.label == OURS else minus_text(row, of_ours=False)
            body.append([setting, row.label, str(len(row.subsets)), f"{100 * row.accuracy:.1f}", minus])
    return table(("setting", "policy", "subsets", "accuracy", f"minus {OURS} [95 %]"), body)


def open_sets() -> str:
    """A row for each setting with foreign images: policies, and where it is measured `dpl` without them, in %."""
    found = [row for row in read("study") if int(row["subset"]) in REPORTED]
    named, cleaned = (SUPERVISED, REFERENCE, *OPEN_RIVALS, OURS, OPEN_SET), f"{OURS}, cleaned pool"
    body = []
    for setting in (name for name in settings(found) if "-open" in name):
        without = setting.replace("-open", "-clean")
        mine = [row for row in found if row["setting"] == setting and row["policy"] in named]
        mine += [
            row | {"setting": setting, "policy": cleaned}
            for row in found
            if (row["setting"], row["policy"]) == (without, OURS)
        ]
        rows = {row.label: row for row in make_rows(shared_cells(mine, setting), OPEN_SET)}
        if {*named} <= rows.keys():
            accuracies = [f"{100 * rows[name].accuracy:.1f}" if name in rows else "-" for name in (*named, cleaned)]
            differences = [minus_text(rows[name]) if name in rows else "-" for name in (SUPERVISED, OURS, cleaned)]
            body.append([setting, str(len(rows[OURS].subsets)), *accuracies, *differences])
    minus = (f"`open_set` minus {name}" for name in (SUPERVISED, OURS, "the cleaned pool"))
    return table(("setting", "subsets", *named, cleaned, *minus), body)


def foreign() -> str:
    """A row for each score of foreign images, and the mean area under its ROC curve in each setting, in %."""
    named = SUPERVISED, *OPEN_RIVALS, OURS, OPEN_SET
    found = [row for row in read("foreign") if int(row["subset"]) in REPORTED and row["policy"] in named]
    areas: dict[tuple[str, str], dict[str, list[float]]] = {}
    for row in found:
        columns = areas.setdefault((row["score"], row["policy"]), {})
        columns.setdefault(row["setting"], []).append(100 * float(row["auroc"]))
    means = {key: {name: mean(values) for name, values in columns.items()} for key, columns in areas.items()}
    body = [
        [*key, *(f"{means[key][name]:.1f}" for name in settings(found))]
        for key in sorted(means, key=lambda key: -mean(means[key].values()))
    ]
    return table(("score", "policy", *settings(found)), body)


def calibration() -> str:
    """A row for each policy: mean calibration error in each setting before and after a temperature, in %."""
    found = [row for row in read("calibration") if int(row["subset"]) in REPORTED and "(" not in row["policy"]]
    columns: dict[str, dict[str, list[float]]] = {}
    for setting in settings(found):
        rows = of_shared_subsets(found, setting)
        columns[setting] = {
            policy: [
                mean(100 * float(row[name]) for row in rows if row["policy"] == policy)
                for name in ("ece", "calibrated")
            ]
            for policy in {row["policy"] for row in rows}
        }
    policies = sorted(
        set.intersection(*map(set, columns.values())),
        key=lambda policy: sum(each[policy][0] for each in columns.values()),
    )
    body = [[policy, *("{:.1f} to {:.1f}".format(*each[policy]) for each in columns.values())] for policy in policies]
    smaller = sum(each[policy][1] < each[policy][0] for each in columns.values() for policy in policies)
    lowest = [
        sum(each[OURS][place] <= min(each[policy][place] for policy in policies) for each in columns.values())
        for place in (0, 1)
    ]
    return (
        f"{table(('policy', *columns), body)}\n\nThe temperature lowers the error in {smaller} of "
        f"{len(columns) * len(policies)} cases. `{OURS}` has the lowest in {lowest[0]} of {len(columns)} settings "
        f"without it, and in {lowest[1]} with it."
    )


def reported() -> CsvRows:
    """Rows of the reported subsets, without the settings that vary the training alone."""
    return [
        row
        for row in read("study")
        if int(row["subset"]) in REPORTED and not row["setting"].endswith((WEAK_BFLOAT16, CONSTANT))
    ]


def _of_two(found: CsvRows, base: str, setting: str, policy: str) -> dict[str, Row]:
    """The rows of a policy in two settings, on the subsets of both, beside the second; empty where one is missing."""
    names = base, setting
    both = [
        row | {"setting": setting, "policy": row["setting"]}
        for row in found
        if row["setting"] in names and row["policy"] == policy
    ]
    rows = {row.label: row for row in make_rows(shared_cells(both, setting), setting)}
    return rows if rows.keys() == {*names} else {}


def shared_cells(found: CsvRows, setting: str) -> list[CellResult]:
    """The cells of a setting on the labelled subsets that all of its policies have, so that means are of the same."""
    return [cell(row) for row in of_shared_subsets(found, setting)]


def _share_to_reference(found: CsvRows, setting: str) -> float | None:
    """After which share of its steps `dpl` has the reference's final accuracy: median over subsets with both curves."""
    both = [row for row in found if row["policy"] in (OURS, REFERENCE) and row["curve"]]
    ours = next((row for row in make_rows(shared_cells(both, setting), REFERENCE) if row.label == OURS), None)
    if ours is None or ours.steps is None:
        return None
    steps = next(int(row["steps"]) for row in both if row["setting"] == setting and row["policy"] == OURS)
    return math.inf if ours.steps.median is None else ours.steps.median / steps


def beside_ours(found: CsvRows, setting: str, label: str) -> dict[str, Row]:
    """`dpl` and one other policy, on the subsets that both have."""
    both = [row for row in found if row["policy"] in (OURS, label)]
    return {row.label: row for row in make_rows(shared_cells(both, setting), OURS)}


def of_shared_subsets(found: CsvRows, setting: str) -> CsvRows:
    rows = [row for row in found if row["setting"] == setting]
    subsets = [{row["subset"] for row in rows if row["policy"] == policy} for policy in {row["policy"] for row in rows}]
    shared = set.intersection(*subsets) if subsets else set()
    return [row for row in rows if row["subset"] in shared]


def minus_text(row: Row, *, of_ours: bool = True) -> str:
    """`dpl` minus this policy, or the other way round, in points with the interval."""
    assert row.difference is not None
    sign = -100 if of_ours else 100
    if row.interval is None:
        return f"{sign * row.difference:+.1f}"
    low, high = sorted((sign * row.interval.low, sign * row.interval.high))
    return f"{sign * row.difference:+.1f} [{low:+.1f}, {high:+.1f}]"


TABLES = {
    "study": study,
    "study-falling": falling,
    "study-precision": precision,
    "plain-form": plain_form,
    "study-tails": tails,
    "study-ceiling": ceiling,
    "study-variants": variants,
    "foreign": foreign,
    "open-sets": open_sets,
    "calibration": calibration,
}
