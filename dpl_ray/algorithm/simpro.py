"""SimPro (Du 2024): the pool's class prior is estimated by expectation-maximization, labels and losses are of it.

Legend: U unlabelled, B labelled images, K strong views with a weight, C classes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dpl_ray.algorithm.ema import ema_
from dpl_ray.algorithm.fixed_threshold import FixMatch
from dpl_ray.algorithm.gradient_cut import class_sums
from dpl_ray.algorithm.pseudo_labels import PseudoLabels

LEAST_PROB = 1e-6  # of a class: one that is never confident may come back


class SimPro(FixMatch):
    """w = 1[c >= threshold], soft target softmax(z + log prior); both losses are of logits + log joint.

    prior = EMA(shares of the confident targets), joint = EMA(shares of these and of the labelled images together). So
    the student learns p(image | class), and predicts for classes that are equally frequent.
    """

    prior: Tensor  # (C,) of the pool
    joint: Tensor  # (C,) of the pool and the labelled images

    def __init__(self, num_features: int, num_classes: int, *, threshold: float, ema_decay: float) -> None:
        super().__init__(num_features, num_classes, threshold=threshold)
        self.ema_decay = ema_decay
        for name in ("prior", "joint"):
            self.register_buffer(name, torch.full((num_classes,), 1 / num_classes, dtype=torch.float64))

    def alignment(self, progress: float | Tensor) -> Tensor:  # noqa: ARG002
        return self.prior.clamp(min=LEAST_PROB)

    @torch.no_grad()
    def statistics(self, pseudo: PseudoLabels) -> Tensor:
        """(2 C,) sums of the confident targets, and counts of the labelled images."""
        assert pseudo.facts is not None
        targets = pseudo.facts.targets_labeled
        confident = self.weights(pseudo)[:, None] * pseudo.probs
        labeled = class_sums(torch.ones_like(targets), targets, self.num_classes)
        return torch.cat([confident.double().sum(dim=0), labeled])

    @torch.no_grad()
    def update(self, statistics: Tensor) -> None:
        pool, labeled = statistics.chunk(2)
        for state, sums in ((self.prior, pool), (self.joint, pool + labeled)):
            total = sums.sum()
            ema_(state, sums / total.clamp(min=1e-6), self.ema_decay, where=(total > 0).expand_as(sums))

    def targets(self, pseudo: PseudoLabels) -> Tensor:
        return pseudo.probs

    def unlabeled_logits(self, logits_strong: Tensor) -> Tensor:
        return logits_strong + self.joint.clamp(min=LEAST_PROB).log().to(logits_strong.dtype)

    def labeled_loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(self.unlabeled_logits(logits), targets)
