"""What a step adds to the records, and the metrics made of it.

A step yields sums over samples on the device, without waiting for it; they add up over steps and over workers, and
are read only when a record is written.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dpl_ray.algorithm.pseudo_labels import PseudoLabels
from dpl_ray.data.dataset import UNLABELED

#: A sample below this confidence counts as one of high entropy: what FixMatch's threshold leaves out.
HIGH_ENTROPY_CONFIDENCE = 0.95

SUMS = (
    "worker_steps",
    "loss_labeled",
    "loss_unlabeled",
    "loss_auxiliary",
    "unlabeled",
    "strong_views",
    "weight",
    "weight_high_entropy",
    "weight_known",
    "weight_right",
    "weight_high_entropy_known",
    "weight_high_entropy_right",
)


@torch.no_grad()
def step_sums(
    terms: Tensor, pseudo: PseudoLabels, weights: Tensor, targets: Tensor, true_targets: Tensor, num_strong: Tensor
) -> Tensor:
    """(len(SUMS),) float64.

    Args:
        terms: (3,) the loss terms of this worker.
        weights, targets: (U,) and (U,) or (U, C) of the policy; the most likely class of a soft target is its label.
        true_targets: (U,) int64, -1 where unknown, -2 where of no class: then every label is wrong.
        num_strong: () float64, strong views that count.
    """
    weights = weights.double()
    high = weights * (pseudo.confidence < HIGH_ENTROPY_CONFIDENCE)
    known = true_targets != UNLABELED
    right = (targets if targets.ndim == 1 else targets.argmax(dim=1)) == true_targets
    by_sample = [weights, high, weights * known, weights * right, high * known, high * right]
    sums = torch.stack([values.sum() for values in by_sample])
    counts = torch.stack([weights.new_full((), len(weights)), num_strong])
    return torch.cat([terms.new_ones(1).double(), terms.double(), counts, sums])


def mean_metrics(sums: Tensor) -> dict[str, float]:
    """Metrics, in the keys of docs/metrics.md, of sums over any number of steps and workers."""
    total = dict(zip(SUMS, sums.tolist(), strict=True))
    steps = total["worker_steps"]
    metrics = {
        "train/loss_labeled": total["loss_labeled"] / steps,
        "train/loss_unlabeled": total["loss_unlabeled"] / steps,
        "train/loss_auxiliary": total["loss_auxiliary"] / steps,
    }
    if total["unlabeled"]:
        metrics["pseudo/coverage"] = total["weight"] / total["unlabeled"]
        metrics["pseudo/strong_view_share"] = total["strong_views"] / total["unlabeled"]
    if total["weight"]:
        metrics["pseudo/high_entropy_share"] = total["weight_high_entropy"] / total["weight"]
    if total["weight_known"]:
        metrics["pseudo/precision"] = total["weight_right"] / total["weight_known"]
    if total["weight_high_entropy_known"]:
        metrics["pseudo/high_entropy_precision"] = (
            total["weight_high_entropy_right"] / total["weight_high_entropy_known"]
        )
    return metrics
