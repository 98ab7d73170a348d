"""AdaMatch (Berthelot 2022): a threshold relative to the confidence on labelled images.

Legend: B labelled, U unlabelled images, C classes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dpl_ray.algorithm.ema import ema_
from dpl_ray.algorithm.policy import Policy
from dpl_ray.algorithm.pseudo_labels import PseudoLabels


class AdaMatch(Policy):
    """w = 1[c >= threshold * mean over the batch of the labelled weak views' confidence].

    c and the label are read off p' = Norm(p EMA(mean labelled p) / EMA(mean p)).
    """

    reads_labeled = True

    mean_probs: Tensor  # (C,) moving average of the unaligned probabilities of unlabelled images
    mean_probs_labeled: Tensor  # (C,) of labelled ones
    confidence_labeled: Tensor  # () mean confidence on the labelled images of the newest batch

    def __init__(self, num_features: int, num_classes: int, *, threshold: float, ema_decay: float) -> None:
        super().__init__(num_features, num_classes)
        self.threshold, self.ema_decay = threshold, ema_decay
        uniform = torch.full((num_classes,), 1 / num_classes, dtype=torch.float64)
        self.register_buffer("mean_probs", uniform.clone())
        self.register_buffer("mean_probs_labeled", uniform.clone())
        self.register_buffer("confidence_labeled", torch.ones((), dtype=torch.float64))

    def alignment(self, progress: float | Tensor) -> Tensor | None:  # noqa: ARG002
        return self.mean_probs_labeled / self.mean_probs.clamp(min=1e-6)

    @torch.no_grad()
    def statistics(self, pseudo: PseudoLabels) -> Tensor:
        """(3 + 2 C,) counts of both kinds, sum of the labelled confidences, sums of both kinds' probabilities."""
        assert pseudo.logits_labeled is not None
        labeled = pseudo.logits_labeled.softmax(dim=1).double()
        unlabeled = pseudo.logits.softmax(dim=1).double()
        counts = torch.stack([labeled.new_full((), len(probs)) for probs in (unlabeled, labeled)])
        return torch.cat([counts, labeled.amax(dim=1).sum()[None], unlabeled.sum(dim=0), labeled.sum(dim=0)])

    @torch.no_grad()
    def update(self, statistics: Tensor) -> None:
        count, count_labeled, confidence = statistics[:3]
        probs, probs_labeled = statistics[3:].chunk(2)
        self.confidence_labeled.copy_(confidence / count_labeled)
        ema_(self.mean_probs, probs / count.clamp(min=1), self.ema_decay, where=(count > 0).expand_as(probs))
        ema_(self.mean_probs_labeled, probs_labeled / count_labeled, self.ema_decay)

    def thresholds(self) -> dict[str, Tensor]:
        return {"threshold": (self.threshold * self.confidence_labeled).expand(self.num_classes)}

    def weights(self, pseudo: PseudoLabels) -> Tensor:
        needed = self.threshold * self.confidence_labeled
        return (pseudo.confidence >= needed).to(pseudo.confidence.dtype)
