"""What a pseudo-labelling policy answers.

A policy is asked three questions in every step: which sums it needs from this worker's share of the batch
(`statistics`), how the sums over all workers change its state (`update`), and what each unlabelled sample counts
(`weights`). State lives in buffers, so it is saved with the policy; parameters it owns are trained beside the
student. Since state changes by global sums alone, N workers hold the same state as one.

Legend: B labelled, U unlabelled images of this worker's share, K <= U strong views with a weight, C classes,
D features.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dpl_ray.algorithm.pseudo_labels import Answers, PseudoLabels


def _alone(values: Tensor) -> Tensor:
    return values


@dataclass(frozen=True)
class RunFacts:
    """What some policies know of the run that they are part of, from its start."""

    pool_size: int  # images in the pool
    num_unlabeled: int  # unlabelled images in the global batch
    rank: int = 0  # of this worker
    world_size: int = 1
    #: Sums a tensor over all workers in place. All of them have to call it in the same place.
    sum_over_workers: Callable[[Tensor], Tensor] = _alone
    labeled_counts: Tensor | None = None  # (C,) int64: labelled images of each class; None where nobody trains
    frozen: bool = False  # the data are stored features, which nothing moves


class Policy(nn.Module, ABC):
    """The defaults: no state, no sums, no trained parts. Subclasses say at least `weights`.

    The constructor takes (num_features, num_classes) and then the policy's own parameters as keywords; their defaults,
    bounds and meanings are in dpl_ray/config/policies.py.
    """

    uses_unlabeled: ClassVar[bool] = True
    #: A sample of at most this weight has no gradient worth computing: its strong view is skipped.
    min_weight: ClassVar[float] = 0.0
    #: The labelled weak views pass the student without gradient too, for `pseudo.logits_labeled` (AdaMatch, Dash).
    reads_labeled: bool = False
    #: Which view of an unlabelled image the loss is computed on (weak: Pseudo-Label).
    trains_on: ClassVar[Literal["strong", "weak"]] = "strong"
    #: Buffers with a row for every sample of the pool, of which a worker holds those with id % world_size == rank.
    sharded: ClassVar[tuple[str, ...]] = ()

    def __init__(self, num_features: int, num_classes: int) -> None:
        super().__init__()
        self.num_features, self.num_classes = num_features, num_classes

    def start_as(self, classifier: nn.Linear) -> None:
        """Take over the main classifier's initial weights where the policy trains classifiers of its own."""

    def join(self, run: RunFacts) -> None:
        """Make what depends on the pool and the workers; called once, before the first step."""

    def alignment(self, progress: float | Tensor) -> Tensor | None:  # noqa: ARG002
        """(C,) factors of the class probabilities that `pseudo_labels` applies at this share of the run, or None."""
        return None

    def statistics(self, pseudo: PseudoLabels) -> Tensor:
        """(S,) float64 sums over this worker's unlabelled samples; S is the same in every step."""
        return torch.zeros(0, dtype=torch.float64, device=pseudo.probs.device)

    def update(self, statistics: Tensor) -> None:
        """Move the state by the (S,) sums over all workers."""

    @abstractmethod
    def weights(self, pseudo: PseudoLabels) -> Tensor:
        """(U,) weight of every unlabelled sample in the loss, from 0 to 1."""

    def targets(self, pseudo: PseudoLabels) -> Tensor:
        """(U,) int64 pseudo-labels, or (U, C) soft targets."""
        return pseudo.labels

    def mix(
        self,
        images_strong: Tensor,
        targets: Tensor,
        rows: Tensor,  # noqa: ARG002
        images: Tensor,  # noqa: ARG002
        pseudo: PseudoLabels,  # noqa: ARG002
    ) -> tuple[Tensor, Tensor]:
        """Strong views (K, ...) that the student is trained on, and their (K,) or (K, C) targets: here as they are.

        Args:
            images_strong: (K, channels, H, W) uint8, or float16 (K, 1, 1, D) of features.
            targets: theirs, (K,) int64 or (K, C).
            rows: (K,) int64, which of the U samples they are.
            images: (B, ...) weak views of the labelled images, whose classes are `pseudo.facts.targets_labeled`.
        """
        return images_strong, targets

    def unlabeled_logits(self, logits_strong: Tensor) -> Tensor:
        """(K, C) logits that the unlabelled loss is computed on, of those of the strong views."""
        return logits_strong

    def unlabeled_losses(
        self,
        logits_strong: Tensor,
        targets: Tensor,
        rows: Tensor,  # noqa: ARG002
        pseudo: PseudoLabels,  # noqa: ARG002
    ) -> Tensor:
        """(K,) losses of the strong views before their weights: the cross-entropy.

        Args:
            logits_strong: (K, C), as `unlabeled_logits` returns them.
            targets: (K,) int64 or (K, C), as `mix` returns them.
            rows: (K,) int64, which of the U samples they are.
        """
        return F.cross_entropy(logits_strong, targets, reduction="none")

    def labeled_loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Of this worker's labelled images, (): the mean cross-entropy of (B, C) logits and (B,) classes."""
        return F.cross_entropy(logits, targets)

    def auxiliary_loss(self, pseudo: PseudoLabels, answers: Answers) -> Tensor:  # noqa: ARG002
        """What the policy trains of its own, as this worker's mean: (). `pseudo` is of the unlabelled weak views."""
        return answers.logits.new_zeros(())

    def trains_classifier(self, progress: float | Tensor) -> bool | Tensor:  # noqa: ARG002
        """Whether, at this share of the run, the unlabelled loss trains the main classifier too, not just features."""
        return True

    def foreign(self, pseudo: PseudoLabels) -> Tensor | None:  # noqa: ARG002
        """(U,) how foreign each sample looks, from 0 to 1, of none of the classes; None where nobody asks."""
        return None

    def thresholds(self) -> dict[str, Tensor]:
        """Class-wise thresholds to record, name -> (C,)."""
        return {}
