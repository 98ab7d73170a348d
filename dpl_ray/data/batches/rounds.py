"""Rounds of random operations on a batch: in each one an image gets the operation that it has drawn.

N images, C channels, H rows, W columns, n images that drew one operation.

A round does not run operation by operation. Operations that end in the same kernel are planned apart (256-entry tables,
or affine matrices) and applied together: one gather each.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor


@dataclass(frozen=True)
class Operation:
    """One RandAugment operation on a batch, its parameter drawn uniformly from [low, high).

    `plan(images, parameters)` says what is to happen to each image and `apply(images, plan)` does it, with
    images uint8 (n, C, H, W) and parameters float32 (n,). Operations with the same `apply` have plans of the
    same shape, which may be concatenated and applied in one go.
    """

    low: float
    high: float
    plan: Callable[[Tensor, Tensor], Tensor]
    apply: Callable[[Tensor, Tensor], Tensor]

    def __call__(self, images: Tensor, parameters: Tensor) -> Tensor:
        """uint8 (n, C, H, W), float32 (n,) -> uint8 (n, C, H, W)."""
        return self.apply(images, self.plan(images, parameters))


def draw(uniforms: Tensor, count: int) -> Tensor:
    """float32 in [0, 1) -> int64, uniform over 0 .. count - 1; no float32 below 1 is rounded up to count."""
    return (uniforms * count).long()


def rounds_on(device: torch.device) -> Callable[[Tensor, Tensor, Tensor, list[Operation]], Tensor]:
    """How the rounds are computed there: the host waits for no device to learn how many images drew what."""
    return apply_rounds if device.type == "cpu" else apply_rounds_to_all


def apply_rounds(views: Tensor, choices: Tensor, magnitudes: Tensor, operations: list[Operation]) -> Tensor:
    """Round r applies to image i of views (N, C, H, W) the operation that choices[i, r] draws."""
    chosen = draw(choices, len(operations))
    order = chosen.argsort(dim=0, stable=True)
    inverse = order.argsort(dim=0)
    ranges = torch.tensor([(operation.low, operation.high - operation.low) for operation in operations])
    low, span = ranges.to(views.device, non_blocking=True)[chosen].unbind(-1)
    parameters = (low + span * magnitudes).gather(0, order)
    numbers = torch.arange(len(operations), device=views.device)
    counts = (chosen[:, :, None] == numbers).sum(dim=0).tolist()
    for r, count in enumerate(counts):
        sorted_views = views.index_select(0, order[:, r])
        members = zip(operations, sorted_views.split(count), parameters[:, r].split(count), strict=True)
        done: list[Tensor] = []
        start = 0
        for apply, group in groupby(members, key=lambda member: member[0].apply):
            plans = torch.cat([operation.plan(part, values) for operation, part, values in group])
            done.append(apply(sorted_views[start : start + len(plans)], plans))
            start += len(plans)
        views = torch.cat(done).index_select(0, inverse[:, r])
    return views


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
