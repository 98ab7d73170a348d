"""Policies without a state: no unlabelled sample counts, or those above a fixed confidence do."""

from __future__ import annotations

import torch
from torch import Tensor

from dpl_ray.algorithm.policy import Policy
from dpl_ray.algorithm.pseudo_labels import PseudoLabels


class Supervised(Policy):
    """The labelled images alone: what every policy has to beat."""

    uses_unlabeled = False

    def weights(self, pseudo: PseudoLabels) -> Tensor:
        return torch.zeros_like(pseudo.confidence)


class FixMatch(Policy):
    """FixMatch (Sohn 2020): w = 1[c >= threshold], on the strong view."""

    def __init__(self, num_features: int, num_classes: int, *, threshold: float) -> None:
        super().__init__(num_features, num_classes)
        self.threshold = threshold

    def weights(self, pseudo: PseudoLabels) -> Tensor:
        return (pseudo.confidence >= self.threshold).to(pseudo.confidence.dtype)


class PseudoLabel(FixMatch):
    """Pseudo-Label (Lee 2013): FixMatch's rule, with the weak view itself as the input of the loss."""

    trains_on = "weak"


class Uda(FixMatch):
    """UDA (Xie 2020): a lower threshold, and sharpened soft targets softmax(logits / temperature)."""

    def __init__(self, num_features: int, num_classes: int, *, threshold: float, temperature: float) -> None:
        super().__init__(num_features, num_classes, threshold=threshold)
        self.temperature = temperature

    def targets(self, pseudo: PseudoLabels) -> Tensor:
        return (pseudo.logits / self.temperature).softmax(dim=1)
