"""The weak and the strong view of a batch: made of images, or chosen among the stored views of features.

Legend: N images, C channels, D features, V stored weak views and as many strong ones.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dpl_ray.config.schema import ViewsConfig
from dpl_ray.data.batches import augment

FEATURES = torch.float16  # images are uint8


def weak(images: Tensor, uniforms: Tensor, settings: ViewsConfig, rows: Tensor | None = None) -> Tensor:
    """The weak view of each image.

    Args:
        images: uint8 (N, C, H, W); or features float16 (N, 1 + 2 V, 1, D): as they are, V weak views, V strong ones.
        uniforms: float32 (N, K >= WEAK_UNIFORMS) in [0, 1), row i belonging to image i.
        rows: (M,) int64, the images whose views are wanted; None: all N.

    Returns:
        uint8 (M, C, H, W), or float16 (M, 1, 1, D).
    """
    if images.dtype == FEATURES:
        return _chosen(images, uniforms, rows, is_strong=False)
    make = _compiled["weak"] if images.is_cuda and _compiled else augment.weak
    return make(*_of(images, uniforms, rows), settings)


def strong(images: Tensor, uniforms: Tensor, settings: ViewsConfig, rows: Tensor | None = None) -> Tensor:
    """The strong view of each image; arguments and result as of `weak`, with num_strong_uniforms columns."""
    if images.dtype == FEATURES:
        return _chosen(images, uniforms, rows, is_strong=True)
    make = _compiled["strong"] if images.is_cuda and _compiled else augment.strong
    return make(*_of(images, uniforms, rows), settings)


_compiled: dict[str, Callable[[Tensor, Tensor, ViewsConfig], Tensor]] = {}


def compile_views() -> None:
    """Let torch.compile make a few kernels of a GPU's hundreds; some pixels of strong views are rounded otherwise."""
    _compiled.update({make.__name__: torch.compile(make, dynamic=False) for make in (augment.weak, augment.strong)})


def _of(images: Tensor, uniforms: Tensor, rows: Tensor | None) -> tuple[Tensor, Tensor]:
    return (images, uniforms) if rows is None else (images[rows], uniforms[rows])


def _chosen(features: Tensor, uniforms: Tensor, rows: Tensor | None, *, is_strong: bool) -> Tensor:
    """One of the stored views of each row, by its first number; the features as they are where none are stored."""
    if rows is None:
        rows = torch.arange(len(features), device=features.device)
    num_stored = features.shape[1]
    num_views = (num_stored - 1) // 2
    # Single rows of all views, and at once: several times as fast as by two indices.
    at = rows * num_stored
    if num_views:
        at += 1 + is_strong * num_views + (uniforms[rows, 0] * num_views).long()
    return features.flatten(0, 1).index_select(0, at)[:, None]
