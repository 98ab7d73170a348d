"""The classifier: a backbone by name and a linear layer over its features.

Legend: N images, D features, C classes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dpl_ray.config import ModelConfig, suggest
from dpl_ray.models.wide_resnet import WideResNet


class Classifier(nn.Module):
    """Backbone f and main linear classifier h.

    Images come in as uint8 or as floats in [0, 1], (N, channels, H, W); they are centred and scaled in here, so that
    a saved model needs no preprocessing around it.
    """

    def __init__(self, backbone: nn.Module, num_features: int, num_classes: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.classifier = nn.Linear(num_features, num_classes)
        nn.init.xavier_normal_(self.classifier.weight)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(N, channels, H, W) -> features (N, D), logits (N, C)."""
        scaled = images.float() / 127.5 - 1 if images.dtype == torch.uint8 else images * 2 - 1
        features = self.backbone(scaled)
        return features, self.classifier(features)


def build_model(config: ModelConfig, channels: int, num_classes: int) -> Classifier:
    """A classifier with initial weights from torch's global generator.

    Args:
        channels: 1 or 3, of the images.

    Raises:
        ValueError: torchvision has no such architecture or weights, or it has no final linear layer.
    """
    if config.name == "wide_resnet":
        backbone = WideResNet(channels, config.depth, config.width, config.normalization, config.bn_momentum)
        return Classifier(backbone, backbone.num_features, num_classes)
    return _torchvision(config, channels, num_classes)


def _torchvision(config: ModelConfig, channels: int, num_classes: int) -> Classifier:
    from torchvision import models

    known = models.list_models(module=models)
    if config.architecture not in known:
        raise ValueError(
            f"model.architecture={config.architecture}: torchvision has no such classification model"
            f"{suggest(config.architecture, known)}"
        )
    try:
        weights = config.weights and models.get_model_weights(config.architecture)[config.weights]
    except KeyError:
        names = ", ".join(models.get_model_weights(config.architecture).__members__)
        raise ValueError(f"model.weights={config.weights}: {config.architecture} has {names}") from None
    backbone = models.get_model(config.architecture, weights=weights)
    name, last = [item for item in backbone.named_modules() if isinstance(item[1], nn.Linear)][-1]
    parent, _, attribute = name.rpartition(".")
    setattr(backbone.get_submodule(parent), attribute, nn.Identity())
    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = config.bn_momentum
    if channels == 1:
        backbone = nn.Sequential(_GreyToColour(), backbone)
    return Classifier(backbone, last.in_features, num_classes)


class _GreyToColour(nn.Module):
    """(N, 1, H, W) -> (N, 3, H, W): torchvision's networks read three channels."""

    def forward(self, images: Tensor) -> Tensor:
        return images.expand(-1, 3, -1, -1)
