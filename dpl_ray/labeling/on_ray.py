"""The blocks of a pool on a cluster: tasks read and decode, actors with the model label and write.

A block's images go from the task's object store to an actor; the process that calls has only counts. Not Ray Data: a
block is a unit that it would neither split, merge nor order, and its own processes start longer than all of these.
"""

from __future__ import annotations

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
from dpl_ray.labeling.plan import Plan, empty_plan

if TYPE_CHECKING:
    from dpl_ray.labeling.writer import BlockWriter

CPUS_PER_TASK = 0.25  # that reads and decodes: it waits for files, or for its blocks to be taken
FILE_THREADS = 16  # of a task that opens image files; a shard is read in one go
BLOCKS_PER_ACTOR = 8  # being decoded, decoded or labelled at a time
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

    actor: Any
    start: Any  # reference to the end of its start; None where that is past
    blocks: dict[Any, _Block] = field(default_factory=dict)  # by the reference to what it will say of them
    failed_starts: int = 0


class _Run:
    """The blocks that are on their way, the actors, and how often processes died over a block."""

    def __init__(self, labeler: BlockWriter, settings: DecodeSettings, scale: ScaleConfig, num_actors: int) -> None:
        import ray

        # The plan by itself: what reads has no use for the model, nor for torch, which it would have to import for it.
        self._plan, self._settings, self._scale = labeler.plan, settings, scale
        self._shared_plan = ray.put(labeler.plan)
        self._shared_labeler = ray.put(replace(labeler, plan=empty_plan(labeler.plan.pool)))
        # A death is counted here, and made up for.
        self._decode = ray.remote(num_cpus=CPUS_PER_TASK, num_returns=2, max_retries=0, scheduling_strategy="SPREAD")(
            _decode
        )
        self._workers = [_Worker(*self._start_actor()) for _ in range(num_actors)]
        self._decoding: dict[Any, _Block] = {}  # by the reference to the end of the task
        self._decoded: deque[_Block] = deque()
        self._deaths = Counter[tuple[str, int]]()

    def label(self, blocks: Iterable[int]) -> Generator[tuple[int, Counts, int], None, None]:
        import ray

        todo = map(int, blocks)
        while True:
            self._decode_more(todo)
            self._give()
            starting = {worker.start: worker for worker in self._workers if worker.start is not None}
            labeling = {reference: worker for worker in self._workers for reference in worker.blocks}
            if not self._decoding and not self._decoded and not labeling:
                return
            for reference in ray.wait([*labeling, *self._decoding, *starting], fetch_local=False)[0]:
                if reference in starting:
                    self._end_start(starting[reference])
                elif reference in self._decoding:
                    self._end_decode(reference)
                elif (found := self._end_label(labeling[reference], reference)) is not None:
                    yield found

    def end(self) -> None:
        import ray

        with suppress(ray.exceptions.RayError):
            for worker in self._workers:
                ray.kill(worker.actor)
            for reference in self._decoding:
                ray.cancel(reference)

    def _start_actor(self) -> tuple[Any, Any]:
        """The actor, and a reference to the end of its start."""
        import ray

        options = {"num_cpus": self._scale.cpus_per_worker, "num_gpus": 1 if self._scale.use_gpu else 0}
        kind = ray.remote(**options, scheduling_strategy="SPREAD")(_Actor)
        actor = kind.remote(self._shared_plan, self._shared_labeler, self._scale)
        return actor, actor.ready.remote()

    def _decode_more(self, todo: Iterator[int]) -> None:
        given = sum(len(worker.blocks) for worker in self._workers)
        free = BLOCKS_PER_ACTOR * len(self._workers) - given - len(self._decoding) - len(self._decoded)
        for block in islice(todo, free):
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
            worker.blocks[worker.actor.label.remote(block.images)] = block

    def _end_start(self, worker: _Worker) -> None:
        import ray

        try:
            ray.get(worker.start)
        except ray.exceptions.RayActorError as error:
            if error.actor_init_failed:
                raise
            worker.failed_starts += 1
            if worker.failed_starts == MAX_DEATHS:
                raise _too_many_deaths("start", "the start of an actor") from error
            worker.actor, worker.start = self._start_actor()
        else:
            worker.start, worker.failed_starts = None, 0

    def _end_decode(self, reference: Any) -> None:
        import ray

        block = self._decoding.pop(reference)
        try:
            ray.get(reference)
        except (*_deaths(), ray.exceptions.ObjectLostError) as error:
            self._count_death("read", block, error)
            self._submit(block.number)
        else:
            self._decoded.append(block)

    def _end_label(self, worker: _Worker, reference: Any) -> tuple[int, Counts, int] | None:
        """What was written; None where it has to be done again."""
        import ray

        if reference not in worker.blocks:  # given back, as the actor has died over another
            return None
        try:
            found: tuple[int, Counts, int] = ray.get(reference)
        except ray.exceptions.RayActorError as error:
            first = next(iter(worker.blocks.values()))  # the others it has not looked at
            self._decoded.extendleft(reversed(worker.blocks.values()))
            worker.blocks.clear()
            with suppress(ray.exceptions.RayError):  # out of reach may not be dead
                ray.kill(worker.actor)
            worker.actor, worker.start = self._start_actor()
            self._count_death("label", first, error)
            return None
        except ray.exceptions.RayError as error:
            if not _is_lost(error):
                raise
            block = worker.blocks.pop(reference)  # its images went with a node
            self._count_death("read", block, error)
            self._submit(block.number)
            return None
        del worker.blocks[reference]
        return found

    def _count_death(self, stage: str, block: _Block, error: Exception) -> None:
        self._deaths[stage, block.number] += 1
        if self._deaths[stage, block.number] == MAX_DEATHS:
            raise _too_many_deaths(stage, _names(self._plan, block.number)) from error


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
    """What Ray says of a task whose process is gone."""
    from ray.exceptions import LocalRayletDiedError, NodeDiedError, OutOfMemoryError, WorkerCrashedError

    return WorkerCrashedError, OutOfMemoryError, NodeDiedError, LocalRayletDiedError


def _is_lost(error: Any) -> bool:
    """Whether a task failed as its argument is gone."""
    from ray.exceptions import ObjectLostError

    return isinstance(error, ObjectLostError) or isinstance(getattr(error, "cause", None), ObjectLostError)


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
