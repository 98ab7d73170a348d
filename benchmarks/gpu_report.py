"""The rows that `benchmarks/gpu.sh` wrote, as tables: FOLDER/table.md of a call, and a table of the documents.

    python -m benchmarks.gpu_report FOLDER                                print them
    python -m benchmarks.gpu_report FOLDER ANOTHER --save                 and keep them: bench/gpu, gpu_accuracy.csv

A later row of one name replaces an earlier one.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.figures import Figure, Figures, Measurement, add_save, shown
from benchmarks.gpu_rows import Row, read_rows
from dpl_ray.page.markdown import markdown_table

#: Name of a row -> what the table calls it; of a step.
STEPS = {
    "host waits for shapes": "shapes of the data, launched one by one",
    "one by one": "fixed shapes, launched one by one",
    "graph": "fixed shapes, one CUDA graph",
    "deterministic, graph": "deterministic, one CUDA graph",
    "compiled, one by one": "compiled, launched one by one",
    "compiled, graph": "compiled, one CUDA graph",
}
BOUNDED = ("graph", "compiled, graph")  # what a training runs on a single GPU, by default and with train.compile
MOST_MILLISECONDS, MOST_WAIT, LEAST_ACCURACY = 10, 2, 90
#: Phase of profiled kernels -> what its columns are called.
KERNELS = {"kernels": "not compiled", "kernels-compiled": "compiled"}
#: What was not measured, and the tests.
NEWS = ("pytest", "skipped", "killed")
#: Columns of docs/results/gpu_accuracy.csv.
SHARES = ("coverage", "precision", "seconds_per_step")
CURVE = ("policy", "seed", "step", "accuracy", *SHARES, "gpu")


def table(rows: Sequence[Row]) -> Figures:
    """Times of a step at each coverage, data wait and accuracy, as far as they were measured."""
    figures: Figures = {}
    for row in rows:
        name = row["name"]
        spread = {key: row[key] for key in ("low", "high") if key in row}
        if name in STEPS:
            bound = {"at_most": MOST_MILLISECONDS} if name in BOUNDED and row["coverage"] == 1 else {}
            cells = figures.setdefault(STEPS[name], {})
            cells[f"coverage {row['coverage']:g}"] = Figure(row["value"], "ms", **spread, **bound)
        elif name == "data wait":
            figures["share of the step that waits for data"] = {
                "coverage 1": Figure(row["value"], "%", **spread, at_most=MOST_WAIT)
            }
    for training in trainings(rows):
        end = training.end
        figures[f"CIFAR-10, 25 labels a class, {end['policy']}, seed {end['seed']:g}"] = training.cells()
    return figures


@dataclass(frozen=True)
class Training:
    """The rows of an accuracy run that came to its end."""

    end: Row
    curve: list[Row]
    minutes_before: float | None  # from the start of the process; None: not its first training

    def cells(self) -> dict[str, Figure]:
        end = self.end
        cells = {"test accuracy": Figure(end["value"], "%", at_least=LEAST_ACCURACY)}
        if self.minutes_before is not None:
            cells["before training"] = Figure(self.minutes_before, "min")
        cells |= {"training": Figure(end["seconds"] / 60, "min", at_most=10), "steps": Figure(int(end["steps"]))}
        if half := [point["value"] for point in self.curve if point["step"] <= end["steps"] / 2]:
            cells["half way"] = Figure(half[-1], "%")
        if "precision" in end:
            cells["right pseudo-labels"] = Figure(100 * end["precision"], "%")
        waits = 100 * end["seconds_of_data"] / end["seconds_per_step"]
        return cells | {"wait for data": Figure(waits, "%", at_most=MOST_WAIT)}


def trainings(rows: Sequence[Row]) -> list[Training]:
    found: list[Training] = []
    curve: list[Row] = []
    before: float | None = None
    for row in rows:
        if row["name"] == "minutes before training":
            before = row["value"]
        elif row["name"] == "steps":  # a training begins
            curve = []
        elif row["name"] == "curve":
            curve.append(row)
        elif row["name"] == "test accuracy":
            found.append(Training(row, curve, before))
            before = None
    return found


def parts(rows: Sequence[Row]) -> list[list[str]]:
    """Milliseconds of a step's kernels by part of the step: launched one by one, not compiled and compiled."""
    found: dict[str, dict[str, str]] = {}
    for row in rows:
        if row["name"] == "part":
            found.setdefault(row["part"], {})[row["phase"]] = shown(row["value"])
    return [[part, *(cells.get(phase, "") for phase in KERNELS)] for part, cells in found.items()]


def kernels(rows: Sequence[Row], phase: str) -> list[list[str]]:
    """All kernels of a step and the longest ones of the newest profile: milliseconds and calls."""
    found: list[list[str]] = []
    for row in rows:
        if row["phase"] != phase:
            continue
        if row["name"] == "all kernels":
            found = [["all", shown(row["value"]), ""]]
        elif row["name"] == "number of kernels":
            found[0][2] = shown(row["value"])
        elif row["name"] == "kernel":
            found.append([row["kernel"], shown(row["value"]), shown(row["calls"])])
    return found


def measurement(rows: Sequence[Row], commit: str | None = None, note: str = "") -> Measurement:
    """The table of the documents.

    Args:
        commit: that was measured; None: the one that the newest call has noted.
    """
    newest = {row["name"]: row for row in rows if "text" in row}
    device = newest.get("device", {"text": "unknown", "cores": 0})
    return Measurement(
        command="benchmarks/gpu.sh FOLDER --images cifar10",
        figures=table(rows),
        commit=commit or newest["commit"]["text"],
        date=datetime.now(UTC).date().isoformat(),
        hardware=f"{device['text']}, {device['cores']:g} cores",
        versions=newest.get("versions", {"text": "unknown"})["text"],
        note=note,
    )


def page(rows: Sequence[Row], commit: str | None = None, note: str = "") -> str:
    """The table of the documents, and those of kernels, of parts of the step, of tests and of what was not measured."""
    lines = [measurement(rows, commit, note).to_markdown()]
    if of_parts := parts(rows):
        lines += ["", "Kernels of a step by its part, launched one by one, ms:", ""]
        lines += markdown_table(["part", *KERNELS.values()], of_parts)
    for phase, name in KERNELS.items():
        if of_kernels := kernels(rows, phase):
            lines += ["", f"Kernels of a step as one CUDA graph, {name}:", ""]
            lines += markdown_table(["kernel", "ms", "calls"], of_kernels)
    if news := [[row["phase"], row["name"], row["text"]] for row in rows if row["name"] in NEWS]:
        lines += ["", *markdown_table(["phase", "what", "why"], news)]
    return "\n".join(lines) + "\n"


def save_curves(rows: Sequence[Row]) -> None:
    """Keep the curve of each training in docs/results/gpu_accuracy.csv, in place of an earlier one of its seed."""
    from benchmarks.tables import write  # it imports torch, which the process that starts the phases does without

    gpu = measurement(rows).hardware.rpartition(", ")[0]
    for training in trainings(rows):
        run = training.end["policy"], f"{training.end['seed']:g}"
        points = [
            [*run, int(row["step"]), f"{row['value'] / 100:.4f}", *(row.get(name, "") for name in SHARES), gpu]
            for row in training.curve
        ]
        write("gpu_accuracy", CURVE, points, dict(zip(CURVE, run, strict=False)))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, help="of benchmarks/gpu.sh, the newest one last")
    parser.add_argument("--commit", help="that was measured; default: what the newest folder has noted")
    parser.add_argument("--note", default="", help="a sentence on how they were measured")
    add_save(parser, "gpu")
    given = parser.parse_args(arguments)
    rows = [row for folder in given.folders for row in read_rows(folder)]
    print(page(rows, given.commit, given.note), end="")
    if given.save:
        found = measurement(rows, given.commit, given.note)
        if not re.fullmatch("[0-9a-f]{7,}", found.commit):
            parser.error(f"the rows are of commit {found.commit}: say with --commit which one has the code")
        found.save(given.save)
        save_curves(rows)


if __name__ == "__main__":
    main()
