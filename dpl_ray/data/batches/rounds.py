"""Rounds of random operations on a batch: in each one an image gets the operation that it has drawn.

N images, C channels, H rows, W columns, n images that drew one operation, R rounds.

A CPU runs each operation on the images that drew it. A GPU takes all images through each operation. Those that end in
the same kernel are planned apart (256-entry tables, affine matrices, or the finished images) and applied together.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Kernel = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Operation:
    """One RandAugment operation on a batch, its parameter drawn uniformly from [low, high).

    `plan(images, parameters)` says what is to happen to each image and `apply(images, plan)` does it, with
    images uint8 (n, C, H, W) and parameters float32 (n,). Operations with the same `apply` have plans of the
    same shape, of which each image may take another. `on_cpu(images, parameters)` does both, for arrays in the memory
    of a CPU, to the same bytes.
    """

    low: float
    high: float
    plan: Kernel
    apply: Kernel
    on_cpu: Callable[[NDArray[np.uint8], NDArray[np.float32]], NDArray[np.uint8]]


def draw(uniforms: Tensor, count: int) -> Tensor:
    """float32 in [0, 1) -> int64, uniform over 0 .. count - 1; no float32 below 1 is rounded up to count."""
    return (uniforms * count).long()


def rounds_on(device: torch.device) -> Callable[[Tensor, Tensor, Tensor, list[Operation]], Tensor]:
    """How the rounds are computed there: the host waits for no device to learn how many images drew what."""
    return apply_rounds if device.type == "cpu" else apply_rounds_to_all


def apply_rounds(views: Tensor, choices: Tensor, magnitudes: Tensor, operations: list[Operation]) -> Tensor:
    """Round r applies to image i of views (N, C, H, W), which are lost, the operation that choices[i, r] draws.

    In each round the images lie in the order of their operations. A changed image is written to its place of the next
    round: this is the only copy.
    """
    low, high = np.array([(operation.low, operation.high) for operation in operations]).T
    drawn = draw(choices, len(operations)).numpy().T  # (R, N)
    parameters = low.astype(np.float32)[drawn] + (high - low).astype(np.float32)[drawn] * magnitudes.numpy().T
    order = drawn.argsort(axis=1, kind="stable")  # which image is at each place
    after = views.numpy()
    before = after[order[0]]
    for r, images_at in enumerate(order):
        # Where each of them goes: its place of the next round, after the last round its first one.
        places = order[r + 1].argsort()[images_at] if r + 1 < len(order) else images_at
        values = parameters[r, images_at]
        start = 0
        for operation, count in zip(operations, np.bincount(drawn[r], minlength=len(operations)).tolist(), strict=True):
            part = slice(start, start + count)
            if count:
                after[places[part]] = operation.on_cpu(before[part], values[part])
            start += count
        before, after = after, before
    return torch.from_numpy(before)


def apply_rounds_to_all(views: Tensor, choices: Tensor, magnitudes: Tensor, operations: list[Operation]) -> Tensor:
    """The same in shapes that no draw changes: each operation plans for every image, and an image takes its own plan.

    More arithmetic than in `apply_rounds`, and little time where launching a kernel takes longer than running it.
    """
    groups: list[list[tuple[int, Operation]]] = []  # not by groupby, which torch.compile does not follow
    for number, operation in enumerate(operations):
        if not groups or groups[-1][0][1].apply is not operation.apply:
            groups.append([])
        groups[-1].append((number, operation))
    chosen = draw(choices, len(operations))
    for r in range(chosen.shape[1]):
        before, drawn, magnitude = views, chosen[:, r], magnitudes[:, r]
        for group in groups:
            first, leader = group[0]
            plan = leader.plan(before, leader.low + (leader.high - leader.low) * magnitude)
            for number, operation in group[1:]:
                other = operation.plan(before, operation.low + (operation.high - operation.low) * magnitude)
                plan = torch.where((drawn == number).view(-1, *[1] * (plan.dim() - 1)), other, plan)
            is_member = (drawn >= first) & (drawn < first + len(group))
            views = torch.where(is_member[:, None, None, None], leader.apply(before, plan), views)
    return views
