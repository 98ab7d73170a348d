"""The weak and the strong view of a batch: made of images, or chosen among the stored views of features.

Legend: N images, C channels, D features, V stored weak views and as many strong ones.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dpl_ray.config.schema import ViewsConfig
from dpl_ray.data import augment

FEATURES = torch.float16  # images are uint8


def weak(images: Tensor, uniforms: Tensor, settings: ViewsConfig) -> Tensor:
    """The weak view of each image.

    Args:
        images: uint8 (N, C, H, W); or features float16 (N, 1 + 2 V, 1, D): as they are, V weak views, V strong ones.
        uniforms: float32 (N, K >= WEAK_UNIFORMS) in [0, 1), row i belonging to image i.

    Returns:
        uint8 (N, C, H, W), or float16 (N, 1, 1, D).
    """
    if images.dtype != FEATURES:
        return augment.weak(images, uniforms, settings)
    num_views = (images.shape[1] - 1) // 2
    return _chosen(images, uniforms, 1, num_views)


def strong(images: Tensor, uniforms: Tensor, settings: ViewsConfig) -> Tensor:
    """The strong view of each image; arguments and result as of `weak`, with num_strong_uniforms columns."""
    if images.dtype != FEATURES:
        return augment.strong(images, uniforms, settings)
    num_views = (images.shape[1] - 1) // 2
    return _chosen(images, uniforms, 1 + num_views, num_views)


def _chosen(features: Tensor, uniforms: Tensor, first: int, num_views: int) -> Tensor:
    """One of so many views of each row, by its first number; the features as they are where none are stored."""
    if not num_views:
        return features[:, :1]
    at = first + (uniforms[:, 0] * num_views).long()
    return features[torch.arange(len(features), device=features.device), at][:, None]
