"""Changes to dpl that were tried one at a time and not kept: what docs/RESULTS.md says of them can be measured again.

Each takes the place of dpl and changes one thing of `DynamicPseudoLabels`; its parameters are those of dpl.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dpl_ray.algorithm.dpl import DynamicPseudoLabels
from dpl_ray.algorithm.ema import ema_, warmed_decay
from dpl_ray.algorithm.freematch import fairness
from dpl_ray.algorithm.gradient_cut import class_sums
from dpl_ray.algorithm.pseudo_labels import Answers, PseudoLabels


class EntropyCut(DynamicPseudoLabels):
    """The cut sees the entropy of the prediction, as a share of log C, in place of the gradient's size."""

    def _sizes(self, logits: Tensor, heads_logits: tuple[Tensor, Tensor], labels: Tensor) -> Tensor:  # noqa: ARG002
        probs = logits.detach().float().softmax(dim=1)
        return (torch.special.entr(probs).sum(dim=1) / math.log(self.num_classes)).expand(2, -1)


class MedianBoundary(DynamicPseudoLabels):
    """The boundary follows the median of a class's gradient sizes: up where most of them lie above it."""

    RATE = 0.05

    @torch.no_grad()
    def statistics(self, pseudo: PseudoLabels) -> Tensor:
        sizes = self._sizes(pseudo.logits, self.heads(pseudo.features), pseudo.labels)
        below = (sizes <= self.boundary[:, pseudo.labels]).double()
        by_class = torch.stack([class_sums(row, pseudo.labels, self.num_classes) for row in below])
        return torch.cat([super().statistics(pseudo), by_class.flatten()])

    @torch.no_grad()
    def update(self, statistics: Tensor) -> None:
        rest, below = statistics.split([9 * self.num_classes, 2 * self.num_classes])
        before, count = self.boundary.clone(), rest[: self.num_classes]
        super().update(rest)
        move = self.RATE * (0.5 - below.view(2, -1) / count.clamp(min=1))
        self.boundary.copy_(torch.where(count > 0, (before + move).clamp(0, 1), before))


class WarmedStates(DynamicPseudoLabels):
    """States, boundaries and alignment forget their start in the first steps, as the teacher does."""

    num_updates: Tensor

    def __init__(self, num_features: int, num_classes: int, **parameters: Any) -> None:
        super().__init__(num_features, num_classes, **parameters)
        self.register_buffer("num_updates", torch.zeros((), dtype=torch.int64))

    def update(self, statistics: Tensor) -> None:
        self.ema_decay = warmed_decay(self.full_decay, int(self.num_updates))
        super().update(statistics)
        self.num_updates += 1


class LabelSets(DynamicPseudoLabels):
    """Adds (1 - w) * -log of the total that the strong view gives to the smallest set of classes that reaches tau."""

    min_weight = -1.0  # the most uncertain samples, of no weight, are what the sets are for

    def auxiliary_loss(self, pseudo: PseudoLabels, answers: Answers) -> Tensor:
        loss, logits_strong, kept = super().auxiliary_loss(pseudo, answers), answers.logits_strong, answers.kept
        probs = pseudo.probs[kept]
        over = self.thresholds()["over"][pseudo.labels[kept]].to(probs.dtype)
        values, order = probs.sort(dim=1, descending=True)
        before = values.cumsum(dim=1) - values
        inside = torch.zeros_like(probs).scatter(1, order, (before < over[:, None]).to(probs.dtype))
        log_probs = logits_strong.log_softmax(dim=1).masked_fill(inside == 0, -1e4)
        total = log_probs.logsumexp(dim=1).clamp(max=0)
        return loss - ((1 - self.weights(pseudo)[kept]) * total).sum() / max(len(pseudo.labels), 1)


class SoftTargets(DynamicPseudoLabels):
    """High-entropy samples have the aligned probabilities themselves as their target."""

    def targets(self, pseudo: PseudoLabels) -> Tensor:
        over = self.thresholds()["over"][pseudo.labels].to(pseudo.probs.dtype)
        hard = F.one_hot(pseudo.labels, self.num_classes).to(pseudo.probs.dtype)
        return torch.where((pseudo.confidence >= over)[:, None], hard, pseudo.probs)


class Fairness(DynamicPseudoLabels):
    """FreeMatch's self-adaptive fairness besides, weight 0.05 (one worker)."""

    histogram: Tensor  # (C,) moving average of the shares of the labels

    def __init__(self, num_features: int, num_classes: int, **parameters: Any) -> None:
        super().__init__(num_features, num_classes, **parameters)
        self.register_buffer("histogram", torch.full((num_classes,), 1 / num_classes, dtype=torch.float64))

    def update(self, statistics: Tensor) -> None:
        super().update(statistics)
        counts = statistics[: self.num_classes]
        ema_(self.histogram, counts / counts.sum().clamp(min=1), self.ema_decay)

    def auxiliary_loss(self, pseudo: PseudoLabels, answers: Answers) -> Tensor:
        loss, logits_strong, kept = super().auxiliary_loss(pseudo, answers), answers.logits_strong, answers.kept
        if not len(kept):
            return loss
        probs = logits_strong.double().softmax(dim=1)
        labels = probs.argmax(dim=1).bincount(minlength=self.num_classes).double() / len(kept)
        return loss + 0.05 * fairness(self.mean_probs, self.histogram, probs.mean(dim=0), labels).to(loss.dtype)


class FixedStart(DynamicPseudoLabels):
    """FixMatch's rule in the first tenth of the run."""

    def weights(self, pseudo: PseudoLabels) -> Tensor:
        assert pseudo.facts is not None
        if pseudo.facts.progress < 0.1:
            return (pseudo.confidence >= 0.95).to(pseudo.confidence.dtype)
        return super().weights(pseudo)


class SecondDifference(DynamicPseudoLabels):
    """The width grows by how fast the distance of the two states changes, 100 steps ahead."""

    velocity: Tensor

    def __init__(self, num_features: int, num_classes: int, **parameters: Any) -> None:
        super().__init__(num_features, num_classes, **parameters)
        self.register_buffer("velocity", torch.zeros(2, num_classes, dtype=torch.float64))

    def update(self, statistics: Tensor) -> None:
        before = self.states.clone()
        super().update(statistics)
        ema_(self.velocity, self.states - before, self.ema_decay)

    def thresholds(self) -> dict[str, Tensor]:
        found = super().thresholds()
        change = 100 * (self.velocity[0] - self.velocity[1]).abs()
        return found | {"under": (found["under"] - change).clamp(min=0)}


class NoAgreementNoWeight(DynamicPseudoLabels):
    """Weight 0 where the two heads do not share the label."""

    def weights(self, pseudo: PseudoLabels) -> Tensor:
        low, high = (head.argmax(dim=1) for head in self.heads(pseudo.features))
        return torch.where((low == pseudo.labels) & (high == pseudo.labels), super().weights(pseudo), 0.0)


class NoThresholdBelow(DynamicPseudoLabels):
    """No exploration: weight 1 from tau_over on and 0 below."""

    def weights(self, pseudo: PseudoLabels) -> Tensor:
        over = self.thresholds()["over"][pseudo.labels].to(pseudo.confidence.dtype)
        return (pseudo.confidence >= over).to(pseudo.confidence.dtype)


class UnalignedLabels(DynamicPseudoLabels):
    """The label of the unaligned probabilities, as SoftMatch has it; confidence stays aligned."""

    def targets(self, pseudo: PseudoLabels) -> Tensor:
        return pseudo.logits.argmax(dim=1)


VARIANTS: dict[str, type[DynamicPseudoLabels]] = {
    "entropy_cut": EntropyCut,
    "median_boundary": MedianBoundary,
    "warmed_states": WarmedStates,
    "label_sets": LabelSets,
    "soft_targets": SoftTargets,
    "fairness": Fairness,
    "fixed_start": FixedStart,
    "second_difference": SecondDifference,
    "heads_must_agree": NoAgreementNoWeight,
    "no_exploration": NoThresholdBelow,
    "unaligned_labels": UnalignedLabels,
}
