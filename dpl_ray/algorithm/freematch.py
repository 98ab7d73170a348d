"""FreeMatch (Wang 2023): a global and a class-wise threshold that follow the student, and a fairness term.

Legend: U unlabelled images, K strong views that have a weight, C classes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dpl_ray.algorithm.ema import ema_
from dpl_ray.algorithm.gradient_cut import class_sums
from dpl_ray.algorithm.policy import Policy, RunFacts
from dpl_ray.algorithm.pseudo_labels import Answers, PseudoLabels


def normalized(values: Tensor) -> Tensor:
    """Values of at least zero as shares of their sum; all zero where the sum is."""
    return values / values.sum().clamp(min=1e-12)


def fairness(mean_probs: Tensor, histogram: Tensor, strong_probs: Tensor, strong_histogram: Tensor) -> Tensor:
    """sum of Norm(p / h) log Norm(q / h_q), (): FreeMatch's self-adaptive fairness; a class with h = 0 counts as 0.

    All (C,): moving average of the probabilities p and of the histogram of the labels h, mean q of the selected strong
    predictions and histogram h_q of their labels.
    """

    def over(probs: Tensor, counts: Tensor) -> Tensor:
        return normalized(torch.where(counts > 0, probs / counts.clamp(min=1e-12), 0.0))

    return (over(mean_probs, histogram) * (over(strong_probs, strong_histogram) + 1e-12).log()).sum()


class FreeMatch(Policy):
    """w = 1[c >= tau p_label / max p], with tau = EMA(mean c), p = EMA(mean p); adds fairness_weight * `fairness`."""

    confidence: Tensor  # () tau
    mean_probs: Tensor  # (C,)
    histogram: Tensor  # (C,) h: moving average of the shares of the labels

    def __init__(self, num_features: int, num_classes: int, *, ema_decay: float, fairness_weight: float) -> None:
        super().__init__(num_features, num_classes)
        self.ema_decay, self.fairness_weight = ema_decay, fairness_weight
        uniform = torch.full((num_classes,), 1 / num_classes, dtype=torch.float64)
        self.register_buffer("confidence", uniform[0].clone())
        self.register_buffer("mean_probs", uniform.clone())
        self.register_buffer("histogram", uniform.clone())
        self.run = RunFacts(0, 0)

    def join(self, run: RunFacts) -> None:
        self.run = run

    @torch.no_grad()
    def statistics(self, pseudo: PseudoLabels) -> Tensor:
        """(1 + 2 C,) sums of confidences, of probabilities and of labels."""
        counts = class_sums(torch.ones_like(pseudo.confidence), pseudo.labels, self.num_classes)
        return torch.cat([pseudo.confidence.double().sum()[None], pseudo.probs.double().sum(dim=0), counts])

    @torch.no_grad()
    def update(self, statistics: Tensor) -> None:
        confidence, probs, counts = statistics.tensor_split([1, 1 + self.num_classes])
        count = counts.sum()
        for state, total in ((self.confidence, confidence[0]), (self.mean_probs, probs), (self.histogram, counts)):
            ema_(state, total / count.clamp(min=1), self.ema_decay, where=(count > 0).expand_as(state))

    def thresholds(self) -> dict[str, Tensor]:
        return {"threshold": self.confidence * self.mean_probs / self.mean_probs.max()}

    def weights(self, pseudo: PseudoLabels) -> Tensor:
        needed = self.thresholds()["threshold"][pseudo.labels]
        return (pseudo.confidence >= needed).to(pseudo.confidence.dtype)

    def auxiliary_loss(self, pseudo: PseudoLabels, answers: Answers) -> Tensor:
        """fairness_weight * `fairness` over the selected samples of all workers: a second, small sum over them."""
        if not self.fairness_weight:
            return super().auxiliary_loss(pseudo, answers)
        probs, counted = answers.logits_strong.double().softmax(dim=1), (answers.kept >= 0).double()
        mine = (probs * counted[:, None]).sum(dim=0)
        counts = class_sums(counted, probs.argmax(dim=1), self.num_classes)
        of_all, counts = self.run.sum_over_workers(torch.cat([mine.detach(), counts])).chunk(2)
        # The value is that of all workers, the gradient that of this worker's samples.
        total = mine + (of_all - mine.detach())
        count = counts.sum().clamp(min=1)
        loss = self.fairness_weight * fairness(self.mean_probs, self.histogram, total / count, counts / count)
        # The gradients of the workers are averaged; here they have to add up.
        loss = loss + (self.run.world_size - 1) * (loss - loss.detach())
        return loss.to(answers.logits.dtype) * (counts.sum() > 0)
