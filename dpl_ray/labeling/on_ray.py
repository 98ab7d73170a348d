"""The blocks of a pool on a cluster: tasks read and decode, actors with the model label and write.

A block's images go from the object store of a task to an actor; the process that calls has only counts. Not by Ray
Data: a block must be neither split nor merged, and Ray Data starts processes of its own before it reads the first one.
"""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dpl_ray.cluster import connect as cluster
from dpl_ray.config.schema import ScaleConfig
from dpl_ray.data.images.convert import DecodeSettings
from dpl_ray.labeling.parts import Counts
from dpl_ray.labeling.plan import MAX_DECODED_BYTES, Plan, empty_plan

if TYPE_CHECKING:
    from dpl_ray.labeling.writer import BlockWriter

CPUS_PER_TASK = 0.25  # that reads and decodes: it waits for files, or for its blocks to be taken
FILE_THREADS = 16  # of a task that opens image files; a shard is read in one go
BLOCKS_PER_ACTOR = 8  # being decoded, decoded or labelled at a time; all in half of the object stores
BLOCKS_GIVEN = 2  # of them to an actor: the one that it labels, and the next
MAX_DEATHS = 3  # of processes over the same block, or of the same actor while it starts
_WHAT_TO_DO = {
    "read": "an image of these crashes its decoder or takes more memory than there is; to find it, label its folder or "
    "file alone, with rows_per_part=1 into another output. Without its file in the pool the same command goes on",
    "label": "the model may take more memory than there is; the same command with a smaller batch_size goes on",
    "start": "the model may take more memory than there is; the same command with a smaller scale.num_workers goes on",
}


class WorkersFailedError(RuntimeError):
    """A task or an actor of the labelling failed."""


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
    started = cluster.connect(scale)
    import ray

    logging.getLogger("ray").setLevel(logging.ERROR)
    run = None
    try:
        run = _Run(labeler, settings, scale, min(scale.worker_range[1], len(blocks)))
        yield from run.label(blocks)
    except ray.exceptions.RayError as error:
        raise WorkersFailedError(cluster.cause_line(error)) from error
    finally:
        if run is not None:  # on a cluster that goes on without this command
            run.end()
        if started:
            cluster.disconnect()


@dataclass(frozen=True)
class _Block:
    number: int
    images: Any  # reference to its `DecodedBlock`


@dataclass
class _Worker:
    """An actor, which may be replaced, and what it has to do, in this order."""

    actor: Any = None
    start: Any = None  # reference to the end of its start; None where that is past
    blocks: deque[tuple[Any, _Block]] = field(default_factory=deque)  # each with the reference to what it has written
    failed_starts: int = 0

    @property
    def awaited(self) -> Any:
        """Reference to what it ends next; None where it has nothing to do."""
        return self.blocks[0][0] if self.blocks else self.start


class _Run:
    """The blocks that are on their way, the actors, and how often processes died over a block."""

    def __init__(self, labeler: BlockWriter, settings: DecodeSettings, scale: ScaleConfig, num_actors: int) -> None:
        import ray

        self._plan, self._settings, self._scale = labeler.plan, settings, scale
        # The plan by itself: what reads has no use for the model, nor for torch, which it would have to import for it.
        self._shared_plan = ray.put(labeler.plan)
        self._shared_labeler = ray.put(replace(labeler, plan=empty_plan(labeler.plan.pool)))
        options = {"num_cpus": scale.cpus_per_worker, "num_gpus": 1 if scale.use_gpu else 0}
        self._actor_class = ray.remote(**options, scheduling_strategy="SPREAD")(_Actor)
        # A death is counted here, and made up for.
        self._decode = ray.remote(num_cpus=CPUS_PER_TASK, num_returns=2, max_retries=0, scheduling_strategy="SPREAD")(
            _decode
        )
        room = ray.cluster_resources().get("object_store_memory", 0) // (2 * MAX_DECODED_BYTES)
        self._most_blocks = max(1, min(BLOCKS_PER_ACTOR * num_actors, int(room)))
        self._workers: list[_Worker] = []
        self._without_actor = [_Worker() for _ in range(num_actors)]
        self._decoding: dict[Any, _Block] = {}  # by the reference to the end of the task
        self._decoded: deque[_Block] = deque()
        self._deaths = Counter[tuple[str, int]]()

    def label(self, blocks: Iterable[int]) -> Generator[tuple[int, Counts, int], None, None]:
        todo = map(int, blocks)
        while True:
            self._start_actors()
            self._decode_more(todo)
            self._give()
            if not self._num_on_their_way:
                return
            awaited = {worker.awaited: worker for worker in self._workers if worker.awaited is not None}
            for reference in _ready([*awaited, *self._decoding]):
                if reference in self._decoding:
                    self._end_decode(reference)
                elif awaited[reference].start is reference:
                    self._end_start(awaited[reference])
                elif (found := self._end_label(awaited[reference])) is not None:
                    yield found

    def end(self) -> None:
        import ray

        for worker in self._workers:
            with suppress(ray.exceptions.RayError, ConnectionError):
                ray.kill(worker.actor)
            worker.blocks.clear()  # whoever keeps an error keeps this
        for reference in self._decoding:
            with suppress(ray.exceptions.RayError, ConnectionError):
                ray.cancel(reference)
        self._decoding.clear()
        self._decoded.clear()

    @property
    def _num_on_their_way(self) -> int:
        return len(self._decoding) + len(self._decoded) + sum(len(worker.blocks) for worker in self._workers)

    def _start_actors(self) -> None:
        """As many as the cluster has room for: when a node is lost, what decodes must keep a CPU."""
        while self._without_actor:
            room = count_actors(cluster.connected_nodes(), self._scale)
            if self._workers and len(self._workers) >= room:
                return
            worker = self._without_actor.pop()
            worker.actor = self._actor_class.remote(self._shared_plan, self._shared_labeler, self._scale)
            worker.start = worker.actor.ready.remote()
            self._workers.append(worker)

    def _decode_more(self, todo: Iterator[int]) -> None:
        for block in islice(todo, self._most_blocks - self._num_on_their_way):
            self._submit(block)

    def _submit(self, block: int) -> None:
        images, end = self._decode.remote(self._shared_plan, block, self._settings)
        self._decoding[end] = _Block(block, images)

    def _give(self) -> None:
        """Decoded blocks to the actors that have the fewest; the last ones to those that are first at an end."""
        ready = [worker for worker in self._workers if worker.start is None]
        most = BLOCKS_GIVEN if len(self._decoded) + len(self._decoding) > len(self._workers) else 1
        while self._decoded and ready:
            worker = min(ready, key=lambda worker: len(worker.blocks))
            if len(worker.blocks) >= most:
                return
            block = self._decoded.popleft()
            worker.blocks.append((worker.actor.label.remote(block.images), block))

    def _end_start(self, worker: _Worker) -> None:
        import ray

        try:
            ray.get(worker.start)
        except _deaths() as error:
            if getattr(error, "actor_init_failed", False):
                raise
            worker.failed_starts += 1
            if worker.failed_starts == MAX_DEATHS:
                raise _too_many_deaths("start", "the start of an actor") from error
            self._lose(worker)
        else:
            worker.start, worker.failed_starts = None, 0

    def _end_decode(self, reference: Any) -> None:
        import ray

        block = self._decoding.pop(reference)
        try:
            ray.get(reference)
        except _deaths() as error:
            self._count_death("read", block, error)
            self._submit(block.number)
        else:
            self._decoded.append(block)

    def _end_label(self, worker: _Worker) -> tuple[int, Counts, int] | None:
        """What was written; None where it has to be done again."""
        import ray

        reference, block = worker.blocks[0]
        try:
            found: tuple[int, Counts, int] = ray.get(reference)
        except (ray.exceptions.RayTaskError, ray.exceptions.ObjectLostError) as error:
            if not isinstance(getattr(error, "cause", error), ray.exceptions.ObjectLostError):
                raise
            worker.blocks.popleft()  # its images went with a node
            self._count_death("read", block, error)
            self._submit(block.number)
            return None
        except _deaths() as error:
            self._decoded.extendleft(block for _, block in reversed(worker.blocks))
            worker.blocks.clear()
            self._lose(worker)
            for other in self._workers:  # on the same node, perhaps: nobody else would notice before it has a block
                if not other.blocks and other.start is None:
                    other.start = other.actor.ready.remote()
            self._count_death("label", block, error)
            return None
        worker.blocks.popleft()
        return found

    def _lose(self, worker: _Worker) -> None:
        import ray

        with suppress(ray.exceptions.RayError):  # what is out of reach may not be dead
            ray.kill(worker.actor)
        self._workers.remove(worker)
        self._without_actor.append(worker)

    def _count_death(self, stage: str, block: _Block, error: Exception) -> None:
        self._deaths[stage, block.number] += 1
        if self._deaths[stage, block.number] == MAX_DEATHS:
            raise _too_many_deaths(stage, _names(self._plan, block.number)) from error


def _ready(references: list[Any]) -> list[Any]:
    """Those that have ended, at least one."""
    import ray

    first, others = ray.wait(references, fetch_local=False)
    return first + (ray.wait(others, num_returns=len(others), timeout=0, fetch_local=False)[0] if others else [])


def _decode(plan: Plan, block: int, settings: DecodeSettings) -> tuple[Any, None]:
    """The images of a block, and the news that they are there."""
    from dpl_ray.data.files.shards import is_shard
    from dpl_ray.data.images.decode import share_memory
    from dpl_ray.labeling.decoding import decode_block

    share_memory(CPUS_PER_TASK)
    path = plan.pool.paths[plan.pool.spans[block, 0]].as_py()
    return decode_block(plan, block, settings, num_threads=1 if is_shard(path) else FILE_THREADS), None


class _Actor:
    """A copy of the model, on a device of its own."""

    def __init__(self, plan: Plan, labeler: BlockWriter, scale: ScaleConfig) -> None:
        import torch

        torch.set_num_threads(num_threads(scale))
        self._labeler = replace(labeler, plan=plan).to(torch.device("cuda" if scale.use_gpu else "cpu"))

    def ready(self) -> None:
        """Answered when the actor has started."""

    def label(self, block: Any) -> tuple[int, Counts, int]:
        return block.number, *self._labeler.write(block)


def _deaths() -> tuple[type[Exception], ...]:
    """What Ray says where a process is gone, or what it had."""
    from ray import exceptions

    of_tasks = exceptions.WorkerCrashedError, exceptions.NodeDiedError, exceptions.LocalRayletDiedError
    return *of_tasks, exceptions.RayActorError, exceptions.OutOfMemoryError, exceptions.ObjectLostError


def _too_many_deaths(stage: str, over: str) -> WorkersFailedError:
    return WorkersFailedError(f"{MAX_DEATHS} processes died over {over}: {_WHAT_TO_DO[stage]}")


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


def usual_actors(nodes: Iterable[Mapping[str, float]], scale: ScaleConfig) -> int:
    """Actors where nobody has asked for a number: each with a task that reads for it; at least 1."""
    return max(1, cluster.room(nodes, scale.cpus_per_worker + CPUS_PER_TASK, float(scale.use_gpu)))
