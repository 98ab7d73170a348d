"""Workers whose computing is a sleep and whose collectives take longer, on nodes that are made up on this machine.

Every worker is an actor on a node of its own (Ray's fake multi-node cluster). The process group is the product's, and
so are the collectives (`Workers`, `GradientBuckets`).
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from benchmarks.scaling_model import Parts
from dpl_ray.training import distributed
from dpl_ray.training.distributed import GradientBuckets, Workers

LAYERS, WIDTH = 4, 64  # of a worker's network
NUM_STATISTICS = 100
WARM_STEPS = 3  # that are not measured
STORE_BYTES = 80 * 2**20  # of a node's object store, about the least that Ray takes


@contextmanager
def nodes(number: int) -> Iterator[None]:
    """A cluster of so many nodes of one CPU each, which this process is connected to."""
    import ray
    from ray._private import worker
    from ray.cluster_utils import Cluster

    from dpl_ray.cluster import local

    each = {"num_cpus": 1, "object_store_memory": STORE_BYTES, "include_dashboard": False}
    # Of 15: what else the machine does would leave the workers next to no time.
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112
    local.start(**each, log_to_driver=False, logging_level="ERROR")
    cluster = Cluster()
    cluster.head_node = worker._global_node
    try:
        with local.small():
            for _ in range(number - 1):
                cluster.add_node(**each, node_ip_address="127.0.0.1")
        assert len(ray.nodes()) == number
        yield
    finally:
        for node in list(cluster.worker_nodes):
            cluster.remove_node(node)
        local.stop()


class Group:
    """Actors in the product's process group; ended on leaving. As the worker group of Ray Train, as far as it asks."""

    def __init__(self, number: int) -> None:
        import ray

        from dpl_ray.cluster.process_group import NodeAddressConfig

        self._actors: list[Any] = [ray.remote(num_cpus=1)(_Process).remote() for _ in range(number)]
        config = NodeAddressConfig()
        config.backend_cls().on_start(self, config)

    def __enter__(self) -> Group:
        return self

    def __exit__(self, *_: object) -> None:
        import ray

        for actor in self._actors:
            ray.kill(actor)

    def __len__(self) -> int:
        return len(self._actors)

    def get_resources_per_worker(self) -> dict[str, float]:
        return {"CPU": 1.0}

    def execute_single_async(self, rank: int, work: Callable[..., Any], *arguments: Any) -> Any:
        return self._actors[rank].run.remote(work, *arguments)

    def execute_single(self, rank: int, work: Callable[..., Any], *arguments: Any) -> Any:
        import ray

        return ray.get(self.execute_single_async(rank, work, *arguments))

    def execute(self, work: Callable[..., Any], *arguments: Any) -> list[Any]:
        """What each worker returns, in the order of ranks."""
        import ray

        answers = [self.execute_single_async(rank, work, *arguments) for rank in range(len(self))]
        return list(ray.get(answers))

    def num_nodes(self) -> int:
        """On how many nodes they are."""
        return len(set(self.execute(_node)))

    def step_seconds(self, parts: Parts, delays: tuple[float, float], steps: int, seed: int = 0) -> float:
        """Mean seconds of a step of worker 0, after all have begun.

        Args:
            delays: seconds that the collective of the statistics and that of each bucket take longer.
            seed: of how long each worker computes.
        """
        return float(self.execute(mean_step, parts, delays, steps, seed)[0])


class _Process:
    def run(self, work: Callable[..., Any], *arguments: Any) -> Any:
        return work(*arguments)


def _node() -> str:
    import ray

    return str(ray.get_runtime_context().get_node_id())


class Delayed:
    """An all_reduce that takes longer: what is sent waits for what was sent before."""

    def __init__(self, seconds: dict[int, float], thread: ThreadPoolExecutor) -> None:
        """
        Args:
            seconds: by number of elements.
            thread: one, which sends.
        """
        self._seconds, self._send, self._thread = seconds, dist.all_reduce, thread

    def __call__(self, values: Tensor, *, async_op: bool = False) -> Any:
        def send() -> None:
            time.sleep(self._seconds.get(values.numel(), 0.0))
            self._send(values)

        future: Future[None] = self._thread.submit(send)
        if not async_op:
            return future.result()
        future.wait = future.result  # type: ignore[attr-defined]
        return future


class Slow(torch.autograd.Function):
    """The identity, whose gradient takes so many seconds."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, seconds: float) -> Tensor:
        ctx.seconds = seconds
        return values.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        time.sleep(ctx.seconds)
        return gradient, None


def mean_step(parts: Parts, delays: tuple[float, float], steps: int, seed: int) -> float:
    """As `Group.step_seconds`, in one of its workers; all of them call this."""
    torch.set_num_threads(1)
    workers = Workers.current()
    layers = nn.Sequential(*(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(LAYERS)))
    values = torch.zeros(NUM_STATISTICS, dtype=torch.float64)
    random = np.random.default_rng([seed, workers.rank])
    times = []
    with ThreadPoolExecutor(1) as thread:
        delayed = Delayed({values.numel(): delays[0], WIDTH**2: delays[1]}, thread)
        with (
            mock.patch.object(dist, "all_reduce", delayed),
            mock.patch.object(distributed, "bucket_bytes", return_value=0.0),  # a bucket for each layer
        ):
            buckets = GradientBuckets(layers.parameters(), workers)
            dist.barrier()
            for _ in range(WARM_STEPS + steps):
                began = time.perf_counter()
                first, second = (
                    max(0.0, part * (1 + parts.spread * random.standard_normal()))
                    for part in (parts.first, parts.second)
                )
                time.sleep(first)
                workers.all_reduce_sum(values)
                through = torch.ones(1, WIDTH)
                for layer in layers:
                    through = Slow.apply(layer(through), second / LAYERS)
                through.sum().backward()
                buckets.finish()
                times.append(time.perf_counter() - began)
    return statistics.fmean(times[WARM_STEPS:])
