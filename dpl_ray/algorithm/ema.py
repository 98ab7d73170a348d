"""Exponential moving averages: of the policies' states and of the teacher's weights."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


def ema_(state: Tensor, value: Tensor, decay: float, where: Tensor | None = None) -> None:
    """state <- decay * state + (1 - decay) * value, in place, only `where` (bool, same shape) is true."""
    moved = torch.lerp(value.to(state.dtype), state, decay)
    state.copy_(moved if where is None else torch.where(where, moved, state))


def warmed_decay(decay: float, step: int) -> float:
    """min(decay, (1 + step) / (10 + step)): young teachers forget their random start (TensorFlow's EMA rule)."""
    return min(decay, (1 + step) / (10 + step))


@torch.no_grad()
def update_teacher(teacher: nn.Module, student: nn.Module, decay: float | Tensor) -> None:
    """Move the teacher's weights towards the student's; copy the buffers (BatchNorm's are averages already).

    What is frozen is one tensor in both, and stays.

    Args:
        decay: a number, or () float32 on the weights' device.
    """
    if moved := _different(teacher.parameters(), student.parameters()):
        if isinstance(decay, Tensor):  # which lerp would read as a number, and wait for
            change = torch._foreach_sub(moved[1], moved[0])
            torch._foreach_mul_(change, 1 - decay)
            torch._foreach_add_(moved[0], change)
        else:
            torch._foreach_lerp_(*moved, 1 - decay)
    if copied := _different(teacher.buffers(), student.buffers()):
        torch._foreach_copy_(*copied)


def _different(mine: Iterable[Tensor], theirs: Iterable[Tensor]) -> tuple[list[Tensor], list[Tensor]] | None:
    """The pairs of two tensors that are not one, as two lists; None where there is no such pair."""
    pairs = [(own, other) for own, other in zip(mine, theirs, strict=True) if own is not other]
    return ([own for own, _ in pairs], [other for _, other in pairs]) if pairs else None
