"""The tables of results that are made from the CSV files of docs/results: `TABLES`, name -> function.

Those of pretrained backbones are in benchmarks/backbones.py.
"""

from __future__ import annotations

import csv
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from benchmarks import paper, scaling
from dpl_ray.page.markdown import markdown_row
from dpl_ray.report.health import KINDS
from dpl_ray.studies.comparison.cells import CellResult
from dpl_ray.studies.comparison.table import Row, make_rows, shown_label, tables
from dpl_ray.studies.comparison.two_level import two_level_interval

FOLDER = Path(__file__).parent.parent / "docs" / "results"
REFERENCE = "fixmatch"
SUPERVISED = "supervised"
OURS = "dpl"
#: Column of policies.csv -> metric of a cell.
METRICS = {
    "accuracy": "eval/accuracy",
    "balanced_accuracy": "eval/balanced_accuracy",
    "ece": "eval/ece",
    "coverage": "pseudo/coverage",
    "precision": "pseudo/precision",
    "high_entropy_share": "pseudo/high_entropy_share",
    "high_entropy_precision": "pseudo/high_entropy_precision",
}
#: Of a comparison's columns, those that docs/RESULTS.md shows, in this order.
SHOWN = (
    "subsets x repeats",
    "accuracy",
    f"minus {REFERENCE} [95 %]",
    f"steps to {REFERENCE}'s accuracy",
    "coverage",
    "precision",
    "high-entropy share",
    "their precision",
    "ECE",
)
CsvRows = Sequence[dict[str, str]]


def read(name: str) -> list[dict[str, str]]:
    with (FOLDER / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def write(name: str, columns: Sequence[str], rows: Sequence[Sequence[object]], replaces: Mapping[str, str]) -> None:
    """Add rows to a file of docs/results, in place of those of these values."""
    path = FOLDER / f"{name}.csv"
    before = read(name) if path.is_file() else []
    kept = [list(row.values()) for row in before if any(row[column] != value for column, value in replaces.items())]
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([columns, *kept, *rows])


def rounded(cell: CellResult) -> list[str]:
    """The columns of METRICS."""
    return [f"{cell.metrics[name]:.4f}" if name in cell.metrics else "" for name in METRICS.values()]


def table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(map(markdown_row, [heading, ["---"] * len(heading), *rows]))


def cells(setting: str, results: CsvRows, curves: CsvRows) -> list[CellResult]:
    """The cells of a setting, from the rows of policies.csv and policies_curves.csv."""
    points: dict[tuple[str, str], list[tuple[int, float, float]]] = {}
    for row in curves:
        if row["setting"] == setting:
            point = int(row["step"]), float(row["accuracy_of_2000_test_images"]), 0.0
            points.setdefault((row["policy"], row["seed"]), []).append(point)
    return [cell(row, points.get((row["policy"], row["seed"]), [])) for row in results if row["setting"] == setting]


def curve_text(cell: CellResult) -> str:
    """Steps and accuracies of a curve, as one column of a CSV."""
    return " ".join(f"{step}:{accuracy:.4f}" for step, accuracy, _ in cell.curve)


def cell(row: dict[str, str], curve: list[tuple[int, float, float]] | None = None) -> CellResult:
    """The cell of a row with the columns of METRICS; without a curve given, of `curve_text` where it has that."""
    if curve is None:
        points = (point.split(":") for point in row.get("curve", "").split())
        curve = [(int(step), float(accuracy), 0.0) for step, accuracy in points]
    return CellResult(
        label=row["policy"],
        policy={},
        seed=int(row["seed"]),
        steps=int(row["steps"]),
        seconds=float(row["training_seconds"]),
        metrics={metric: float(row[column]) for column, metric in METRICS.items() if row[column]},
        curve=curve,
        checkpoint="",
        subset=int(row["subset"]) if "subset" in row else None,
    )


def comparison(rows: Sequence[Row]) -> str:
    """A row for each policy, the most accurate first."""
    columns: dict[str, Callable[[Row], str]] = {}
    for part in tables(REFERENCE).values():
        columns |= part
    body = [[shown_label(row), *(columns[heading](row) for heading in SHOWN)] for row in rows]
    return table(["policy", *SHOWN], body)


def settings(results: CsvRows) -> list[str]:
    return list(dict.fromkeys(row["setting"] for row in results))


def ours(results: CsvRows, curves: CsvRows, policy: str = OURS) -> str:
    """A row for each setting: how far `policy` is from the first and from the reference."""
    body, ranks = [], []
    for setting in settings(results):
        found = cells(setting, results, curves)
        rows = make_rows(found, REFERENCE)
        rank, row = next((place, row) for place, row in enumerate(rows, start=1) if row.label == policy)
        ranks.append(rank)
        assert row.difference is not None, "the reference has the subsets of all policies"
        behind = 100 * (rows[0].accuracy - row.accuracy)
        steps = next(cell.steps for cell in found if cell.label == policy)
        share = None if row.steps is None or row.steps.median is None else row.steps.median / steps
        used, right = row.means["high_entropy_share"], row.means["high_entropy_precision"]
        body.append(
            [
                setting,
                f"{rank} of {len(rows)}",
                rows[0].label,
                f"{behind:.2f}",
                f"{100 * row.difference:+.2f}",
                *("-" if value is None else f"{value:.2f}" for value in (share, used, right)),
            ]
        )
    heading = (
        "setting", f"rank of {policy}", "first", "points behind the first", f"points above {REFERENCE}",
        f"share of the run to {REFERENCE}'s accuracy", "weight on high-entropy samples", "of it right",
    )  # fmt: skip
    summary = f"`{policy}` is first in {ranks.count(1)} of {len(ranks)} settings, and second or third in "
    return f"{table(heading, body)}\n\n{summary}{ranks.count(2) + ranks.count(3)}."


def means(results: CsvRows) -> str:
    """The mean accuracy over the settings, of the policies that were run in all of them, the best first."""
    names = settings(results)
    accuracies: dict[str, dict[str, list[float]]] = {}
    for row in results:
        accuracies.setdefault(row["policy"], {}).setdefault(row["setting"], []).append(float(row["accuracy"]))
    found = {
        policy: statistics.fmean(statistics.fmean(of_setting[name]) for name in names)
        for policy, of_setting in accuracies.items()
        if of_setting.keys() == set(names)
    }
    ranked = sorted(found, key=lambda policy: -found[policy])
    return table(
        ["policy", "mean accuracy over the settings, in %"], [[name, f"{100 * found[name]:.1f}"] for name in ranked]
    )


ABLATION_SETTINGS = ("fashion14-4", "digits-2", "digits-4", "fashion14-25", "frozen-4", "frozen-25")
#: `label_sets` was measured before the variant took the samples of no weight in; those with a star, in code that was
#: thrown away. No command measures them again.
NOT_MEASURABLE = ("label_sets",)


def ablation(rows: CsvRows) -> str:
    """A row for each change of dpl: points above dpl with the same seed, and the number of seeds.

    Bold where the 95 % interval of the difference lies on one side of 0.
    """
    main = ABLATION_SETTINGS[0]
    first = [row for row in rows if row["setting"] == main]
    differences: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        if not row["variant"].endswith("*") and row["variant"] not in NOT_MEASURABLE:
            found = differences.setdefault(row["variant"], {}).setdefault(row["setting"], [])
            found.append(100 * (float(row["accuracy"]) - float(row["accuracy_of_the_base"])))

    def order(variant: str) -> float:
        of_setting = differences[variant]
        return -statistics.fmean(of_setting[next(name for name in ABLATION_SETTINGS if name in of_setting)])

    def mean(variant: str, column: str) -> str:
        return f"{statistics.fmean(float(row[column]) for row in first if row['variant'] == variant):.2f}"

    def shown_points(points: list[float]) -> str:
        interval = two_level_interval({seed: [point] for seed, point in enumerate(points)})
        text = f"{statistics.fmean(points):+.2f} ({len(points)})"
        return f"**{text}**" if interval is not None and interval.low * interval.high > 0 else text

    body = []
    for variant in sorted(differences, key=order):
        of_setting = differences[variant]
        shown = (shown_points(of_setting[name]) if name in of_setting else "" for name in ABLATION_SETTINGS)
        use = f"{mean(variant, 'coverage')}, {mean(variant, 'precision')}" if main in of_setting else ""
        body.append([variant, *shown, use])
    gains = [statistics.fmean(found[main]) for found in differences.values() if main in found]
    better = f"On {main}, {sum(gain > 0 for gain in gains)} of {len(gains)} changes have a higher mean than dpl."
    heading = ["change of dpl", *ABLATION_SETTINGS, f"coverage, precision ({main})"]
    return f"{table(heading, body)}\n\n{better}"


FIRST_RUNS = {
    "eval/accuracy": "accuracy",
    "eval/ece": "ECE",
    "pseudo/coverage": "coverage",
    "pseudo/precision": "precision",
    "pseudo/high_entropy_share": "high-entropy share",
    "pseudo/high_entropy_precision": "their precision",
}


def first_runs(rows: CsvRows) -> str:
    body = [
        [row["run"], row["policy"], f"{int(row['steps']):,}"]
        + [f"{100 * float(row[column]):.1f}" if row[column] else "-" for column in FIRST_RUNS]
        for row in rows
    ]
    accuracies: dict[str, dict[str, float]] = {}
    for row in rows:
        accuracies.setdefault(row["data"], {})[row["policy"]] = 100 * float(row["eval/accuracy"])
    sentences = [
        f"On {data} dpl is {_distance(found[OURS] - found[REFERENCE])} {REFERENCE} and "
        f"{_distance(found[OURS] - found['supervised'])} supervised."
        for data, found in accuracies.items()
    ]
    return "\n\n".join([table(["run", "policy", "steps", *FIRST_RUNS.values()], body), *sentences])


def _distance(points: float) -> str:
    return f"{abs(points):.1f} points {'above' if points > 0 else 'below'}"


def setting(name: str, results: CsvRows, curves: CsvRows) -> str:
    found = cells(name, results, curves)
    steps = " or ".join(f"{steps:,}" for steps in sorted({cell.steps for cell in found}))
    return f"{comparison(make_rows(found, REFERENCE))}\n\nEach training has {steps} steps."


def _setting(name: str) -> Callable[[], str]:
    return lambda: setting(name, read("policies"), read("policies_curves"))


def demo(printed: str) -> str:
    """Of what `make demo` prints the first line, the last one of each training, two rows, and all after the tables."""
    last = {line.split()[0]: line for line in printed.splitlines() if " steps  " in line}
    rows = ("┏", "┃", "┡", "│ accuracy", "│ precision", "└")
    table = printed[printed.index("Last teacher") : printed.index("Thresholds")].splitlines()
    after = printed[printed.rindex("┘") + 2 :].splitlines()
    lines = [
        printed.splitlines()[0],
        *last.values(),
        table[0],
        *(line for line in table if line.startswith(rows)),
        *after,
    ]
    return "\n".join(["```", *lines, "```"])


def faults(rows: CsvRows) -> str:
    """What was done to the jobs, when, and what came of it; the same of one job in one row."""
    groups: dict[tuple[str, str, str], list[dict[str, str]]] = {}
    for row in rows:
        groups.setdefault((row["job"], row["what"], row["outcome"]), []).append(row)
    found = []
    for (job, what, outcome), same in groups.items():
        is_same = "yes" if all(row["same"] == "True" for row in same) else "**no**"
        found.append([job, what, str(len(same)), ", ".join(row["when"] for row in same), outcome, is_same])
    return table(["job", "what was killed or failed", "times", "when", "what came of it", "same result"], found)


def suggestions(results: CsvRows) -> str:
    """A row for each data set and way to choose images: accuracy after the last round, and points above random ones."""
    last = max((int(row["round"]) for row in results), default=0)
    found: dict[str, dict[str, dict[str, float]]] = {}  # data -> way -> seed -> accuracy
    first: dict[str, dict[str, float]] = {}
    for row in results:
        accuracy = 100 * float(row["accuracy"])
        if int(row["round"]) == last:
            found.setdefault(row["data"], {}).setdefault(row["way"], {})[row["seed"]] = accuracy
        elif row["round"] == "0":
            first.setdefault(row["data"], {})[row["seed"]] = accuracy
    body = []
    for data, ways in found.items():
        for way, accuracies in ways.items():
            values = list(accuracies.values())
            spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
            points = [value - ways["random"][seed] for seed, value in accuracies.items() if seed in ways["random"]]
            above = f"{sum(point > 0 for point in points)} of {len(points)}"
            body.append(
                [
                    data,
                    way,
                    f"{statistics.fmean(first[data][seed] for seed in accuracies):.1f}",
                    f"{statistics.fmean(values):.1f}{spread}",
                    *(["-", "-"] if way == "random" else [f"{statistics.fmean(points):+.1f}", above]),
                ]
            )
    heading = [
        "data",
        "images chosen by",
        "accuracy before",
        f"after {last} rounds",
        "minus random",
        "seeds above random",
    ]
    return table(heading, body)


def gpu_accuracy(rows: CsvRows) -> str:
    """A row for each point of the curves that benchmarks/gpu_report.py keeps, in %."""
    shares = ("accuracy", "coverage", "precision")
    body = [
        [row["policy"], row["seed"], f"{int(row['step']):,}"]
        + [f"{100 * float(row[column]):.1f}" if row[column] else "" for column in shares]
        for row in rows
    ]
    return table(["policy", "seed", "step", "accuracy", "pool used", "right pseudo-labels"], body)


TABLES: dict[str, Callable[[], str]] = {
    **{f"policies/{name}": _setting(name) for name in settings(read("policies"))},
    "policies-dpl": lambda: ours(read("policies"), read("policies_curves")),
    "policies-means": lambda: means(read("policies")),
    "dpl-ablation": lambda: ablation(read("dpl_ablation")),
    "first-runs": lambda: first_runs(read("first_runs")),
    "paper": paper.plan,
    "paper-features": paper.features_plan,
    "scaling": scaling.plan,
    "suggest": lambda: suggestions(read("suggest")),
    "health": lambda: table(["finding", "when"], [[name, when] for name, (_, when) in KINDS.items()]),
    "gpu-accuracy": lambda: gpu_accuracy(read("gpu_accuracy")),
    "faults": lambda: faults(read("faults")),
    "demo": lambda: demo((FOLDER / "demo.txt").read_text()),
}
