"""How many labels are wrong, from the answers to a stratified draw: pure functions.

One stratum: the bounds are exact, those of C. J. Clopper and E. S. Pearson (Biometrika 26, 1934, pp. 404-413) for a
draw without replacement, that is of the hypergeometric distribution.

Several strata: the number X of wrong labels among n answers is distributed as a sum of n independent indicators, which
need not have one probability (for one stratum V. A. Vatutin and V. G. Mikhailov, Theory of Probability and its
Applications 27, 1982, pp. 734-743; the sum over strata has this form too, and so has a random part of the answers). By
W. Hoeffding's theorem (Annals of Mathematical Statistics 27, 1956, pp. 713-721) no such sum has more weight on X <= k
than the binomial distribution of the same mean mu, where k <= mu - 1. So Clopper and Pearson's bound holds for mu. If
an image stands for c labels at most, at most c * mu of them are wrong.

Legend: S strata, N answers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dpl_ray.labeling.certificate import upper_bound

EXACT = "exact: Clopper and Pearson, without replacement"
STRATIFIED = "Clopper and Pearson, by Hoeffding's theorem valid over the strata"


@dataclass(frozen=True)
class Share:
    """A share of wrong labels, with its two-sided interval."""

    estimate: float
    low: float
    high: float


@dataclass(frozen=True)
class Error:
    """What answers say of some labels."""

    num_images: int  # labels
    num_answered: int
    num_wrong: int  # of these
    before: Share
    after: Share  # where the answers have replaced the labels of their images
    at_most: float  # one-sided upper bound of `before`
    method: str


@dataclass(frozen=True)
class Answered:
    """N answers, in the order in which the images were drawn."""

    strata: NDArray[np.int64]  # (N,)
    wrong: NDArray[np.bool_]  # (N,) whether the label is
    corrected: NDArray[np.bool_]  # (N,) whether it is wrong and the answer is another class


def estimate_error(
    sizes: NDArray[np.int64],
    numbers: NDArray[np.int64],
    answered: Answered,
    confidence: float,
    *,
    num_images: int,
    mine: NDArray[np.bool_],
) -> Error | None:
    """The share of wrong labels among some, before and after correction; None where not one of them was looked at.

    The estimate is Hajek's, of the Horvitz-Thompson weights.

    Args:
        sizes, numbers: (S,) labels of each stratum that has some of these labels, and how many were drawn; 0 of others.
        answered: all of these strata.
        num_images: labels that the error is of.
        mine: (N,) whether an answer is of these.
    """
    if not mine.any():
        return None
    weights = (sizes / np.maximum(1, numbers))[answered.strata]
    wrong, right = answered.wrong & mine, ~answered.wrong & mine
    found = float(weights[wrong].sum() / weights[mine].sum() * num_images)

    alpha, most = (1 - confidence) / 2, num_images - int(right.sum())
    low = max(int(wrong.sum()), _least(sizes, numbers, answered.strata, wrong, alpha))
    high = min(most, _most(sizes, numbers, answered.strata, wrong, alpha))
    before, after = (
        Share(*(max(0.0, count - gone) / num_images for count in (found, low, high)))
        for gone in (0, int((answered.corrected & mine).sum()))
    )
    return Error(
        num_images=num_images,
        num_answered=int(mine.sum()),
        num_wrong=int(wrong.sum()),
        before=before,
        after=after,
        at_most=min(most, _most(sizes, numbers, answered.strata, wrong, 1 - confidence)) / num_images,
        method=EXACT if (numbers > 0).sum() == 1 else STRATIFIED,
    )


def _most(
    sizes: NDArray[np.int64],
    numbers: NDArray[np.int64],
    strata: NDArray[np.int64],
    wrong: NDArray[np.bool_],
    alpha: float,
) -> float:
    """Upper bound of the number of wrong labels: too low with probability `alpha` or less; arguments as above.

    Where not all drawn images are answered, the answered ones are a random part of them.
    """
    number, found = len(strata), int(wrong.sum())
    if (numbers > 0).sum() == 1:
        return _most_exact(int(sizes.sum()), number, found, alpha)
    weight = float((sizes / np.maximum(1, numbers)).max()) * float(numbers.sum()) / number
    return weight * max(number * upper_bound(found, number, 1 - alpha), found + 1)


def _least(
    sizes: NDArray[np.int64],
    numbers: NDArray[np.int64],
    strata: NDArray[np.int64],
    wrong: NDArray[np.bool_],
    alpha: float,
) -> float:
    """Lower bound of the number of wrong labels, likewise.

    In strata where an image stands for few labels, only the wrong ones that were found count. The limit does not depend
    on the answers: it is the one at which the bound would be largest if all strata had one share of wrong labels.
    """
    if (numbers > 0).sum() == 1:
        return int(sizes.sum()) - _most_exact(int(sizes.sum()), len(strata), int((~wrong).sum()), alpha)
    weights = sizes / np.maximum(1, numbers)
    limit = max(weights[numbers > 0], key=lambda weight: weight * numbers[weights >= weight].sum())
    heavy = weights >= limit
    mine = heavy[strata]
    number, found, rest = int(mine.sum()), int((wrong & mine).sum()), int((wrong & ~mine).sum())
    if not number:
        return rest
    mean = min(number * (1 - upper_bound(number - found, number, 1 - alpha)), found - 1)
    return rest + float(limit) * float(numbers[heavy].sum()) / number * max(0.0, mean)


def _most_exact(size: int, number: int, found: int, alpha: float) -> int:
    """The most wrong labels of which so few are drawn with a probability above `alpha`."""
    from scipy.stats import hypergeom

    low, high = found, size - number + found
    while low < high:
        middle = (low + high + 1) // 2
        if hypergeom.cdf(found, size, middle, number) > alpha:
            low = middle
        else:
            high = middle - 1
    return low
