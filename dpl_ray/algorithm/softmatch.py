"""SoftMatch (Chen 2023): a Gaussian of the confidence, whose mean and variance follow the student.

Legend: U unlabelled images, C classes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dpl_ray.algorithm.ema import ema_
from dpl_ray.algorithm.policy import Policy
from dpl_ray.algorithm.pseudo_labels import PseudoLabels


class SoftMatch(Policy):
    """w = exp(-min(c - mean, 0)^2 / (2 variance / num_sigmas^2)), c = max of the uniformly aligned probabilities.

    The label is that of the unaligned probabilities. Mean and (unbiased) variance of c are moving averages.
    """

    min_weight = 1e-3

    mean: Tensor  # ()
    variance: Tensor  # ()
    mean_probs: Tensor  # (C,) moving average of the unaligned probabilities

    def __init__(
        self, num_features: int, num_classes: int, *, ema_decay: float, num_sigmas: float, alignment: bool
    ) -> None:
        super().__init__(num_features, num_classes)
        self.ema_decay, self.num_sigmas, self.aligned = ema_decay, num_sigmas, alignment
        uniform = torch.full((num_classes,), 1 / num_classes, dtype=torch.float64)
        self.register_buffer("mean", uniform[0].clone())
        self.register_buffer("variance", torch.ones((), dtype=torch.float64))
        self.register_buffer("mean_probs", uniform.clone())

    def alignment(self, progress: float | Tensor) -> Tensor | None:  # noqa: ARG002
        return 1 / (self.num_classes * self.mean_probs.clamp(min=1e-6)) if self.aligned else None

    @torch.no_grad()
    def statistics(self, pseudo: PseudoLabels) -> Tensor:
        """(3 + C,) count, sum of c and of its square, sums of the unaligned probabilities."""
        confidence = pseudo.confidence.double()
        sums = torch.stack([torch.ones_like(confidence).sum(), confidence.sum(), (confidence**2).sum()])
        return torch.cat([sums, pseudo.logits.softmax(dim=1).double().sum(dim=0)])

    @torch.no_grad()
    def update(self, statistics: Tensor) -> None:
        (count, total, squares), probs = statistics[:3], statistics[3:]
        mean = total / count.clamp(min=1)
        variance = ((squares - count * mean**2) / (count - 1).clamp(min=1)).clamp(min=0)
        ema_(self.mean, mean, self.ema_decay, where=count > 0)
        ema_(self.variance, variance, self.ema_decay, where=count > 1)
        ema_(self.mean_probs, probs / count.clamp(min=1), self.ema_decay, where=(count > 0).expand_as(probs))

    def thresholds(self) -> dict[str, Tensor]:
        return {"mean": self.mean.expand(self.num_classes)}

    def weights(self, pseudo: PseudoLabels) -> Tensor:
        below = (pseudo.confidence.double() - self.mean).clamp(max=0)
        scale = 2 * self.variance.clamp(min=1e-12) / self.num_sigmas**2
        return torch.exp(-(below**2) / scale).to(pseudo.confidence.dtype)

    def targets(self, pseudo: PseudoLabels) -> Tensor:
        return pseudo.logits.argmax(dim=1)
