"""ABC (Lee 2021): FixMatch trains a classifier of the policy's own, and beside it a class-balanced one predicts.

The balanced one is the student's main classifier, so that the teacher and all that is saved predict by it.

Legend: B labelled, U unlabelled images of this worker, K strong views, C classes, D features.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dpl_ray.algorithm.ema import ema_
from dpl_ray.algorithm.fixed_threshold import FixMatch
from dpl_ray.algorithm.gradient_cut import class_sums
from dpl_ray.algorithm.losses import consistency
from dpl_ray.algorithm.policy import RunFacts
from dpl_ray.algorithm.pseudo_labels import Answers, PseudoLabels

LEAST_SHARE = 1e-2  # of a class, as a share of an equal one: one that is hardly found does not silence all others


def balancing(shares: Tensor) -> Tensor:
    """min_k n_k / n_k, (C,): what a sample of each class counts for all classes to count the same."""
    return shares.amin() / shares


class AuxiliaryBalancedClassifier(FixMatch):
    """w = 1[c >= threshold] (1 - progress (1 - min n / n_label)), soft targets; n = EMA(shares of confident labels).

    A labelled image counts min n / n_target, with n the labelled images of each class. The base classifier learns as
    FixMatch's does. Both train the features.
    """

    min_weight = -1.0  # the base classifier may need any strong view
    shares: Tensor  # (C,) n

    def __init__(self, num_features: int, num_classes: int, *, threshold: float, ema_decay: float) -> None:
        super().__init__(num_features, num_classes, threshold=threshold)
        self.ema_decay = ema_decay
        self.base = nn.Linear(num_features, num_classes)
        self.register_buffer("shares", torch.full((num_classes,), 1 / num_classes, dtype=torch.float64))
        self.labeled_weights: Tensor | None = None

    def start_as(self, classifier: nn.Linear) -> None:
        self.base.load_state_dict(classifier.state_dict())

    def join(self, run: RunFacts) -> None:
        if run.labeled_counts is not None:
            self.labeled_weights = balancing(run.labeled_counts.clamp(min=1)).to(self.shares.device)

    def labeled_loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        losses = F.cross_entropy(logits, targets, reduction="none")
        return (losses if self.labeled_weights is None else losses * self.labeled_weights[targets]).mean()

    @torch.no_grad()
    def statistics(self, pseudo: PseudoLabels) -> Tensor:
        """(C,) counts of the confident labels."""
        return class_sums(super().weights(pseudo), pseudo.labels, self.num_classes)

    @torch.no_grad()
    def update(self, statistics: Tensor) -> None:
        total = statistics.sum()
        ema_(self.shares, statistics / total.clamp(min=1), self.ema_decay, where=(total > 0).expand_as(statistics))

    def weights(self, pseudo: PseudoLabels) -> Tensor:
        assert pseudo.facts is not None
        found = balancing(self.shares.clamp(min=LEAST_SHARE / self.num_classes))[pseudo.labels]
        return super().weights(pseudo) * (1 - pseudo.facts.progress * (1 - found)).to(pseudo.confidence.dtype)

    def targets(self, pseudo: PseudoLabels) -> Tensor:
        return pseudo.probs

    def auxiliary_loss(self, pseudo: PseudoLabels, answers: Answers) -> Tensor:
        """FixMatch's loss of the base classifier."""
        loss, kept = F.cross_entropy(self.base(answers.features.float()), answers.targets), answers.kept
        with torch.no_grad():
            confidence, labels = self.base(pseudo.features.float()).softmax(dim=1).max(dim=1)
            counted = ((confidence >= self.threshold)[kept] & (kept >= 0)).float()
        return loss + consistency(self.base(answers.features_strong.float()), labels[kept], counted, len(labels))
