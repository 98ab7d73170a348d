"""The workers of a run as the training step sees them: a rank, a device and their collectives."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dpl_ray.config.schema import ScaleConfig


def bucket_bytes(device: torch.device) -> float:
    """Size of the parts in which gradients are averaged; on a CPU one, as sending would take time from computing."""
    return 2**22 if device.type == "cuda" else math.inf


@dataclass(frozen=True)
class Workers:
    """All workers, seen from one of them. A single worker needs no process group."""

    rank: int = 0
    world_size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    stop: threading.Event = field(default_factory=threading.Event)  # set: worker 0 is asked to end after its step

    @classmethod
    def current(cls, device: torch.device | None = None, stop: threading.Event | None = None) -> Workers:
        """From torch's process group where there is one."""
        rank, world_size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        return cls(rank, world_size, device or torch.device("cpu"), stop or threading.Event())

    @classmethod
    def alone(cls, scale: ScaleConfig, stop: threading.Event | None = None) -> Workers:
        """This process, with the device and the threads of the configuration."""
        if scale.threads_per_worker:
            torch.set_num_threads(scale.threads_per_worker)
        return cls.current(torch.device("cuda" if scale.use_gpu else "cpu"), stop)

    def all_reduce_sum(self, values: Tensor) -> Tensor:
        """The sum over all workers, in place; the tensor itself where there is one worker or nothing to sum."""
        if self.world_size > 1 and values.numel():
            dist.all_reduce(values)
        return values

    def broadcast(self, tensors: list[Tensor]) -> None:
        """Make the tensors those of worker 0, in place."""
        if self.world_size > 1:
            for tensor in tensors:
                dist.broadcast(tensor, src=0)

    def gather(self, rows: Tensor) -> list[Tensor]:
        """Every worker's rows (N of its own, ...), in the order of ranks; on the device where they were."""
        if self.world_size == 1:
            return [rows]
        mine = torch.tensor([len(rows)], device=self.device)
        counts = [torch.empty_like(mine) for _ in range(self.world_size)]
        dist.all_gather(counts, mine)
        sizes = torch.cat(counts).tolist()
        padded = torch.zeros(max(sizes), *rows.shape[1:], dtype=rows.dtype, device=self.device)
        padded[: len(rows)] = rows
        found = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(found, padded)
        return [each[:size].to(rows.device) for each, size in zip(found, sizes, strict=True)]

    def gather_json(self, value: Any) -> list[Any]:
        """Every worker's value, in the order of ranks, through JSON: torch's own collective of objects unpickles."""
        if self.world_size == 1:
            return [value]
        text = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        return [json.loads(each.numpy().tobytes()) for each in self.gather(text)]


class GradientBuckets:
    """Averages gradients over all workers: each bucket is sent when it is whole, while backward goes on.

    Buckets are slices of the parameters, sent from the last one to the first, so that nothing but the parameters
    decides on the order of summation. Not DistributedDataParallel: it lays its buckets out anew after a process's first
    step, so that with 3 workers and more a resumed run would differ in the last bits.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], workers: Workers) -> None:
        self._workers, num_bytes = workers, bucket_bytes(workers.device)
        self._buckets: list[list[nn.Parameter]] = [[]]
        size = 0
        for parameter in parameters:
            size += parameter.numel() * parameter.element_size()
            if size > num_bytes and self._buckets[-1]:
                self._buckets.append([])
                size = parameter.numel() * parameter.element_size()
            self._buckets[-1].append(parameter)
        self._buckets.reverse()
        for index, bucket in enumerate(self._buckets):
            for parameter in bucket:
                if parameter.requires_grad:
                    parameter.register_post_accumulate_grad_hook(partial(self._arrived, index))
        self._open()

    def _open(self) -> None:
        self._missing = [sum(parameter.requires_grad for parameter in bucket) for bucket in self._buckets]
        self._sent: list[tuple[list[Tensor], Tensor, dist.Work]] = []
        self._next = 0

    def _arrived(self, index: int, _parameter: Tensor) -> None:
        self._missing[index] -= 1
        while self._next < len(self._buckets) and not self._missing[self._next]:
            self._send()

    def _send(self) -> None:
        gradients = [parameter.grad for parameter in self._buckets[self._next] if parameter.grad is not None]
        self._next += 1
        if gradients:
            flat = torch.cat([gradient.flatten() for gradient in gradients])
            self._sent.append((gradients, flat, dist.all_reduce(flat, async_op=True)))

    def finish(self) -> None:
        """After backward: the mean over all workers of every gradient, in place."""
        while self._next < len(self._buckets):  # some parameters may have no gradient
            self._send()
        for gradients, flat, work in self._sent:
            work.wait()
            flat /= self._workers.world_size
            parts = flat.split([gradient.numel() for gradient in gradients])
            for gradient, part in zip(gradients, parts, strict=True):
                gradient.copy_(part.view(gradient.shape))
        self._open()
