"""Rounds of random operations on a batch: in each one an image gets the operation that it has drawn.

N images, C channels, H rows, W columns, n images that drew one operation.

A round does not run operation by operation. Operations that end in the same kernel are planned apart (256-entry tables,
affine matrices, or the finished images) and applied together.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import groupby

import torch
from torch import Tensor

BLOCK_BYTES = 512 << 10  # of images that a CPU changes at a time: its cache holds what is in between
FEW_BYTES = 1 << 20  # of images for which a CPU launches few kernels, in place of fast ones

Kernel = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Operation:
    """One RandAugment operation on a batch, its parameter drawn uniformly from [low, high).

    `plan(images, parameters)` says what is to happen to each image and `apply(images, plan)` does it, with
    images uint8 (n, C, H, W) and parameters float32 (n,). Operations with the same `apply` have plans of the
    same shape, which may be concatenated and applied in one go.
    """

    low: float
    high: float
    plan: Kernel
    apply: Kernel
    apply_on_cpu: Kernel | None = None  # to the same bytes, where a CPU has a faster way

    @property
    def kernel(self) -> Kernel:
        """What a CPU does with the plan."""
        return self.apply_on_cpu or self.apply


def draw(uniforms: Tensor, count: int) -> Tensor:
    """float32 in [0, 1) -> int64, uniform over 0 .. count - 1; no float32 below 1 is rounded up to count."""
    return (uniforms * count).long()


def rounds_on(device: torch.device) -> Callable[[Tensor, Tensor, Tensor, list[Operation]], Tensor]:
    """How the rounds are computed there: the host waits for no device to learn how many images drew what."""
    return apply_rounds if device.type == "cpu" else apply_rounds_to_all


def apply_rounds(views: Tensor, choices: Tensor, magnitudes: Tensor, operations: list[Operation]) -> Tensor:
    """Round r applies to image i of views (N, C, H, W), in place, the operation that choices[i, r] draws."""
    ranked, rank, low, span = _by_kernel(tuple(operations), views.numel() < FEW_BYTES)
    ranks = rank[draw(choices.t(), len(operations))]
    order = ranks.argsort(dim=1, stable=True)
    parameters = (low[ranks] + span[ranks] * magnitudes.t()).gather(1, order)
    counts = (ranks[:, :, None] == torch.arange(len(ranked))).sum(dim=1).tolist()
    pixels = views.numpy()  # whose images are written by index several times as fast as a tensor's
    for rows, values, count in zip(order.unbind(), parameters.unbind(), counts, strict=True):
        blocks = list(_blocks(ranked, count, block_size(views)))
        sizes = [[size for _, size in block] for _, block in blocks]
        drawn = iter(values.split([size for block in sizes for size in block]))
        for (kernel, block), split, members in zip(blocks, sizes, rows.split([sum(it) for it in sizes]), strict=True):
            images = views.index_select(0, members)
            parts = zip(block, images.split(split), strict=True)
            plans = [operation.plan(part, next(drawn)) for (operation, _), part in parts]
            plan = plans[0] if len(plans) == 1 else torch.cat(plans)
            pixels[members.numpy()] = kernel(images, plan).numpy()
    return views


@lru_cache
def _by_kernel(operations: tuple[Operation, ...], are_few: bool) -> tuple[list[Operation], Tensor, Tensor, Tensor]:
    """Operations with the same kernel as neighbours, the place of each operation there, and low and span of each place.

    are_few: there are few images, and launching kernels takes the time: the kernels of a GPU, which are fewer.
    """
    if are_few:
        operations = tuple(replace(operation, apply_on_cpu=None) for operation in operations)
    kernels = list(dict.fromkeys(operation.kernel for operation in operations))
    numbers = sorted(range(len(operations)), key=lambda number: kernels.index(operations[number].kernel))
    ranked = [operations[number] for number in numbers]
    low, high = torch.tensor([(operation.low, operation.high) for operation in ranked], dtype=torch.float64).unbind(1)
    return ranked, torch.tensor(numbers).argsort(), low.float(), (high - low).float()


def block_size(images: Tensor) -> int:
    """How many of the images a CPU changes at a time."""
    return max(1, BLOCK_BYTES // max(1, images[:1].numel()))


def _blocks(
    operations: list[Operation], counts: list[int], most: int
) -> Iterator[tuple[Kernel, list[tuple[Operation, int]]]]:
    """At most `most` images of operations with one kernel: that kernel, and how many of the images drew each operation.

    In the order of `operations`, of which the first has counts[0] images.
    """
    for kernel, group in groupby(zip(operations, counts, strict=True), key=lambda member: member[0].kernel):
        block: list[tuple[Operation, int]] = []
        room = most
        for operation, count in group:
            while count:
                size = min(count, room)
                block.append((operation, size))
                count, room = count - size, room - size
                if not room:
                    yield kernel, block
                    block, room = [], most
        if block:
            yield kernel, block


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
