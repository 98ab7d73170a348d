"""How long a user waits for the answer to a mistake: every mistake of the tests, each in a process of its own.

    python -m benchmarks.mistakes [id ...]

The bound is 5 s; the status is 1 where an answer takes longer or is no answer.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.figures import Figure, add_save, report
from tests.mistakes import MISTAKES, Mistake, command

BOUND = 5.0  # seconds
COLUMNS = 100  # of a message that are shown
ROOT = Path(__file__).parent.parent


def answer(mistake: Mistake) -> tuple[float, str, bool]:
    """Seconds of wall time, the message, and whether it is one line that says what it must."""
    environment = {key: value for key, value in os.environ.items() if key not in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI")}
    environment["CUDA_VISIBLE_DEVICES"] = ""  # the mistakes are those of a machine without GPUs
    with tempfile.TemporaryDirectory() as folder:
        arguments, fragments = command(mistake, Path(folder))
        began = time.perf_counter()
        found = subprocess.run(
            [sys.executable, "-m", "pipelines.train", *arguments],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        seconds = time.perf_counter() - began
    lines = found.stderr.splitlines()
    good = found.returncode == 2 and len(lines) == 1 and all(fragment in lines[0] for fragment in fragments)
    return seconds, " ".join(lines).replace(folder, "..."), good


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ids", nargs="*", metavar="id", help="of mistakes; default: all")
    add_save(parser, "mistakes")
    arguments = parser.parse_args()
    chosen = [mistake for mistake in MISTAKES if mistake.id in arguments.ids or not arguments.ids]
    # The first process reads Python and the libraries from the disk; the others find them in memory.
    answer(next(mistake for mistake in MISTAKES if mistake.id == "architecture"))
    table = Table("mistake", "s", "message", box=None, padding=(0, 2, 0, 0))
    seconds: dict[str, float] = {}
    failed: list[str] = []
    for mistake in chosen:
        seconds[mistake.id], message, good = answer(mistake)
        if not good or seconds[mistake.id] > BOUND:
            failed.append(mistake.id)
        table.add_row(mistake.id, f"{seconds[mistake.id]:.2f}", message.removeprefix("error: ")[:COLUMNS])
    console = Console(width=COLUMNS + 40, markup=False, highlight=False)
    console.print(table)
    if failed:
        console.print(f"not answered as they must be: {', '.join(failed)}")
    slowest = Figure(max(seconds.values()), "s", at_most=BOUND)
    middle = Figure(statistics.median(seconds.values()), "s")
    report(
        "mistakes",
        {f"{len(seconds)} mistakes, median": {"answer": middle}, "slowest": {"answer": slowest}},
        arguments.save,
    )
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
