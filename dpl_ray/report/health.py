"""What is wrong with a finished run, and what to do next: pure functions of measured quantities (docs/health.md).

Nothing here is read by a training: the test split describes a run that has ended.

Legend: C classes, N images.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from dpl_ray.report.verdict import Z_95, wilson_interval

Points = list[tuple[int, float]]  # (step, value), by step

MIN_STEPS, MIN_PASSES = 100, 3
MIN_RECORDS = 8  # of a curve whose quarters are compared
MIN_RISE = 0.02  # of an accuracy that still rises
MIN_DROP = 0.03  # of one that has fallen
MIN_FALL = 0.1  # of a loss that still falls, as a share of it
MIN_LOSS = 0.05  # of such a loss, as a share of log C
MIN_COVERAGE = 0.01
MAX_CROSSED = 0.25
MAX_WAIT = 0.3
MAX_WIDTH = 0.15  # of the interval of an accuracy
MAX_ECE = 0.2
SHOWN = 3  # findings on a console


@dataclass(frozen=True)
class Finding:
    """Something wrong with a run."""

    name: str  # of KINDS
    sentence: str  # what was measured
    next_step: str  # what to do
    measured: float
    bound: float

    @property
    def key(self) -> str:
        """Of its metric in MLflow."""
        return "health/" + self.name.replace(" ", "_").replace("-", "_")

    @property
    def blocks(self) -> bool:
        """Whether nothing should be labelled by such a model."""
        return self.name in (AT_CHANCE, COLLAPSED)


@dataclass(frozen=True)
class Measured:
    """What a finished run has measured."""

    policy: str
    num_steps: int
    learning_rate: float
    labels: list[int]  # (C,) labelled images of each class
    passes: float  # over the labelled images
    class_names: list[str]
    split: str  # the images held out: test, validation, or "" where there are none
    accuracy: float = 0.0  # of the last teacher on them
    targets: list[int] = field(default_factory=list)  # (C,) such images of each class
    said: list[int] | None = None  # (C,) of these said to be of the class
    hits: list[int] | None = None  # (C,) of these said to be so rightly
    curve: Points = field(default_factory=list)  # accuracy on the way, on `num_curve` such images
    num_curve: int = 0
    loss: Points = field(default_factory=list)  # on the labelled images, means between records
    coverage: Points = field(default_factory=list)  # mean weight of the pool
    pool: list[int] | None = None  # (C,) pseudo-labels of a sample of the pool
    crossed: float | None = None  # dpl: share of steps and classes with the two states in the wrong order
    wait: float | None = None  # share of a step's time
    ece: float | None = None  # expected calibration error on the test images
    lead: list[float] | None = None  # accuracy minus that of the supervised baseline, and its 95 % interval


def find_health(measured: Measured) -> tuple[Finding, ...]:
    """All that is found, what matters most first."""
    return tuple(found for check, _ in KINDS.values() if (found := check(measured)))


def health_lines(findings: Sequence[Finding]) -> list[str]:
    """The first ones for a console, each with its next step."""
    return [f"{found.sentence}; {found.next_step}" for found in findings[:SHOWN]]


def chance_finding(
    accuracy: float, num_images: int, chance: float, num_classes: int, next_step: str, num_tries: int = 1
) -> Finding | None:
    """That an accuracy is no better than guessing: its 95 % interval (Wilson) reaches down to chance.

    Args:
        chance: share of the largest class among the images: who always names it has this accuracy.
        num_tries: models of which this is the best: the level is divided by it (Bonferroni).
    """
    z = statistics.NormalDist().inv_cdf(1 - 0.025 / num_tries)
    low, high = wilson_interval(accuracy * num_images, num_images, z)
    if low > chance:
        return None
    if chance < accuracy and num_images < 10 * num_classes:
        next_step = "so few images cannot tell more: hold out more of them"
    sentence = (
        f"No better than guessing: {_percent(accuracy)} [95 %: {100 * low:.1f}, {100 * high:.1f}] of {num_images:,} "
        f"held-out images are right, with {num_classes} classes; always naming the most frequent class gets "
        f"{_percent(chance)}"
    )
    return Finding(AT_CHANCE, sentence, next_step, accuracy, chance)


def study_line(accuracies: Sequence[float], facts: Mapping[str, str], split: str) -> str | None:
    """For a console, that not even the best of several trainings is better than guessing; None where one is.

    Args:
        facts: of a training, as it has kept them.
        split: the images that the accuracies are on.
    """
    num_images, num_classes = (int(facts.get(f"data.num_{name}", 0)) for name in (split, "classes"))
    if not num_images or not num_classes or not accuracies:
        return None
    chance = float(facts.get(f"data.largest_{split}_share", 1 / num_classes))
    step = "look at the labels with dpl-ray check, then lower optim.learning_rate or raise train.num_steps"
    found = chance_finding(max(accuracies), num_images, chance, num_classes, step, len(accuracies))
    if found is None:
        return None
    best = found.sentence.partition(": ")[2]
    return f"Nothing that was trained is better than guessing, not even the best: {best}; {step}"


def _at_chance(it: Measured) -> Finding | None:
    number = sum(it.targets)
    if not number or _recall_is_better(it):
        return None
    if it.num_steps < MIN_STEPS:
        step = f"train longer, as train.num_steps={10 * MIN_STEPS}"
    elif it.loss and it.loss[-1][1] < 0.5 * math.log(len(it.targets)):
        step = "the labelled images were learned: see with dpl-ray check whether they mean the same as those held out"
    else:
        rose = it.loss and it.loss[-1][1] > math.log(len(it.targets))
        change = f"{'lower' if rose else 'raise'} optim.learning_rate={it.learning_rate:g} tenfold"
        step = f"look at the labels with dpl-ray check, then {change}"
    return chance_finding(it.accuracy, number, max(it.targets) / number, len(it.targets), step)


def _recall_is_better(it: Measured) -> bool:
    """Whether the mean recall of the classes lies above 1/C with its 95 % interval: where one class has most images, a
    useful model may be right less often than who always names that class.
    """
    if it.hits is None:
        return False
    pairs = [(hits, number) for hits, number in zip(it.hits, it.targets, strict=True) if number]
    smooth = [((hits + 1) / (number + 2), number + 2) for hits, number in pairs]
    radius = Z_95 * math.sqrt(sum(p * (1 - p) / number for p, number in smooth)) / len(pairs)
    return statistics.fmean(hits / number for hits, number in pairs) - radius > 1 / len(pairs)


def _collapsed(it: Measured) -> Finding | None:
    for said, what in ((it.pool, "the pseudo-labels"), (it.said, f"the {it.split} images")):
        if not said or not sum(said):
            continue
        place = max(range(len(said)), key=said.__getitem__)
        share = said[place] / sum(said)
        expected = max(numbers[place] / sum(numbers) for numbers in (it.labels, it.targets) if sum(numbers))
        bound = (1 + expected) / 2
        if wilson_interval(said[place], sum(said))[0] > bound:
            verb = "are" if it.pool is said else "are said to be"
            return Finding(
                COLLAPSED,
                f'Collapsed: {_percent(share)} of {what} {verb} "{it.class_names[place]}", which has '
                f"{_percent(expected)} of the labels",
                f"lower optim.learning_rate={it.learning_rate:g}, label more images of other classes, or change policy",
                share,
                bound,
            )
    return None


def _behind(it: Measured) -> Finding | None:
    if it.lead is None or it.lead[2] >= 0:
        return None
    lead, low, high = (100 * value for value in it.lead)
    return Finding(
        BEHIND,
        f"Behind its supervised baseline by {-lead:.1f} points [95 %: {-high:.1f}, {-low:.1f}] on the test images",
        "take the model in the folder `baseline` of the run (checkpoint=RUN/baseline), train longer, or change policy",
        it.lead[0],
        0.0,
    )


def _crossed(it: Measured) -> Finding | None:
    if it.crossed is None or it.crossed <= MAX_CROSSED:
        return None
    return Finding(
        CROSSED,
        f"Thresholds crossed: in {_percent(it.crossed)} of steps and classes the under-confident threshold was above "
        "the over-confident one",
        "the bands say little: take policy.cut=confidence, a larger policy.ema_decay, or policy=freematch",
        it.crossed,
        MAX_CROSSED,
    )


def _ignored(it: Measured) -> Finding | None:
    last = [value for _, value in it.coverage[len(it.coverage) // 2 :]]
    if not last or (mean := statistics.fmean(last)) >= MIN_COVERAGE:
        return None
    return Finding(
        IGNORED,
        f"Pool ignored: {_percent(mean)} of the unlabelled images counted in the second half of the training",
        "their confidence stays below the threshold: lower policy.threshold where the policy has one, take policy=dpl, "
        "or train longer",
        mean,
        MIN_COVERAGE,
    )


def _over_fitted(it: Measured) -> Finding | None:
    if len(it.curve) < MIN_RECORDS:
        return None
    means = _means(it.curve)
    (step, best), (_, last) = max(means, key=lambda mean: mean[1]), means[-1]
    bound = max(MIN_DROP, 3 * _noise(best, it.num_curve))
    before = [value for at, value in it.loss if at <= step]
    if best - last <= bound or (before and it.loss[-1][1] > before[-1]):
        return None
    return Finding(
        OVER_FITTED,
        f"Over-fitted: accuracy on {it.split} images fell from {_percent(best)} around step {step:,} to "
        f"{_percent(last)}, while the loss on the labelled images fell on",
        "look at the labels with dpl-ray check, take more of them, a larger optim.weight_decay, or fewer "
        "train.num_steps, chosen on data.validation_fraction=0.2",
        best - last,
        bound,
    )


def _falling(it: Measured) -> Finding | None:
    if len(it.loss) < MIN_RECORDS:
        return None
    before, last = _quarters(it.loss)
    noise = math.sqrt((statistics.variance(before) + statistics.variance(last)) / len(last))
    was, now = statistics.fmean(before), statistics.fmean(last)
    share = (was - now) / max(was, 1e-12)
    is_small = share <= MIN_FALL or was - now <= 2 * noise or now <= MIN_LOSS * math.log(len(it.labels))
    if is_small or _over_fitted(it):
        return None
    return Finding(
        FALLING,
        f"Loss still falling: on the labelled images from {was:.3f} to {now:.3f} in the last quarter of the training",
        f"train longer, as train.num_steps={2 * it.num_steps}",
        share,
        MIN_FALL,
    )


def _too_short(it: Measured) -> Finding | None:
    longer = f"train longer, as train.num_steps={2 * it.num_steps}"
    if it.num_steps < MIN_STEPS:
        longer = f"train longer, as train.num_steps={10 * MIN_STEPS}"
        return Finding(TOO_SHORT, f"Too short: {it.num_steps} steps", longer, it.num_steps, MIN_STEPS)
    if it.passes < MIN_PASSES:
        return Finding(
            TOO_SHORT, f"Too short: {it.passes:.1f} passes over the labelled images", longer, it.passes, MIN_PASSES
        )
    if len(it.curve) < MIN_RECORDS:
        return None
    last = statistics.fmean(_quarters(it.curve)[1])
    before = max(mean for _, mean in _means(it.curve[: -(len(it.curve) // 4)]))
    bound = max(MIN_RISE, 2 * _noise(last, it.num_curve))
    if last - before <= bound:
        return None
    return Finding(
        TOO_SHORT,
        f"Too short: accuracy on {it.split} images still rose, from at most {_percent(before)} before to "
        f"{_percent(last)} in the last quarter of the training",
        longer,
        last - before,
        bound,
    )


def _starved(it: Measured) -> Finding | None:
    if it.wait is None or it.wait <= MAX_WAIT:
        return None
    return Finding(
        STARVED,
        f"Data starved: {_percent(it.wait)} of the training time was spent waiting for images",
        "store the pool in the size that is trained on, give Ray more CPUs, or read further ahead "
        "(data.pool.windows_ahead)",
        it.wait,
        MAX_WAIT,
    )


def _few_held_out(it: Measured) -> Finding | None:
    number = sum(it.targets)
    if not number:
        return None
    low, high = wilson_interval(it.accuracy * number, number)
    if high - low <= MAX_WIDTH or _at_chance(it):  # which says the interval, too
        return None
    return Finding(
        FEW_HELD_OUT,
        f"Few {it.split} images: {_percent(it.accuracy)} of {number:,} are right, which can mean anything from "
        f"{_percent(low)} to {_percent(high)}",
        f"hold out more of them, as with a larger data.{it.split}_fraction",
        high - low,
        MAX_WIDTH,
    )


def _miscalibrated(it: Measured) -> Finding | None:
    bound = MAX_ECE + 1 / math.sqrt(max(1, sum(it.targets)))
    if it.ece is None or it.ece <= bound:
        return None
    return Finding(
        MISCALIBRATED,
        f"Badly calibrated: its confidence is off by {_percent(it.ece)} on average (ECE)",
        "do not read a confidence as a probability: see the calibration on the page, train longer, or take the "
        "temperature that dpl-ray evaluate fits on labelled images",
        it.ece,
        bound,
    )


def _quarters(points: Points) -> tuple[list[float], list[float]]:
    """The values of the quarter before the last, and of the last."""
    values, number = [value for _, value in points], len(points) // 4
    return values[-2 * number : -number], values[-number:]


def _means(points: Points) -> Points:
    """Of three points that follow each other."""
    return [
        (points[place + 1][0], statistics.fmean(value for _, value in points[place : place + 3]))
        for place in range(len(points) - 2)
    ]


def _noise(accuracy: float, num_images: int) -> float:
    """Standard error of a difference of two such accuracies, as of two sets of images."""
    return math.sqrt(2 * accuracy * (1 - accuracy) / num_images)


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


AT_CHANCE, COLLAPSED, CROSSED, IGNORED = "at chance", "collapsed", "thresholds crossed", "pool ignored"
OVER_FITTED, FALLING, TOO_SHORT, STARVED = "over-fitted", "loss still falling", "too short", "data starved"
BEHIND, FEW_HELD_OUT, MISCALIBRATED = "behind its baseline", "few held-out images", "badly calibrated"
#: Name -> its check, and when it is found; the order is that of what a console shows.
KINDS: dict[str, tuple[Callable[[Measured], Finding | None], str]] = {
    AT_CHANCE: (
        _at_chance,
        "the 95 % interval of the accuracy reaches down to the share of the largest class, and that of the mean recall "
        "down to 1/C",
    ),
    COLLAPSED: (
        _collapsed,
        "with its 95 % interval, the share of one class among the pseudo-labels (or among the predictions) is above "
        "(1 + its share of the labels) / 2, which is more than a half",
    ),
    BEHIND: (_behind, "the 95 % interval of the accuracy minus that of the supervised baseline is below zero"),
    CROSSED: (
        _crossed,
        f"the under-confident threshold is the higher one in more than {_percent(MAX_CROSSED)} of steps and classes",
    ),
    IGNORED: (_ignored, f"mean coverage of the second half of the training is below {_percent(MIN_COVERAGE)}"),
    OVER_FITTED: (
        _over_fitted,
        f"the accuracy (mean of three scores) ends more than {100 * MIN_DROP:g} points and more than 3 standard errors "
        "below its best, while the loss on the labelled images did not rise",
    ),
    FALLING: (
        _falling,
        f"the loss on the labelled images fell by more than {_percent(MIN_FALL)} and more than 2 standard errors from "
        f"the third quarter of the training to the last, and is above {MIN_LOSS:g} log C; the run is not over-fitted",
    ),
    TOO_SHORT: (
        _too_short,
        f"fewer than {MIN_STEPS} steps, or than {MIN_PASSES} passes over the labelled images, or the mean accuracy of "
        f"the last quarter is more than {100 * MIN_RISE:g} points and 2 standard errors above the best before",
    ),
    STARVED: (_starved, f"more than {_percent(MAX_WAIT)} of the time of the steps is waiting for images"),
    FEW_HELD_OUT: (
        _few_held_out,
        f"the 95 % interval of the accuracy is wider than {100 * MAX_WIDTH:g} points; the run is not at chance",
    ),
    MISCALIBRATED: (
        _miscalibrated,
        f"the expected calibration error (ECE) on N test images is above {_percent(MAX_ECE)} + 1/sqrt(N)",
    ),
}
