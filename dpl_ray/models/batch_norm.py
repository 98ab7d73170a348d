"""BatchNorm over the images that count: not over those that fill a fixed shape, and over all workers if wanted.

Legend: N images, of which n count, C channels.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn


class CountedBatchNorm2d(nn.BatchNorm2d):
    """torch's BatchNorm; within `counting` its mean and variance are those of the images that count."""

    is_synced: ClassVar[bool] = False
    counted: Tensor | None = None  # (N,) bool

    def forward(self, values: Tensor, slope: float = 1.0) -> Tensor:
        """(N, C, H, W) -> leaky_relu of the normalized values, the same shape and dtype, also where nothing counts."""
        is_shared = self.is_synced and dist.is_initialized() and dist.get_world_size() > 1
        if not self.training or (self.counted is None and not is_shared):
            normalized = super().forward(values)
            return normalized if slope == 1 else F.leaky_relu(normalized, slope, inplace=True)
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.momentum is not None
        assert self.num_batches_tracked is not None
        with torch.no_grad():
            # Near its mean a variance is a difference of two sums without loss of digits; so the values are read once.
            center = self.running_mean.clone()
            near = values.float() - center[:, None, None]
            counted = near.new_ones(len(near)) if self.counted is None else self.counted.float()
            weighted = near * counted[:, None, None, None]
            number = (counted.sum() * values[0, 0].numel())[None]
            sums = torch.cat([number, weighted.sum(dim=(0, 2, 3)), (weighted * near).sum(dim=(0, 2, 3))])
            if is_shared:
                dist.all_reduce(sums)
            number, mean, square = sums.split([1, len(self.weight), len(self.weight)])
            mean = mean / number
            variance = (square / number - mean.square()).clamp(min=0)
            self.num_batches_tracked += 1
            self.running_mean.add_(mean, alpha=self.momentum)
            self.running_var.lerp_(variance * (number / (number - 1)), self.momentum)
            moments = center + mean, (variance + self.eps).rsqrt()
        return _Normalize.apply(values, self.weight, self.bias, *moments, counted / number, slope, is_shared)


class SyncedBatchNorm2d(CountedBatchNorm2d):
    """The same over the images of all workers. Not torch's SyncBatchNorm, which counts all images and refuses CPUs."""

    is_synced = True


class _Normalize(torch.autograd.Function):
    """leaky_relu(weight * (values - mean) / deviation + bias), with mean and deviation of the values that count.

    The gradient is BatchNorm's own formula (Ioffe and Szegedy 2015), with each image's share of the mean: two passes
    over the values and the gradient, and no more, since the activation's sign is computed anew.
    """

    @staticmethod
    def forward(
        ctx: Any,
        values: Tensor,
        weight: Tensor,
        bias: Tensor,
        mean: Tensor,
        inverse: Tensor,
        shares: Tensor,
        slope: float,
        is_shared: bool,
    ) -> Tensor:
        """Mean and 1 / deviation (C,); shares (N,): 1 / number of values that count, 0 if the image does not."""
        ctx.save_for_backward(values, weight, bias, mean, inverse, shares)
        ctx.slope, ctx.is_shared = slope, is_shared
        normalized = (values.float() - mean[:, None, None]) * inverse[:, None, None]
        return F.leaky_relu(normalized * weight[:, None, None] + bias[:, None, None], slope).to(values.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        values, weight, bias, mean, inverse, shares = ctx.saved_tensors
        normalized = (values.float() - mean[:, None, None]) * inverse[:, None, None]
        is_above = normalized * weight[:, None, None] + bias[:, None, None] > 0
        gradient = torch.where(is_above, gradient.float(), ctx.slope * gradient.float())
        of_bias, of_weight = gradient.sum(dim=(0, 2, 3)), (gradient * normalized).sum(dim=(0, 2, 3))
        through = torch.stack([of_bias, of_weight])
        if ctx.is_shared:
            dist.all_reduce(through)
        through_mean, through_deviation = through[:, :, None, None]
        through = shares[:, None, None, None] * (through_mean + normalized * through_deviation)
        of_values = (weight * inverse)[:, None, None] * (gradient - through)
        return of_values.to(values.dtype), of_weight, of_bias, None, None, None, None, None


@contextmanager
def counting(network: nn.Module, counted: Tensor | None, num_before: int) -> Iterator[None]:
    """In this block the network's BatchNorm counts `num_before` images and of those that follow these; None: all."""
    if counted is None:
        yield
        return
    norms = [module for module in network.modules() if isinstance(module, CountedBatchNorm2d)]
    counted = torch.cat([counted.new_ones(num_before), counted])
    for norm in norms:
        norm.counted = counted
    try:
        yield
    finally:
        for norm in norms:
            norm.counted = None
