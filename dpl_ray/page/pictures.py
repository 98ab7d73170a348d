"""Small pictures for a page, as PNG.

Legend: N images, C channels (1 or 3), H and W pixels.
"""

from __future__ import annotations

import io
import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image

MAX_PIXELS = 96  # of a picture's longer side
WHITE = 255


def encode_png(image: NDArray[np.uint8]) -> bytes:
    """(C, H, W) to a PNG, made smaller where a side is longer than MAX_PIXELS."""
    return _png(_smaller(image, MAX_PIXELS))


def encode_sheet(images: NDArray[np.uint8], *, num_columns: int, max_pixels: int) -> bytes:
    """(N, C, H, W) to one PNG of rows of so many images, with white between them; empty places are white.

    Args:
        max_pixels: of an image's longer side.
    """
    small = [np.asarray(_smaller(image, max_pixels).convert("RGB")) for image in images]
    height, width = small[0].shape[:2]
    gap = max(1, width // 16)
    num_rows = math.ceil(len(small) / num_columns)
    sheet = np.full((num_rows * (height + gap) - gap, num_columns * (width + gap) - gap, 3), WHITE, np.uint8)
    for place, picture in enumerate(small):
        row, column = divmod(place, num_columns)
        top, left = row * (height + gap), column * (width + gap)
        sheet[top : top + height, left : left + width] = picture
    return _png(Image.fromarray(sheet))


def _smaller(image: NDArray[np.uint8], max_pixels: int) -> Image.Image:
    made = Image.fromarray(image[0] if len(image) == 1 else np.moveaxis(image, 0, 2))
    made.thumbnail((max_pixels, max_pixels))
    return made


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "png", optimize=True)
    return buffer.getvalue()
