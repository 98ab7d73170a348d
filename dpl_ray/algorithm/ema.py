"""Exponential moving averages: of the policies' states and of the teacher's weights."""

from __future__ import annotations

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
def update_teacher(teacher: nn.Module, student: nn.Module, decay: float) -> None:
    """Move the teacher's weights towards the student's; copy the buffers (BatchNorm's are averages already)."""
    torch._foreach_lerp_(list(teacher.parameters()), list(student.parameters()), 1 - decay)
    buffers = list(teacher.buffers())
    if buffers:
        torch._foreach_copy_(buffers, list(student.buffers()))
