"""BatchNorm whose statistics leave out images that only fill the room of a batch of fixed shape.

Legend: N images, of which n count, C channels.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class CountedBatchNorm2d(nn.BatchNorm2d):
    """torch's BatchNorm; within `counting` its mean and variance are those of the images that count."""

    counted: Tensor | None = None  # (N,) bool

    def forward(self, values: Tensor) -> Tensor:
        """(N, C, H, W) -> the same shape and dtype; all images are normalized, also those that do not count."""
        if self.counted is None or not self.training:
            return super().forward(values)
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.momentum is not None
        assert self.num_batches_tracked is not None
        counted = self.counted.float()[:, None, None, None]
        number = counted.sum() * values[0, 0].numel()
        exact = values.float()
        mean = (exact * counted).sum(dim=(0, 2, 3)) / number
        centred = exact - mean[:, None, None]
        variance = (centred.square() * counted).sum(dim=(0, 2, 3)) / number
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (number / (number - 1)), self.momentum)
        scale = self.weight * (variance + self.eps).rsqrt()
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(values.dtype)


@contextmanager
def counting(network: nn.Module, counted: Tensor | None, num_before: int) -> Iterator[None]:
    """In this block the network's BatchNorm counts `num_before` images and of those that follow these; None: all."""
    norms = [module for module in network.modules() if isinstance(module, CountedBatchNorm2d)]
    for norm in norms:
        norm.counted = None if counted is None else torch.cat([counted.new_ones(num_before), counted])
    try:
        yield
    finally:
        for norm in norms:
            norm.counted = None
