"""How long a search takes, and what the start of a trial costs.

    python -m benchmarks.search                      12 trials of 600 steps on digits, of every way to search
    python -m benchmarks.search --tune asha          of one

Every search is the command that a user would give, in a process of its own, Ray's start included. The start of a trial
is the time from its proposal (its trial.json is written) to its first line of work (its config.yaml is): in a process
that starts, and in one that has ended a trial.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.figures import Figure, Figures, add_save, median, report

WAYS = ("random", "asha", "asha_optuna")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tune", choices=WAYS, nargs="*", default=WAYS)
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--at-once", type=int, default=2, help="trials")
    add_save(parser, "search")
    arguments = parser.parse_args()
    figures: Figures = {}
    for way in arguments.tune:
        with tempfile.TemporaryDirectory() as folder:
            seconds = run_search(Path(folder), way, arguments)
            starts = start_seconds(Path(folder) / "search")
        columns = figures[f"tune={way}"] = {"whole command": Figure(seconds, "s")}
        kinds = {"start of a trial in a new process": starts[: arguments.at_once]}
        kinds["in a process that has ended one"] = starts[arguments.at_once :]
        columns |= {kind: median(values, "s") for kind, values in kinds.items() if values}
    report("search", figures, arguments.save)


def run_search(folder: Path, way: str, arguments: argparse.Namespace) -> float:
    """Seconds of the whole command."""
    command = [sys.executable, "-m", "pipelines.tune", "data=digits", f"tune={way}", f"num_trials={arguments.trials}"]
    command += [f"train.num_steps={arguments.steps}", f"max_concurrent={arguments.at_once}"]
    command += [f"run.storage_path={folder}", "run.name=search"]
    began = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def start_seconds(search: Path) -> list[float]:
    """From proposal to work, of the trials in the order of their proposals."""
    trials = sorted(search.glob("trial-*"))
    return [(trial / "config.yaml").stat().st_mtime - (trial / "trial.json").stat().st_mtime for trial in trials]


if __name__ == "__main__":
    main()
