"""Thresholds of confidence that certify the error of the labels they select, from held-out labels: pure functions.

A label is selected where the confidence is at least the threshold. Its error is the probability that a selected label
is wrong. The method is Learn then Test with fixed-sequence testing (A. N. Angelopoulos, S. Bates, E. J. Candès, M. I.
Jordan and L. Lei, arXiv:2110.01052, 2021): the thresholds are fixed before a held-out label is looked at, and tested
from the strictest on until one fails. The p-value of a threshold is that of the exact binomial test, so it passes where
the upper bound of C. J. Clopper and E. S. Pearson (Biometrika 26, 1934, pp. 404-413) is at most the error allowed.

Theorem 1 there: if the held-out images are independent draws of the pool, or drawn from it at random, then with
probability `confidence` or more over these draws, every threshold that passes has an error of at most `max_error`.
Nothing is assumed of the model. The bounds of conformal risk control (Angelopoulos and others, arXiv:2208.02814) are of
the mean over the draws, and need a risk that falls with the threshold, which the error of the selected labels need not.

Legend: N held-out images, M images of a sample of the pool, J thresholds, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

NUM_STEPS = 50  # of coverage, from which thresholds are taken
LIKELY, LEAST_ERROR = 0.8, 0.25  # of `choose_thresholds`
FEWEST_OF_AN_ESTIMATE = 20  # labels of which a share of wrong ones says something
MOST_NEEDED = 1000  # times the least number: beyond it, no number of labels is named


@dataclass(frozen=True)
class Scored:
    """What a model says of N images."""

    labels: NDArray[np.int64]  # (N,) pseudo-labels
    confidence: NDArray[np.float32]  # (N,) as the labels of a pool have it
    targets: NDArray[np.int64]  # (N,) true classes; -1 where nobody can tell, which counts as wrong

    def of(self, index: int) -> Scored:
        """Those with this pseudo-label."""
        mine = self.labels == index
        return Scored(self.labels[mine], self.confidence[mine], self.targets[mine])


@dataclass(frozen=True)
class Certified:
    """The threshold of all classes, or of one, and what it was found from."""

    threshold: float | None  # None: nothing is certified
    num_labels: int  # held out
    num_selected: int  # of these, by the threshold; where nothing is certified, by the strictest one that was tested
    num_wrong: int  # of those
    needed: str | None  # what would certify, where nothing is certified
    steps: tuple[tuple[float, int, int], ...] = ()  # (threshold, selected, wrong) of every threshold, strictest first


@dataclass(frozen=True)
class Certificate:
    """What held-out labels certify of a pool's labels: one threshold, or one of each class.

    With probability `confidence` or more over the draw of the held-out images, the selected labels of a pool that they
    are drawn from are wrong with a probability of at most `max_error`; `by_class`, those of every class by itself, for
    which each class is certified at 1 - (1 - confidence) / C (Bonferroni).
    """

    max_error: float
    confidence: float
    by_class: bool
    source: str  # of the held-out labels
    found: tuple[Certified, ...]  # one, or (C,)
    held_out: tuple[int, ...]  # (C,) held-out images by pseudo-label
    p_value: float  # that confidences of held-out images and pool are from one distribution (Kolmogorov, Smirnov)
    right_p_value: float = 1.0  # that no held-out label is wrong, if the confidences are right; 1 where one is wrong

    @classmethod
    def from_json(cls, tree: Mapping[str, Any]) -> Self:
        """Of what `asdict` makes of one."""
        found = tuple(Certified(**each | {"steps": tuple(map(tuple, each["steps"]))}) for each in tree["found"])
        return cls(**dict(tree) | {"found": found, "held_out": tuple(tree["held_out"])})

    @property
    def thresholds(self) -> NDArray[np.float32]:
        """(C,) of each class; infinite where nothing is certified."""
        values = [np.inf if each.threshold is None else each.threshold for each in self.found]
        return np.array(values if self.by_class else values * len(self.held_out), np.float32)

    @property
    def certifies(self) -> bool:
        """Whether anything is selected."""
        return any(each.threshold is not None for each in self.found)


def least_labels(max_error: float, confidence: float) -> int:
    """How many labels certify `max_error` where not one is wrong: (1 - max_error)^n <= 1 - confidence."""
    return math.ceil(math.log(1 - confidence) / math.log(1 - max_error) - 1e-9)


def upper_bound(num_wrong: int, number: int, confidence: float) -> float:
    """Clopper and Pearson's one-sided upper bound of a proportion."""
    from scipy.stats import beta

    return 1.0 if num_wrong >= number else float(beta.ppf(confidence, num_wrong + 1, number - num_wrong))


def num_passed(
    num_selected: NDArray[np.int64], num_wrong: NDArray[np.int64], max_error: float, confidence: float
) -> NDArray[np.int64]:
    """(...,) how many thresholds pass, from the first one on.

    Args:
        num_selected, num_wrong: (..., J) of the held-out labels, in the order in which the thresholds are tested.
    """
    from scipy.stats import binom

    passes = binom.cdf(num_wrong, num_selected, max_error) <= 1 - confidence
    found: NDArray[np.int64] = np.logical_and.accumulate(passes, axis=-1).sum(axis=-1)
    return found


def choose_thresholds(
    sample: NDArray[np.float32], num_labels: int, max_error: float, confidence: float
) -> NDArray[np.float32]:
    """(J,) thresholds to test, strictest first; none where there are too few labels to certify anything.

    They are fixed by a sample of the pool, which knows nothing of the held-out labels: any sample is valid. A strict
    first threshold leaves so few labels that one wrong label ends it, a loose one may lie where too many are wrong. So
    the first is the strictest that would pass with probability LIKELY, or else the likeliest, if the confidence of the
    model were right and its error no less than LEAST_ERROR of `max_error`. The last one selects everything.

    Args:
        sample: (M,) confidences of the pool. num_labels: N.
    """
    from scipy.stats import binom

    least = least_labels(max_error, confidence)
    if num_labels < least or not len(sample):
        return np.empty(0, np.float32)
    ranked = np.sort(sample)[::-1]
    shares = np.arange(1, NUM_STEPS + 1) / NUM_STEPS
    ends = np.ceil(shares * len(ranked)).astype(int)
    error = (np.cumsum(1 - ranked, dtype=np.float64)[ends - 1] / ends).clip(LEAST_ERROR * max_error)
    expected = shares * num_labels
    few = np.floor(expected - np.sqrt(expected * (1 - shares)))  # a deviation below what is expected
    likely = np.where(few < least, 0, binom.cdf(binom.ppf(1 - confidence, few, max_error) - 1, few, error))
    first = np.argmax(likely >= min(LIKELY, likely.max())) if likely.any() else NUM_STEPS - 1
    thresholds = ranked[ends[first:] - 1].astype(np.float32)
    thresholds[-1] = 0
    return np.unique(thresholds)[::-1]


def labels_needed(num_wrong: int, number: int, max_error: float, confidence: float) -> int | None:
    """The least number of labels that certifies with this share of wrong ones; None where that is none, or too many."""
    from scipy.stats import binom

    numbers = np.arange(number, MOST_NEEDED * least_labels(max_error, confidence))
    passes = binom.cdf(np.ceil(num_wrong / number * numbers), numbers, max_error) <= 1 - confidence
    return int(numbers[np.argmax(passes)]) if passes.any() else None


def certify(held_out: Scored, sample: NDArray[np.float32], max_error: float, confidence: float) -> Certified:
    """The threshold that selects the most with a certified error.

    Args:
        held_out: N images that the model was not trained on, drawn as the pool was.
        sample: (M,) confidences of a sample of the pool.
    """
    thresholds = choose_thresholds(sample, len(held_out.labels), max_error, confidence)
    chosen = held_out.confidence >= thresholds[:, None]  # (J, N)
    selected, wrong = chosen.sum(axis=1), (chosen & (held_out.labels != held_out.targets)).sum(axis=1)
    passed = int(num_passed(selected, wrong, max_error, confidence)) if len(thresholds) else 0
    place = max(0, passed - 1)
    counts = (int(selected[place]), int(wrong[place])) if len(thresholds) else (0, 0)
    threshold = float(thresholds[place]) if passed else None
    needed = None if passed else _needed(held_out, *counts, max_error, confidence)
    steps = zip(thresholds.tolist(), selected.tolist(), wrong.tolist(), strict=True)
    return Certified(threshold, len(held_out.labels), *counts, needed, tuple(steps))


def _needed(held_out: Scored, selected: int, wrong: int, max_error: float, confidence: float) -> str:
    """What would certify something, in a sentence: more labels, or something else than labels.

    More labels allow a stricter first threshold, so any number of the most confident labels may be what certifies.
    """
    least, num_labels = least_labels(max_error, confidence), len(held_out.labels)
    what = f"{100 * max_error:g} % at a confidence of {100 * confidence:.6g} %"
    if num_labels < least:
        return (
            f"{least - num_labels:,} more held-out labels are needed: {least:,} without a wrong one certify {what}, "
            f"and there are {num_labels:,}"
        )
    order = np.argsort(-held_out.confidence, kind="stable")
    errors = np.cumsum((held_out.labels != held_out.targets)[order])
    confidences = held_out.confidence[order]
    ends = np.flatnonzero(np.append(confidences[:-1] > confidences[1:], True)) + 1  # not between equal ones
    ends = ends[ends >= FEWEST_OF_AN_ESTIMATE]
    ends = ends[np.unique(np.linspace(0, len(ends) - 1, NUM_STEPS).astype(int))] if len(ends) else ends
    found = []
    for end in ends.tolist():
        if (number := labels_needed(int(errors[end - 1]), end, max_error, confidence)) is not None:
            found.append((math.ceil(num_labels * number / end), number, end, int(errors[end - 1])))
    total, number, selected, wrong = min(found, default=(0, 0, selected, wrong))
    are = "is" if wrong == 1 else "are"
    told = f"{wrong:,} of the {selected:,} most confident held-out labels {are} wrong"
    if not found:
        return f"a better model or a larger max_error is needed: {told}, and more like these do not certify {what}"
    return (
        f"some {max(1, total - num_labels):,} more held-out labels are needed: {told}, and {number:,} of which as "
        f"large a share is wrong certify {what}"
    )


def make_certificate(
    held_out: Scored,
    sample: Scored,
    num_classes: int,
    max_error: float,
    confidence: float,
    *,
    by_class: bool,
    source: str,
) -> Certificate:
    """What the held-out labels certify; arguments as those of `certify`."""
    from scipy.stats import ks_2samp

    if by_class:
        level = 1 - (1 - confidence) / num_classes
        found = [
            certify(held_out.of(index), sample.of(index).confidence, max_error, level) for index in range(num_classes)
        ]
    else:
        found = [certify(held_out, sample.confidence, max_error, confidence)]
    counts = np.bincount(held_out.labels, minlength=num_classes).tolist()
    p_value = float(ks_2samp(held_out.confidence, sample.confidence).pvalue)
    is_right = bool((held_out.labels == held_out.targets).all())
    right_p_value = float(np.prod(held_out.confidence, dtype=np.float64)) if is_right else 1.0
    return Certificate(max_error, confidence, by_class, source, tuple(found), tuple(counts), p_value, right_p_value)


def compare_shares(held_out: Sequence[int], pool: Sequence[int]) -> tuple[float, float]:
    """How far the classes of held-out images and pool are apart: total variation, and the chi-square test's p-value.

    Both are counted by pseudo-label, whose shares move where those of the true classes do (Z. C. Lipton, Y.-X. Wang and
    A. J. Smola, ICML 2018).

    Args:
        held_out, pool: (C,) images by pseudo-label.
    """
    from scipy.stats import chi2_contingency

    counts = np.array([held_out, pool], np.float64)
    counts = counts[:, counts.sum(axis=0) > 0]
    if counts.shape[1] < 2 or not counts.sum(axis=1).all():
        return 0.0, 1.0
    shares = counts / counts.sum(axis=1, keepdims=True)
    return float(np.abs(shares[0] - shares[1]).sum() / 2), float(chi2_contingency(counts).pvalue)
