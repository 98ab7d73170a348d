"""The tables of pretrained backbones, of frozen.csv, ways.csv and policies.csv: `TABLES`, name -> function.

Which policies are recommended on frozen features is decided here, by the numbers: those that are above `supervised` in
every measured setting, in the mean over the labelled subsets.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable

from benchmarks.figures import Figures, Measurement
from benchmarks.tables import SUPERVISED, CsvRows, cells, read, settings, table
from dpl_ray.studies.comparison.table import make_rows, shown_label, tables

#: Rows of features.json.
EMBEDDING = "features of EfficientNet-Lite0 at 96 px, of the image and two views"
TRAINING = "1,000 steps of dpl on them"
POLICIES = (SUPERVISED, "fixmatch", "freematch", "dpl")  # of all ways
#: Setting -> setting of policies.csv, pixels and images of the pool: trained from scratch for longer, elsewhere.
LONGER = {"cifar10-25": ("cifar10-25", "32", "49750"), "fashion_mnist-4": ("fashion14-4", "14", "59960")}
Ways = dict[tuple[str, str], list[dict[str, str]]]  # (setting, way) -> trainings of the four policies


def policies(setting: str, results: CsvRows) -> str:
    """A row for each policy in a setting, the most accurate first, with the paired difference to supervised."""
    columns = {heading: show for part in tables(SUPERVISED).values() for heading, show in part.items()}
    shown = ("subsets x repeats", "accuracy", f"minus {SUPERVISED} [95 %]", "coverage", "precision", "ECE")
    rows = make_rows(cells(setting, results, ()), SUPERVISED)
    return table(
        ["policy", *shown], [[shown_label(row), *(columns[heading](row) for heading in shown)] for row in rows]
    )


def differences(results: CsvRows) -> dict[str, dict[str, float]]:
    """Policy -> setting -> points above supervised, mean over the labelled subsets; the best in the mean first.

    Policies with parameters that are not their defaults are left out: they are parts of an ablation.
    """
    found: dict[str, dict[str, float]] = {}
    for setting in settings(results):
        for row in make_rows(cells(setting, results, ()), SUPERVISED):
            if row.difference is not None and "(" not in row.label:
                found.setdefault(row.label, {})[setting] = 100 * row.difference
    return dict(sorted(found.items(), key=lambda item: -statistics.fmean(item[1].values())))


def below(results: CsvRows) -> dict[str, list[str]]:
    """Policy -> settings in which it is not above supervised, of the policies that have any."""
    found = {
        policy: [name for name, points in of.items() if points <= 0] for policy, of in differences(results).items()
    }
    return {policy: names for policy, names in found.items() if names}


def choice(results: CsvRows) -> str:
    """The points of every policy above supervised, and what is recommended."""
    names, found, worse = settings(results), differences(results), below(results)
    body = [
        [policy, *(f"{of[name]:+.2f}" for name in names), "below supervised" if policy in worse else "recommended"]
        for policy, of in found.items()
    ]
    return f"{table(['policy', *names, 'verdict'], body)}\n\n{sentence(results)}"


def sentence(results: CsvRows) -> str:
    worse = below(results)
    good = ", ".join(f"`{policy}`" for policy in differences(results) if policy not in worse)
    bad = "; ".join(f"`{policy}` ends below it in {', '.join(names)}" for policy, names in worse.items())
    return f"On frozen features we recommend those that end above `{SUPERVISED}` in every setting: {good}." + (
        f" Not recommended: {bad}." if bad else ""
    )


def ways(found: Ways, features: Figures) -> str:
    """A row for each setting and way: what a run of dpl costs, and the accuracy of four policies.

    Args:
        features: what the features and a training on them cost.
    """
    rate, training = (features[row]["one core"].value for row in (EMBEDDING, TRAINING))
    once = f"{training / 60:.1f}, and {10_000 / rate / 60:.0f} for all features once"
    body = [
        [*key, *_cost(rows, once if key[1] == "frozen" else None), *(f"{value:.1f}" for value in _means(rows).values())]
        for key, rows in found.items()
    ]
    heading = ["labels", "way", "pixels", "pool", "subsets", "steps", "minutes of a run", *POLICIES]
    return f"{table(heading, body)}\n\n{best(found)}"


def best(found: Ways) -> str:
    """The most accurate way of every setting."""
    of_setting: dict[str, list[tuple[float, str, str]]] = {}
    for (setting, way), rows in found.items():
        of_setting.setdefault(setting, []).extend((value, way, policy) for policy, value in _means(rows).items())
    tops = {setting: max(of) for setting, of in of_setting.items()}
    listed = "; ".join(
        f"{setting}: {way}, by `{policy}` ({value:.1f}, labelled subsets: {_num_subsets(found[setting, way])})"
        for setting, (value, way, policy) in tops.items()
    )
    return f"The most accurate way of each: {listed}."


def _num_subsets(rows: CsvRows) -> int:
    return len({row["seed"] for row in rows})


def collect(frozen: CsvRows, tuned: CsvRows, longer: CsvRows) -> Ways:
    """The trainings on those labelled subsets that all four policies have been trained on."""
    found: Ways = {}
    for setting in settings(frozen):
        groups: dict[str, list[dict[str, str]]] = {"scratch": [], "frozen": [], "fine-tuned": []}
        if setting in LONGER:
            name, pixels, images = LONGER[setting]
            groups["scratch"] = [row | {"pixels": pixels, "pool": images} for row in _of(longer, name)]
        pool = str(10_000 - 10 * int(setting.rpartition("-")[2]))
        groups["frozen"] = [row | {"pixels": "96", "pool": pool} for row in _of(frozen, setting)]
        for row in _of(tuned, setting):
            groups[row["way"]].append(row)
        for way, rows in groups.items():
            seeds = [{row["seed"] for row in rows if row["policy"] == policy} for policy in POLICIES]
            if common := set.intersection(*seeds):
                found[setting, way] = [row for row in rows if row["policy"] in POLICIES and row["seed"] in common]
    return found


def _of(rows: CsvRows, setting: str) -> list[dict[str, str]]:
    return [row for row in rows if row["setting"] == setting]


def _cost(rows: CsvRows, minutes: str | None) -> list[str]:
    ours = [row for row in rows if row["policy"] == "dpl"]
    device = min(row.get("device", "CPU") for row in ours)
    seconds = [
        float(row.get("core_seconds") or row["training_seconds"]) for row in ours if row.get("device", "CPU") == device
    ]
    return [
        ours[0]["pixels"],
        f"{int(ours[0]['pool']):,}",
        str(_num_subsets(rows)),
        f"{int(ours[0]['steps']):,}",
        minutes or f"{statistics.median(seconds) / 60:.1f}{'' if device == 'CPU' else ' (H100)'}",
    ]


def _means(rows: CsvRows) -> dict[str, float]:
    """Policy -> accuracy in %."""
    return {
        policy: 100 * statistics.fmean(float(row["accuracy"]) for row in rows if row["policy"] == policy)
        for policy in POLICIES
    }


def _measured_ways() -> Ways:
    return collect(read("frozen"), read("ways"), read("policies"))


def _policies(name: str, setting: str, way: str | None = None) -> Callable[[], str]:
    rows = [row for row in read(name) if way is None or row["way"] == way]
    return lambda: policies(setting, rows)


TABLES: dict[str, Callable[[], str]] = {
    **{f"frozen/{name}": _policies("frozen", name) for name in settings(read("frozen"))},
    "frozen-choice": lambda: choice(read("frozen")),
    "frozen-policies": lambda: sentence(read("frozen")),
    "ways": lambda: ways(_measured_ways(), Measurement.load("features").figures),
    "ways-best": lambda: best(_measured_ways()),
}
