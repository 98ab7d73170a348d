"""One-vs-all classifiers (OVANet, Saito 2021): for every class, whether an image is of it or not.

An image that none of them accepts is foreign: of a class that the labels do not have.

Legend: N images, C classes; along the dimension of 2, index 0 is "not of this class", 1 is "of this class".
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

OUT, IN = 0, 1


def one_vs_all(logits: Tensor) -> Tensor:
    """(N, 2 C) logits of a classifier -> (N, 2, C) log-probabilities of each class's pair."""
    return logits.float().unflatten(1, (2, -1)).log_softmax(dim=1)


def one_vs_all_loss(log_probs: Tensor, targets: Tensor) -> Tensor:
    """(): mean of -log p_in of the true class, plus the largest -log p_out of the others: hard negatives alone.

    Args:
        log_probs: (N, 2, C). targets: (N,) int64.
    """
    others = (-log_probs[:, OUT]).scatter(1, targets[:, None], 0.0).amax(dim=1)
    return (F.nll_loss(log_probs[:, IN], targets, reduction="none") + others).mean()
