"""Wide residual network (Zagoruyko & Komodakis 2016) as the field's tables use it: pre-activation, leaky ReLU 0.1.

Legend: N images, C channels, D features = 64 * width.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dpl_ray.models.batch_norm import CountedBatchNorm2d, SyncedBatchNorm2d

SLOPE = 0.1


def _norm(channels: int, kind: str, momentum: float) -> nn.Module:
    if kind == "group":
        return nn.GroupNorm(min(8, channels), channels)
    return (SyncedBatchNorm2d if kind == "sync" else CountedBatchNorm2d)(channels, momentum=momentum)


def _activated(norm: nn.Module, values: Tensor) -> Tensor:
    if isinstance(norm, CountedBatchNorm2d):
        return norm(values, SLOPE)
    return F.leaky_relu(norm(values), SLOPE, inplace=True)


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut, normalization and activation before each convolution."""

    def __init__(self, num_in: int, num_out: int, stride: int, kind: str, momentum: float, *, first: bool) -> None:
        super().__init__()
        self.norm1 = _norm(num_in, kind, momentum)
        self.conv1 = nn.Conv2d(num_in, num_out, 3, stride, 1, bias=False)
        self.norm2 = _norm(num_out, kind, momentum)
        self.conv2 = nn.Conv2d(num_out, num_out, 3, 1, 1, bias=False)
        self.shortcut = None if num_in == num_out else nn.Conv2d(num_in, num_out, 1, stride, 0, bias=False)
        # The network's first block also activates what its shortcut carries.
        self.first = first

    def forward(self, x: Tensor) -> Tensor:
        activated = _activated(self.norm1, x)
        out = _activated(self.norm2, self.conv1(activated))
        out = self.conv2(out)
        carried = activated if self.first else x
        return out.add_(carried if self.shortcut is None else self.shortcut(carried))


class WideResNet(nn.Module):
    """(N, channels, H, W) float -> (N, D) features."""

    def __init__(
        self, channels: int, depth: int, width: int, normalization: str = "batch", bn_momentum: float = 0.05
    ) -> None:
        super().__init__()
        num_blocks = (depth - 4) // 6
        sizes = [16, 16 * width, 32 * width, 64 * width]
        self.stem = nn.Conv2d(channels, sizes[0], 3, 1, 1, bias=False)
        blocks: list[nn.Module] = []
        for group, (num_in, num_out) in enumerate(pairwise(sizes)):
            for index in range(num_blocks):
                stride = 2 if group > 0 and index == 0 else 1
                blocks.append(
                    Block(
                        num_in if index == 0 else num_out, num_out, stride, normalization, bn_momentum, first=not blocks
                    )
                )
        self.blocks = nn.Sequential(*blocks)
        self.norm = _norm(sizes[-1], normalization, bn_momentum)
        self.num_features = sizes[-1]
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="leaky_relu", a=SLOPE)

    def forward(self, images: Tensor) -> Tensor:
        features = _activated(self.norm, self.blocks(self.stem(images)))
        return torch.mean(features, dim=(2, 3))
