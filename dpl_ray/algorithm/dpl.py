"""Dynamic pseudo-labels from two gradient-cut classifiers: the policy `dpl`.

That a low- and a high-gradient-pass classifier give over- and under-confident class-wise thresholds, and that both
states are combined into the rule, is the paper's (Park et al., CVPR 2025, abstract). Every formula here is our
construction of it: docs/method.md.

Legend: U unlabelled, B labelled images, C classes, D features; rows of (2, C) are LGP, HGP.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dpl_ray.algorithm.ema import ema_
from dpl_ray.algorithm.gradient_cut import (
    HIGH,
    LOW,
    GradientCutHeads,
    class_sums,
    cut_cross_entropy,
    gradient_size,
    passes,
)
from dpl_ray.algorithm.open_set import ForeignImages
from dpl_ray.algorithm.policy import Policy, RunFacts
from dpl_ray.algorithm.pseudo_labels import Answers, PseudoLabels


def gaussian_weight(confidence: Tensor, over: Tensor, under: Tensor, epsilon: float) -> Tensor:
    """exp(-min(c - over, 0)^2 / (2 max(over - under, epsilon)^2)); ours. All (U,), thresholds of a sample's class."""
    width = (over - under).clamp(min=epsilon)
    return torch.exp(-((confidence - over).clamp(max=0) ** 2) / (2 * width**2))


def band_weight(confidence: Tensor, over: Tensor, under: Tensor, epsilon: float) -> Tensor:
    """1 from `over` on, a line down to 0 at `under` (or at over - epsilon where the band is narrower); ours."""
    width = (over - under).clamp(min=epsilon)
    return (1 + (confidence - over) / width).clamp(0, 1)


#: pace, heads_weight and balance if not given. Where features are frozen, no better ones outgrow a wrong label, and a
#: run is short: thresholds follow faster, and classes share their weight. docs/RESULTS.md has dpl without them.
TRAINED, FROZEN = (1.0, 1.0, 0.0), (10.0, 10.0, 0.5)
#: Where nothing is said of the classes' shares, alignment falls on images: it would be 0 after the first share of the
#: run, and stays at the second share of itself.
NO_ALIGNMENT_AFTER, LEAST_ALIGNMENT = 0.5, 0.3
LEAST_MASS = 0.02  # of a class, as a share of an equal one: one that nothing is said of does not silence all others

RULES: dict[str, Callable[[Tensor, Tensor, Tensor, float], Tensor] | None] = {
    "gaussian": gaussian_weight,
    "band": band_weight,
    "agreement": None,  # no threshold: 1 where both heads share the label
}


class DynamicPseudoLabels(Policy):
    """Steps 2 to 8 of docs/method.md."""

    min_weight = 1e-3

    boundary: Tensor  # (2, C) kappa: moving average of the gradient sizes of each class
    cut: Tensor  # (2, C) the boundary that this step's gradients are cut at: the one the step before left
    states: Tensor  # (2, C) s_L and s_H: mean confidence of each head over the samples that passed its cut
    mean_probs: Tensor  # (C,) moving average of the unaligned probabilities
    shares: Tensor  # (C,) class shares of the pool that the alignment aims at, as multiples of 1 / C
    mass: Tensor  # (C,) moving average of each class's share of the pseudo-labels' weight
    prior: Tensor  # (C,) the same, followed slowly: class shares of the pool where `shares` are estimated
    num_crossed: Tensor  # () how often a class's two states stood in the wrong order after an update

    def __init__(
        self,
        num_features: int,
        num_classes: int,
        *,
        ema_decay: float,
        rule: str,
        cut: str,
        epsilon: float,
        alignment: bool,
        classifier_from: float,
        pace: float | None,
        heads_weight: float | None,
        balance: float | None,
        shares: tuple[float, ...] | Literal["equal", "labels", "estimated"] | None,
        balanced_softmax: bool,
        open_set: bool,
    ) -> None:
        super().__init__(num_features, num_classes)
        self.classifier_from, self.balanced_softmax = classifier_from, balanced_softmax
        self.rule, self.cut_by, self.epsilon, self.aligned = rule, cut, epsilon, alignment
        self.full_decay, self.given = ema_decay, (pace, heads_weight, balance)
        self._take(TRAINED)
        self.heads = GradientCutHeads(num_features, num_classes)
        uniform = 1 / num_classes
        zeros = torch.zeros(2, num_classes, dtype=torch.float64)
        self.register_buffer("boundary", zeros + (1 - uniform))
        self.register_buffer("cut", zeros + (1 - uniform))
        self.register_buffer("states", zeros + uniform)
        self.register_buffer("mean_probs", zeros[0] + uniform)
        self.register_buffer("mass", zeros[0] + uniform)
        self.register_buffer("prior", zeros[0] + uniform)
        self.register_buffer("shares", zeros[0] + 1)
        self.as_labeled, self.estimated = shares == "labels", shares == "estimated"
        self.chooses = shares is None and alignment
        if isinstance(shares, tuple | list):
            self._aim(torch.tensor(shares, dtype=torch.float64))
        self.log_shares: Tensor | None = None
        self.reads_labeled = open_set
        self.foreign_images = ForeignImages(num_features, num_classes) if open_set else None
        self.register_buffer("num_crossed", torch.zeros((), dtype=torch.int64))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *more: Any) -> None:
        for name in ("mass", "prior", "shares"):  # checkpoints of before 2026-11-27 have none
            state_dict.setdefault(f"{prefix}{name}", self.get_buffer(name))
        super()._load_from_state_dict(state_dict, prefix, *more)

    def trains_classifier(self, progress: float | Tensor) -> bool | Tensor:
        return progress >= self.classifier_from

    def start_as(self, classifier: nn.Linear) -> None:
        self.heads.start_as(classifier)

    def _take(self, usual: tuple[float, float, float]) -> None:
        chosen = [default if value is None else value for value, default in zip(self.given, usual, strict=True)]
        pace, self.heads_weight, self.balance = chosen
        self.ema_decay = self.full_decay**pace

    def _aim(self, counts: Tensor) -> None:
        self.shares.copy_(counts * self.num_classes / counts.sum())

    def join(self, run: RunFacts) -> None:
        self._take(FROZEN if run.frozen else TRAINED)
        if run.frozen:  # a classifier that has hardly begun says little: its first labels wait
            self.states.fill_(1)
            self.estimated |= self.chooses
        counts = run.labeled_counts
        if self.as_labeled and counts is not None:
            self._aim(counts + 1)  # Laplace's rule: a few labels say little of a rare class
        if self.balanced_softmax and counts is not None and counts.amin() < counts.amax():
            self.log_shares = (counts / counts.sum()).clamp(min=1e-6).log().to(self.mass.device)

    def labeled_loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """CE(logits + log of the classes' shares, targets): balanced softmax (Ren 2020), CE for equal shares."""
        return F.cross_entropy(logits if self.log_shares is None else logits + self.log_shares, targets)

    def unlabeled_logits(self, logits_strong: Tensor) -> Tensor:
        """Logits of classes that are as frequent as in the pool, where that is estimated; else as they are."""
        return logits_strong + self.prior.log().to(logits_strong.dtype) if self.estimated else logits_strong

    def alignment(self, progress: float | Tensor) -> Tensor | None:
        if self.estimated:
            return self.prior
        if not self.aligned:
            return None
        # A class that the student never predicts must not make the factors infinite.
        factors = self.shares / (self.num_classes * self.mean_probs.clamp(min=1e-6))
        if not self.chooses:
            return factors
        done = torch.as_tensor(progress, dtype=factors.dtype, device=factors.device)
        left = (1 - done / NO_ALIGNMENT_AFTER).clamp(min=LEAST_ALIGNMENT)
        return 1 + left * (factors - 1)

    def _sizes(self, logits: Tensor, heads_logits: tuple[Tensor, Tensor], labels: Tensor) -> Tensor:
        """(2, N) gradient sizes as each head's cut sees them."""
        if self.cut_by == "own":
            return torch.stack([gradient_size(head, labels) for head in heads_logits])
        return gradient_size(logits, labels).expand(2, -1)

    def _passes(self, sizes: Tensor, labels: Tensor, boundary: Tensor) -> Tensor:
        """(2, N) which samples' gradients pass each head's cut."""
        return torch.ones_like(sizes, dtype=torch.bool) if self.cut_by == "none" else passes(sizes, labels, boundary)

    @torch.no_grad()
    def statistics(self, pseudo: PseudoLabels) -> Tensor:
        """(9 C,) sums by pseudo-label: count, sizes (2), passed (2), their confidence (2), weight; and of the probs.

        The weight is by the thresholds that the step before left, so that one collective is enough. Sums of
        `ForeignImages` follow where it is asked for.
        """
        heads_logits = self.heads(pseudo.features)
        sizes = self._sizes(pseudo.logits, heads_logits, pseudo.labels)
        passed = self._passes(sizes, pseudo.labels, self.boundary).double()
        confidences = torch.stack([head.softmax(dim=1).amax(dim=1) for head in heads_logits])
        weights = self._rule_weights(pseudo)[None].double()
        rows = torch.cat([torch.ones_like(passed[:1]), sizes.double(), passed, passed * confidences, weights])
        by_class = torch.stack([class_sums(row, pseudo.labels, self.num_classes) for row in rows])
        unaligned = pseudo.logits.softmax(dim=1).double().sum(dim=0)
        sums = torch.cat([by_class, unaligned[None]]).flatten()
        if self.foreign_images is None:
            return sums
        assert pseudo.facts is not None
        assert pseudo.features_labeled is not None
        targets = pseudo.facts.targets_labeled
        return torch.cat([sums, self.foreign_images.statistics(pseudo.features, pseudo.features_labeled, targets)])

    @torch.no_grad()
    def update(self, statistics: Tensor) -> None:
        statistics, of_foreign = statistics.tensor_split([9 * self.num_classes])
        if self.foreign_images is not None:
            self.foreign_images.update(of_foreign, self.full_decay)  # few images: a fast mean is a noisy one
        sums = statistics.view(9, self.num_classes)
        count, sizes, passed, confidences, weights, unaligned = sums[0], sums[1:3], sums[3:5], sums[5:7], *sums[7:]
        self.cut.copy_(self.boundary)
        ema_(self.boundary, sizes / count.clamp(min=1), self.ema_decay, where=(count > 0).expand(2, -1))
        ema_(self.states, confidences / passed.clamp(min=1), self.ema_decay, where=passed > 0)
        ema_(
            self.mean_probs,
            unaligned / count.sum().clamp(min=1),
            self.ema_decay,
            where=(count.sum() > 0).expand_as(unaligned),
        )
        found, weighed = weights / weights.sum().clamp(min=1e-6), (weights.sum() > 0).expand_as(weights)
        ema_(self.mass, found, self.ema_decay, where=weighed)
        ema_(self.prior, found.clamp(min=LEAST_MASS / self.num_classes), self.full_decay, where=weighed)
        self.num_crossed += (self.states[LOW] < self.states[HIGH]).sum()

    def thresholds(self) -> dict[str, Tensor]:
        """`over` and `under`, (C,) each; swapped where the states have crossed, so over >= under."""
        return {"over": self.states.amax(dim=0), "under": self.states.amin(dim=0)}

    @torch.no_grad()
    def weights(self, pseudo: PseudoLabels) -> Tensor:
        mass = self.mass.clamp(min=LEAST_MASS / self.num_classes)
        factors = (mass.amin() / mass) ** self.balance
        return self._rule_weights(pseudo) * factors[pseudo.labels].to(pseudo.confidence.dtype)

    @torch.no_grad()
    def foreign(self, pseudo: PseudoLabels) -> Tensor | None:
        return None if self.foreign_images is None else self.foreign_images.rank(pseudo.features)

    def _rule_weights(self, pseudo: PseudoLabels) -> Tensor:
        """(U,) weights by the rule alone, times (1 - foreign)^2 where foreign images are looked for."""
        foreign, weights = self.foreign(pseudo), self._combined(pseudo)
        return weights if foreign is None else weights * (1 - foreign).square().to(weights.dtype)

    @torch.no_grad()
    def _combined(self, pseudo: PseudoLabels) -> Tensor:
        """(U,) weights by the rule alone."""
        combine = RULES[self.rule]
        if combine is None:
            low, high = self.heads(pseudo.features)
            agreed = (low.argmax(dim=1) == pseudo.labels) & (high.argmax(dim=1) == pseudo.labels)
            return agreed.to(pseudo.confidence.dtype)
        over, under = (state[pseudo.labels].to(pseudo.confidence.dtype) for state in self.thresholds().values())
        return combine(pseudo.confidence, over, under, self.epsilon)

    def auxiliary_loss(self, pseudo: PseudoLabels, answers: Answers) -> Tensor:
        """The two heads' cut cross-entropies, each a mean over all B + U samples."""
        all_labels = torch.cat([answers.targets, pseudo.labels])
        heads_logits = self.heads(torch.cat([answers.features, pseudo.features]))
        sizes = self._sizes(torch.cat([answers.logits.float(), pseudo.logits]), heads_logits, all_labels)
        passed = self._passes(sizes, all_labels, self.cut)
        losses = [cut_cross_entropy(head, all_labels, row) for head, row in zip(heads_logits, passed, strict=True)]
        return self.heads_weight * torch.stack(losses).sum() / len(all_labels)
