"""Weak and strong views of whole uint8 batches, as pure functions of (images, uniforms).

N images, C channels (1 or 3), H rows, W columns, n images that drew one operation, K random columns.

All randomness is an argument: `uniforms`, float32 (N, K) in [0, 1), row i belonging to image i. A view is
therefore reproducible, and row-independent bit for bit: `weak(x, u, s)[mask] == weak(x[mask], u[mask], s)`.
The columns are, in this order,

    row offset, column offset, flip                             weak() reads these three
    (operation, magnitude) for each of the num_operations       strong() reads on
    side, centre row, centre column of the cutout

The recipe is that of FixMatch (Sohn 2020) as in USB's `classic_cv`. The operations of a strong view are in
operations.py, and their rounds in rounds.py.
"""

from contextlib import nullcontext
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dpl_ray.config.schema import ViewsConfig
from dpl_ray.data.batches.operations import OPERATIONS
from dpl_ray.data.batches.rounds import draw, rounds_on

WEAK_UNIFORMS = 3
CUTOUT_UNIFORMS = 3
GREY = 127
MAX_BYTES = 4 << 20  # of images whose strong views a CPU computes at a time, so that its caches hold them
WIDE = 64  # columns: such images are copied by rectangles on a CPU, in less time than by single pixels


def num_strong_uniforms(settings: ViewsConfig) -> int:
    """Number of columns of `uniforms` that `strong` reads."""
    return WEAK_UNIFORMS + 2 * settings.num_operations + CUTOUT_UNIFORMS


def weak(images: Tensor, uniforms: Tensor, settings: ViewsConfig) -> Tensor:
    """Random crop of the image padded by reflection, then a horizontal flip of every second image.

    uint8 (N, C, H, W), float32 (N, K >= WEAK_UNIFORMS) -> new uint8 (N, C, H, W) on the same device.
    """
    _check(images, uniforms, WEAK_UNIFORMS)
    num_images, num_channels, height, width = images.shape
    if _is_on_cpu(images) and width >= WIDE and num_images:
        return _weak_by_rectangles(images, uniforms, settings)
    rows = _crop(uniforms[:, 0], height, settings.crop_padding)
    columns = _crop(uniforms[:, 1], width, settings.crop_padding)
    if settings.horizontal_flip:
        columns = torch.where(uniforms[:, 2, None] < 0.5, columns.flip(1), columns)
    planes = torch.arange(num_images * num_channels, device=images.device).view(num_images, num_channels, 1)
    cropped = images.flatten(0, 2).index_select(0, (planes * height + rows[:, None]).flatten())
    return cropped.view(images.shape).gather(3, columns[:, None, None].expand(images.shape))


def _weak_by_rectangles(images: Tensor, uniforms: Tensor, settings: ViewsConfig) -> Tensor:
    """weak() of wide images: each is copied in at most four rectangles, of which up to three are reflected."""
    height, width = images.shape[2:]
    down = _offsets(uniforms[:, 0], int(height * settings.crop_padding)).tolist()
    right = _offsets(uniforms[:, 1], int(width * settings.crop_padding)).tolist()
    flips = (uniforms[:, 2] < 0.5).tolist() if settings.horizontal_flip else [False] * len(images)
    views = torch.empty(images.shape, dtype=torch.uint8)
    for image, view, rows, columns, flip in zip(images.numpy(), views.numpy(), down, right, flips, strict=True):
        if flip:  # by torch, in less time than by numpy
            image, columns = torch.from_numpy(image).flip(2).numpy(), -columns
        for shown_rows, there_rows in _reflected(rows, height):
            for shown, there in _reflected(columns, width):
                view[:, there_rows, there] = image[:, shown_rows, shown]
    return views


@lru_cache
def _reflected(offset: int, side: int) -> list[tuple[slice, slice]]:
    """Places p + offset, reflected at 0 and at side - 1, and the places p that show them: two pieces, or one."""
    if offset == 0:
        return [(slice(side), slice(side))]
    if offset < 0:
        return [(slice(side + offset), slice(-offset, side)), (slice(-offset, 0, -1), slice(-offset))]
    last = side - 2 - offset
    reflected = slice(side - 2, last if last >= 0 else None, -1)
    return [(slice(offset, side), slice(side - offset)), (reflected, slice(side - offset, side))]


def strong(images: Tensor, uniforms: Tensor, settings: ViewsConfig) -> Tensor:
    """The weak view of the same columns, then `num_operations` random operations, then cutout.

    uint8 (N, C, H, W), float32 (N, K >= num_strong_uniforms(settings)) -> new uint8 (N, C, H, W) on the
    same device.
    """
    _check(images, uniforms, num_strong_uniforms(settings))
    if _is_on_cpu(images):
        size = max(1, MAX_BYTES // max(1, images[:1].numel()))
        parts = zip(images.split(size), uniforms.split(size), strict=True)
        views = [_cut_out(_changed(part, drawn, settings), drawn, settings) for part, drawn in parts]
        return views[0] if len(views) == 1 else torch.cat(views)
    # torch.compile has no autograd's bookkeeping to leave out, and no inference tensors.
    with nullcontext() if torch.compiler.is_compiling() else torch.inference_mode():
        changed = _changed(images, uniforms, settings)
    # Outside, so that what the caller gets is an ordinary tensor.
    return _cut_out(changed, uniforms, settings)


def _changed(images: Tensor, uniforms: Tensor, settings: ViewsConfig) -> Tensor:
    """strong() before its cutout."""
    views = weak(images, uniforms, settings)
    if settings.num_operations == 0:
        return views
    operations = [operation for name, operation in OPERATIONS.items() if name not in settings.exclude]
    draws = uniforms[:, WEAK_UNIFORMS : WEAK_UNIFORMS + 2 * settings.num_operations]
    return rounds_on(views.device)(views, draws[:, 0::2], draws[:, 1::2], operations)


def _is_on_cpu(images: Tensor) -> bool:
    return images.device.type == "cpu" and not torch.compiler.is_compiling()


def _offsets(uniforms: Tensor, padding: int) -> Tensor:
    """float32 (N,) -> int64 (N,), uniform over -padding .. padding."""
    return draw(uniforms, 2 * padding + 1) - padding


def _crop(uniforms: Tensor, side: int, padding: float) -> Tensor:
    """float32 (N,) -> int64 (N, side): which row (or column) each row of the crop shows."""
    position = torch.arange(side, device=uniforms.device) + _offsets(uniforms, int(side * padding))[:, None]
    return (side - 1) - ((side - 1) - position.abs()).abs()  # reflected at 0, then at side - 1


def _cut_out(views: Tensor, uniforms: Tensor, settings: ViewsConfig) -> Tensor:
    """Grey out, on a CPU in place, the pixels whose centres lie in a square of side U(0, settings.cutout) * W.

    Its centre is uniform over the image and what sticks out is lost (DeVries and Taylor 2017).
    """
    height, width = views.shape[2:]
    last = uniforms[:, num_strong_uniforms(settings) - CUTOUT_UNIFORMS :]
    if _is_on_cpu(views):
        y, x = np.arange(height, dtype=np.float32), np.arange(width, dtype=np.float32)
        ends = []
        for inside in _square(last.numpy(), y, x, settings.cutout):
            first = inside.argmax(axis=1)
            ends += [first.tolist(), (first + inside.sum(axis=1)).tolist()]
        for view, top, bottom, left, right in zip(views.numpy(), *ends, strict=True):
            view[:, top:bottom, left:right] = GREY
        return views
    lines = torch.arange(height, device=views.device), torch.arange(width, device=views.device)
    rows, columns = (inside.to(torch.uint8) for inside in _square(last, *lines, settings.cutout))
    hole = (rows[:, :, None] * columns[:, None])[:, None]
    return views * (1 - hole) + GREY * hole


def _square(uniforms: Any, y: Any, x: Any, largest: float) -> tuple[Any, Any]:
    """Which rows (N, H) and columns (N, W) it covers, of y (H,) and x (W,). All are tensors, or all arrays."""
    half = uniforms[:, 0, None] * (largest * len(x) / 2)
    rows = abs(y + 0.5 - uniforms[:, 1, None] * len(y)) < half
    return rows, abs(x + 0.5 - uniforms[:, 2, None] * len(x)) < half


def _check(images: Tensor, uniforms: Tensor, num_uniforms: int) -> None:
    if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[1] not in (1, 3):
        raise ValueError(
            "images must be uint8 of shape (N, C, H, W) with 1 or 3 channels, "
            f"got {images.dtype} of shape {tuple(images.shape)}"
        )
    if uniforms.dtype != torch.float32 or uniforms.dim() != 2 or uniforms.shape[1] < num_uniforms:
        raise ValueError(
            f"uniforms must be float32 of shape (N, at least {num_uniforms}), "
            f"got {uniforms.dtype} of shape {tuple(uniforms.shape)}"
        )
    if len(uniforms) != len(images):
        raise ValueError(f"uniforms must have one row per image, got {len(uniforms)} for {len(images)} images")
