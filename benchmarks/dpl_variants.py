"""Changes to dpl that were tried one at a time and not kept: what docs/RESULTS.md says of them can be measured again.

Each takes the place of dpl and changes one thing of `DynamicPseudoLabels`; its parameters are those of dpl.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dpl_ray.algorithm.dpl import DynamicPseudoLabels
from dpl_ray.algorithm.ema import ema_, warmed_decay
from dpl_ray.algorithm.freematch import fairness
from dpl_ray.algorithm.gradient_cut import class_sums, cut_cross_entropy, gradient_size
from dpl_ray.algorithm.policy import RunFacts
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


class FoldHeads(DynamicPseudoLabels):
    """LGP learns from one half of the labelled images and HGP from the other; the band narrows by their disagreement.

    d_k is the moving share of the samples with label k on which the two disagree, and the width is (1 - d_k) times the
    distance of the states. The halves are the even and the odd places among the labelled images.
    """

    apart: Tensor  # (C,) d

    def __init__(self, num_features: int, num_classes: int, **parameters: Any) -> None:
        super().__init__(num_features, num_classes, **parameters)
        self.register_buffer("apart", torch.zeros(num_classes, dtype=torch.float64))

    @torch.no_grad()
    def statistics(self, pseudo: PseudoLabels) -> Tensor:
        low, high = (head.argmax(dim=1) for head in self.heads(pseudo.features))
        return torch.cat([super().statistics(pseudo), class_sums(low != high, pseudo.labels, self.num_classes)])

    @torch.no_grad()
    def update(self, statistics: Tensor) -> None:
        rest, apart = statistics.split([9 * self.num_classes, self.num_classes])
        count = rest[: self.num_classes]
        ema_(self.apart, apart / count.clamp(min=1), self.ema_decay, where=count > 0)
        super().update(rest)

    def thresholds(self) -> dict[str, Tensor]:
        found = super().thresholds()
        return found | {"under": found["over"] - (1 - self.apart) * (found["over"] - found["under"])}

    def auxiliary_loss(self, pseudo: PseudoLabels, answers: Answers) -> Tensor:
        targets, num_labeled = answers.targets, len(answers.targets)
        all_labels = torch.cat([targets, pseudo.labels])
        heads_logits = self.heads(torch.cat([answers.features, pseudo.features]))
        sizes = self._sizes(torch.cat([answers.logits.float(), pseudo.logits]), heads_logits, all_labels)
        passed = self._passes(sizes, all_labels, self.cut)
        assert pseudo.facts is not None
        is_first = pseudo.facts.ids_labeled % 2 == 0
        halves = torch.stack([is_first, ~is_first])
        passed[:, :num_labeled] &= halves
        losses = [cut_cross_entropy(head, all_labels, row) for head, row in zip(heads_logits, passed, strict=True)]
        return self.heads_weight * torch.stack(losses).sum() / len(all_labels)


class GradedHandOver(FoldHeads):
    """The unlabelled loss moves class k of the main classifier by a share of 1 - 2 d_k alone, the features wholly."""

    main: tuple[nn.Linear]  # of the student; in a tuple, since it is no part of the policy

    def start_as(self, classifier: nn.Linear) -> None:
        super().start_as(classifier)
        self.main = (classifier,)

    def trains_classifier(self, progress: float | Tensor) -> bool:  # noqa: ARG002
        return False

    def auxiliary_loss(self, pseudo: PseudoLabels, answers: Answers) -> Tensor:
        labels, weights = pseudo.labels[answers.kept], self.weights(pseudo)[answers.kept]
        share = (1 - 2 * self.apart).clamp(0, 1).to(weights.dtype)[labels]
        logits = self.unlabeled_logits(self.main[0](answers.features_strong.detach().float()))
        loss = (share * weights * F.cross_entropy(logits, labels, reduction="none")).sum()
        return super().auxiliary_loss(pseudo, answers) + loss / max(len(pseudo.labels), 1)


class CalibratedBand(DynamicPseudoLabels):
    """HGP learns the strong views with labels smoothed by 0.3, and its confidence replaces the main one in the band."""

    SMOOTHING = 0.3

    def auxiliary_loss(self, pseudo: PseudoLabels, answers: Answers) -> Tensor:
        features = torch.cat([answers.features, answers.features_strong]).detach().float()
        labels = torch.cat([answers.targets, pseudo.labels[answers.kept]])
        smoothed = F.cross_entropy(self.heads.high(features), labels, label_smoothing=self.SMOOTHING)
        all_labels = torch.cat([answers.targets, pseudo.labels])
        low = self.heads.low(torch.cat([answers.features, pseudo.features]).detach().float())
        sizes = gradient_size(torch.cat([answers.logits.float(), pseudo.logits]), all_labels)
        passed = self._passes(sizes.expand(2, -1), all_labels, self.cut)[0]
        return self.heads_weight * (smoothed + cut_cross_entropy(low, all_labels, passed) / len(all_labels))

    @torch.no_grad()
    def _combined(self, pseudo: PseudoLabels) -> Tensor:
        largest = 1 - self.SMOOTHING * (1 - 1 / self.num_classes)  # what the head says where it is sure
        probs = self.heads.high(pseudo.features.float()).softmax(dim=1) / largest
        told = probs.gather(1, pseudo.labels[:, None]).squeeze(1).clamp(max=1).to(pseudo.confidence.dtype)
        over = self.thresholds()["over"][pseudo.labels].to(told.dtype)
        return super()._combined(replace(pseudo, confidence=torch.where(pseudo.confidence < over, told, over)))


class StableBand(DynamicPseudoLabels):
    """In the band, samples whose label has changed since the last visit get generalized CE, q = 0.7 (one worker)."""

    last: Tensor  # (pool,) int64 label of each sample at its last visit, -1 before the first one
    Q = 0.7

    def join(self, run: RunFacts) -> None:
        super().join(run)
        self.register_buffer("last", torch.full((run.pool_size,), -1), persistent=False)
        self.is_stable = torch.zeros(0, dtype=torch.bool)

    @torch.no_grad()
    def statistics(self, pseudo: PseudoLabels) -> Tensor:
        assert pseudo.facts is not None
        self.is_stable = self.last[pseudo.facts.ids] == pseudo.labels
        self.last[pseudo.facts.ids] = pseudo.labels
        return super().statistics(pseudo)

    def _is_unstable(self, pseudo: PseudoLabels) -> Tensor:
        over = self.thresholds()["over"][pseudo.labels].to(pseudo.confidence.dtype)
        return (pseudo.confidence < over) & ~self.is_stable

    def unlabeled_losses(self, logits_strong: Tensor, targets: Tensor, rows: Tensor, pseudo: PseudoLabels) -> Tensor:
        probs = logits_strong.softmax(dim=1).gather(1, targets[:, None]).squeeze(1)
        generalized = (1 - probs.clamp(min=1e-6) ** self.Q) / self.Q
        usual = super().unlabeled_losses(logits_strong, targets, rows, pseudo)
        return torch.where(self._is_unstable(pseudo)[rows], generalized, usual)


class BoundedNegatives(DynamicPseudoLabels):
    """Adds (1 - w) / |N| * the sum over N of -log(1 - p_strong): N are classes out of the top 2 that HGP rules out."""

    min_weight = -1.0  # the samples of no weight are what the negatives are for
    TOP = 2

    def auxiliary_loss(self, pseudo: PseudoLabels, answers: Answers) -> Tensor:
        kept = answers.kept
        with torch.no_grad():
            ruled_out = self.heads(pseudo.features[kept])[1].softmax(dim=1) < 1 / (2 * self.num_classes)
            ruled_out &= ~torch.zeros_like(ruled_out).scatter(1, pseudo.probs[kept].topk(self.TOP).indices, True)
        probs = self.unlabeled_logits(answers.logits_strong).softmax(dim=1)
        negatives = -(torch.log1p(-probs.clamp(max=1 - 1e-6)) * ruled_out).sum(dim=1)
        share = (1 - self.weights(pseudo)[kept]) / ruled_out.sum(dim=1).clamp(min=1)
        return super().auxiliary_loss(pseudo, answers) + (share * negatives).sum() / max(len(pseudo.labels), 1)


class AnchoredMixing(DynamicPseudoLabels):
    """Half of the band's strong views get a part of a labelled image of their class, or of the runner-up.

    A part is a resized image that is pasted, or, of features, a share. The target has as much of the labelled class as
    the view: part of every such target is true.
    """

    SHARE = 0.5

    def __init__(self, num_features: int, num_classes: int, **parameters: Any) -> None:
        super().__init__(num_features, num_classes, **parameters)
        self.generator = torch.Generator().manual_seed(0)

    def mix(
        self, images_strong: Tensor, targets: Tensor, rows: Tensor, images: Tensor, pseudo: PseudoLabels
    ) -> tuple[Tensor, Tensor]:
        assert pseudo.facts is not None
        over = self.thresholds()["over"][pseudo.labels].to(pseudo.confidence.dtype)
        wanted = (pseudo.confidence < over)[rows] & (torch.rand(len(rows), generator=self.generator) < self.SHARE)
        mixed, soft = images_strong.clone(), F.one_hot(targets, self.num_classes).to(pseudo.probs.dtype)
        for row in wanted.nonzero()[:, 0].tolist():
            for label in pseudo.probs[rows[row]].topk(2).indices:
                partners = (pseudo.facts.targets_labeled == label).nonzero()[:, 0]
                if len(partners):
                    partner = partners[torch.randint(len(partners), (), generator=self.generator)]
                    part = self._paste(mixed[row], images[partner])
                    soft[row] = (1 - part) * soft[row] + part * F.one_hot(label, self.num_classes)
                    break
        return mixed, soft

    def _paste(self, image: Tensor, labeled: Tensor) -> float:
        """Put the labelled image (C, H, W), or a share of the features, into the other one; how much of it is that."""
        share = 0.1 + 0.4 * float(torch.rand((), generator=self.generator))
        height, width = image.shape[-2:]
        if height == 1:
            image.lerp_(labeled, share)
            return share
        size = [max(1, round(share**0.5 * side)) for side in (height, width)]
        top, left = (
            int(torch.randint(side - part + 1, (), generator=self.generator))
            for side, part in zip((height, width), size, strict=True)
        )
        small = F.interpolate(labeled[None].float(), size=size, mode="area")[0].to(image.dtype)
        image[..., top : top + size[0], left : left + size[1]] = small
        return size[0] * size[1] / (height * width)


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
    "fold_heads": FoldHeads,
    "graded_hand_over": GradedHandOver,
    "calibrated_band": CalibratedBand,
    "stable_band": StableBand,
    "bounded_negatives": BoundedNegatives,
    "anchored_mixing": AnchoredMixing,
}
