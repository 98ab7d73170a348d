"""The temperature that calibrates a model's confidences, fitted on labelled images.

Temperature scaling: C. Guo, G. Pleiss, Y. Sun and K. Q. Weinberger, On Calibration of Modern Neural Networks, 2017.

Legend: N images, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

LIMITS = (0.05, 20.0)  # of what is fitted: where all or none are right, the likelihood has no optimum
LOWEST = -1000.0  # of a logit, below the largest of its image: one of -inf would make every likelihood infinite
FEWEST_WRONG = 10  # images without which a temperature is chance


@dataclass(frozen=True)
class Calibration:
    """A temperature, and what one does to images that it was not fitted on.

    Each half of the images has the temperature that the other half gives: no label fits and measures.
    """

    temperature: float  # of all images, in three digits
    probs: NDArray[np.float32]  # (N, C) of softmax(logits / temperature of the other half)
    loss: tuple[float, float]  # negative log-likelihood without a temperature, and by `probs`

    @property
    def helps(self) -> bool:
        """Whether the likelihood of the labels grows."""
        return self.loss[1] < self.loss[0]


def fit_temperature(logits: NDArray[np.floating], targets: NDArray[np.int64]) -> float:
    """The T within LIMITS, or 1, at which softmax(logits / T) has the least negative log-likelihood.

    The likelihood is convex in 1 / T.

    Args:
        logits: (N, C) without a NaN, some finite in each row; log-probabilities will do. targets: (N,), N > 0.
    """
    logits = _relative(logits)
    found = minimize_scalar(
        lambda log_t: _loss(log_softmax(logits / np.exp(log_t), axis=1), targets),
        bounds=tuple(np.log(LIMITS)),
        method="bounded",
        options={"xatol": 1e-4},
    )
    fitted = float(np.exp(found.x))
    return fitted if found.fun < _loss(log_softmax(logits, axis=1), targets) else 1.0


def calibrate(logits: NDArray[np.floating], targets: NDArray[np.int64]) -> Calibration | None:
    """None where fewer than FEWEST_WRONG images are wrong; arguments as those of `fit_temperature`."""
    if (logits.argmax(axis=1) != targets).sum() < FEWEST_WRONG:
        return None
    logits = _relative(logits)
    half = np.random.default_rng(0).permutation(len(targets)) % 2
    others = np.array([fit_temperature(logits[half != part], targets[half != part]) for part in (0, 1)])
    log_probs = log_softmax(logits / others[half, None], axis=1)
    loss = _loss(log_softmax(logits, axis=1), targets), _loss(log_probs, targets)
    fitted = float(f"{fit_temperature(logits, targets):.3g}")
    return Calibration(fitted, np.exp(log_probs).astype(np.float32), loss)


def _relative(logits: NDArray[np.floating]) -> NDArray[np.float64]:
    """Below the largest of each row, in float64."""
    found: NDArray[np.float64] = logits.astype(np.float64)
    return np.maximum(found - found.max(axis=1, keepdims=True), LOWEST)


def _loss(log_probs: NDArray[np.float64], targets: NDArray[np.int64]) -> float:
    return -float(np.take_along_axis(log_probs, targets[:, None], axis=1).mean())
