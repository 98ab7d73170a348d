"""What a network costs, without running it."""

from __future__ import annotations

import torch
from torch.utils.flop_counter import FlopCounterMode

from dpl_ray.config.schema import ModelConfig
from dpl_ray.models.classifier import build_model


def operations(config: ModelConfig, channels: int, size: int) -> float:
    """Floating-point operations of one image's forward pass, of random weights on the meta device."""
    with torch.device("meta"):
        model = build_model(config.changed(weights=None), channels, 2).eval()
        images = torch.zeros(1, channels, size, size)
    with FlopCounterMode(display=False) as counter:
        model(images)
    return float(counter.get_total_flops())
