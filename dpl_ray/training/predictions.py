"""What a model says of images, as the report shows it: numbers without torch, which a report does not load."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

NUM_BINS = 15  # of confidence, for the calibration error and its diagram


@dataclass(frozen=True)
class Predictions:
    """What a model says of N images."""

    labels: NDArray[np.int64]  # (N,) the most likely class
    confidence: NDArray[np.float32]  # (N,) its probability

    @classmethod
    def from_probs(cls, probs: Tensor) -> Predictions:
        """Of probabilities (N, C)."""
        confidence, labels = probs.max(dim=1)
        return cls(labels.numpy(), confidence.numpy())


def confidence_bins(confidence: NDArray[np.float32]) -> NDArray[np.int64]:
    """(N,) bins of (N,) confidences, from 0, all of one width; a bound belongs to the bin above it, 1 to the last."""
    bounds = np.linspace(0, 1, NUM_BINS + 1, dtype=np.float32)
    return np.minimum(np.searchsorted(bounds, confidence, side="right") - 1, NUM_BINS - 1)
