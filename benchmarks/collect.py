"""One CSV row for each phase of finished runs: the raw numbers behind docs/RESULTS.md.

python -m benchmarks.collect runs/fashion-dpl runs/fashion-fixmatch > docs/results/first_runs.csv
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from typing import Any

import yaml

from dpl_ray.store.storage import Storage

KEYS = (
    "eval/accuracy",
    "eval/balanced_accuracy",
    "eval/ece",
    "pseudo/coverage",
    "pseudo/precision",
    "pseudo/high_entropy_share",
    "pseudo/high_entropy_precision",
    "train/loss_labeled",
    "train/loss_unlabeled",
)


def rows_of(folder: Storage) -> list[dict[str, Any]]:
    """The newest value of every metric of each phase (policy) of a run."""
    config = yaml.safe_load((folder / "config.yaml").read())
    phases: dict[str, dict[str, Any]] = {}
    for record in map(json.loads, (folder / "history.jsonl").read().splitlines()):
        row = phases.setdefault(record["phase"], {"run": folder.name, "data": config["data"]["name"]})
        row |= {"policy": record["phase"], "seed": config["train"]["seed"], "steps": record["step"]}
        row |= {key: round(value, 4) for key, value in record["metrics"].items() if key in KEYS}
    return list(phases.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", help="folders of runs")
    writer = csv.DictWriter(sys.stdout, ["run", "data", "policy", "seed", "steps", *KEYS], lineterminator="\n")
    writer.writeheader()
    for folder in parser.parse_args().folders:
        writer.writerows(rows_of(Storage(folder)))


if __name__ == "__main__":
    main()
