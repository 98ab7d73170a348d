"""IOMatch (Li 2023): pseudo-labels of the known classes, and of one more class for all that is foreign.

Legend: B labelled, U unlabelled images of this worker, K strong views, C classes, D features, H = PROJECTED.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dpl_ray.algorithm.fixed_threshold import FixMatch
from dpl_ray.algorithm.losses import consistency
from dpl_ray.algorithm.one_vs_all import IN, OUT, one_vs_all, one_vs_all_loss
from dpl_ray.algorithm.pseudo_labels import Answers, PseudoLabels

PROJECTED = 128


class IOMatch(FixMatch):
    """w = 1[c >= threshold] 1[sum_k p_k r_k,out < 1/2], soft targets p; r: one-vs-all classifiers of the labelled.

    The open classifier has C + 1 outputs. Its targets are q = (p_k r_k,in for each k; sum_k p_k r_k,out), where
    max q >= `open_threshold`. Both classifiers read a projection of the features, and move them.
    """

    min_weight = -1.0  # the open classifier may need any strong view

    def __init__(
        self,
        num_features: int,
        num_classes: int,
        *,
        threshold: float,
        open_threshold: float,
        one_vs_all_weight: float,
        open_weight: float,
    ) -> None:
        super().__init__(num_features, num_classes, threshold=threshold)
        self.open_threshold = open_threshold
        self.one_vs_all_weight, self.open_weight = one_vs_all_weight, open_weight
        layers = nn.Linear(num_features, num_features), nn.ReLU(), nn.Linear(num_features, PROJECTED)
        self.projection = nn.Sequential(*layers)
        self.one_vs_all = nn.Linear(PROJECTED, 2 * num_classes, bias=False)
        self.open = nn.Linear(PROJECTED, num_classes + 1)
        for layer in (self.one_vs_all, self.open):
            nn.init.xavier_normal_(layer.weight)
        nn.init.zeros_(self.open.bias)

    @torch.no_grad()
    def open_targets(self, pseudo: PseudoLabels) -> Tensor:
        """(U, C + 1) q; the last column is the probability of being foreign."""
        both = pseudo.probs[:, None] * one_vs_all(self.one_vs_all(self.projection(pseudo.features.float()))).exp()
        return torch.cat([both[:, IN], both[:, OUT].sum(dim=1, keepdim=True)], dim=1)

    def foreign(self, pseudo: PseudoLabels) -> Tensor:
        return self.open_targets(pseudo)[:, -1]

    def weights(self, pseudo: PseudoLabels) -> Tensor:
        return super().weights(pseudo) * (self.foreign(pseudo) < 0.5)

    def targets(self, pseudo: PseudoLabels) -> Tensor:
        return pseudo.probs

    def auxiliary_loss(self, pseudo: PseudoLabels, answers: Answers) -> Tensor:
        """The one-vs-all classifiers' loss on labelled images, and the open classifier's on strong views."""
        log_probs = one_vs_all(self.one_vs_all(self.projection(answers.features.float())))
        loss, kept = self.one_vs_all_weight * one_vs_all_loss(log_probs, answers.targets), answers.kept
        found = self.open_targets(pseudo)
        counted = ((found.amax(dim=1) >= self.open_threshold)[kept] & (kept >= 0)).float()
        logits_open = self.open(self.projection(answers.features_strong.float()))
        return loss + self.open_weight * consistency(logits_open, found[kept], counted, len(found))
