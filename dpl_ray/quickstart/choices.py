"""Settings for a budget of time, from measured seconds of a step; ours, and each with its reason.

Legend: T steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

TRAINING_SHARE = 0.75  # of the budget is trained in; the rest is for reading, measuring, the report and the predictions
MIN_STEPS = 600  # below these, a smaller network or smaller images are taken where there are any
MAX_STEPS = 10_000  # more have brought nothing to small data sets


@dataclass(frozen=True)
class Candidate:
    """An image size and a network."""

    size: int  # pixels
    depth: int  # of a WideResNet of width 2


DEPTHS = (28, 16, 10)  # of a WideResNet of width 2
#: The best first: what is tried until one has MIN_STEPS within the budget.
CANDIDATES = tuple(Candidate(size, depth) for size in (96, 64, 48, 32) for depth in DEPTHS)


def candidates_for(side: int) -> list[Candidate]:
    """Those that make images of this side no larger; of smaller images than all, their own size."""
    smallest = min(candidate.size for candidate in CANDIDATES)
    if side < smallest:
        return [Candidate(side, depth) for depth in DEPTHS]
    return [candidate for candidate in CANDIDATES if candidate.size <= side]


@dataclass(frozen=True)
class Choice:
    """What is trained, and for how long."""

    candidate: Candidate
    num_steps: int
    seconds_per_step: float

    @property
    def is_short(self) -> bool:
        """Whether the budget has too few steps for any candidate."""
        return self.num_steps < MIN_STEPS


def choose(
    candidates: Sequence[Candidate],
    cost: Callable[[Candidate], float],
    measure: Callable[[Candidate], float],
    budget: float,
) -> Choice:
    """The first candidate with MIN_STEPS within the budget, or else the cheapest; one or two are measured.

    Args:
        candidates: the best first, at least one.
        cost: operations of a step, in any unit; asked of every candidate.
        measure: seconds of a step, that of the baseline with it, by steps that are taken.
        budget: seconds of the whole command.
    """
    cheapest = min(candidates, key=cost)
    seconds = measure(cheapest)
    per_unit = seconds / cost(cheapest)
    for candidate in candidates:
        if steps_within(budget, per_unit * cost(candidate)) >= MIN_STEPS:
            measured = seconds if candidate == cheapest else measure(candidate)
            if (num_steps := steps_within(budget, measured)) >= MIN_STEPS:
                return Choice(candidate, num_steps, measured)
    return Choice(cheapest, max(1, steps_within(budget, seconds)), seconds)


def steps_within(budget: float, seconds_per_step: float) -> int:
    """Steps for a budget in seconds, rounded down to two digits."""
    steps = min(MAX_STEPS, int(TRAINING_SHARE * budget / seconds_per_step))
    unit = 10 ** max(0, len(str(steps)) - 2)
    return steps // unit * unit
