"""The workers of a run as the training step sees them: a rank, a device and four collectives."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


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

    def all_reduce_sum(self, values: Tensor) -> Tensor:
        """The sum over all workers, in place; the tensor itself where there is one worker or nothing to sum."""
        if self.world_size > 1 and values.numel():
            dist.all_reduce(values)
        return values

    def average_gradients(self, parameters: list[nn.Parameter]) -> None:
        """The mean over all workers of every gradient, in place, as one vector in the order of the parameters.

        Not DistributedDataParallel: it lays its buckets out anew after a process's first step, which changes the
        order of summation, so that with 3 workers and more a resumed run would differ in the last bits.
        """
        if self.world_size == 1:
            return
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        flat /= self.world_size
        parts = flat.split([gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view(gradient.shape))

    def broadcast(self, tensors: list[Tensor]) -> None:
        """Make the tensors those of worker 0, in place."""
        if self.world_size > 1:
            for tensor in tensors:
                dist.broadcast(tensor, src=0)

    def gather(self, value: Any) -> list[Any]:
        """Every worker's value, in the order of ranks. For what is small and rare: values are pickled."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values
