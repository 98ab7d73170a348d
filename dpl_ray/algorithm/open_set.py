"""Which images of the pool look foreign, of a class that the labels do not have; ours.

Near is an image whose features point as those of the labelled classes do. The pool's images have about a normal
distribution of nearness, which says what share of them is nearer than an image: that is how foreign it looks.

Legend: N images, B labelled, U unlabelled images of this worker, C classes, D features.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TEMPERATURE = 0.5  # of the cosines: the nearest class counts most, and all of them a little
LEAST_DEVIATION = 1e-6


def nearness(features: Tensor, means: Tensor) -> Tensor:
    """T log mean_c exp(cos(f, m_c) / T) with T = TEMPERATURE, (N,) of (N, D) features and (C, D) means."""
    cosines = F.normalize(features, dim=1) @ F.normalize(means, dim=1).T
    return TEMPERATURE * (cosines / TEMPERATURE).exp().mean(dim=1).log()


class ForeignImages(nn.Module):
    """Moving sums, of which no worker has its own: with N workers they are those of one."""

    pool: Tensor  # (1 + D,) number and sum of the pool's features
    classes: Tensor  # (C, 1 + D) number and sum of each class's centred labelled features, of length 1 each
    near: Tensor  # (3,) number, sum and sum of squares of the pool's nearness

    def __init__(self, num_features: int, num_classes: int) -> None:
        super().__init__()
        sizes = {"pool": (1 + num_features,), "classes": (num_classes, 1 + num_features), "near": (3,)}
        for name, size in sizes.items():
            self.register_buffer(name, torch.zeros(size, dtype=torch.float64))

    def _centred(self, features: Tensor) -> Tensor:
        """(N, D) float64 of length 1."""
        return F.normalize(features.double() - self.pool[1:] / self.pool[0].clamp(min=1), dim=1)

    def _nearness(self, features: Tensor) -> Tensor:
        """(N,) of centred features; the sums of a class point as its mean does."""
        return nearness(features, self.classes[:, 1:])

    def statistics(self, features: Tensor, features_labeled: Tensor, targets: Tensor) -> Tensor:
        """(S,) float64 sums of this worker's (U, D) and (B, D) features, by the state that the step before left."""
        # Not by one_hot, which reads the targets: no step reads a tensor, which tests hold on a CPU.
        by_class = (targets[:, None] == torch.arange(len(self.classes), device=targets.device)).double().T
        labeled, near = self._centred(features_labeled), self._nearness(self._centred(features))
        sums = [
            torch.cat([near.new_full((1,), len(features)), features.double().sum(dim=0)]),
            torch.cat([by_class.sum(dim=1, keepdim=True), by_class @ labeled], dim=1).flatten(),
            torch.stack([near**power for power in range(3)]).sum(dim=1),
        ]
        return torch.cat(sums)

    def update(self, statistics: Tensor, decay: float) -> None:
        states = self.pool, self.classes, self.near
        for state, sums in zip(states, statistics.split([state.numel() for state in states]), strict=True):
            state.mul_(decay).add_(sums.view(state.shape))

    def rank(self, features: Tensor) -> Tensor:
        """(N,) float64 of (N, D) features: what share of the pool's images is nearer to the labelled classes."""
        number, total, squares = self.near.unbind()
        mean = total / number.clamp(min=1)
        deviation = (squares / number.clamp(min=1) - mean**2).clamp(min=0).sqrt() + LEAST_DEVIATION
        return torch.special.ndtr((mean - self._nearness(self._centred(features))) / deviation)
