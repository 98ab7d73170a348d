"""How long a user waits: the import of dpl_ray, a training's start to its first step, and the whole demo.

python -m benchmarks.start

A training is `python -m pipelines.train data=digits` in a process of its own, in the process of the command and with
two Ray Train workers. Its first step has ended when the run's history has its first line. The demo is what `make demo`
starts.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.figures import Figures, add_save, median, report

ARGUMENTS = ("-m", "pipelines.train", "data=digits", "train.log_every=1", "run.name=start")
PLACES = {"in the process of the command": ("scale.num_workers=0", 4), "with 2 workers": ("scale.num_workers=2", 12)}
DEMO = ("-m", "pipelines.train", "scale=local")
IMPORT = "import time; began = time.perf_counter(); import dpl_ray; print(time.perf_counter() - began)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    add_save(parser, "start")
    given = parser.parse_args()
    imports = [float(subprocess.check_output([sys.executable, "-c", IMPORT], text=True)) for _ in range(given.rounds)]
    figures: Figures = {"import of dpl_ray": {"measured": median(imports, "s", at_most=0.2)}}
    for place, (scale, bound) in PLACES.items():
        seconds = [first_step(scale) for _ in range(given.rounds)]
        figures[f"to the first step, {place}"] = {"measured": median(seconds, "s", at_most=bound)}
    seconds = [whole_demo() for _ in range(given.rounds)]
    figures["the demo, to the end of the command"] = {"measured": median(seconds, "s", at_most=45)}
    report("start", figures, given.save)


def first_step(scale: str) -> float:
    """Seconds from the command to its first record; the training is stopped then."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, *ARGUMENTS, scale, f"run.storage_path={folder}"]
        began = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while not any(file.stat().st_size for file in Path(folder).glob("start*/**/history.jsonl")):
            if process.poll() is not None:
                raise RuntimeError(f"{' '.join(command)} has ended with {process.returncode} before its first record")
            time.sleep(0.01)
        seconds = time.perf_counter() - began
        process.terminate()
        process.wait()
    return seconds


def whole_demo() -> float:
    """Seconds that the command takes."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, *DEMO, f"run.storage_path={folder}"]
        began = time.perf_counter()
        subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
        return time.perf_counter() - began


if __name__ == "__main__":
    main()
