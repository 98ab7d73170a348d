"""The classifier: a backbone by name and a linear layer over its features.

Legend: N images, D features, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dpl_ray.config.schema import Config, ModelConfig
from dpl_ray.config.section import shown
from dpl_ray.models.adapters import add_lora
from dpl_ray.models.batch_norm import CountedBatchNorm2d
from dpl_ray.models.feature_head import FeatureHead
from dpl_ray.models.layers import freeze, frozen_modules
from dpl_ray.models.libraries import library_of
from dpl_ray.models.wide_resnet import WideResNet

USUAL_SIZE = 224  # pixels of a side: most networks were made for it, and take it


class Classifier(nn.Module):
    """Backbone f and main linear classifier h.

    Images come in as uint8 or as floats in [0, 1], (N, channels, H, W); they are centred and scaled in here, so that
    a saved model needs no preprocessing around it.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        backbone: nn.Module,
        num_features: int,
        num_classes: int,
        *,
        mean: Sequence[float] = (0.5,),
        std: Sequence[float] = (0.5,),
    ) -> None:
        """
        Args:
            mean, std: of each channel, of images in [0, 1], as the backbone's weights were trained with; one value
                stands for all channels.
        """
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean)[:, None, None])
        self.register_buffer("std", torch.tensor(std)[:, None, None])
        self.backbone = backbone
        self.classifier = nn.Linear(num_features, num_classes)
        nn.init.xavier_normal_(self.classifier.weight)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(N, channels, H, W), or stored features float16 (N, P, 1, D) -> features (N, D), logits (N, C)."""
        if images.dtype != torch.float16:
            white = 255 if images.dtype == torch.uint8 else 1
            images = images.float() / (white * self.std) - self.mean / self.std
        features = self.backbone(images)
        return features, self.classifier(features)

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *arguments: Any) -> None:
        # The shape is that of the saved ones; older checkpoints have neither: their images were scaled to [-1, 1].
        for name in ("mean", "std"):
            saved = state_dict.setdefault(f"{prefix}{name}", torch.full((1, 1, 1), 0.5))
            setattr(self, name, getattr(self, name).new_empty(saved.shape))
        super()._load_from_state_dict(state_dict, prefix, *arguments)

    def train(self, mode: bool = True) -> Self:
        """As of every module, but what is frozen stays in evaluation mode."""
        super().train(mode)
        if mode:
            for module in frozen_modules(self.backbone):
                module.eval()
        return self

    def unless_frozen(self, features: Tensor, logits: Tensor, trained: bool | Tensor) -> Tensor:
        """The logits (N, C) of features (N, D); their gradient reaches the main classifier only where it is `trained`.

        Args:
            trained: () bool where it is a tensor.
        """
        if trained is True:
            return logits
        frozen = F.linear(features.float(), self.classifier.weight.detach(), self.classifier.bias.detach())
        return frozen if trained is False else torch.where(trained, logits, frozen)


def build_model(config: ModelConfig, channels: int, num_classes: int) -> Classifier:
    """A classifier with initial weights from torch's global generator.

    Args:
        channels: 1 or 3, of the images.

    Raises:
        ValueError: there is no such architecture, it has no linear layer to replace, the weights do not fit, or it
            takes no adapters.
    """
    if config.name == "wide_resnet":
        wide = WideResNet(channels, config.depth, config.width, config.normalization, config.bn_momentum)
        return Classifier(wide, wide.num_features, num_classes)
    if config.name == "head":
        assert config.num_features is not None, "found in the data before a network is built"
        head = FeatureHead(config.num_features, config.hidden)
        model = Classifier(head, head.num_features, num_classes, mean=(0.0,), std=(1.0,))
        # Few labels span few directions of many: what is random in the others would stay (docs/features.md).
        nn.init.zeros_(model.classifier.weight)
        return model
    library = library_of(config)
    network, num_features = library.build(config)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = config.bn_momentum
        if type(module) is nn.BatchNorm2d:
            module.__class__ = CountedBatchNorm2d
    freeze(network, config.train)
    if config.adapter == "lora":
        add_lora(network, config.lora_rank, config.lora_alpha)
    images = library.preprocessing(config)
    scaling = {"mean": images.mean, "std": images.std} if images else {}
    backbone = network if channels == 3 else nn.Sequential(_GreyToColour(), network)
    return Classifier(backbone, num_features, num_classes, **scaling).train()  # but for what is frozen


def check_model(config: Config, channels: int, image_size: tuple[int, int], num_classes: int) -> None:
    """Build the network without memory and pass through it what a worker's step will, images of this size.

    Raises:
        ValueError: the network has no linear layer to replace, does not take such images, or normalizes over the
            batch and is left with a single value.
    """
    num_workers = config.scale.worker_range[1] or 1
    one_each = config.train.batch_size == num_workers
    if config.model.name == "wide_resnet" and not one_each:
        return  # it takes every image that the configuration lets through
    if config.model.name == "head":
        return
    name = config.model.name if config.model.name == "wide_resnet" else config.model.architecture
    pixels = f"{image_size[0]}x{image_size[1]} pixels"
    # Shapes alone, on the meta device; pretrained weights would be read here for nothing.
    with torch.device("meta"):
        model = build_model(config.model.model_copy(update={"weights": None}), channels, num_classes)
        images = torch.zeros(2, channels, *image_size)
    try:
        model(images)
    except (RuntimeError, ValueError, AssertionError, AttributeError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        size = next((part.image_size for part in model.modules() if hasattr(part, "image_size")), USUAL_SIZE)
        raise ValueError(
            f"data.image_size: {name} does not take images of {pixels} ({reason}); set a size that it "
            f"takes, as data.image_size={size}"
        ) from None
    try:
        if one_each:  # and a forward pass may have no other image: strong views without a weight are left out of it
            model(images[:1])
    except ValueError:
        group = ", model.normalization=group" if config.model.name == "wide_resnet" else ""
        workers = f" with scale.num_workers={shown(config.scale.num_workers)}" if num_workers > 1 else ""
        raise ValueError(
            f"train.batch_size={config.train.batch_size}{workers}: a worker has one labelled image, and {name} "
            f"normalizes over the batch what is a single value for {pixels}; "
            f"train.batch_size={2 * num_workers} would do, or a larger data.image_size{group}"
        ) from None


def count_forward_operations(config: ModelConfig, channels: int, image_size: Sequence[int], num_classes: int) -> int:
    """Floating-point operations of a pass of one image without gradient, of those that `FlopCounterMode` counts."""
    from torch.utils.flop_counter import FlopCounterMode  # imports Triton

    with torch.device("meta"):  # shapes alone
        model = build_model(config.model_copy(update={"weights": None}), channels, num_classes).eval()
        images = torch.zeros(1, channels, *image_size)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(images)
    return int(counter.get_total_flops())


class _GreyToColour(nn.Module):
    """(N, 1, H, W) -> (N, 3, H, W): the networks of libraries read three channels."""

    def forward(self, images: Tensor) -> Tensor:
        return images.expand(-1, 3, -1, -1)
