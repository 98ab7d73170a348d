"""A step whose shapes do not depend on the data, so that the host never waits for the device: on a GPU.

On a CPU a step computes the strong views that count and no others. A host that launches kernels would have to wait for
their number. So there is room for a fixed number of views; rows that are left over have weight 0, and no part in a
batch statistic. What changes from step to step comes as tensors, and what is not finite is noted for the next record.

Legend: U unlabelled images of this worker, K rows of strong views.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

NUM_SIZES = 4  # of the room for strong views: a quarter of U, a half, three quarters, all
SPARE = 0.02  # share of U by which the room is larger than what was wanted of late


class StepNumbers(NamedTuple):
    """What changes from step to step whatever the data: numbers on a CPU, () tensors where shapes are fixed."""

    step: float | Tensor
    progress: float | Tensor  # share of the run's steps that are done, from 0 to below 1
    learning_rate: float | Tensor
    ema_decay: float | Tensor  # of the teacher
    lambda_u: float | Tensor


class StrongViews(NamedTuple):
    """Which strong views a step computes."""

    rows: Tensor  # (K,) int64, of the U images
    kept: Tensor  # (K,) int64, the same, -1 where the row only fills the room
    weights: Tensor  # (K,), 0 where the row only fills the room
    counted: Tensor | None  # (K,) bool, which rows count; None: all
    number: Tensor  # () float64 of those that count
    weights_used: Tensor  # (U,), 0 where there was no room


class FixedShapes:
    """What a worker's step needs in place of the data's own shapes and the host's decisions."""

    def __init__(self, num_unlabeled: int, device: torch.device) -> None:
        parts = range(1, NUM_SIZES + 1)
        self.sizes = sorted({-(-num_unlabeled * part // NUM_SIZES) for part in parts})
        self.capacity = num_unlabeled  # K: all that may count, until `adapt` has seen how many do
        self.most_wanted = torch.zeros((), dtype=torch.int64, device=device)  # since the last `adapt`
        self.numbers = torch.zeros(len(StepNumbers._fields), dtype=torch.float64, device=device)
        self.faults = torch.zeros(7, dtype=torch.float64, device=device)  # the first of training/faults.py

    def load(self, numbers: StepNumbers) -> None:
        """Copy the numbers of the next step to the device, without waiting for it."""
        values = torch.tensor(numbers, dtype=torch.float64)
        self.numbers.copy_(values.pin_memory() if self.numbers.is_cuda else values, non_blocking=True)

    def on_device(self, numbers: StepNumbers) -> StepNumbers:
        """The same numbers as () tensors. A step that is captured reads those that were loaded before its replay."""
        if not (self.numbers.is_cuda and torch.cuda.is_current_stream_capturing()):
            self.load(numbers)
        step, progress, *others = self.numbers.unbind()
        return StepNumbers(step, progress, *(number.float() for number in others))

    def adapt(self) -> None:
        """Choose the room by what was wanted since the last call; waits for the device."""
        most = int(self.most_wanted) + int(SPARE * self.sizes[-1])
        self.capacity = next((size for size in self.sizes if size >= most), self.sizes[-1])
        self.most_wanted.zero_()


def choose(weights: Tensor, min_weight: float, fixed: FixedShapes | None) -> StrongViews:
    """The strong views that a step computes, in the order of the images: those of a weight above `min_weight`.

    Args:
        weights: (U,) of the policy.
    """
    wanted = weights > min_weight
    if fixed is None:
        rows = wanted.nonzero().squeeze(1)
        number = torch.tensor(len(rows), dtype=torch.float64, device=rows.device)
        return StrongViews(rows, rows, weights[rows], None, number, weights)
    torch.maximum(fixed.most_wanted, wanted.sum(), out=fixed.most_wanted)
    rows = wanted.logical_not().to(torch.uint8).argsort(stable=True)[: fixed.capacity]
    counted = wanted[rows]
    used = torch.where(wanted & (wanted.cumsum(0) > fixed.capacity), 0.0, weights)
    return StrongViews(
        rows, torch.where(counted, rows, -1), weights[rows] * counted, counted, counted.sum().double(), used
    )
