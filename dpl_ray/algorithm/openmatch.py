"""OpenMatch (Saito 2021): FixMatch on the images that one-vs-all classifiers take for inliers.

Legend: B labelled, U unlabelled images of this worker, K strong views, C classes, D features.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dpl_ray.algorithm.fixed_threshold import FixMatch
from dpl_ray.algorithm.one_vs_all import OUT, one_vs_all, one_vs_all_loss
from dpl_ray.algorithm.pseudo_labels import Answers, PseudoLabels


class OpenMatch(FixMatch):
    """w = 1[c >= threshold] 1[r_label,out < 1/2] from the share `warmup` of the run on; r: one-vs-all classifiers.

    These learn from the labelled images, and on all strong views by `entropy_weight` times their entropy and
    `consistency_weight` times the squared distance to what they say of the weak view.
    """

    min_weight = -1.0  # the one-vs-all classifiers need all strong views

    def __init__(
        self,
        num_features: int,
        num_classes: int,
        *,
        threshold: float,
        warmup: float,
        entropy_weight: float,
        consistency_weight: float,
    ) -> None:
        super().__init__(num_features, num_classes, threshold=threshold)
        self.warmup, self.entropy_weight, self.consistency_weight = warmup, entropy_weight, consistency_weight
        self.one_vs_all = nn.Linear(num_features, 2 * num_classes, bias=False)

    @torch.no_grad()
    def foreign(self, pseudo: PseudoLabels) -> Tensor:
        out = one_vs_all(self.one_vs_all(pseudo.features.float()))[:, OUT].exp()
        return out.gather(1, pseudo.labels[:, None]).squeeze(1)

    def weights(self, pseudo: PseudoLabels) -> Tensor:
        assert pseudo.facts is not None
        return super().weights(pseudo) * (self.foreign(pseudo) < 0.5) * (pseudo.facts.progress >= self.warmup)

    def auxiliary_loss(self, pseudo: PseudoLabels, answers: Answers) -> Tensor:
        """The three losses of the one-vs-all classifiers."""
        loss = one_vs_all_loss(one_vs_all(self.one_vs_all(answers.features.float())), answers.targets)
        kept = answers.kept
        log_probs = one_vs_all(self.one_vs_all(answers.features_strong.float()))  # (K, 2, C)
        probs = log_probs.exp()
        probs_weak = one_vs_all(self.one_vs_all(pseudo.features.float()[kept])).exp()
        entropies = -(probs * log_probs).sum(dim=1).mean(dim=1)
        distances = (probs - probs_weak).square().sum(dim=(1, 2))
        both = self.entropy_weight * entropies + self.consistency_weight * distances
        return loss + (both * (kept >= 0)).sum() / max(len(pseudo.labels), 1)
