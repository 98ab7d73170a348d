"""The blocks of a pool through Ray Data: tasks read and decode, actors with the model label and write.

What flows is one row a block, in a block of its own, so that Ray Data neither splits nor merges them; few of them are
on their way at a time.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Generator
from typing import TYPE_CHECKING, Any

import numpy as np

from dpl_ray import cluster
from dpl_ray.config import ScaleConfig
from dpl_ray.data.decode import DecodeSettings
from dpl_ray.labeling.parts import Counts
from dpl_ray.labeling.plan import Plan

if TYPE_CHECKING:
    from dpl_ray.labeling.blocks import BlockLabeler

CPUS_PER_TASK = 0.25  # that reads and decodes: it waits for files, or for its blocks to be taken
FILE_THREADS = 16  # of a task that opens files; a parquet file is read in one go
BLOCKS_PER_ACTOR = 2  # given to an actor at a time
BYTES_PER_ACTOR = 512 * 2**20  # of decoded blocks in the object store


class WorkersFailedError(RuntimeError):
    """A task or an actor of the labelling failed."""


def label_on_ray(
    labeler: BlockLabeler, blocks: list[int], settings: DecodeSettings, scale: ScaleConfig
) -> Generator[tuple[int, Counts, int], None, None]:
    """(block, counts, bytes of its part) of every block, as they are done.

    Args:
        scale: checked; an actor for each of its workers.

    Raises:
        ValueError: the cluster is not there or is too small.
        WorkersFailedError: a task failed otherwise than by losing its process, which is made up for.
    """
    # Its core complains on stderr of every actor of Ray Data that may be restarted.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    started = cluster.connect(scale)
    import ray
    import ray.data

    for logger in ("ray", "ray.data"):
        logging.getLogger(logger).setLevel(logging.ERROR)
    results = None
    try:
        results = _stream(labeler, blocks, settings, scale)
        yield from results
    except ray.exceptions.RayError as error:
        raise WorkersFailedError(cluster.cause_line(error)) from error
    finally:
        if results is not None:
            results.close()
        if started:
            ray.shutdown()


def _stream(
    labeler: BlockLabeler, blocks: list[int], settings: DecodeSettings, scale: ScaleConfig
) -> Generator[tuple[int, Counts, int], None, None]:
    import ray
    from ray.data import ActorPoolStrategy, DataContext, ExecutionResources

    context = DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    memory = BYTES_PER_ACTOR * scale.num_workers
    context.execution_options.resource_limits = ExecutionResources.for_limits(object_store_memory=memory)
    payload = ray.put(labeler)
    with DataContext.current(context):
        dataset = (
            # No reading task, which would ask for a whole CPU: the numbers are put into the object store from here.
            ray.data.from_items(blocks, override_num_blocks=len(blocks))
            .map_batches(
                _decode,
                batch_size=1,
                num_cpus=CPUS_PER_TASK,
                fn_kwargs={"payload": payload, "settings": settings},
            )
            .map_batches(
                _Actor,
                batch_size=1,
                num_cpus=scale.cpus_per_worker,
                num_gpus=1 if scale.use_gpu else 0,
                compute=ActorPoolStrategy(size=scale.num_workers, max_tasks_in_flight_per_actor=BLOCKS_PER_ACTOR),
                fn_constructor_kwargs={"payload": payload, "scale": scale},
            )
        )
    for row in dataset.iter_rows():
        yield int(row["block"]), Counts.from_json(json.loads(row["counts"])), int(row["size"])


def _decode(batch: dict[str, Any], *, payload: Any, settings: DecodeSettings) -> dict[str, Any]:
    """A row with the number of a block -> a row with the block."""
    import ray

    from dpl_ray.data.files import is_parquet
    from dpl_ray.labeling.blocks import decode_block

    plan: Plan = ray.get(payload).plan
    block = int(batch["item"][0])
    path = plan.pool.paths[plan.pool.spans[block, 0]].as_py()
    found = decode_block(plan, block, settings, num_threads=1 if is_parquet(path) else FILE_THREADS)
    return {
        "block": np.array([block]),
        "images": found.images[None],
        "kept": found.kept[None],
        "errors": np.array([json.dumps(list(found.errors.items()))]),
    }


class _Actor:
    """A copy of the model, on a device of its own."""

    def __init__(self, payload: Any, scale: ScaleConfig) -> None:
        import ray
        import torch

        torch.set_num_threads(num_threads(scale))
        self.labeler = ray.get(payload).to(torch.device("cuda" if scale.use_gpu else "cpu"))

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        from dpl_ray.labeling.blocks import DecodedBlock

        errors = dict(json.loads(str(batch["errors"][0])))
        block = DecodedBlock(int(batch["block"][0]), batch["images"][0], batch["kept"][0], errors)
        counts, size = self.labeler.label(block)
        return {
            "block": batch["block"],
            "counts": np.array([json.dumps(counts.to_json())]),
            "size": np.array([size]),
        }


def num_threads(scale: ScaleConfig) -> int:
    """Of an actor: the CPUs that it reserves, rounded."""
    return max(1, round(scale.cpus_per_worker))


def count_actors(scale: ScaleConfig) -> int:
    """Actors that the cluster carries beside one task on every node; 0 where it carries none."""
    started = cluster.connect(scale)
    import ray

    try:
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    finally:
        if started:
            ray.shutdown()
    return count_on(nodes, scale)


def count_on(nodes: list[dict[str, float]], scale: ScaleConfig) -> int:
    """The same on nodes given by their resources."""
    free = [node | {"CPU": node.get("CPU", 0.0) - CPUS_PER_TASK} for node in nodes]
    return cluster.count_places(free, scale)
