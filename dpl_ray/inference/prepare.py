"""Images of any kind as a trained model takes them: of its channels, and of the size that it was trained with.

The model for MLflow carries a copy of this file (exported_model.py): besides decode.py and convert.py, which it
finds from where it lies, it imports nothing of this package.

Legend: N images, C channels, H and W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..data.images.convert import DecodeSettings, as_batch, convert_arrays, eight_bits
from ..data.images.decode import Payload, decode_or_reason


@dataclass(frozen=True)
class Preparation:
    """What images are made into."""

    decoding: DecodeSettings  # its image_size is None where `image_size` is not square
    image_size: tuple[int, int]  # H, W

    def many(self, array: NDArray) -> NDArray:
        """Images of an array (`as_images`) as (N, C, H, W) uint8; float32 where they are floats of that size.

        Other floats are rounded to 8 bits, since training resizes 8-bit images.

        Raises:
            ValueError: another shape, type or range; or another size, where the model takes no square images.
        """
        return self._trained(as_images(array, self.decoding.channels))

    def _trained(self, images: NDArray) -> NDArray:
        if images.dtype != np.uint8 and images.shape[1:] == (self.decoding.channels, *self.image_size):
            return np.ascontiguousarray(images, np.float32)
        images = convert_arrays(eight_bits(images), self.decoding)
        if problem := self._size_problem(images):
            raise ValueError(f"images: {problem}")
        return images

    def one(self, image: Payload | NDArray) -> NDArray[np.uint8] | str:
        """One image as (C, H, W), or the reason why it cannot be read.

        Raises:
            ValueError: an array of another shape, type or range.
        """
        if isinstance(image, np.ndarray):
            found = self._trained(as_images(image, channels=3))
            if len(found) != 1:
                raise ValueError(f"images of shape {image.shape} in a list: each must be one image")
            return eight_bits(found[0])
        decoded = decode_or_reason(image, self.decoding)
        return decoded if isinstance(decoded, str) else self._size_problem(decoded) or decoded

    def _size_problem(self, images: NDArray) -> str:
        """What is wrong with the size of images (..., H, W); nothing where they could be resized."""
        height, width = images.shape[-2:]
        if (height, width) == self.image_size:
            return ""
        trained = f"{self.image_size[1]}x{self.image_size[0]}"
        return f"{width}x{height} pixels; the model was trained on {trained} pixels as they are"


def as_images(array: NDArray, channels: int) -> NDArray:
    """The images of an array, as (N, C, H, W) of uint8, or of floats in [0, 1].

    Args:
        array: as `as_batch` takes it, or one image (C, H, W), (H, W, C) or (H, W).
        channels: of the model: one that takes grey images leaves it open whether (3, H, W) is one image or three.

    Raises:
        ValueError: the shape is none of these or two of them, or another type or range.
    """
    shape = array.shape
    if array.ndim == 2:
        array = array[None]
    elif array.ndim == 3 and (shape[0] in (1, 3) or shape[-1] in (1, 3, 4)):  # 4: with transparency, which is refused
        if shape[0] == 3 != channels and shape[-1] not in (1, 3):
            raise ValueError(
                f"images of shape {shape}: one image in colour, or three grey ones; give (1, 3, H, W) or (3, 1, H, W)"
            )
        array = array[None]
    return as_batch("images", array)
