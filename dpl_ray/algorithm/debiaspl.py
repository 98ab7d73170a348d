"""DebiasPL (Wang 2022): what the student is inclined to say is taken out of its pseudo-labels and put into its loss.

Legend: K strong views with a weight, C classes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dpl_ray.algorithm.ema import ema_
from dpl_ray.algorithm.fixed_threshold import FixMatch
from dpl_ray.algorithm.pseudo_labels import PseudoLabels

LEAST_PROB = 1e-6  # of a class: one that is never predicted does not make the factors infinite


class DebiasPL(FixMatch):
    """w = 1[c >= threshold], c and label of softmax(z - debias log m); the loss is of z_strong + debias log m.

    m = EMA(mean softmax(z)) is what the student says of all images. Debiasing and adaptive marginal loss of Wang et al.
    """

    mean_probs: Tensor  # (C,) m

    def __init__(
        self, num_features: int, num_classes: int, *, threshold: float, debias: float, ema_decay: float
    ) -> None:
        super().__init__(num_features, num_classes, threshold=threshold)
        self.debias, self.ema_decay = debias, ema_decay
        self.register_buffer("mean_probs", torch.full((num_classes,), 1 / num_classes, dtype=torch.float64))

    def alignment(self, progress: float | Tensor) -> Tensor:  # noqa: ARG002
        """m^-debias: as factors of the probabilities, what is subtracted from the logits."""
        return self.mean_probs.clamp(min=LEAST_PROB) ** -self.debias

    @torch.no_grad()
    def statistics(self, pseudo: PseudoLabels) -> Tensor:
        """(1 + C,) count, and sums of the probabilities."""
        probs = pseudo.logits.softmax(dim=1).double()
        return torch.cat([probs.new_full((1,), len(probs)), probs.sum(dim=0)])

    @torch.no_grad()
    def update(self, statistics: Tensor) -> None:
        count, probs = statistics[0], statistics[1:]
        ema_(self.mean_probs, probs / count.clamp(min=1), self.ema_decay, where=(count > 0).expand_as(probs))

    def unlabeled_logits(self, logits_strong: Tensor) -> Tensor:
        return logits_strong + self.debias * self.mean_probs.clamp(min=LEAST_PROB).log().to(logits_strong.dtype)
