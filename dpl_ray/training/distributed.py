"""The workers of a run as the training step sees them: a rank, a device and three collectives."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Workers:
    """All workers, seen from one of them. A single worker needs no process group."""

    rank: int = 0
    world_size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @classmethod
    def current(cls, device: torch.device | None = None) -> Workers:
        """From torch's process group where there is one."""
        if not dist.is_initialized():
            return cls(device=device or torch.device("cpu"))
        return cls(dist.get_rank(), dist.get_world_size(), device or torch.device("cpu"))

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

    def gather(self, value: Any) -> list[Any]:
        """Every worker's value, in the order of ranks. For what is small and rare: values are pickled."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values
