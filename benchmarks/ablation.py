"""One change of dpl at a time, over seeds: what the parts of the method are worth, and what was tried beside them.

    python -m benchmarks.ablation data=digits variants=[label_sets,soft_targets] seeds=5 workers=2

takes the overrides of pipelines.train, and sets the variants of benchmarks/dpl_variants.py beside dpl: the same
labelled images, initial weights, order of batches and steps a seed. Variants that are parameters of dpl (cut=none,
rule=band, ...) need no code: pipelines.compare takes 'policies=[dpl,dpl(cut=none)]'. Cells are those of
dpl_ray/studies/comparison/cells.py, so a finished one is never run again; the tables lie in RUNS/ablation-DATA or
run.name.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed

from benchmarks.dpl_variants import VARIANTS
from dpl_ray.algorithm.dpl import DynamicPseudoLabels
from dpl_ray.algorithm.policies import POLICIES
from dpl_ray.checking.settings import settle_model
from dpl_ray.config.compose import load_config
from dpl_ray.config.schema import Config
from dpl_ray.config.section import suggest
from dpl_ray.data.splits.sources import load_splits
from dpl_ray.store.storage import Storage
from dpl_ray.studies.comparison.cells import Cell, CellResult, run_cell
from dpl_ray.studies.comparison.folder import write_comparison

OWN = ("variants", "seeds", "workers")


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


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
