"""The rows that `benchmarks/gpu.sh` wrote, as a table of the documents.

    python -m benchmarks.gpu_report FOLDER --hardware 'NVIDIA H100, 16 cores' --versions 'torch 2.11.0' --save

A later row of one name replaces an earlier one.
"""

from __future__ import annotations

import argparse
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.figures import Figure, Figures, Measurement, add_save
from dpl_ray.runs.provenance import git_commit

#: Name of a row -> what the table calls it; of a step.
STEPS = {
    "host waits for shapes": "shapes of the data, launched one by one",
    "one by one": "fixed shapes, launched one by one",
    "graph": "fixed shapes, one CUDA graph",
    "deterministic, graph": "deterministic, one CUDA graph",
    "compiled, one by one": "compiled, launched one by one",
    "compiled, graph": "compiled, one CUDA graph",
}
MOST_MILLISECONDS, MOST_WAIT, LEAST_ACCURACY = 10, 2, 90


def table(rows: list[dict[str, Any]]) -> Figures:
    """Times of a step at each coverage, data wait and accuracy, as far as they were measured."""
    figures: Figures = {}
    curve: list[dict[str, Any]] = []
    for row in rows:
        name, value = row["name"], row["value"]
        spread = {key: row[key] for key in ("low", "high") if key in row}
        if name in STEPS:
            bound = {"at_most": MOST_MILLISECONDS} if name == "compiled, graph" and row["coverage"] == 1 else {}
            cells = figures.setdefault(STEPS[name], {})
            cells[f"coverage {row['coverage']:g}"] = Figure(value, "ms", **spread, **bound)
        elif name == "data wait":
            figures["share of the step that waits for data"] = {
                "coverage 1": Figure(value, "%", **spread, at_most=MOST_WAIT)
            }
        elif name == "curve":
            curve.append(row)
        elif name == "test accuracy":
            half = [point["value"] for point in curve if point["step"] <= row["steps"] / 2][-1]
            metrics = row["metrics"]
            figures[f"CIFAR-10, 25 labels a class, {row['policy']}, seed {row['seed']}"] = {
                "test accuracy": Figure(value, "%", at_least=LEAST_ACCURACY),
                "training": Figure(row["seconds"] / 60, "min", at_most=10),
                "steps": Figure(row["steps"]),
                "half way": Figure(half, "%"),
                "right pseudo-labels": Figure(100 * metrics["pseudo/precision"], "%"),
                "wait for data": Figure(100 * metrics["time/data_wait"] / metrics["time/step"], "%", at_most=MOST_WAIT),
            }
            curve = []
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, help="of benchmarks/gpu.sh, the newest one last")
    parser.add_argument("--hardware", required=True, help="the machine that they were measured on")
    parser.add_argument("--versions", required=True, help="of its packages")
    parser.add_argument("--commit", default=git_commit(), help="that was measured; default: this one")
    parser.add_argument("--note", default="", help="a sentence on how they were measured")
    add_save(parser, "gpu")
    given = parser.parse_args()
    lines = [line for folder in given.folders for line in (folder / "rows.jsonl").read_text().splitlines()]
    measurement = Measurement(
        command="benchmarks/gpu.sh FOLDER --images cifar10",
        figures=table([json.loads(line) for line in lines]),
        commit=given.commit,
        date=datetime.now(UTC).date().isoformat(),
        hardware=given.hardware,
        versions=given.versions,
        note=given.note,
    )
    print(measurement.to_markdown())
    if given.save:
        measurement.save(given.save)


if __name__ == "__main__":
    main()
