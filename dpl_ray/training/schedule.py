"""What there is to do after a step, besides the next one."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from threading import Event
from typing import NamedTuple

from dpl_ray.config.schema import CHECKPOINT_SHARE, CURVE_POINTS, TrainConfig


class Wish(IntEnum):
    """What worker 0 wants done after a step, whatever its number; all workers hear of it in the step's collective."""

    NOTHING = 0
    CHECKPOINT = 1
    STOP = 2  # with a checkpoint


class Due(NamedTuple):
    """After one step."""

    record: bool  # of the metrics since the last one
    validation: bool
    curve: bool  # a point of the curve on the test split
    checkpoint: bool


def due_after(step: int, config: TrainConfig, wish: Wish = Wish.NOTHING) -> Due:
    """The last step has a record, a point of the curve and a checkpoint, whatever their periods."""
    last = step == config.num_steps
    curve_every = config.curve_every or max(1, config.num_steps // CURVE_POINTS)
    return Due(
        record=last or step % config.log_every == 0,
        validation=config.evaluate_every is not None and step % config.evaluate_every == 0,
        curve=last or step % curve_every == 0,
        checkpoint=last or step % config.checkpoint_every == 0 or wish is not Wish.NOTHING,
    )


class CheckpointClock:
    """When a checkpoint is due by the time since the last one, or since the start.

    So much time lies between them that they take no more than CHECKPOINT_SHARE of it.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = self._period = seconds
        self._since = time.monotonic()

    def wish(self, stop: Event) -> Wish:
        """What worker 0 wants done after the next step.

        Args:
            stop: set where it is asked to end.
        """
        if stop.is_set():
            return Wish.STOP
        return Wish.CHECKPOINT if time.monotonic() - self._since >= self._period else Wish.NOTHING

    @contextmanager
    def saving(self) -> Iterator[None]:
        """A checkpoint is saved in this block."""
        began = time.monotonic()
        yield
        self._since = time.monotonic()
        self._period = max(self._seconds, (self._since - began) / CHECKPOINT_SHARE)
