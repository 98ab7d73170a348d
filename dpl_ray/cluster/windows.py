"""Reading a streamed pool with Ray Data: the windows are decoded on the CPUs of the whole cluster.

Every training worker has a data set of its own share of the windows, in order. Not Ray Data's split of one data set
among the workers: which rows it gives to which worker, and in which order, is not a function of seed and step, so that
a run could neither go on exactly nor be the same for any number of workers.
"""

from __future__ import annotations

import logging
from collections.abc import Generator
from functools import lru_cache, partial
from typing import Any

import numpy as np

from dpl_ray.cluster.connect import READER_CPUS
from dpl_ray.data.images.decode import share_memory
from dpl_ray.data.pool.windows import StreamedPool, WindowRows, Windows, read_window

WINDOWS_PER_DATASET = 256  # a task each: the tasks of a data set are planned at once
SHARES_PER_CPU = 3  # in advance: some are being read, the others wait for a CPU or for being taken
COUNTED = 2  # times that Ray Data counts a task's output: while it runs and when it is there


def read_windows(
    pool: StreamedPool, windows: Windows, numbers: range, rank: int, world_size: int
) -> Generator[WindowRows, None, None]:
    """A `WindowReader`: as `read_here`, but tasks of Ray Data read and decode, `windows.ahead` in advance.

    An actor plans the tasks and takes their results: in the training process, Ray Data's threads would take the
    interpreter from the one that starts a GPU's kernels, at several times the time of a step (docs/scale.md).
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor: Any = ray.remote(num_cpus=0, scheduling_strategy=here)(_Reader)
    # In a list, so that the actor gets the reference, and the index of the pool is in the object store once.
    reader = actor.remote([ray.put(pool)], windows, numbers, rank, world_size)
    try:
        for _ in numbers:
            yield ray.get(reader.next_window.remote())
    finally:
        ray.kill(reader)


class _Reader:
    """Runs the data sets of one training worker."""

    def __init__(self, pool_refs: list[Any], windows: Windows, numbers: range, rank: int, world_size: int) -> None:
        self._windows = _iterate(pool_refs[0], windows, numbers, rank, world_size)

    def next_window(self) -> WindowRows:
        return next(self._windows)


def _iterate(
    pool_ref: Any, windows: Windows, numbers: range, rank: int, world_size: int
) -> Generator[WindowRows, None, None]:
    import ray
    from ray.data import DataContext, ExecutionResources

    for logger in ("ray", "ray.data"):
        logging.getLogger(logger).setLevel(logging.ERROR)
    pool = ray.get(pool_ref)
    share = windows.rows // world_size
    share_bytes = COUNTED * share * pool.bytes_per_image()
    bytes_ahead = share_bytes * ((windows.ahead or shares_ahead_here(share_bytes, world_size)) + 1)
    read = partial(_read_task, pool_ref, windows, rank, world_size)
    for first in range(numbers.start, numbers.stop, WINDOWS_PER_DATASET):
        some = range(first, min(first + WINDOWS_PER_DATASET, numbers.stop))
        context = DataContext.get_current().copy()
        context.enable_progress_bars = False
        context.execution_options.preserve_order = True
        context.execution_options.resource_limits = ExecutionResources.for_limits(object_store_memory=bytes_ahead)
        with DataContext.current(context):
            dataset = ray.data.from_items([{"number": number} for number in some], override_num_blocks=len(some))
            dataset = dataset.map_batches(read, batch_size=1, num_cpus=READER_CPUS)
        yield from dataset.iter_batches(batch_size=share, batch_format="numpy", prefetch_batches=1)


def shares_ahead_here(share_bytes: int, num_workers: int) -> int:
    """`shares_ahead` in the cluster that this process is connected to."""
    import ray

    resources = ray.cluster_resources()
    return shares_ahead(resources.get("CPU", 0.0), resources.get("object_store_memory", 0.0), share_bytes, num_workers)


def shares_ahead(num_cpus: float, object_store_bytes: float, share_bytes: float, num_workers: int) -> int:
    """Shares that each worker has read in advance where `data.pool.windows_ahead` is null; at least 1.

    All workers together have SHARES_PER_CPU for every CPU of the cluster, and what they hold, each with the share
    that it takes from, fits into half of the cluster's object store.

    Args:
        share_bytes: of one worker's share of a window, as Ray Data counts it.
    """
    by_cpus = SHARES_PER_CPU * num_cpus / num_workers
    by_room = object_store_bytes / 2 / (share_bytes * num_workers) - 1
    return max(1, int(min(by_cpus, by_room)))


def _read_task(pool_ref: Any, windows: Windows, rank: int, world_size: int, rows: dict[str, np.ndarray]) -> WindowRows:
    share_memory(READER_CPUS)
    # One thread for the one CPU: more would wait for each other at the interpreter's lock, at a sixth of the rate.
    return read_window(_pool(pool_ref), windows, int(rows["number"][0]), rank, world_size, num_threads=1)


@lru_cache(maxsize=1)
def _pool(pool_ref: Any) -> StreamedPool:
    """One a process: it keeps the order of the pass that it is in."""
    import ray

    return ray.get(pool_ref)
