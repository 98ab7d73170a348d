"""Settings for a budget of time, from measured seconds of a step; ours, and each with its reason.

Legend: T steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

TRAINING_SHARE = 0.75  # of what is left of the budget is planned; the rest is for scores, checkpoints and the report
STOP_SHARE = 0.9  # of the budget, after which a training that is slower than it was measured is interrupted
MIN_STEPS = 600  # below these, a smaller network or smaller images are taken where there are any
MAX_STEPS = 10_000  # more have brought nothing to small data sets


@dataclass(frozen=True)
class Candidate:
    """An image size, a network, and the unlabelled images for each labelled one in a step."""

    size: int  # pixels
    depth: int  # of a WideResNet of width 2
    mu: int


DEPTHS = (28, 16, 10)  # of a WideResNet of width 2
SIZES = (96, 64, 48, 32)
MUS = (7, 4, 2, 1)


def sizes_for(side: int) -> list[int]:
    """Those that make images of this side no larger; of smaller images than all, their own size."""
    return [size for size in SIZES if size <= side] or [side]


def mus_for(num_pool: int, batch_size: int) -> list[int]:
    """Those for which a step takes no image of the pool twice."""
    return [mu for mu in MUS if mu * batch_size <= num_pool] or [MUS[-1]]


def candidates_for(sizes: Sequence[int], depths: Sequence[int], mus: Sequence[int]) -> list[Candidate]:
    """The best first: what is tried until one has MIN_STEPS within the budget. Small batches are the last resort."""
    whole = [Candidate(size, depth, mus[0]) for size in sizes for depth in depths]
    return [*whole, *(replace(whole[-1], mu=mu) for mu in mus[1:])]


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
    beside: Callable[[Candidate], float] = lambda _: 0.0,
) -> Choice:
    """The first candidate with MIN_STEPS within the budget, or else the cheapest; one or two are measured.

    Args:
        candidates: the best first, at least one.
        cost: operations of a step, in any unit; asked of every candidate.
        measure: seconds of a step, that of the baseline with it, by steps that are taken.
        budget: seconds of the whole command that are left.
        beside: what takes as long as so many steps, and comes on top of them.
    """
    cheapest = min(candidates, key=cost)
    seconds = measure(cheapest)
    per_unit = seconds / cost(cheapest)
    for candidate in candidates:
        if steps_within(budget, per_unit * cost(candidate), beside(candidate)) >= MIN_STEPS:
            measured = seconds if candidate == cheapest else measure(candidate)
            if (num_steps := steps_within(budget, measured, beside(candidate))) >= MIN_STEPS:
                return Choice(candidate, num_steps, measured)
    return Choice(cheapest, max(1, steps_within(budget, seconds, beside(cheapest))), seconds)


def steps_within(budget: float, seconds_per_step: float, beside: float = 0.0) -> int:
    """Steps for a budget in seconds, beside what takes as long as so many more, rounded down to two digits."""
    steps = min(MAX_STEPS, max(0, int(TRAINING_SHARE * budget / seconds_per_step - beside)))
    unit = 10 ** max(0, len(str(steps)) - 2)
    return steps // unit * unit
