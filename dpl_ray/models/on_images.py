"""A classifier that was trained on stored features, with the backbone that made them: images go in again.

Legend: N images, C channels, P stored views, D features.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dpl_ray.models.classifier import Classifier
from dpl_ray.models.feature_head import FeatureHead


class _Joined(nn.Module):
    """Images (N, C, H, W) -> features of the backbone, or stored ones (N, P, 1, D) -> what the head makes of them."""

    def __init__(self, backbone: nn.Module, head: FeatureHead) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, images: Tensor) -> Tensor:
        return self.head(images if images.dtype == torch.float16 else self.backbone(images)[:, None, None])


class OnImages(Classifier):
    """It takes images, uint8 or floats in [0, 1], and stored features, float16 (N, P, 1, D)."""

    def __init__(self, backbone: Classifier, head: Classifier) -> None:
        assert isinstance(head.backbone, FeatureHead)
        super().__init__(_Joined(backbone.backbone, head.backbone), head.classifier.in_features, 2)
        self.mean, self.std, self.classifier = backbone.mean, backbone.std, head.classifier
