"""The difference of two policies over labelled subsets: its interval, and what the design could have seen.

Subset s and repeat r of it give one difference d[s, r], since both policies have the same labelled images, initial
weights and order there. The model has two levels: d[s, r] = δ + u[s] + e[s, r], where the u of the subsets are random
with variance τ², and the e of the repeats within a subset with σ².

What is known of δ is in the means m[s] of the subsets: they are independent, with variance τ² + σ²/R. So their mean has
a t distribution with S - 1 degrees of freedom. With equally many repeats this is the estimate of the mixed model, with
its exact degrees of freedom. Two other ways do not fit few subsets. The mixed model of statsmodels takes normal
quantiles, and its interval of 95 % then covers 88 % with 5 subsets. The exact test by sign flips over subsets has no
interval of 95 % below 6 subsets, as the least p is 2 / 2^S. More repeats lower σ²/R alone: no number of them makes up
for few subsets.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

LEAST_SUBSETS = 3  # of an interval: two differences that happen to be equal would have one without width
POWER = 0.8


@dataclass(frozen=True)
class Interval:
    """A mean difference, its 95 % interval, and the least difference that this design sees with 80 % power."""

    mean: float
    low: float
    high: float
    detectable: float


def two_level_interval(differences: Mapping[int, Sequence[float]]) -> Interval | None:
    """The interval of the mean difference; None of fewer than LEAST_SUBSETS subsets.

    Args:
        differences: subset -> the difference of each of its repeats, at least one. Every subset counts the same.

    The least detectable difference is (t[0.975] + t[0.8]) SE with S - 1 degrees of freedom (H. S. Bloom, Minimum
    Detectable Effects, Evaluation Review 19, 1995): a true one of this size gives an interval beside 0 in about 80 %
    of such comparisons.
    """
    num_subsets = len(differences)
    if num_subsets < LEAST_SUBSETS:
        return None
    means = [statistics.fmean(repeats) for repeats in differences.values()]
    error = statistics.stdev(means) / math.sqrt(num_subsets)
    mean, half = statistics.fmean(means), t_quantile(0.975, num_subsets - 1) * error
    return Interval(mean, mean - half, mean + half, half + t_quantile(POWER, num_subsets - 1) * error)


@cache
def t_quantile(share: float, degrees: int) -> float:
    """Of Student's t distribution."""
    from scipy.stats import t

    return float(t.ppf(share, degrees))
