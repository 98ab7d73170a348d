"""The unlabelled loss.

Legend: K strong views that have a weight, C classes, U unlabelled images (of this worker).
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def mean_over_all(losses: Tensor, weights: Tensor, num_unlabeled: int) -> Tensor:
    """(1/U) sum of w_i loss_i, of the (K,) strong views that were computed: skipped ones count as zero."""
    return (weights * losses).sum() / max(num_unlabeled, 1)


def consistency(logits_strong: Tensor, targets: Tensor, weights: Tensor, num_unlabeled: int) -> Tensor:
    """`mean_over_all` of CE(logits_i, target_i).

    Args:
        logits_strong: (K, C) of the strong views that were computed.
        targets: (K,) int64 pseudo-labels, or (K, C) soft targets.
        weights: (K,) of the policy.
        num_unlabeled: U.
    """
    return mean_over_all(F.cross_entropy(logits_strong, targets, reduction="none"), weights, num_unlabeled)


def ramp(progress: float, share: float) -> float:
    """Line from 0 at the start of the run to 1 after this share of it; 1 throughout for a share of 0."""
    return min(1.0, progress / share) if share else 1.0


def annealed(step: float, half: float | None) -> float:
    """1 / (1 + step / half): the factor of a loss, which has halved at step `half`; 1 for None. Ours."""
    return 1.0 if half is None else 1 / (1 + step / half)
