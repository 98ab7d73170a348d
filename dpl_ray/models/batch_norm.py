"""BatchNorm over the images that count: not over those that fill a fixed shape, and over all workers if wanted.

Legend: N images, of which n count, C channels.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar

import torch
import torch.distributed as dist
from torch import Tensor, nn


class CountedBatchNorm2d(nn.BatchNorm2d):
    """torch's BatchNorm; within `counting` its mean and variance are those of the images that count."""

    is_synced: ClassVar[bool] = False
    counted: Tensor | None = None  # (N,) bool

    def forward(self, values: Tensor) -> Tensor:
        """(N, C, H, W) -> the same shape and dtype; all images are normalized, also those that do not count."""
        is_shared = self.is_synced and dist.is_initialized() and dist.get_world_size() > 1
        if not self.training or (self.counted is None and not is_shared):
            return super().forward(values)
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.momentum is not None
        assert self.num_batches_tracked is not None
        # Near its mean a variance is a difference of two sums without loss of digits; so the values are read once.
        near = values.float() - self.running_mean.clone()[:, None, None]
        counted = near.new_ones(len(near)) if self.counted is None else self.counted.float()
        weighted = near * counted[:, None, None, None]
        number = (counted.sum() * values[0, 0].numel())[None]
        sums = torch.cat([number, weighted.sum(dim=(0, 2, 3)), (weighted * near).sum(dim=(0, 2, 3))])
        if is_shared:
            sums = _sum_over_workers(sums)
        number, mean, square = sums.split([1, len(self.weight), len(self.weight)])
        mean = mean / number
        variance = (square / number - mean.square()).clamp(min=0)
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.add_(mean, alpha=self.momentum)
            self.running_var.lerp_(variance * (number / (number - 1)), self.momentum)
        scale = self.weight * (variance + self.eps).rsqrt()
        return ((near - mean[:, None, None]) * scale[:, None, None] + self.bias[:, None, None]).to(values.dtype)


class SyncedBatchNorm2d(CountedBatchNorm2d):
    """The same over the images of all workers. Not torch's SyncBatchNorm, which counts all images and refuses CPUs."""

    is_synced = True


def _sum_over_workers(values: Tensor) -> Tensor:
    """The sum, whose gradient is the sum over all workers of theirs."""
    from torch.distributed.nn.functional import all_reduce

    return all_reduce(values)


@contextmanager
def counting(network: nn.Module, counted: Tensor | None, num_before: int) -> Iterator[None]:
    """In this block the network's BatchNorm counts `num_before` images and of those that follow these; None: all."""
    if counted is None:
        yield
        return
    norms = [module for module in network.modules() if isinstance(module, CountedBatchNorm2d)]
    for norm in norms:
        norm.counted = torch.cat([counted.new_ones(num_before), counted])
    try:
        yield
    finally:
        for norm in norms:
            norm.counted = None
