"""RandAugment's operations on a CPU, by numpy, to the bytes that Pillow gives.

n >= 1 images that drew one operation, C channels (1 or 3), H rows, W columns.

Each takes images uint8 (n, C, H, W) and parameters float32 (n,), leaves both as they are and returns uint8
(n, C, H, W). A batch takes hundreds of calls of many kinds, and the processor's cache does not hold the code of all of
them until a kind comes again. Numpy runs much less code in a call than torch does.
"""

import numpy as np
import torch
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]

LEVELS = np.arange(256)
LUMA = np.array([19595, 38470, 7471], dtype=np.float32) / 65536  # ITU-R 601 in 16-bit fixed point
MOST_PLANES = 127  # whose levels, side by side, int16 counts


def identity(images: Bytes, _parameters: Floats) -> Bytes:
    return images


# Arithmetic. Whole numbers and multiples of 2 ** -16 below 2 ** 8 are exact in float32.


def _per_image(values: NDArray) -> NDArray:
    return values[:, None, None, None]


def _grayscale(values: Floats) -> Floats:
    """float32 (n, C, H, W) -> (n, 1, H, W): Pillow's L."""
    num_images, num_channels, height, width = values.shape
    if num_channels == 1:
        return values
    luma = LUMA @ values.reshape(num_images, num_channels, -1)
    luma += np.float32(0.5)
    return np.floor(luma, out=luma).reshape(num_images, 1, height, width)


def _blend(degenerate: Floats, values: Floats, factor: Floats) -> Bytes:
    """Pillow's Image.blend, degenerate + factor * (values - degenerate) cut to uint8, factor in [0, 1].

    degenerate and values are whole numbers: the difference is exact, then one product and one sum are rounded, as in
    Pillow. values is overwritten.
    """
    values -= degenerate
    values *= factor
    values += degenerate
    return values.astype(np.uint8)


def brightness(images: Bytes, parameters: Floats) -> Bytes:
    """ImageEnhance.Brightness: blend of black and the image."""
    values = images.astype(np.float32)
    values *= _per_image(parameters)
    return values.astype(np.uint8)


def contrast(images: Bytes, parameters: Floats) -> Bytes:
    """ImageEnhance.Contrast: blend of the image's mean grey, rounded, and the image."""
    num_pixels = images.shape[2] * images.shape[3]
    values = images.astype(np.float32)
    total = _grayscale(values).sum(axis=3).sum(axis=(1, 2), dtype=np.int64)
    mean = (2 * total + num_pixels) // (2 * num_pixels)
    return _blend(_per_image(mean.astype(np.float32)), values, _per_image(parameters))


def color(images: Bytes, parameters: Floats) -> Bytes:
    """ImageEnhance.Color: blend of the grey image and the image; nothing to do for one channel."""
    if images.shape[1] == 1:
        return images
    values = images.astype(np.float32)
    return _blend(_grayscale(values), values, _per_image(parameters))


def sharpness(images: Bytes, parameters: Floats) -> Bytes:
    """ImageEnhance.Sharpness: blend of ImageFilter.SMOOTH and the image, whose outermost pixels stay."""
    num_images, num_channels, height, width = images.shape
    if height < 3 or width < 3:
        return images
    # Sums of neighbours in memory: whole images are one long row, and what crosses their sides is left out at the end.
    values = images.reshape(num_images, -1).astype(np.int16)
    rows = values[:, : -2 * width] + values[:, width:-width]
    rows += values[:, 2 * width :]
    total = rows[:, :-2] + rows[:, 1:-1]
    total += rows[:, 2:]
    inner = values[:, width + 1 : -width - 1]
    total += inner << 2
    # Rounding a thirteenth has no ties: the nearest half is 1/26 away, far beyond float32's error.
    smooth = total.astype(np.float32)
    smooth *= np.float32(1 / 13)
    blended = _blend(np.rint(smooth, out=smooth), inner.astype(np.float32), parameters[:, None])
    result = images.copy()
    shape = num_images, num_channels, height - 2, width - 2
    strides = blended.strides[0], height * width, width, 1
    result[:, :, 1:-1, 1:-1] = np.lib.stride_tricks.as_strided(blended, shape, strides)
    return result


def posterize(images: Bytes, parameters: Floats) -> Bytes:
    """ImageOps.posterize: keep the upper int(parameter) bits."""
    return images & _per_image((255 << (8 - parameters.astype(np.int32))).astype(np.uint8))


def solarize(images: Bytes, parameters: Floats) -> Bytes:
    """ImageOps.solarize: invert the levels from the threshold on."""
    thresholds = _per_image(np.ceil(parameters))
    inverted = (images >= np.minimum(thresholds, 255).astype(np.uint8)).view(np.uint8)
    inverted *= np.where(thresholds < 256, 255, 0).astype(np.uint8)
    inverted ^= images
    return inverted


# Tables of what each of the 256 levels of a plane becomes.


def _translate(images: Bytes, tables: Bytes, changed: NDArray[np.bool]) -> Bytes:
    """By tables (n, C, 256) the planes that changed (n, C) names, in the loop over bytes that Python has for it."""
    result = images.copy()
    levels, tables = result.reshape(-1).data, tables.reshape(-1, 256)
    size = images.shape[2] * images.shape[3]
    for number in np.flatnonzero(changed).tolist():
        plane = slice(number * size, (number + 1) * size)
        levels[plane] = bytearray(levels[plane]).translate(tables[number])
    return result


def autocontrast(images: Bytes, _parameters: Floats) -> Bytes:
    """ImageOps.autocontrast: darkest level to 0, brightest to 255; a flat channel stays as it is."""
    low = images.min(axis=(2, 3)).astype(np.float64)[..., None]
    span = images.max(axis=(2, 3))[..., None] - low
    # float64 and this order of operations, since Pillow truncates: 254.99... and 255 are different levels.
    scale = 255 / np.maximum(span, 1)
    tables = LEVELS * scale
    tables -= low * scale
    changed = (span > 0) & (span < 255)
    return _translate(images, tables.clip(0, 255, out=tables).astype(np.uint8), changed[..., 0])


def equalize(images: Bytes, _parameters: Floats) -> Bytes:
    """ImageOps.equalize: the cumulative histogram, rescaled; too few levels leave a channel as it is."""
    planes = images.reshape(images.shape[0] * images.shape[1], -1)
    firsts = range(0, len(planes), MOST_PLANES)
    histogram = np.concatenate([_histogram(planes[first : first + MOST_PLANES]) for first in firsts])
    brightest = planes.max(axis=1)
    step = ((planes.shape[1] - histogram[np.arange(len(planes)), brightest]) // 255)[:, None]
    below = histogram.cumsum(axis=1)
    below -= histogram
    below += step // 2
    # float64 divides in less time than int64 does, and rounds no quotient of such numbers up to the next whole one.
    tables = np.minimum(below / np.maximum(step, 1), 255).astype(np.uint8)
    return _translate(images, tables, step > 0)


def _histogram(planes: Bytes) -> NDArray[np.int64]:
    """(at most MOST_PLANES, H * W) -> (planes, 256). By torch, which does not make int64 of the levels."""
    levels = planes + np.arange(0, 256 * len(planes), 256, dtype=np.int16)[:, None]
    return torch.from_numpy(levels).flatten().bincount(minlength=256 * len(planes)).numpy().reshape(-1, 256)


# Moves. What comes from outside the image is black, Pillow's and FixMatch's filling. As in Pillow, positions are those
# of pixel centres in 16.16 fixed point, in int32: sides up to 8192.


def _fixed_point(values: NDArray[np.float64]) -> NDArray[np.int32]:
    return np.floor(values * (1 << 16) + 0.5).astype(np.int32)


def translate_x(images: Bytes, parameters: Floats) -> Bytes:
    """Move by parameter * W columns, rounded to whole pixels as Pillow does for unrotated maps."""
    return _shift(images, np.floor(parameters * np.float64(images.shape[3]) + 0.5), axis=2)


def translate_y(images: Bytes, parameters: Floats) -> Bytes:
    """Move by parameter * H rows, rounded to whole pixels as Pillow does for unrotated maps."""
    return _shift(images, np.floor(parameters * np.float64(images.shape[2]) + 0.5), axis=1)


def _shift(images: Bytes, offsets: NDArray[np.float64], axis: int) -> Bytes:
    """Place p along the axis of an image (C, H, W) shows place p + offset."""
    moved = np.zeros_like(images)
    for image, result, offset in zip(images, moved, offsets.astype(int).tolist(), strict=True):
        shown, hidden = slice(max(0, offset), min(0, offset) or None), slice(max(0, -offset), min(0, -offset) or None)
        around = (slice(None),) * axis
        result[(*around, hidden)] = image[(*around, shown)]
    return moved


def shear_x(images: Bytes, parameters: Floats) -> Bytes:
    """Row y moves by parameter * y, the top-left corner stays."""
    num_images, num_channels, height, width = images.shape
    columns = _sheared(parameters, height).clip(-width, width) + width
    # Each row is a piece of a long one. Black is left of each, where the row above ends, and below the last.
    framed = np.zeros((num_images * num_channels * height + 1, 2 * width), dtype=np.uint8)
    framed[:-1, width:] = images.reshape(-1, width)
    rows = np.arange(0, framed.size - 2 * width, 2 * width).reshape(num_images, num_channels, height)
    pieces = np.lib.stride_tricks.as_strided(framed, (framed.size - width + 1, width), (1, 1))
    return pieces[rows + columns[:, None]]


def shear_y(images: Bytes, parameters: Floats) -> Bytes:
    """Column x moves by parameter * x, the top-left corner stays."""
    height, width = images.shape[2:]
    # What lies above or below the image is in one of two black rows.
    framed = np.zeros((*images.shape[:2], height + 2, width), dtype=np.uint8)
    framed[:, :, 1:-1] = images
    places = np.arange(width, (height + 1) * width).reshape(height, width)
    return _gather(framed, (_sheared(parameters, width) * width)[:, None] + places)


def _sheared(parameters: Floats, side: int) -> NDArray[np.int64]:
    """(n, side): by how many places each of the lines moves."""
    shear = parameters.astype(np.float64)[:, None]
    return (_fixed_point(shear).astype(np.int64) * np.arange(side) + _fixed_point(0.5 * (1 + shear))) >> 16


def rotate(images: Bytes, parameters: Floats) -> Bytes:
    """Image.rotate: counter-clockwise about the centre, parameter in degrees."""
    height, width = images.shape[2:]
    angle = np.deg2rad(parameters.astype(np.float64))
    cos, sin = np.cos(angle), np.sin(angle)
    centre_x, centre_y = width / 2, height / 2
    shift_x = centre_x - cos * centre_x + sin * centre_y
    shift_y = centre_y - sin * centre_x - cos * centre_y
    columns = _positions(cos, -sin, shift_x, images.shape)
    # A black row above and a black column at the right take what falls outside, and so do the ends of all.
    rows = _positions(sin, cos, shift_y + 1, images.shape)
    framed = np.zeros((*images.shape[:2], height + 1, width + 1), dtype=np.uint8)
    framed[:, :, 1:, :-1] = images
    rows *= width + 1
    rows += np.minimum(columns.view(np.uint32), np.uint32(width)).view(np.int32)
    return _gather(framed, rows.astype(np.intp))


def _positions(
    along_x: NDArray[np.float64], along_y: NDArray[np.float64], constant: NDArray[np.float64], shape: tuple[int, ...]
) -> NDArray[np.int32]:
    """(n, H, W): along_x x + along_y y + constant at the centres of all pixels (x, y), rounded down."""
    height, width = shape[2:]
    in_row = _fixed_point(along_x)[:, None] * np.arange(width, dtype=np.int32)
    in_column = _fixed_point(along_y)[:, None] * np.arange(height, dtype=np.int32)
    in_column += _fixed_point(constant + 0.5 * (along_x + along_y))[:, None]
    positions: NDArray[np.int32] = np.add(in_column[:, :, None], in_row[:, None])
    positions >>= 16
    return positions


def _gather(framed: Bytes, places: NDArray[np.intp]) -> Bytes:
    """(n, C, rows, columns) and (n, H, W), places in the planes of an image, or outside: those at their ends."""
    num_images, num_channels = framed.shape[:2]
    result = np.empty((num_images, num_channels, *places.shape[1:]), dtype=np.uint8)
    for planes, place, moved in zip(framed.reshape(num_images, num_channels, -1), places, result, strict=True):
        planes.take(place, axis=1, out=moved, mode="clip")
    return result
