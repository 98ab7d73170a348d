"""Images to uint8 arrays of one number of channels and one size: images of Pillow, and arrays of images.

Legend: N images, C channels, H and W pixels, S = data.image_size.

Choices, for every source alike:
- transparency is composited on white;
- grey from colour is ITU-R 601 luma, as in Pillow;
- fit=crop keeps the centre, fit=pad centres the image on black;
- interpolation=area at a whole factor is the exact mean of each block, halves rounded up.

The model for MLflow carries a copy of this file (inference/exported_model.py): it imports nothing of this package.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

if TYPE_CHECKING:
    from dpl_ray.config.schema import DataConfig

DARK = 16  # uint8 that ends here may have another range: scikit-learn's digits are 0 to 16
_RESAMPLING = {
    "area": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}


@dataclass(frozen=True)
class DecodeSettings:
    """What images are made into; the fields are those of `DataConfig`."""

    image_size: int | None = None
    channels: Literal[1, 3] = 3
    fit: Literal["crop", "pad", "squash"] = "crop"
    interpolation: Literal["area", "bilinear", "bicubic"] = "bilinear"

    @classmethod
    def from_config(cls, data: DataConfig) -> DecodeSettings:
        return cls(data.image_size, data.channels, data.fit, data.interpolation or "bilinear")


def as_batch(field: str, array: NDArray) -> NDArray:
    """Images as (N, C, H, W), of uint8 or of floats in [0, 1]. 8-bit images that are nearly black are warned of.

    Args:
        field: what the user gave, for messages.
        array: (N, C, H, W), (N, H, W, C) or (N, H, W), where C is 1 or 3.

    Raises:
        ValueError: the shape is none of these or two of them, or another type or range.
    """
    images, shape = array, array.shape
    if array.ndim == 3:
        images = array[:, None]
    else:
        first, last = array.ndim == 4 and shape[1] in (1, 3), array.ndim == 4 and shape[3] in (1, 3)
        if first == last:
            why = "two axes may be the channels" if first else "no axis is that of channels"
            give = "give (N, H, W), or (N, C, H, W) or (N, H, W, C) with C = 1 or 3 channels"
            raise ValueError(f"{field} of shape {shape}: {why}; {give}")
        images = np.moveaxis(array, -1, 1) if last else array
    low, high = (images.min(), images.max()) if images.size else (0, 0)
    if np.issubdtype(images.dtype, np.floating):
        if not (low >= 0 and high <= 1):
            raise ValueError(f"{field} of floats from {low:.3g} to {high:.3g}: must be in [0, 1], or uint8 in 0..255")
    elif images.dtype != np.uint8:
        raise ValueError(f"{field} of type {images.dtype}: must be uint8 in 0..255, or floats in [0, 1]")
    elif 0 < high <= DARK:
        warnings.warn(
            f"{field} of uint8 from {low} to {high}: nearly black, as white is 255; where {high} means white, scale "
            f"them first: ({field} * (255 / {high})).astype('uint8')",
            stacklevel=2,
        )
    return images


def eight_bits(images: NDArray) -> NDArray[np.uint8]:
    """Floats in [0, 1] rounded to 8 bits; uint8 as it is."""
    return images if images.dtype == np.uint8 else np.rint(images * 255).astype(np.uint8)


def convert_arrays(images: NDArray[np.uint8], settings: DecodeSettings) -> NDArray[np.uint8]:
    """Bring decoded images (N, C, H, W) to the channels and the size of the settings, as `decode` would."""
    num_images, channels, height, width = images.shape
    size = settings.image_size
    if channels == settings.channels and (size is None or height == width == size):
        return np.ascontiguousarray(images)
    if channels == 1 and settings.channels == 3:
        grey = convert_arrays(images, DecodeSettings(size, 1, settings.fit, settings.interpolation))
        return np.repeat(grey, 3, axis=1)
    shape = (height, width) if size is None else (size, size)
    converted = np.empty((num_images, settings.channels, *shape), np.uint8)
    if channels == settings.channels and _is_whole_factor(width, height, settings):
        for start in range(0, num_images, 4096):
            converted[start : start + 4096] = _block_mean(images[start : start + 4096], shape[0])
        return converted
    for index, image in enumerate(images):
        pixels = image[0] if channels == 1 else np.ascontiguousarray(image.transpose(1, 2, 0))
        converted[index] = to_array(to_mode(Image.fromarray(pixels), settings.channels), settings)
    return converted


def to_mode(image: Image.Image, channels: int) -> Image.Image:
    """The image as 8-bit grey (L) or RGB, without transparency."""
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    if image.mode not in ("1", "L", "RGB"):
        image = image.convert("RGB")  # palettes, CMYK, LAB and so on; not all of them have a way to L
    target = "L" if channels == 1 else "RGB"
    return image if image.mode == target else image.convert(target)


def to_array(image: Image.Image, settings: DecodeSettings) -> NDArray[np.uint8]:
    """Fit and resize an L or RGB image, and put the channels first."""
    size = settings.image_size
    if size is None or image.size == (size, size):
        return _channels_first(np.asarray(image))
    width, height = image.size
    left, top, right, bottom = 0, 0, width, height
    if settings.fit == "crop":
        side = min(width, height)
        left, top = (width - side) // 2, (height - side) // 2
        right, bottom = left + side, top + side
    if _is_whole_factor(width, height, settings):
        return _block_mean(_channels_first(np.asarray(image.crop((left, top, right, bottom)))), size)
    shape = (size, size)
    if settings.fit == "pad":
        longer = max(width, height)
        shape = (max(1, round(size * width / longer)), max(1, round(size * height / longer)))
    resized = image.resize(shape, _RESAMPLING[settings.interpolation], box=(left, top, right, bottom))
    if shape != (size, size):
        canvas = Image.new(image.mode, (size, size))
        canvas.paste(resized, ((size - shape[0]) // 2, (size - shape[1]) // 2))
        resized = canvas
    return _channels_first(np.asarray(resized))


def _channels_first(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return pixels[None].copy() if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _is_whole_factor(width: int, height: int, settings: DecodeSettings) -> bool:
    """Whether every output pixel is the mean of a block of whole input pixels."""
    size = settings.image_size
    if size is None or settings.interpolation != "area":
        return False
    if settings.fit == "crop":
        width = height = min(width, height)
    return width % size == 0 and height % size == 0 and (settings.fit == "squash" or width == height)


def _block_mean(pixels: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Means of the blocks that make (..., H, W) into (..., S, S). Pillow's own box filter rounds twice."""
    rows, columns = pixels.shape[-2] // size, pixels.shape[-1] // size
    blocks = pixels.reshape(*pixels.shape[:-2], size, rows, size, columns)
    count = rows * columns
    return ((blocks.sum(axis=(-3, -1), dtype=np.uint32) + count // 2) // count).astype(np.uint8)
