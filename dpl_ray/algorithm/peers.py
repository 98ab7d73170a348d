"""The peers' policies: what a sample counts by the field's published rules."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor

from dpl_ray.algorithm.policy import Policy, check_range
from dpl_ray.algorithm.pseudo_labels import PseudoLabels


class Supervised(Policy):
    """The labelled images alone: what every policy has to beat."""

    uses_unlabeled = False

    def weights(self, pseudo: PseudoLabels) -> Tensor:
        return torch.zeros_like(pseudo.confidence)


class FixMatch(Policy):
    """A fixed threshold on the confidence (FixMatch, Sohn 2020): w = 1[c >= threshold]."""

    def __init__(
        self,
        num_features: int,
        num_classes: int,
        *,
        threshold: Annotated[float, "least confidence of a sample that counts"] = 0.95,
    ) -> None:
        super().__init__(num_features, num_classes)
        check_range("threshold", threshold, 0, 1)
        self.threshold = threshold

    def weights(self, pseudo: PseudoLabels) -> Tensor:
        return (pseudo.confidence >= self.threshold).to(pseudo.confidence.dtype)
