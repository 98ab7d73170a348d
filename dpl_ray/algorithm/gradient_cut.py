"""The low- and high-gradient-pass classifiers (LGP, HGP) and the cut that feeds them.

The paper's abstract names the two classifiers and that gradients are passed or cut; the rule below (which size,
which boundary) is ours: steps 2 and 3 of docs/method.md.

Legend: N samples, C classes, D features; index 0 is LGP, index 1 is HGP.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LOW, HIGH = 0, 1


class GradientCutHeads(nn.Module):
    """Two linear classifiers that watch the backbone's features and never move it."""

    def __init__(self, num_features: int, num_classes: int) -> None:
        super().__init__()
        self.low = nn.Linear(num_features, num_classes)
        self.high = nn.Linear(num_features, num_classes)

    def start_as(self, classifier: nn.Linear) -> None:
        """Make both heads copies of the main classifier."""
        for head in (self.low, self.high):
            head.load_state_dict(classifier.state_dict())

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """(N, D) -> two (N, C), float32. The features are detached: no gradient reaches the backbone."""
        features = features.detach().float()
        return self.low(features), self.high(features)


def gradient_size(logits: Tensor, labels: Tensor) -> Tensor:
    """g = 1 - softmax(logits)[label], (N,): size of cross-entropy's gradient at the label's logit; no gradient."""
    probs = logits.detach().float().softmax(dim=1)
    return 1 - probs.gather(1, labels[:, None]).squeeze(1)


def passes(sizes: Tensor, labels: Tensor, boundary: Tensor) -> Tensor:
    """Which samples' gradients pass each cut: bool (2, N).

    Args:
        sizes: (2, N), size of every sample's gradient as each head's cut sees it.
        labels: (N,) int64 class of every sample.
        boundary: (2, C) class-wise boundary of each head. LGP passes sizes <= boundary, HGP sizes >= boundary.
    """
    limits = boundary[:, labels]
    return torch.stack([sizes[LOW] <= limits[LOW], sizes[HIGH] >= limits[HIGH]])


def cut_cross_entropy(logits: Tensor, labels: Tensor, passed: Tensor) -> Tensor:
    """Sum over the passed samples of CE(logits, label): the rows of the logit gradient of all others are zero.

    Args:
        logits: (N, C) of one head. labels: (N,) int64. passed: (N,) bool.
    """
    losses = F.cross_entropy(logits, labels, reduction="none")
    return torch.where(passed, losses, 0.0).sum()


def class_sums(values: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """(C,) float64: sum of `values` (N,) over the samples of each class."""
    sums = torch.zeros(num_classes, dtype=torch.float64, device=values.device)
    return sums.index_add_(0, labels, values.double())
