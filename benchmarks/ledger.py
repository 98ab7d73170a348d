"""What the ledger of a labelling holds in memory, for as many parts as 10⁹ images of 224x224 pixels have.

python -m benchmarks.ledger

No part is written: what a storage would answer of parts, their counts and their manifests is made up here.
"""

from __future__ import annotations

import argparse
import gc
import tempfile
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa

from benchmarks import paper
from benchmarks.figures import Figure, add_save, report
from dpl_ray.data.files.listing import Listing
from dpl_ray.data.files.location import open_location
from dpl_ray.data.formats.rows import ShardRows, pool_of
from dpl_ray.labeling import ledger
from dpl_ray.labeling.ledger import Ledger, Manifest, Part
from dpl_ray.labeling.parts import Counts
from dpl_ray.labeling.plan import Plan, empty_plan, extend_plan, part_name
from dpl_ray.reviewing.labels import Labels, open_labels
from dpl_ray.store.records import write_json
from dpl_ray.store.storage import Storage

PARTS_EACH, ROWS, CLASSES = 38, 445, [f"class {number}" for number in range(10)]  # of a parquet file of 1 GB
SIZE = 20_000  # bytes of a part
BOUND = 50.0  # MB
OPEN_EACH = 10
MOST_ADDED = 1000  # parts: more change nothing in what is held


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=round(paper.NUM_IMAGES / ROWS / PARTS_EACH))
    add_save(parser, "ledger")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        plan = plan_of(arguments.inputs, folder)
        rows = {"parts": {"held": Figure(plan.num_blocks)}}
        for name, (held, peak) in memory(plan, folder, OPEN_EACH).items():
            figures = {"held": Figure(held / 1e6, "MB", at_most=BOUND), "peak": Figure(peak / 1e6, "MB")}
            rows[name] = figures
        arrays = (plan.pool.spans, plan.block_inputs, plan.file_inputs, plan.pool.sizes, plan.pool.num_rows)
        size = sum(array.nbytes for array in arrays) + plan.pool.paths.nbytes
        rows["the plan, which it goes by"] = {"held": Figure(size / 1e6, "MB")}
    report("ledger", rows, arguments.save)


def plan_of(num_inputs: int, output: str) -> Plan:
    """Of parquet files that each have PARTS_EACH parts."""
    names = (f"/bucket/pool/part-{number:06d}.parquet" for number in range(num_inputs))
    listing = Listing(pa.array(names, pa.large_string()), np.full(num_inputs, 10**9))
    rows = [ShardRows([ROWS] * PARTS_EACH)] * num_inputs
    listed = pool_of(open_location("pool", output), listing, shard_rows=rows)
    return extend_plan(empty_plan(listed), listed, ROWS)


def memory(plan: Plan, output: str, open_each: int = 1) -> dict[str, tuple[int, int]]:
    """What is done with the ledger -> bytes that are held then, and at the most meanwhile, beside the plan.

    Args:
        output: an empty folder.
        open_each: of so many files one is labelled but for a part.
    """
    none = Counts.none(len(CLASSES))
    counts = replace(none, rejected=[ROWS, *none.rejected[1:]], cells_rejected=[ROWS, *none.cells_rejected[1:]])
    of_input = sum([counts] * PARTS_EACH, none)
    there: list[int] = []  # of every so many inputs one lacks its first part, 0: none does; empty: no part is there

    def is_whole(number: int) -> bool:
        return bool(there) and (not there[0] or number % there[0] > 0)

    def files(_: Storage) -> Iterator[tuple[str, int]]:
        for number in range(plan.num_inputs if there else 0):
            yield from ((part_name(number, index), SIZE) for index in range(not is_whole(number), PARTS_EACH))

    def manifest(file: Storage) -> Manifest:
        number = int(file.name.partition(".")[0])
        if not is_whole(number):
            raise FileNotFoundError(file.name)
        return Manifest(of_input, [Part(part_name(number, index), SIZE, ROWS, 0) for index in range(PARTS_EACH)])

    def begin() -> Ledger:
        ledger = Ledger(output, {"class_names": CLASSES, "pool": "/bucket/pool"}, len(CLASSES))
        ledger.begin(plan.pool, ROWS)
        return ledger

    def go_on() -> Ledger:
        there[:] = [open_each]
        ledger = begin()
        assert len(ledger.missing) == -(-plan.num_inputs // open_each)
        for block in ledger.missing[:MOST_ADDED].tolist():
            ledger.add(block, counts, SIZE)
        return ledger

    def go_on_with_nothing() -> Ledger:
        there[:] = [0]
        ledger = begin()
        assert not len(ledger.missing)
        assert ledger.check().num_rows == len(plan)
        return ledger

    def review() -> Labels:
        (Storage(output) / "_report" / "summary.json").write(b"{}")
        labels = open_labels("labels", output)
        assert labels.counts.sum() == len(plan)
        return labels

    names = [f"{number:06d}.json" for number in range(plan.num_inputs)]
    patches: dict[str, Any] = {
        "extend_plan": lambda *_: plan,
        "read_counts": lambda *_: counts,
        "write_json": lambda file, tree: write_json(file, tree) if file.name == "job.json" else None,
    }
    with (
        mock.patch.multiple(ledger, **patches),
        mock.patch.multiple(Storage, files=files, list=lambda _: names),
        mock.patch.object(Manifest, "read", manifest),
    ):
        return {
            "all parts are missing": _traced(begin),
            f"of a file in {open_each} one part is missing, and is labelled": _traced(go_on),
            "all parts are there, and are verified": _traced(go_on_with_nothing),
            "a review or a suggestion opens the labels": _traced(review),
        }


def _traced(work: Callable[[], object]) -> tuple[int, int]:
    tracemalloc.start()
    try:
        result = work()
        gc.collect()
        held = tracemalloc.get_traced_memory()
        del result
        return held
    finally:
        tracemalloc.stop()


if __name__ == "__main__":
    main()
