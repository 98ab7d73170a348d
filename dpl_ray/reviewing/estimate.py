"""How many labels are wrong, from the answers to a draw in which every label has the same probability: pure functions.

A simple draw: the bounds are exact, those of C. J. Clopper and E. S. Pearson (Biometrika 26, 1934, pp. 404-413) for a
draw without replacement, that is of the hypergeometric distribution.

A stratified draw: simple draws of the strata and the pivotal method that shares out the images are strongly Rayleigh
(J. Borcea, P. Branden and T. M. Liggett, Journal of the AMS 22, 2009, pp. 521-567), together and in a random part of
them. So the number X of wrong labels among n answers is distributed as a sum of n independent indicators, which need
not have one probability. By W. Hoeffding's theorem (Annals of Mathematical Statistics 27, 1956, pp. 713-721) no such
sum has more weight on X <= k than the binomial distribution of the same mean, if the mean is k + 1 or more. So Clopper
and Pearson's bounds hold for the mean, which is n times the share of the wrong labels.
"""

from __future__ import annotations

from dataclasses import dataclass

from dpl_ray.labeling.certificate import upper_bound

EXACT = "exact: Clopper and Pearson, without replacement"
STRATIFIED = "Clopper and Pearson, by Hoeffding's theorem valid for a stratified draw"


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
class Sample:
    """How the answered images were drawn."""

    size: int  # labels they are from
    number: int  # answers
    is_simple: bool  # in one stratum

    def most(self, found: int, alpha: float) -> float:
        """Upper bound of how many labels are such as `found` answers are: too low with probability `alpha` or less."""
        if self.is_simple:
            return _most_exact(self.size, self.number, found, alpha)
        mean = max(self.number * upper_bound(found, self.number, 1 - alpha), found + 1)
        return self.size * min(1.0, mean / self.number)

    def least(self, found: int, alpha: float) -> float:
        """Lower bound, likewise."""
        return self.size - self.most(self.number - found, alpha)


def estimate_error(
    sample: Sample, num_images: int, num_answered: int, num_wrong: int, num_corrected: int, *, confidence: float
) -> Error | None:
    """The share of wrong labels among some, before and after correction; None where not one of them was looked at.

    Args:
        sample: all answers. num_images: labels that the error is of.
        num_answered, num_wrong, num_corrected: answers to these, those of them that show a wrong label, and those of
            them that say the right class.
    """
    if not num_answered:
        return None
    alpha, most = (1 - confidence) / 2, num_images - (num_answered - num_wrong)
    low, high = (min(most, max(num_wrong, bound(num_wrong, alpha))) for bound in (sample.least, sample.most))
    found = min(max(num_wrong / num_answered * num_images, low), high)
    before, after = (
        Share(*((count - gone) / num_images for count in (found, low, high))) for gone in (0, num_corrected)
    )
    return Error(
        num_images=num_images,
        num_answered=num_answered,
        num_wrong=num_wrong,
        before=before,
        after=after,
        at_most=min(most, sample.most(num_wrong, 1 - confidence)) / num_images,
        method=EXACT if sample.is_simple else STRATIFIED,
    )


def _most_exact(size: int, number: int, found: int, alpha: float) -> int:
    """The most labels of a kind for which so few of them are drawn with a probability above `alpha`."""
    from scipy.stats import hypergeom

    low, high = found, size - number + found
    while low < high:
        middle = (low + high + 1) // 2
        if hypergeom.cdf(found, size, middle, number) > alpha:
            low = middle
        else:
            high = middle - 1
    return low
