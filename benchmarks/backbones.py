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
LONGER = {"cifar10-25": ("cifar10-25", 32, 49_750), "fashion_mnist-4": ("fashion14-4", 14, 59_960)}


def policies(setting: str, results: CsvRows) -> str:
    """A row for each policy in a setting, the most accurate first, with the paired difference to supervised."""
    columns = {heading: show for part in tables(SUPERVISED).values() for heading, show in part.items()}
    shown = ("subsets x repeats", "accuracy", f"minus {SUPERVISED} [95 %]", "coverage", "precision", "ECE")
    rows = make_rows(cells(setting, results, ()), SUPERVISED)
    return table(
        ["policy", *shown], [[shown_label(row), *(columns[heading](row) for heading in shown)] for row in rows]
    )


def differences(results: CsvRows) -> dict[str, dict[str, float]]:
    """Policy -> setting -> points above supervised, mean over the labelled subsets; the best in the mean first."""
    found: dict[str, dict[str, float]] = {}
    for setting in settings(results):
        for row in make_rows(cells(setting, results, ()), SUPERVISED):
            if row.difference is not None:
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
    return f"On frozen features we recommend those that end above `{SUPERVISED}` in every setting: {good}. " + (
        f"Not recommended: {bad}." if bad else ""
    )


def ways(frozen: CsvRows, tuned: CsvRows, longer: CsvRows, features: Figures) -> str:
    """A row for each setting and way: what a run of dpl costs, and the accuracy of four policies.

    Args:
        features: what the features and a training on them cost.
    """
    rate, training = (features[row]["one core"].value for row in (EMBEDDING, TRAINING))
    once = f"{training / 60:.1f}, and {10_000 / rate / 60:.0f} for all features once"
    body = []
    for setting in settings(frozen):
        groups = {"scratch": (_of(longer, LONGER[setting][0]), *LONGER[setting][1:])} if setting in LONGER else {}
        groups["frozen"] = (_of(frozen, setting), 96, 10_000)
        for row in _of(tuned, setting):
            group = groups.setdefault(row["way"], ([], int(row["pixels"]), int(row["pool"])))
            group[0].append(row)
        for way in ("scratch", "frozen", "fine-tuned"):
            if way in groups:
                body.append([setting, way, *_way(*groups[way], once if way == "frozen" else None)])
    return table(["labels", "way", "pixels", "pool", "subsets", "steps", "minutes of a run", *POLICIES], body)


def _of(rows: CsvRows, setting: str) -> list[dict[str, str]]:
    return [row for row in rows if row["setting"] == setting]


def _way(rows: CsvRows, pixels: int, pool: int, minutes: str | None) -> list[str]:
    found = {policy: [row for row in rows if row["policy"] == policy] for policy in POLICIES}
    ours = found["dpl"]
    device = min(row.get("device", "CPU") for row in ours)
    seconds = [
        float(row.get("core_seconds") or row["training_seconds"]) for row in ours if row.get("device", "CPU") == device
    ]
    return [
        str(pixels),
        f"{pool:,}",
        str(len(ours)),
        f"{int(ours[0]['steps']):,}",
        minutes or f"{statistics.median(seconds) / 60:.1f}{'' if device == 'CPU' else ' (H100)'}",
        *(f"{100 * statistics.fmean(float(row['accuracy']) for row in of):.1f}" for of in found.values()),
    ]


def _policies(name: str, setting: str, way: str | None = None) -> Callable[[], str]:
    rows = [row for row in read(name) if way is None or row["way"] == way]
    return lambda: policies(setting, rows)


TABLES: dict[str, Callable[[], str]] = {
    **{f"frozen/{name}": _policies("frozen", name) for name in settings(read("frozen"))},
    "frozen-choice": lambda: choice(read("frozen")),
    "frozen-policies": lambda: sentence(read("frozen")),
    "ways": lambda: ways(read("frozen"), read("ways"), read("policies"), Measurement.load("features").figures),
}
