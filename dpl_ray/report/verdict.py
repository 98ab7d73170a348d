"""Whether a pool has helped: two models on the same labelled images.

Legend: N images.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Z_95 = 1.959964  # two-sided 95 % quantile of the normal distribution


@dataclass(frozen=True)
class Verdict:
    """Accuracy of a model minus that of its baseline, with a 95 % interval, and the counts that both come from."""

    both: int  # images that both have right
    only_model: int
    only_baseline: int
    neither: int
    difference: float
    low: float
    high: float

    @property
    def num_images(self) -> int:
        return self.both + self.only_model + self.only_baseline + self.neither

    @property
    def effect(self) -> Literal["helped", "hurt", "unknown"]:
        """`unknown` where the interval has zero in it."""
        if self.low > 0:
            return "helped"
        return "hurt" if self.high < 0 else "unknown"


def compare_paired(right: NDArray[np.bool_], right_baseline: NDArray[np.bool_]) -> Verdict:
    """Compare which of the same N images two models have right.

    The interval is Bonett and Price's adjusted Wald interval for a difference of paired proportions (D. G. Bonett and
    R. M. Price, Journal of Educational and Behavioral Statistics 37(4), 2012, pp. 479-488): with b and c the images
    that only one of the two has right, p = (b + 1) / (N + 2), q = (c + 1) / (N + 2),

        p - q  ±  1.96 sqrt((p + q - (p - q)^2) / (N + 2)),

    cut to [-1, 1]. It is the interval of the two models as they are trained, over test images: another seed, or other
    labels, would give other models.

    Args:
        right, right_baseline: (N,), N > 0.
    """
    assert right.shape == right_baseline.shape
    assert len(right) > 0
    num_images = len(right)
    both = int((right & right_baseline).sum())
    only_model, only_baseline = int(right.sum()) - both, int(right_baseline.sum()) - both
    p, q = (only_model + 1) / (num_images + 2), (only_baseline + 1) / (num_images + 2)
    radius = Z_95 * math.sqrt((p + q - (p - q) ** 2) / (num_images + 2))
    return Verdict(
        both=both,
        only_model=only_model,
        only_baseline=only_baseline,
        neither=num_images - both - only_model - only_baseline,
        difference=(only_model - only_baseline) / num_images,
        low=max(-1.0, p - q - radius),
        high=min(1.0, p - q + radius),
    )


def wilson_interval(successes: float, number: float, z: float = Z_95) -> tuple[float, float]:
    """The interval of a proportion (E. B. Wilson, JASA 22, 1927, pp. 209-212), of 95 %; (0, 1) of no trial."""
    if not number:
        return 0.0, 1.0
    share, factor = successes / number, z**2 / number
    centre = (share + factor / 2) / (1 + factor)
    radius = z / (1 + factor) * math.sqrt(share * (1 - share) / number + factor / (4 * number))
    return max(0.0, centre - radius), min(1.0, centre + radius)
