"""A batch through a network whose answer to an image depends on that image alone.

Legend: N images, D features, C classes.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dpl_ray.models.classifier import Classifier

#: Images of a part on a CPU, times the side of an image. Most arrays of most networks then stay below 32 MiB, from
#: which on glibc gives them back to the system and takes them anew, page by page, in every layer. Found by measuring
#: (benchmarks/parts.py): networks for large images make them small in their first layers, so that the pixels of a part
#: may grow with the side.
IMAGES_BY_SIDE = 2560


def part_size(images: Tensor) -> int:
    """Images that pass through a network at once; all where they are not on a CPU, or are stored features.

    Args:
        images: (N, channels, H, W), or stored features float16 (N, P, 1, D).
    """
    if images.device.type != "cpu" or images.dtype == torch.float16:
        return max(1, len(images))
    return max(1, int(IMAGES_BY_SIDE / math.sqrt(images.shape[-2] * images.shape[-1])))


@torch.inference_mode()
def answer_in_parts(model: Classifier, images: Tensor) -> tuple[Tensor, Tensor]:
    """Features (N, D) and logits (N, C), the same but for rounding however the images are cut.

    Args:
        model: in evaluation mode, on the device of the images. In training mode BatchNorm would normalize by a part.
        images: (N, channels, H, W) uint8 or float in [0, 1], or stored features float16 (N, P, 1, D).

    Raises:
        ValueError: the model is in training mode.
    """
    if model.training:
        raise ValueError("model.training=True: a part has other statistics than its batch; call model.eval() before")
    if images.dtype != torch.float16:
        images = images.contiguous(memory_format=torch.channels_last)
    answers = [model(part) for part in images.split(part_size(images))]
    features, logits = (torch.cat(parts) for parts in zip(*answers, strict=True))
    return features, logits
