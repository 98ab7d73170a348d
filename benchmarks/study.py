"""The study that settings of dpl are chosen by: `benchmarks/study.sh MINUTES` trains what is missing of it.

Settings are digits, Fashion-MNIST at 14 pixels, CIFAR-10 at 16 pixels and frozen features of CIFAR-10. Each has its
own pool, long-tailed ones (lt20, lt100; reversed with an r) and pools with 30 and 60 % foreign classes (open30, open60;
without their images clean60). Two more kinds have to be named, as in --settings 'frozen-*-constant': with bfloat16 in
the pass without gradient, and with a constant weight of the unlabelled loss, which else falls on features. Choose on
the labelled subsets 0-4 and report on 5-9.

A training is a cell of `dpl_ray/studies/comparison`, in FOLDER/SETTING. One that has ended is never run again; one that
time or Ctrl-C has stopped goes on. Subsets come first, so that all settings have as many. The raw numbers go to
docs/results/study.csv; rows of other settings, policies and seeds stay there.
"""

from __future__ import annotations

import argparse
import csv
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import lru_cache, partial
from pathlib import Path
from typing import TypeVar

from benchmarks import frozen, pools, tables
from dpl_ray.checking.settings import settle_model
from dpl_ray.config.schema import Config, DataConfig
from dpl_ray.data.dataset import Splits
from dpl_ray.data.splits.sources import load_splits
from dpl_ray.page.markdown import markdown_table
from dpl_ray.runs.folder import FREE, default_tree, differences
from dpl_ray.runs.kept_config import read_kept
from dpl_ray.store.lock import sole_use
from dpl_ray.store.storage import Storage
from dpl_ray.studies.comparison.cells import CELL_FILE, Cell, CellResult, cell_config, read_cells, run_cell
from dpl_ray.studies.comparison.config import Plan, load_comparison, make_plan
from dpl_ray.studies.comparison.folder import check_policies
from dpl_ray.studies.comparison.table import make_rows, shown_label
from dpl_ray.training.interruption import Interrupted

FASHION = "data=fashion_mnist data.image_size=14 data.interpolation=area model.depth=10 train.num_steps=1500"
CIFAR = (
    "data=parquet data.train={cifar10}/train-*.parquet data.test={cifar10}/test-*.parquet data.image_column=img "
    "data.image_size=16 data.interpolation=area model.depth=10 train.num_steps=1500"
)
FEATURES = "data=features data.train={features}/train data.test={features}/test"
#: Setting -> overrides; a setting's number is that of labels a class.
BASES = {
    "digits-2": "data=digits",
    "digits-4": "data=digits",
    "frozen-4": FEATURES,
    "frozen-25": FEATURES,
    "fashion14-4": FASHION,
    "fashion14-25": FASHION,
    "cifar16-25": CIFAR,
}
POOLS = {
    "": "",
    "-lt20": "data.pool.imbalance=20",
    "-lt20r": "data.pool.imbalance=0.05",
    "-lt100": "data.pool.imbalance=100",
    "-lt100r": "data.pool.imbalance=0.01",
    "-open30": "data.pool.foreign=0.3",
    "-open60": "data.pool.foreign=0.6",
    "-clean60": "data.pool.foreign=0.6 data.pool.cleaned=true",
}
SETTINGS = {
    name + pool: f"{overrides} data.num_labels_per_class={name.partition('-')[2]} {more}".strip()
    for pool, more in POOLS.items()
    for name, overrides in BASES.items()
}
NAMED_ALONE = WEAK_BFLOAT16, CONSTANT = "-bfloat16", "-constant"
SETTINGS |= {
    name + WEAK_BFLOAT16: f"{SETTINGS[name]} train.weak_precision=bfloat16"
    for name, overrides in BASES.items()
    if overrides != FEATURES
}
SETTINGS |= {
    name + CONSTANT: f"{overrides} train.lambda_u_half=null"
    for name, overrides in SETTINGS.items()
    if overrides.startswith(FEATURES)
}
POLICIES = "supervised,fixmatch,freematch,softmatch,dpl"
FIXED = ("scale.num_workers=0", "scale.threads_per_worker=1", "tracking.enabled=false")
COLUMNS = (
    "setting", "policy", "subset", "seed", "steps", *tables.METRICS, "training_seconds", "device", "commit", "curve"
)  # fmt: skip
KEY = 4  # columns that say which training it is
SECONDS_TO_END = 30.0  # of the time, for the last step, its checkpoint and the CSV


@dataclass(frozen=True)
class Job:
    """A training of a setting."""

    setting: str
    config: Config
    cell: Cell
    folder: str  # of the setting's cells

    @property
    def name(self) -> str:
        return f"{self.setting}  {self.cell.name}"


J = TypeVar("J", bound=Job)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = make_parser(__doc__)
    add_run(parser, POLICIES)
    given = parser.parse_args(arguments)
    train = partial(run_one, until=end_of(given))
    names = names_of(given)
    with sole_use(f"--folder={given.folder}", Storage(str(given.folder))):
        write_features(names, given)
        plans = {name: plan(name, given.policies, given) for name in names}
        jobs = [
            Job(name, config, cell, str(given.folder / name))
            for name, (config, found) in plans.items()
            for cell in found.cells
        ]
        write(names, given.folder)
        status = run(jobs, given.workers, train, lambda job: write([job.setting], given.folder))
    for name, (_, found) in plans.items():
        for line in table(name, given.folder, found.reference):
            print(line)
    return status


def make_parser(description: str | None) -> argparse.ArgumentParser:
    """Of what says which trainings are meant, and where they and their data are."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--settings", default="*", help="names or patterns, with commas between them")
    parser.add_argument("--subsets", type=_range, default=range(5), metavar="0-4", help="labelled subsets")
    parser.add_argument("--repeats", type=int, default=1, help="trainings on each subset")
    parser.add_argument("--gpu", action="store_true", help="train on the GPU, which all workers share")
    parser.add_argument("--folder", type=Path, default=Path("runs/study"), help="of the runs")
    parser.add_argument("--cifar10", type=Path, help="folder of CIFAR-10's parquet files")
    parser.add_argument("--fashion-mnist", type=Path, help="folder of Fashion-MNIST's files; else the usual ones")
    return parser


def add_run(parser: argparse.ArgumentParser, policies: str) -> None:
    """Add what says how long trainings are run, and of which policies."""
    parser.add_argument("--minutes", type=float, required=True, help="that it may take; 0 trains nothing")
    parser.add_argument("--policies", default=policies, help="as policies=[...] of a comparison")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="trainings at once")


def end_of(given: argparse.Namespace) -> float:
    """When trainings are to stop, by `time.time()`."""
    return time.time() + 60 * given.minutes - SECONDS_TO_END


def names_of(given: argparse.Namespace) -> list[str]:
    """The settings that are asked for and whose data are there.

    Raises:
        ValueError: there is none of such a name.
    """
    names = [name for name in SETTINGS if any(_is_meant(name, pattern) for pattern in given.settings.split(","))]
    if not names:
        raise ValueError(f"--settings={given.settings}: there is no such setting; known: {', '.join(SETTINGS)}")
    if not given.cifar10 and (skipped := [name for name in names if "{" in SETTINGS[name]]):
        print(f"left out, as --cifar10 names no folder of parquet files: {', '.join(skipped)}")
        names = [name for name in names if name not in skipped]
    return names


def _is_meant(name: str, pattern: str) -> bool:
    return fnmatch(name, pattern) and (not name.endswith(NAMED_ALONE) or pattern.endswith(NAMED_ALONE))


def write_features(names: Sequence[str], given: argparse.Namespace) -> None:
    """Those that the settings read, where they are not there yet."""
    if any("{features}" in SETTINGS[name] for name in names):
        frozen.write_features(pools.cifar10(given.cifar10), given.folder / "features")


def _range(text: str) -> range:
    first, _, last = text.partition("-")
    return range(int(first), int(last or first) + 1)


def plan(name: str, policies: str, given: argparse.Namespace, cells: Path | None = None) -> tuple[Config, Plan]:
    """The trainings of a setting: `policies` as policies=[...] of a comparison.

    Args:
        cells: folder of the setting's cells; None: that of the study.

    Raises:
        ValueError: there is no such policy, its defaults or the training's have changed, or the features do not fit.
    """
    cells = cells or given.folder / name
    places = {"cifar10": given.cifar10, "features": given.folder / "features"}
    overrides = [text.format(**places) for text in SETTINGS[name].split()]
    if given.fashion_mnist and "fashion_mnist" in overrides[0]:
        overrides.append(f"data.root={given.fashion_mnist}")
    design = (f"train.seed={given.subsets.start}", f"subsets={len(given.subsets)}", f"repeats={given.repeats}")
    gpu = f"scale.use_gpu={str(given.gpu).lower()}"
    config, options = load_comparison([*FIXED, gpu, *overrides, f"policies=[{policies}]", *design])
    found = make_plan(config, options)
    check_policies(name, [*(cell.cell for cell in read_cells(str(cells))), *found.cells])
    config = settle_model(config)
    for cell in found.cells:
        _check_training(config, cell, cells)
    return config, found


def _check_training(config: Config, cell: Cell, folder: Path) -> None:
    """Refuse a training of before that has other settings."""
    if kept := read_kept(Storage(str(folder / cell.name))):
        now = cell_config(config, cell, str(folder)).train.model_dump(mode="json")
        for field, before, value in differences(kept["train"], now, FREE, default_tree("")["train"], "train."):
            raise ValueError(f"--folder={folder.parent}: {folder.name}/{cell.name} has {field}={before}, not {value}")


def _turn(job: Job) -> tuple[int, int]:
    """Repeats come one after the other, and in each the subsets, so that all settings have as many."""
    subset = job.cell.subset or 0
    return job.cell.seed - subset, subset


def run(jobs: Iterable[J], num_workers: int, train: Callable[[J], CellResult | None], keep: Callable[[J], None]) -> int:
    """Train what is missing of these jobs, in processes of their own; returns the status to exit with.

    Args:
        train: returns None where the time was over before the training has ended.
        keep: is told here of each job that has ended.
    """
    missing = [job for job in jobs if not Path(job.folder, job.cell.name, CELL_FILE).exists()]
    print(f"{len(missing)} trainings are missing; {num_workers} at once", flush=True)
    num_left = status = 0
    # Spawned: torch's threads do not survive a fork.
    with ProcessPoolExecutor(num_workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        running = {pool.submit(train, job): job for job in sorted(missing, key=_turn)}
        for done in as_completed(running):
            job, error = running[done], done.exception()
            if error is not None and (not isinstance(error, Exception) or isinstance(error, BrokenExecutor)):
                raise error
            if error is not None:
                status = 1
                print(f"{job.name}  failed: {type(error).__name__}: {error}", flush=True)
            elif result := done.result():
                keep(job)
                accuracy = 100 * result.metrics["eval/accuracy"]
                print(f"{job.name}  {accuracy:.1f} %, {result.seconds:.0f} s", flush=True)
            else:
                num_left += 1
    print(f"{num_left} trainings are missing still")
    return status


def run_one(job: Job, until: float) -> CellResult | None:
    """Train from the newest checkpoint, until it ends or the time is over; None in the second case."""
    stop, seconds_left = threading.Event(), until - time.time()
    if seconds_left <= 0:
        return None
    timer = threading.Timer(seconds_left, stop.set)
    timer.daemon = True
    timer.start()
    try:
        splits = load(job.config.data, job.cell.subset or 0)
        return run_cell(job.config, job.cell, splits, job.folder, stop=stop)
    except Interrupted:
        return None
    finally:
        timer.cancel()


@lru_cache(maxsize=1)
def load(data: DataConfig, subset: int) -> Splits:
    """The jobs of a worker that follow each other mostly have the same data."""
    return load_splits(data, seed=subset)


def write(names: Iterable[str], folder: Path) -> None:
    """Put the trainings of these settings that have ended into the CSV, beside the other ones that it has."""
    file, rows = tables.FOLDER / "study.csv", dict[tuple[str, ...], Sequence[str]]()
    if file.exists():
        with file.open(newline="") as before:
            rows = {tuple(row[:KEY]): row for row in [*csv.reader(before)][1:]}
    for name in names:
        for cell in read_cells(str(folder / name)):
            facts = [f"{cell.seconds:.0f}", cell.facts["device"], cell.facts["commit"]]
            given = [name, cell.label, *map(str, cell.key), str(cell.steps)]
            row = [*given, *tables.rounded(cell), *facts, tables.curve_text(cell)]
            rows[tuple(row[:KEY])] = row
    part = file.with_suffix(".part")
    with part.open("w", newline="") as results:
        csv.writer(results, lineterminator="\n").writerows([COLUMNS, *(rows[key] for key in sorted(rows, key=_order))])
    part.replace(file)


def _order(key: tuple[str, ...]) -> tuple[str, str, int, int]:
    setting, policy, subset, seed = key
    return setting, policy, int(subset), int(seed)


def table(name: str, folder: Path, reference: str) -> list[str]:
    """Accuracy and difference to the reference of a setting's policies; nothing where none has ended."""
    cells = read_cells(str(folder / name))
    columns = next(iter(tables.tables(reference).values()))
    rows = [[shown_label(row), *(show(row) for show in columns.values())] for row in make_rows(cells, reference)]
    return ["", name, *markdown_table(["policy", *columns], rows)] if rows else []


if __name__ == "__main__":
    try:
        sys.exit(main())
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
