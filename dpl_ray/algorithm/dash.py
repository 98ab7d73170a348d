"""Dash (Xu 2021): a threshold on the loss that starts at the labelled images' loss and falls.

Legend: B labelled, U unlabelled images, C classes.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from dpl_ray.algorithm.policy import Policy
from dpl_ray.algorithm.pseudo_labels import PseudoLabels

#: Of the published recipe: the threshold falls every 10 of 1,024 epochs, by this factor, to no less than this.
NUM_FALLS, FACTOR, LEAST = 102.4, 1.27, 0.05


class Dash(Policy):
    """w = 1[-log c <= rho_t], rho_t = max(1.0001 * 1.27^-k * rho_0, 0.05), k the falls since the warm-up.

    In the warm-up the labelled images are trained on alone; rho_0 is the mean loss of their weak views in its second
    half. (Published code measures it on the test set.) The falls are spread over the run as in the published recipe.
    """

    reads_labeled = True

    loss_sum: Tensor  # () over the labelled images of the warm-up's second half
    loss_count: Tensor  # ()

    def __init__(self, num_features: int, num_classes: int, *, warmup: float) -> None:
        super().__init__(num_features, num_classes)
        self.warmup = warmup
        self.register_buffer("loss_sum", torch.zeros((), dtype=torch.float64))
        self.register_buffer("loss_count", torch.zeros((), dtype=torch.float64))

    @torch.no_grad()
    def statistics(self, pseudo: PseudoLabels) -> Tensor:
        """(2,) sum and count of the labelled losses, zero outside the second half of the warm-up."""
        assert pseudo.facts is not None
        assert pseudo.logits_labeled is not None
        losses = F.cross_entropy(pseudo.logits_labeled, pseudo.facts.targets_labeled, reduction="none").double()
        measured = (self.warmup / 2 <= pseudo.facts.progress) & (pseudo.facts.progress < self.warmup)
        return torch.stack([losses.sum(), torch.ones_like(losses).sum()]) * measured

    @torch.no_grad()
    def update(self, statistics: Tensor) -> None:
        self.loss_sum += statistics[0]
        self.loss_count += statistics[1]

    def limit(self, progress: float | Tensor) -> Tensor:
        """() float64 rho_t; where the warm-up was too short to measure rho_0, a guess's loss, log C, stands for it."""
        guess = self.loss_sum.new_full((), math.log(self.num_classes))
        first = torch.where(self.loss_count > 0, self.loss_sum / self.loss_count.clamp(min=1), guess)
        falls = (progress - self.warmup) * NUM_FALLS
        num_falls = falls.clamp(min=0).floor() if isinstance(falls, Tensor) else math.floor(max(falls, 0))
        return (1.0001 * FACTOR**-num_falls * first).clamp(min=LEAST)

    def weights(self, pseudo: PseudoLabels) -> Tensor:
        assert pseudo.facts is not None
        progress = pseudo.facts.progress
        losses = -pseudo.confidence.double().log()
        return (losses <= self.limit(progress)).to(pseudo.confidence.dtype) * (progress >= self.warmup)
