"""95 % intervals of what is measured on labelled images: accuracy, balanced accuracy, calibration error.

Legend: N images, C classes.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from dpl_ray.report.verdict import wilson_interval
from dpl_ray.training.predictions import NUM_BINS, Predictions, confidence_bins

NUM_RESAMPLES = 1000

Interval = tuple[float, float]


def score_intervals(found: Predictions, targets: NDArray[np.int64]) -> dict[str, Interval]:
    """The intervals of `training.evaluation.classification_metrics`, by its keys.

    Accuracy has Wilson's. Balanced accuracy, a mean of independent proportions, has that of G. Y. Zou and A. Donner
    (Statistics in Medicine 27, 2008, pp. 1693-1702) from Wilson's intervals of the classes.

    The calibration error is made larger by chance alone. Its upper bound is that of the basic bootstrap, which corrects
    this (A. C. Davison and D. V. Hinkley, Bootstrap Methods, 1997, section 5.2). The lower bound is the error less the
    97.5 % quantile of the sum of the bins' bootstrapped changes, which by the triangle inequality is no less than what
    chance adds. In simulations the interval holds the truth in 90 % of cases or more.

    Args:
        targets: (N,), N > 0.
    """
    right = found.labels == targets
    return {
        "eval/accuracy": wilson_interval(int(right.sum()), len(right)),
        "eval/balanced_accuracy": mean_recall_interval(right, targets),
        "eval/ece": _ece_interval(found, right),
    }


def mean_recall_interval(right: NDArray[np.bool_], targets: NDArray[np.int64]) -> Interval:
    """Of the mean recall of the classes that occur, from which of N images are right."""
    numbers, hits = np.bincount(targets), np.bincount(targets[right], minlength=int(targets.max()) + 1)
    recalls = hits[numbers > 0] / numbers[numbers > 0]
    pairs = zip(hits[numbers > 0].tolist(), numbers[numbers > 0].tolist(), strict=True)
    lows, highs = np.array([wilson_interval(hit, number) for hit, number in pairs]).T
    below, above = (math.sqrt(((recalls - bound) ** 2).sum()) / len(recalls) for bound in (lows, highs))
    return max(0.0, float(recalls.mean()) - below), min(1.0, float(recalls.mean()) + above)


def _ece_interval(found: Predictions, right: NDArray[np.bool_]) -> Interval:
    bins, number = confidence_bins(found.confidence), len(right)
    gaps: NDArray[np.float64] = right - found.confidence.astype(np.float64)
    measured = np.bincount(bins, gaps, NUM_BINS) / number
    generator = np.random.default_rng(0)
    again = np.empty((NUM_RESAMPLES, NUM_BINS))
    for resample in again:
        rows = generator.integers(number, size=number)
        resample[:] = np.bincount(bins[rows], gaps[rows], NUM_BINS) / number
    ece = float(np.abs(measured).sum())
    low = ece - np.quantile(np.abs(again - measured).sum(axis=1), 0.975)
    high = 2 * ece - np.quantile(np.abs(again).sum(axis=1), 0.025)
    return max(0.0, float(low)), min(1.0, max(0.0, float(high)))
