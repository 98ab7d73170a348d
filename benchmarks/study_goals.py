"""What the goals of the study were, what was chosen, and how much was trained: `TABLES`, name -> function."""

from __future__ import annotations

from collections.abc import Callable
from statistics import mean, median

from benchmarks.figures import shown
from benchmarks.study import BASES, NAMED_ALONE, SETTINGS
from benchmarks.study_table import (
    GOAL,
    OPEN_SET,
    REPORTED,
    Standing,
    beside_ours,
    minus_text,
    of_shared_subsets,
    reported,
    shared_cells,
    standings,
)
from benchmarks.tables import OURS, REFERENCE, SUPERVISED, read, settings, table
from dpl_ray.studies.comparison.table import make_rows

HALF = 0.5  # of the steps
#: Each takes the value of images for one part of `dpl` that has another on stored features.
WITHOUT = tuple(f"{OURS}({part})" for part in ("balance=0.0", "pace=1.0", "heads_weight=1.0"))


def goals() -> str:
    """A row for each goal of the study: in which of its settings `dpl` reaches it."""
    found = standings()
    balanced = [each for each in found if each.setting in BASES]
    tailed = [each for each in found if "-lt" in each.setting]
    foreign = [each for each in found if "-open" in each.setting]
    lost = {each.setting: _lost_to_foreign_images(each.setting) for each in foreign}
    reached: list[tuple[str, list[Standing], Callable[[Standing], bool]]] = [
        ("balanced pools: above every other policy", balanced, lambda each: each.ours.accuracy > _best(each)),
        ("the same, with an interval above 0 (in half of them)", balanced, _is_certain),
        (
            f"{REFERENCE}'s final accuracy after half of the steps",
            [each for each in found if each.share is not None],
            lambda each: each.share is not None and each.share <= HALF,
        ),
        (
            f"long tails: {GOAL} points above the best rival",
            tailed,
            lambda each: 100 * (each.ours.accuracy - each.rival.accuracy) >= GOAL,
        ),
        (f"long tails: not below {SUPERVISED}", tailed, _is_not_below),
        (f"foreign images: not below {SUPERVISED}", foreign, _is_not_below),
    ]
    reached += [
        (
            f"foreign images: at most {GOAL} points below the cleaned pool, {policy}",
            [each for each in foreign if policy in lost[each.setting]],
            lambda each, policy=policy: lost[each.setting][policy] <= GOAL,  # type: ignore[misc]
        )
        for policy in (OURS, OPEN_SET)
    ]
    reached.append(("lowest calibration error (in half of them)", found, lambda each: each.least_error))
    body = []
    for goal, meant, is_reached in reached:
        missed = [each.setting for each in meant if not is_reached(each)]
        body.append([goal, f"{len(meant) - len(missed)} of {len(meant)}", ", ".join(missed) or "-"])
    return table(("goal", "reached", "not in"), body)


def choice() -> str:
    """A row for each variant that was tried on the subsets to choose by, each beside `dpl` on its own subsets, in %."""
    found = [row for row in read("study") if int(row["subset"]) not in REPORTED]
    body = []
    for setting, label in sorted({(row["setting"], row["policy"]) for row in found if row["policy"] != OURS}):
        both = beside_ours(found, setting, label)
        accuracies = (f"{100 * row.accuracy:.1f}" for row in (both[label], both[OURS]))
        body.append([setting, label, str(len(both[OURS].subsets)), *accuracies, minus_text(both[label], of_ours=False)])
    return table(("setting", "variant", "subsets", "accuracy", f"of {OURS}", f"minus {OURS} [95 %]"), body)


def parts() -> str:
    """A row for each setting of frozen features: what `dpl` without one of its parts there is away from `dpl`."""
    found, differences = reported(), {}
    for setting in settings(found):
        if {row["policy"] for row in found if row["setting"] == setting}.issuperset(WITHOUT):
            differences[setting] = [beside_ours(found, setting, label)[label] for label in WITHOUT]
    body = [[setting, *(minus_text(row, of_ours=False) for row in rows)] for setting, rows in differences.items()]
    of_part = zip(*differences.values(), strict=True)
    means = [f"{100 * mean(row.difference or 0 for row in rows):+.1f}" for rows in of_part]
    return table(("setting", *WITHOUT), [*body, ["mean", *means]])


def extent() -> str:
    """Which settings have which policies, what is missing, and what all of it took."""
    rows = read("study")
    policies = {
        setting: sorted({row["policy"] for row in of_shared_subsets(reported(), setting) if "(" not in row["policy"]})
        for setting in SETTINGS
        if not setting.endswith(NAMED_ALONE)
    }
    by_policies: dict[str, list[str]] = {}
    for setting, named in policies.items():
        if named:
            by_policies.setdefault(", ".join(f"`{name}`" for name in named), []).append(setting)
    body = [[", ".join(names), named] for named, names in sorted(by_policies.items(), key=lambda item: item[1])]
    missing = [setting for setting, named in policies.items() if not named]
    hours = sum(float(row["training_seconds"]) for row in rows) / 3600
    of_base = {
        name: [float(row["training_seconds"]) / 60 for row in rows if row["setting"].partition("-lt")[0] == name]
        for name in BASES
    }
    minutes = ", ".join(f"{name} {shown(median(found))}" for name, found in of_base.items() if found)
    trained = (
        f"{len(rows):,} trainings of one thread each, one initialization on each labelled subset, took {hours:.1f} "
        f"hours of a core. Minutes of one, the median, two at once: {minutes}."
    )
    return f"{table(('settings', 'policies'), body)}\n\nNot measured: {', '.join(missing) or 'none'}.\n\n{trained}"


def _best(each: Standing) -> float:
    return max(each.rival.accuracy, each.supervised.accuracy)


def _is_certain(each: Standing) -> bool:
    """Whether the interval of the difference to the rival, which is that of the rival to `dpl`, is on our side."""
    return each.rival.interval is not None and each.rival.interval.high < 0


def _is_not_below(each: Standing) -> bool:
    return each.ours.accuracy >= each.supervised.accuracy


def _lost_to_foreign_images(setting: str) -> dict[str, float]:
    """Policy -> points by which it is below `dpl` on the same pool without its foreign images."""
    cleaned = setting.replace("-open", "-clean")
    rows = [
        row | {"setting": setting, "policy": cleaned if row["setting"] == cleaned else row["policy"]}
        for row in reported()
        if (row["setting"] == cleaned and row["policy"] == OURS)
        or (row["setting"] == setting and row["policy"] in (OURS, OPEN_SET))
    ]
    found = {row.label: row for row in make_rows(shared_cells(rows, setting), cleaned)}
    return {label: -100 * row.difference for label, row in found.items() if row.difference is not None}


TABLES = {"study-goals": goals, "study-choice": choice, "study-parts": parts, "study-extent": extent}
