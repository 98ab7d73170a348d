"""The blocks of a pool through Ray Data: tasks read and decode, actors with the model label and write.

What flows is one row a block, in a block of its own, so that Ray Data neither splits nor merges them; few of them are
on their way at a time.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dpl_ray.cluster import connect as cluster
from dpl_ray.config.schema import ScaleConfig
from dpl_ray.data.images.convert import DecodeSettings
from dpl_ray.labeling.parts import Counts
from dpl_ray.labeling.plan import Plan, empty_plan

if TYPE_CHECKING:
    from dpl_ray.labeling.writer import BlockWriter

CPUS_PER_TASK = 0.25  # that reads and decodes: it waits for files, or for its blocks to be taken
FILE_THREADS = 16  # of a task that opens image files; a shard is read in one go
BLOCKS_PER_ACTOR = 2  # given to an actor at a time
BLOCKS_PER_DATASET = 32_768  # for each Ray Data takes time and memory before the first task; actors start anew
MAX_DEATHS = 3  # of processes over the same block or start; Ray Data would begin it again without end
LOG_LEVEL = "RAY_BACKEND_LOG_LEVEL"
BYTES_PER_ACTOR = 512 * 2**20  # of decoded blocks in the object store
_WHAT_TO_DO = {
    "read": "an image of these crashes its decoder or takes more memory than there is; to find it, label its folder or "
    "file alone, with rows_per_part=1 into another output. Without its file in the pool the same command goes on",
    "label": "the model may take more memory than there is; the same command with a smaller batch_size goes on",
    "start": "the model may take more memory than there is; the same command with a smaller scale.num_workers goes on",
}


class WorkersFailedError(RuntimeError):
    """A task or an actor of the labelling failed."""


class DeadlyError(RuntimeError):
    """Every process dies that reads or labels a block, or that loads the model."""


@dataclass(frozen=True)
class Shared:
    """What all processes use, in the object store."""

    plan: Any
    labeler: Any  # without its plan
    attempts: Any  # actor


def label_on_ray(
    labeler: BlockWriter, blocks: NDArray[np.int32], settings: DecodeSettings, scale: ScaleConfig
) -> Generator[tuple[int, Counts, int], None, None]:
    """(block, counts, bytes of its part) of every block, as they are done.

    Args:
        scale: checked; an actor for each of its workers.

    Raises:
        ValueError: the cluster is not there or is too small.
        WorkersFailedError: a task failed, or MAX_DEATHS processes died over one block; fewer are made up for.
    """
    with _quiet_core():
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
            cluster.disconnect()


@contextmanager
def _quiet_core() -> Iterator[None]:
    """Ray's core would complain on stderr of every actor of Ray Data that may be restarted.

    It reads its level where it is started, and says so on stderr too, with nothing that would stop it.
    """
    if LOG_LEVEL in os.environ:
        yield
        return
    os.environ[LOG_LEVEL] = "fatal"
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as said:
        os.dup2(said.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
            del os.environ[LOG_LEVEL]
            said.seek(0)
            for line in said:
                if LOG_LEVEL.encode() not in line:
                    os.write(2, line)


def _stream(
    labeler: BlockWriter, blocks: NDArray[np.int32], settings: DecodeSettings, scale: ScaleConfig
) -> Generator[tuple[int, Counts, int], None, None]:
    import ray
    from ray.data import DataContext, ExecutionResources

    context = DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    memory = BYTES_PER_ACTOR * (scale.num_workers or 1)
    context.execution_options.resource_limits = ExecutionResources.for_limits(object_store_memory=memory)
    attempts = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(_Attempts).remote()
    # The plan by itself: what reads has no use for the model, nor for torch, which it would have to import for it.
    plan = labeler.plan
    without = replace(labeler, plan=empty_plan(plan.pool))
    shared = Shared(ray.put(plan), ray.put(without), attempts)
    for start in range(0, len(blocks), BLOCKS_PER_DATASET):
        with DataContext.current(context):
            dataset = _dataset(shared, blocks[start : start + BLOCKS_PER_DATASET].tolist(), settings, scale)
        try:
            for row in dataset.iter_rows():
                yield int(row["block"]), Counts(**json.loads(row["counts"])), int(row["size"])
        finally:  # as long as someone holds an error, its traceback holds the actors, and they their CPUs
            with suppress(ray.exceptions.RayError):
                ray.get(attempts.kill_actors.remote(), timeout=30)


def _dataset(shared: Shared, blocks: list[int], settings: DecodeSettings, scale: ScaleConfig) -> Any:
    """The rows of these blocks."""
    import ray
    from ray.data import ActorPoolStrategy

    num_actors = min(scale.num_workers or 1, len(blocks))  # Ray warns of those that would have nothing to do
    # No reading task, which would ask for a whole CPU: the numbers are put into the object store from here.
    numbers = ray.data.from_items(blocks, override_num_blocks=len(blocks))
    return numbers.map_batches(
        _decode,
        batch_size=1,
        num_cpus=CPUS_PER_TASK,
        fn_kwargs={"shared": shared, "settings": settings},
    ).map_batches(
        _Actor,
        batch_size=1,
        num_cpus=scale.cpus_per_worker,
        num_gpus=1 if scale.use_gpu else 0,
        compute=ActorPoolStrategy(size=num_actors, max_tasks_in_flight_per_actor=BLOCKS_PER_ACTOR),
        fn_constructor_kwargs={"shared": shared, "scale": scale},
    )


def _decode(batch: dict[str, Any], *, shared: Shared, settings: DecodeSettings) -> dict[str, Any]:
    """A row with the number of a block -> a row with the block."""
    import ray

    from dpl_ray.data.files.shards import is_shard
    from dpl_ray.data.images.decode import share_memory
    from dpl_ray.labeling.decoding import decode_block

    share_memory(CPUS_PER_TASK)
    plan: Plan = ray.get(shared.plan)
    block = int(batch["item"][0])
    path = plan.pool.paths[plan.pool.spans[block, 0]].as_py()
    with _attempt(shared, "read", block, partial(_names, plan, block)):
        found = decode_block(plan, block, settings, num_threads=1 if is_shard(path) else FILE_THREADS)
    return {
        "block": np.array([block]),
        "images": found.images[None],
        "kept": found.kept[None],
        "errors": np.array([json.dumps(list(found.errors.items()))]),
    }


class _Actor:
    """A copy of the model, on a device of its own."""

    def __init__(self, shared: Shared, scale: ScaleConfig) -> None:
        import ray
        import torch

        torch.set_num_threads(num_threads(scale))
        self.shared, self.plan = shared, ray.get(shared.plan)
        ray.get(shared.attempts.add_actor.remote(ray.get_runtime_context().current_actor))
        # An actor that is started again is the same one.
        with _attempt(shared, "start", ray.get_runtime_context().get_actor_id(), lambda: "the start of an actor"):
            self.labeler = self._load(torch.device("cuda" if scale.use_gpu else "cpu"))

    def _load(self, device: Any) -> BlockWriter:
        import ray

        labeler: BlockWriter = ray.get(self.shared.labeler)
        return replace(labeler, plan=self.plan).to(device)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        from dpl_ray.labeling.decoding import DecodedBlock

        errors = dict(json.loads(str(batch["errors"][0])))
        block = DecodedBlock(int(batch["block"][0]), batch["images"][0], batch["kept"][0], errors)
        with _attempt(self.shared, "label", block.number, partial(_names, self.plan, block.number)):
            counts, size = self.labeler.write(block)
        return {
            "block": batch["block"],
            "counts": np.array([json.dumps(asdict(counts))]),
            "size": np.array([size]),
        }


class _Attempts:
    """An actor that knows what was begun, and how often, and not ended; and the actors with the model."""

    def __init__(self) -> None:
        self._begun: Counter[tuple[str, int | str]] = Counter()
        self._actors: list[Any] = []

    def add_actor(self, actor: Any) -> None:
        self._actors.append(actor)

    def kill_actors(self) -> None:
        import ray

        while self._actors:
            ray.kill(self._actors.pop())

    def begin(self, stage: str, key: int | str) -> int:
        """How often it was begun now."""
        self._begun[stage, key] += 1
        return self._begun[stage, key]

    def end(self, stage: str, key: int | str) -> None:
        self._begun.pop((stage, key), None)


@contextmanager
def _attempt(shared: Shared, stage: str, key: int | str, name: Callable[[], str]) -> Iterator[None]:
    """Count an attempt at a block, or at the start of an actor.

    Raises:
        DeadlyError: the processes of so many before have died.
    """
    import ray

    if ray.get(shared.attempts.begin.remote(stage, key)) > MAX_DEATHS:
        raise DeadlyError(f"{MAX_DEATHS} processes died over {name()}: {_WHAT_TO_DO[stage]}")
    yield
    shared.attempts.end.remote(stage, key)


def _names(plan: Plan, block: int) -> str:
    """The first and the last image of a block."""
    ids = plan.sample_ids(block)
    return " ... ".join(dict.fromkeys([ids[0], ids[-1]]))


def num_threads(scale: ScaleConfig) -> int:
    """Of an actor: the CPUs that it reserves, rounded."""
    return max(1, round(scale.cpus_per_worker))


def count_actors(nodes: Iterable[Mapping[str, float]], scale: ScaleConfig) -> int:
    """Actors that the nodes, given by their resources, carry beside a task that reads on each."""
    free = [{**node, "CPU": node.get("CPU", 0.0) - CPUS_PER_TASK} for node in nodes]
    return cluster.room(free, scale.cpus_per_worker, float(scale.use_gpu))
