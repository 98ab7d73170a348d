"""From the logits of weak views to pseudo-labels, and what the student says of the views that it is trained on.

Legend: B labelled, U unlabelled images, K <= U strong views with a weight, C classes, D features.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class StepFacts:
    """What some policies read besides the student's answers."""

    progress: float | Tensor  # share of the run's steps that are done, from 0 to below 1; () float64 on a GPU
    ids: Tensor  # (U,) int64, index in the pool of each unlabelled image
    targets_labeled: Tensor  # (B,) int64
    ids_labeled: Tensor  # (B,) int64, index of each labelled image among all of them


@dataclass(frozen=True)
class PseudoLabels:
    """What the student says of the weak views of one (shard of a) batch; nothing here carries a gradient."""

    features: Tensor  # (U, D) backbone features
    logits: Tensor  # (U, C) float32, of the main classifier
    probs: Tensor  # (U, C) softmax, aligned where the policy aligns
    labels: Tensor  # (U,) int64, argmax of probs
    confidence: Tensor  # (U,) max of probs
    logits_labeled: Tensor | None = None  # (B, C) of the labelled weak views where the policy `reads_labeled`
    facts: StepFacts | None = None
    features_labeled: Tensor | None = None  # (B, D) likewise


@dataclass(frozen=True)
class Answers:
    """What the student says of the views that it is trained on, with gradients: B labelled, K strong ones."""

    features: Tensor  # (B, D)
    logits: Tensor  # (B, C)
    targets: Tensor  # (B,) int64, of the labelled images
    features_strong: Tensor  # (K, D)
    logits_strong: Tensor  # (K, C)
    #: (K,) int64, which of the U samples they are; -1 for one that fills the room on a GPU and does not count.
    kept: Tensor


def pseudo_labels(
    features: Tensor, logits: Tensor, alignment: Tensor | None = None, facts: StepFacts | None = None
) -> PseudoLabels:
    """Read pseudo-labels and confidence off the main classifier's logits.

    Args:
        features: (U, D), of the weak views; rows of labelled images may follow.
        logits: (U, C), likewise.
        alignment: (C,) positive factors of the class probabilities (see `align`); None leaves them.
        facts: of the step; with them, what follows the first U = len(facts.ids) rows are labelled images.
    """
    logits, logits_labeled, features_labeled = logits.float(), None, None
    if facts is not None and len(logits) > len(facts.ids):
        (features, features_labeled), (logits, logits_labeled) = (
            rows.tensor_split([len(facts.ids)]) for rows in (features, logits)
        )
    probs = logits.softmax(dim=1)
    if alignment is not None:
        probs = align(probs, alignment)
    confidence, labels = probs.max(dim=1)
    return PseudoLabels(features, logits, probs, labels, confidence, logits_labeled, facts, features_labeled)


def align(probs: Tensor, factors: Tensor) -> Tensor:
    """Norm(probs * factors): (U, C) rows that sum to one again.

    With factors = (1/C) / EMA(mean probs) this is uniform alignment (SoftMatch, Chen 2023, after the
    distribution alignment of ReMixMatch, Berthelot 2020).
    """
    scaled = probs * factors.to(probs.dtype)
    return scaled / scaled.sum(dim=1, keepdim=True)


def entropy(probs: Tensor) -> Tensor:
    """Shannon entropy in nats, (U,), of probabilities (U, C); zero probabilities count nothing."""
    return torch.special.entr(probs).sum(dim=1)
