"""What a GPU does with a training step: `benchmarks/gpu.sh FOLDER`, one script for a machine that is lent for minutes.

    benchmarks/gpu.sh FOLDER                     tests, step times, kernels, data wait
    benchmarks/gpu.sh FOLDER --images cifar10    and the accuracy on CIFAR-10 with 250 labels, in the time that is left
    benchmarks/gpu.sh FOLDER --images cifar10 --phases accuracy     the accuracy alone, in the time of a whole call
    benchmarks/gpu.sh FOLDER --images cifar10 --phases accuracy --first-seed 1     and with the next seed

WRN-28-2, bfloat16, B=64, mu=7. A call takes at most 9 minutes (`CALL_SECONDS`). Every phase is a process of its own, so
that one which fails costs no other. It is ended at its own limit and at that of the call, and a phase for which no time
is left is skipped. What is measured is appended to FOLDER/rows.csv at once, and output to FOLDER/log.txt; at the end of
each call FOLDER/table.md has the tables of all rows (benchmarks/gpu_report.py).
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from threading import Timer
from time import perf_counter as clock
from typing import IO

from benchmarks.gpu_report import page
from benchmarks.gpu_rows import Rows, read_rows
from dpl_ray.runs.provenance import git_commit

CALL_SECONDS = 540  # that a call takes at most, whatever it measures
END_SECONDS = 10  # of these: to start Python, to end what runs, to write the tables
LEAST_SECONDS = 20  # that a phase begins with; in less it would import torch and no more
WARM_SECONDS = 45  # that the first compiled phase waits for the compilation beside the others
ACCURACY = "accuracy"
EVALUATION_SECONDS = 30  # that the accuracy run is given beyond its minutes before it is ended
#: Phase -> most seconds it may take, in the order in which they run. The accuracy run comes last.
PHASES = {
    "machine": 40,
    "tests": 75,
    "step": 50,
    "step-deterministic": 25,
    "step-compiled": 70,
    "feed": 60,
    "kernels-compiled": 50,
    "kernels": 40,
}


def limit_of(phase: str, left: float, minutes: float) -> float:
    """Seconds that a phase may take where so many are left of the call; 0: it is skipped.

    Args:
        minutes: of the accuracy run, at most.
    """
    is_accuracy = phase == ACCURACY
    own = 60 * minutes + EVALUATION_SECONDS if is_accuracy else PHASES[phase]
    least = LEAST_SECONDS + (EVALUATION_SECONDS if is_accuracy else 0)
    return min(own, left) if left >= least else 0


def command(given: argparse.Namespace, phase: str) -> list[str]:
    return [sys.executable, "-m", "benchmarks.gpu", *given.arguments, "--only", phase]


def start(given: argparse.Namespace, phase: str, output: int | IO[str], *more: str) -> subprocess.Popen[str]:
    """The process of a phase, in a session of its own: it is ended with those that it has started."""
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(
        [*command(given, phase), *more],
        stdout=output,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        start_new_session=True,
    )


def kill(process: subprocess.Popen[str]) -> None:
    """End a process that nobody has waited for yet, and all of its session."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def beside(given: argparse.Namespace, phase: str) -> subprocess.Popen[str]:
    with (given.folder / f"log-{phase}.txt").open("a") as log:
        return start(given, phase, log)


def finish(process: subprocess.Popen[str], seconds: float) -> None:
    """Give a process so many seconds more, then end it."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(max(seconds, 0))
        return
    kill(process)
    process.wait()


def run_phase(given: argparse.Namespace, phase: str, limit: float) -> None:
    """Run a phase and log what it prints; one that is not done after `limit` seconds is ended."""
    began = clock()
    more = ["--minutes", f"{(limit - EVALUATION_SECONDS) / 60:.3f}"] if phase == ACCURACY else []
    process = start(given, phase, subprocess.PIPE, *more)
    timer = Timer(limit, kill, [process])
    timer.start()
    try:
        assert process.stdout is not None
        with (given.folder / "log.txt").open("a") as log:
            for line in process.stdout:
                log.write(line)
                log.flush()
                if line.startswith(phase) or "Error" in line:
                    print(line, end="", flush=True)
    finally:
        timer.cancel()
        kill(process)  # what it has left behind
        process.wait()
    if process.returncode == -signal.SIGKILL:
        Rows(given.folder, phase).add("killed", text=f"its limit is {limit:.0f} s", seconds=round(clock() - began, 1))
    print(f"== {phase}: status {process.returncode}, {clock() - began:.0f} s", flush=True)


def all_phases(given: argparse.Namespace, began: float) -> None:
    """Run the phases one after the other, within the time of a call that began then, and write the tables."""
    Rows(given.folder, "call").add("commit", text=git_commit())

    def left() -> float:
        return began + CALL_SECONDS - END_SECONDS - clock()

    others = [beside(given, phase) for phase in given.beside]
    compiling = beside(given, "warm") if any("compiled" in phase for phase in given.phases) else None
    try:
        for phase in given.phases:
            if compiling is not None and phase.endswith("compiled"):
                finish(compiling, min(WARM_SECONDS, left()))
                compiling = None
            if limit := limit_of(phase, left(), given.minutes):
                run_phase(given, phase, limit)
            else:
                Rows(given.folder, phase).add("skipped", text="no time is left of the call")
        for other in others:
            finish(other, left())
    finally:
        for other in (*others, *([compiling] if compiling else [])):
            finish(other, 0)
        (given.folder / "table.md").write_text(page(read_rows(given.folder)))
    print(f"== {clock() - began:.0f} s in all: {given.folder / 'table.md'}", flush=True)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where results go")
    parser.add_argument("--images", type=Path, help="folder of CIFAR-10's parquet files: measure the accuracy, too")
    parser.add_argument(
        "--minutes", type=float, default=CALL_SECONDS / 60, help="most of the accuracy run; default: what is left"
    )
    parser.add_argument("--phases", help="these alone, as step,feed")
    parser.add_argument("--beside", default="", help="phases that run beside the first ones, as tests")
    parser.add_argument("--policy", default="freematch", help="of the accuracy run")
    parser.add_argument("--seeds", type=int, default=1, help="of the accuracy run")
    parser.add_argument("--first-seed", type=int, default=0, help="of the accuracy run: calls go on where others end")
    parser.add_argument("--num-steps", type=int, help="of the accuracy run; default: as many as the time allows")
    parser.add_argument("--depth", type=int, default=28)
    parser.add_argument("--width", type=int, default=2)
    parser.add_argument("--size", type=int, default=32, help="side of the images in pixels")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--mu", type=int, default=7)
    parser.add_argument("--steps", type=int, default=40, help="of a measurement")
    parser.add_argument("--pool", type=int, default=50_000, help="images of the feed")
    parser.add_argument("--copy-numbers", type=int, default=2**30)
    parser.add_argument("--matrix", type=int, default=8192)
    parser.add_argument("--only", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    known = [*PHASES, ACCURACY] if given.images else [*PHASES]
    given.arguments = list(arguments)
    given.phases = given.phases.split(",") if given.phases else known
    given.beside = [phase for phase in given.beside.split(",") if phase]
    if unknown := [phase for phase in (*given.phases, *given.beside) if phase not in known]:
        needs = "" if given.images else "; accuracy needs --images"
        parser.error(f"--phases, --beside: {', '.join(unknown)}: known are {', '.join(known)}{needs}")
    return given


def main(arguments: Sequence[str]) -> None:
    began = clock()
    given = parse(arguments)
    given.folder.mkdir(parents=True, exist_ok=True)
    if given.only:
        from benchmarks.gpu_phases import measure  # torch, which the process that starts the others does without

        measure(given.only, Rows(given.folder, given.only), given)
    else:
        all_phases(given, began)


if __name__ == "__main__":
    main(sys.argv[1:])
