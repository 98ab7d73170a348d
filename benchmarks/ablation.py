"""One change of dpl at a time, over seeds: what the parts of the method are worth, and what was tried beside them.

    python -m benchmarks.ablation data=digits variants=[label_sets,soft_targets] seeds=5 workers=2

takes the overrides of pipelines.train, and sets the variants of benchmarks/dpl_variants.py beside dpl: the same
labelled images, initial weights, order of batches and steps a seed. save=SETTING puts the rows into
docs/results/dpl_ablation.csv. Variants that are parameters of dpl (cut=none,
rule=band, ...) need no code: pipelines.compare takes 'policies=[dpl,dpl(cut=none)]'. Cells are those of
dpl_ray/studies/comparison/cells.py, so a finished one is never run again; the tables lie in RUNS/ablation-DATA or
run.name.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed

from benchmarks import tables
from benchmarks.dpl_variants import VARIANTS
from dpl_ray.algorithm.dpl import DynamicPseudoLabels
from dpl_ray.algorithm.policies import POLICIES
from dpl_ray.checking.settings import settle_model
from dpl_ray.config.compose import load_config
from dpl_ray.config.schema import Config
from dpl_ray.config.section import suggest
from dpl_ray.data.splits.sources import load_splits
from dpl_ray.store.storage import Storage
from dpl_ray.studies.comparison.cells import Cell, CellResult, read_cells, run_cell
from dpl_ray.studies.comparison.folder import write_comparison

OWN = ("variants", "seeds", "workers", "save")
COLUMNS = (
    "setting", "variant", "seed", "accuracy", "accuracy_of_the_base", "coverage", "precision", "high_entropy_share",
    "high_entropy_precision", "device", "commit",
)  # fmt: skip


def run_one(config: Config, cell: Cell, folder: str) -> CellResult:
    """A cell, in a process of its own."""
    POLICIES["dpl"] = VARIANTS.get(cell.label, DynamicPseudoLabels)
    return run_cell(config, cell, load_splits(config.data, seed=cell.seed, uses_unlabeled=True), folder)


def main(arguments: list[str]) -> None:
    if {"-h", "--help"} & set(arguments):
        print(__doc__)
        return
    own = dict(text.split("=", 1) for text in arguments if text.partition("=")[0] in OWN)
    rest = [text for text in arguments if text.partition("=")[0] not in OWN]
    config = settle_model(load_config([*rest, "policy=dpl", "scale.num_workers=0", "scale.threads_per_worker=1"]))
    wanted = own.get("variants", "").strip("[]").split(",") if own.get("variants") else list(VARIANTS)
    for name in wanted:
        if name not in VARIANTS:
            raise ValueError(f"variants={name}: no such variant; known: {', '.join(VARIANTS)}{suggest(name, VARIANTS)}")
    for name in ("seeds", "workers"):
        if name in own and not (own[name].isdecimal() and int(own[name])):
            raise ValueError(f"{name}={own[name]}: must be a whole number of at least 1")
    folder = str(Storage(config.run.storage_path) / (config.run.name or f"ablation-{config.data.name}"))
    cells = [
        Cell(name, config.policy.model_dump(), seed)
        for seed in range(config.train.seed, config.train.seed + int(own.get("seeds", "5")))
        for name in ("dpl", *wanted)
    ]
    # Spawned: torch's threads do not survive a fork.
    context = multiprocessing.get_context("spawn")
    workers = int(own.get("workers", os.cpu_count() or 1))
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        running = {pool.submit(run_one, config, cell, folder): cell for cell in cells}
        for number, done in enumerate(as_completed(running), start=1):
            print(f"{number:>4}/{len(cells)}  {running[done].name}  {done.result().metrics['eval/accuracy']:.4f}")
    write_comparison(folder, "dpl")
    print(Storage(folder) / "comparison.md")
    if "save" in own:
        save(own["save"], read_cells(folder))


def save(setting: str, cells: Sequence[CellResult]) -> None:
    """Put the variants of these cells into the CSV, in place of the rows that it has of them."""
    accuracies = {cell.key: cell.metrics["eval/accuracy"] for cell in cells if cell.label == "dpl"}
    for cell in cells:
        if cell.label != "dpl" and cell.key in accuracies:
            key = {"setting": setting, "variant": cell.label, "seed": str(cell.seed)}
            measured = dict(zip(tables.METRICS, tables.rounded(cell), strict=True)) | cell.facts
            found = key | measured | {"accuracy_of_the_base": f"{accuracies[cell.key]:.4f}"}
            tables.write("dpl_ablation", COLUMNS, [[found[name] for name in COLUMNS]], key)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
