"""Images of any kind as a trained model takes them: of its channels, and of the size that it was trained with.

The model for MLflow carries a copy of this file (exported_model.py): besides decode.py, which it finds from where it
lies, it imports nothing of this package.

Legend: N images, C channels, H and W pixels.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..data.decode import DecodeSettings, Payload, convert_arrays, decode_or_reason

DARK = 16  # uint8 that ends here may have another range: scikit-learn's digits are 0 to 16
SHAPES = "(N, C, H, W), (N, H, W, C) or (N, H, W), or one image (C, H, W), (H, W, C) or (H, W), with C = 1 or 3"


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
        images = as_images(array, self.decoding.channels)
        if images.dtype != np.uint8 and images.shape[1:] == (self.decoding.channels, *self.image_size):
            return np.ascontiguousarray(images, np.float32)
        images = convert_arrays(eight_bits(images), self.decoding)
        if problem := self._size_problem(images):
            raise ValueError(f"images of shape {array.shape}: {problem}")
        return images

    def one(self, image: Payload | NDArray) -> NDArray[np.uint8] | str:
        """One image as (C, H, W), or the reason why it cannot be read.

        Raises:
            ValueError: an array of another shape, type or range.
        """
        if isinstance(image, np.ndarray):
            found = self.many(image)
            if len(found) != 1:
                raise ValueError(f"images of shape {image.shape} in a list: each must be one image; {SHAPES}")
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


def eight_bits(images: NDArray) -> NDArray[np.uint8]:
    """Floats in [0, 1] rounded to 8 bits; uint8 as it is."""
    return images if images.dtype == np.uint8 else (images * 255).round().astype(np.uint8)


def as_images(array: NDArray, channels: int) -> NDArray:
    """The images of an array, as (N, C, H, W) of uint8, or of floats in [0, 1]. 8-bit values in doubt are warned of.

    Args:
        array: N images (N, C, H, W) or (N, H, W, C), or N grey ones (N, H, W), or one (C, H, W), (H, W, C) or (H, W);
            C is 1 or 3.
        channels: of the model: one that takes grey images leaves it open whether (3, H, W) is one image or three.

    Raises:
        ValueError: the shape is none of these or two of them, or another type or range.
    """
    images, shape, ndim = array, array.shape, array.ndim
    first, last = ndim in (3, 4) and shape[-3] in (1, 3), ndim in (3, 4) and shape[-1] in (1, 3)
    if ndim == 2:
        images = array[None, None]
    elif ndim == 3 and not first and not last and shape[-1] > 4:  # 4: of one image with transparency
        images = array[:, None]
    elif first == last:
        which = "two axes may be the channels" if first else "no axis is that of channels"
        raise ValueError(f"images of shape {shape}: {which}; give {SHAPES}")
    elif ndim == 3 and first and shape[0] == 3 != channels:
        raise ValueError(
            f"images of shape {shape}: one image in colour, or three grey ones; give (1, 3, H, W) or (3, 1, H, W)"
        )
    else:
        images = np.moveaxis(array, -1, -3) if last else array
        images = images[None] if ndim == 3 else images
    low, high = (images.min(), images.max()) if images.size else (0, 0)
    if np.issubdtype(images.dtype, np.floating):
        if not (low >= 0 and high <= 1):
            raise ValueError(f"images of floats from {low:.3g} to {high:.3g}: must be in [0, 1], or uint8 in 0..255")
    elif images.dtype != np.uint8:
        raise ValueError(f"images of type {images.dtype}: must be uint8 in 0..255, or floats in [0, 1]")
    elif 0 < high <= DARK:
        warnings.warn(
            f"images of uint8 from {low} to {high}: nearly black, as white is 255; where {high} means white, scale "
            f"them first: (images * (255 / {high})).astype('uint8')",
            stacklevel=2,
        )
    return images
