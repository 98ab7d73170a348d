"""What there is to do after a step, besides the next one."""

from __future__ import annotations

from typing import NamedTuple

from dpl_ray.config.schema import CURVE_POINTS, TrainConfig


class Due(NamedTuple):
    """After one step."""

    record: bool  # of the metrics since the last one
    validation: bool
    curve: bool  # a point of the curve on the test split
    checkpoint: bool


def due_after(step: int, config: TrainConfig) -> Due:
    """The last step has a record, a point of the curve and a checkpoint, whatever their periods."""
    last = step == config.num_steps
    curve_every = config.curve_every or max(1, config.num_steps // CURVE_POINTS)
    return Due(
        record=last or step % config.log_every == 0,
        validation=config.evaluate_every is not None and step % config.evaluate_every == 0,
        curve=last or step % curve_every == 0,
        checkpoint=last or step % config.checkpoint_every == 0,
    )
