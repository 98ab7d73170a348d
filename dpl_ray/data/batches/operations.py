"""RandAugment's operations (Cubuk 2020) on whole batches, to the bytes that Pillow gives.

N images, C channels (1 or 3), H rows, W columns, n images that drew one operation.

The ranges are those of USB's `classic_cv`. The arithmetic is Pillow's: same tables, same 16.16 fixed-point coordinates,
same truncations. The plans and kernels here are those of a GPU. What a CPU does is in operations_on_cpu.py.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from dpl_ray.data.batches import operations_on_cpu as on_cpu
from dpl_ray.data.batches.rounds import Operation


def _grayscale(images: Tensor) -> Tensor:
    """float32 (n, C, H, W) -> (n, 1, H, W): Pillow's L, ITU-R 601 luma in 16-bit fixed point.

    All of it is whole numbers below 2 ** 24, which float32 holds exactly.
    """
    if images.shape[1] == 1:
        return images
    red, green, blue = images.split(1, dim=1)
    luma = red * 19595
    return luma.add_(green, alpha=38470).add_(blue, alpha=7471).add_(0x8000).mul_(2**-16).floor_()


def _bytes(values: Tensor) -> Tensor:
    """float32 in [0, 256) -> uint8, cut off. A CPU makes int16 of it, and bytes of that, in a fourth of the time."""
    return values.to(torch.int16).to(torch.uint8)


def _blend(degenerate: Tensor, values: Tensor, factor: Tensor) -> Tensor:
    """Pillow's Image.blend, degenerate + factor * (values - degenerate) cut to uint8, factor in [0, 1].

    degenerate and values are whole numbers in float32: the difference is exact, then one product and one
    sum are rounded, as in Pillow. values is overwritten.
    """
    return _bytes(values.sub_(degenerate).mul_(factor).add_(degenerate))


# Tables: what each of the 256 levels becomes, uint8 (n, C, 256).


def _levels(images: Tensor) -> Tensor:
    return torch.arange(256, dtype=torch.int32, device=images.device)


def _plan_autocontrast(images: Tensor, _parameters: Tensor) -> Tensor:
    """ImageOps.autocontrast: darkest level to 0, brightest to 255; a flat channel stays as it is."""
    low = images.amin(dim=(2, 3)).double()
    span = images.amax(dim=(2, 3)).double() - low
    # float64 and this order of operations, since Pillow truncates: 254.99... and 255 are different levels.
    # `255 / span` would not do: torch computes it as 255 * (1 / span), which rounds twice.
    scale = torch.where(span > 0, torch.full_like(span, 255) / span, 1.0)
    offset = torch.where(span > 0, -low * scale, 0.0)
    table = _levels(images) * scale[..., None] + offset[..., None]
    return table.clamp_(0, 255).to(torch.uint8)


def _plan_equalize(images: Tensor, _parameters: Tensor) -> Tensor:
    """ImageOps.equalize: the cumulative histogram, rescaled; too few levels leave a channel as it is."""
    num_images, num_channels, height, width = images.shape
    num_bins = num_images * num_channels * 256
    first_bins = torch.arange(0, num_bins, 256, dtype=torch.int32, device=images.device)
    bins = images.flatten(2).int().add_(first_bins.view(num_images, num_channels, 1)).flatten()
    # Not by bincount: a GPU's host would wait for the largest bin.
    histogram = torch.zeros(num_bins, dtype=torch.int32, device=images.device)
    histogram.scatter_add_(0, bins.long(), torch.ones_like(histogram[:1]).expand(bins.shape))
    histogram = histogram.view(num_images, num_channels, 256)
    brightest = histogram.gather(2, images.flatten(2).amax(dim=2, keepdim=True).long())
    step = (height * width - brightest) // 255
    below = histogram.cumsum(dim=2, dtype=torch.int32) - histogram
    table = (step // 2 + below) // step.clamp(min=1)
    return torch.where(step > 0, table.clamp_(max=255), _levels(images)).to(torch.uint8)


def _apply_tables(images: Tensor, tables: Tensor) -> Tensor:
    return tables.gather(2, images.flatten(2).long()).view(images.shape)


# Affine maps from an output pixel (x, y) to the input position (a x + b y + c, d x + e y + f) it shows:
# float64 (n, 6), the rows a .. f as Image.transform takes them.


def _plan_rotate(images: Tensor, parameters: Tensor) -> Tensor:
    """Image.rotate: counter-clockwise about the centre, parameter in degrees."""
    angle = torch.deg2rad(parameters.double())
    cos, sin = angle.cos(), angle.sin()
    centre_x, centre_y = images.shape[3] / 2, images.shape[2] / 2
    shift_x = centre_x - cos * centre_x + sin * centre_y
    shift_y = centre_y - sin * centre_x - cos * centre_y
    return torch.stack((cos, -sin, shift_x, sin, cos, shift_y), dim=1)


def _plan_shear_x(_images: Tensor, parameters: Tensor) -> Tensor:
    """Row y moves by parameter * y, the top-left corner stays."""
    return _identity_except(1, parameters)


def _plan_shear_y(_images: Tensor, parameters: Tensor) -> Tensor:
    """Column x moves by parameter * x, the top-left corner stays."""
    return _identity_except(3, parameters)


def _plan_translate_x(images: Tensor, parameters: Tensor) -> Tensor:
    """Move by parameter * W columns, rounded to whole pixels as Pillow does for unrotated maps."""
    return _identity_except(2, (parameters.double() * images.shape[3] + 0.5).floor_())


def _plan_translate_y(images: Tensor, parameters: Tensor) -> Tensor:
    """Move by parameter * H rows, rounded to whole pixels as Pillow does for unrotated maps."""
    return _identity_except(5, (parameters.double() * images.shape[2] + 0.5).floor_())


def _identity_except(column: int, values: Tensor) -> Tensor:
    """(n,) -> the identity map, float64 (n, 6), with the values in one of its columns."""
    matrices = values.new_zeros((len(values), 6), dtype=torch.float64)
    matrices[:, 0::4] = 1
    matrices[:, column] = values
    return matrices


def _fixed_point(matrices: Tensor, frame: int) -> Tensor:
    """float64 (n, 6) -> int32 (n, 2, 3), 16.16: of pixel centres, the positions counted from the corner of a frame."""
    linear = matrices.view(-1, 2, 3)
    centres = linear[..., 2] + 0.5 * (linear[..., 0] + linear[..., 1])
    return torch.cat((linear[..., :2], centres[..., None] + frame), dim=2).mul_(1 << 16).add_(0.5).floor_().int()


def _apply_affine(images: Tensor, matrices: Tensor) -> Tensor:
    """Nearest neighbour; what comes from outside the image is black, Pillow's and FixMatch's filling.

    As in Pillow, positions are those of pixel centres in 16.16 fixed point, here int32: sides up to 8192.
    """
    height, width = images.shape[2:]
    x = torch.arange(width, dtype=torch.int32, device=images.device)
    y = torch.arange(height, dtype=torch.int32, device=images.device)[:, None]
    # A black frame one pixel wide takes everything that falls outside: no mask, no second pass.
    along_x, along_y, constant = _fixed_point(matrices, frame=1)[:, :, None, None].unbind(-1)
    columns, rows = (along_x * x + (along_y * y + constant)).bitwise_right_shift_(16).unbind(1)
    columns.clamp_(0, width + 1)
    rows.clamp_(0, height + 1)
    index = columns.add(rows, alpha=width + 2).long().flatten(1)[:, None]
    framed = F.pad(images, (1, 1, 1, 1)).flatten(2)
    return framed.gather(2, index.expand(-1, images.shape[1], -1)).view(images.shape)


# Operations of arithmetic: the plan is the finished image.


def _plan_brightness(images: Tensor, parameters: Tensor) -> Tensor:
    """ImageEnhance.Brightness: blend of black and the image."""
    return _bytes(images.float().mul_(parameters[:, None, None, None]))


def _plan_contrast(images: Tensor, parameters: Tensor) -> Tensor:
    """ImageEnhance.Contrast: blend of the image's mean grey, rounded, and the image."""
    num_pixels = images.shape[2] * images.shape[3]
    values = images.float()
    total = _grayscale(values).int().sum(dim=3, dtype=torch.int32).sum(dim=(1, 2))
    mean = (2 * total + num_pixels) // (2 * num_pixels)
    return _blend(mean[:, None, None, None].float(), values, parameters[:, None, None, None])


def _plan_posterize(images: Tensor, parameters: Tensor) -> Tensor:
    """ImageOps.posterize: keep the upper int(parameter) bits."""
    bits = (255 << (8 - parameters.int())).to(torch.uint8)
    return images & bits[:, None, None, None]


def _plan_solarize(images: Tensor, parameters: Tensor) -> Tensor:
    """ImageOps.solarize: invert the levels from the threshold on."""
    above = images.to(torch.int16) - parameters.ceil().to(torch.int16)[:, None, None, None]
    # Its sign in all bits: -1 below the threshold, else 0.
    return images ^ above.bitwise_right_shift_(15).bitwise_not_().to(torch.uint8)


def _plan_color(images: Tensor, parameters: Tensor) -> Tensor:
    """ImageEnhance.Color: blend of the grey image and the image; nothing to do for one channel."""
    if images.shape[1] == 1:
        return images
    values = images.float()
    return _blend(_grayscale(values), values, parameters[:, None, None, None])


def _plan_sharpness(images: Tensor, parameters: Tensor) -> Tensor:
    """ImageEnhance.Sharpness: blend of ImageFilter.SMOOTH and the image, whose outermost pixels stay."""
    height, width = images.shape[2:]
    if height < 3 or width < 3:
        return images
    # Sums of neighbours in memory: whole images are one long row, and what crosses their sides is left out at the end.
    values = images.flatten(1).to(torch.int16)
    rows = (values[:, : -2 * width] + values[:, width:-width]).add_(values[:, 2 * width :])
    total = (rows[:, :-2] + rows[:, 1:-1]).add_(rows[:, 2:])
    inner = values[:, width + 1 : -width - 1]
    # Rounding a thirteenth has no ties: the nearest half is 1/26 away, far beyond float32's error.
    smooth = total.add_(inner, alpha=4).float().mul_(1 / 13).add_(0.5).floor_()
    blended = torch.empty_like(images, memory_format=torch.contiguous_format)
    blended.flatten(1)[:, width + 1 : -width - 1] = _blend(smooth, inner.float(), parameters[:, None])
    result = images.clone()
    result[:, :, 1:-1, 1:-1] = blended[:, :, 1:-1, 1:-1]
    return result


def _plan_identity(images: Tensor, _parameters: Tensor) -> Tensor:
    return images


def _apply_finished(_images: Tensor, finished: Tensor) -> Tensor:
    return finished


OPERATIONS: dict[str, Operation] = {
    "identity": Operation(0.0, 1.0, _plan_identity, _apply_finished, on_cpu.identity),
    "color": Operation(0.05, 0.95, _plan_color, _apply_finished, on_cpu.color),
    "sharpness": Operation(0.05, 0.95, _plan_sharpness, _apply_finished, on_cpu.sharpness),
    "autocontrast": Operation(0.0, 1.0, _plan_autocontrast, _apply_tables, on_cpu.autocontrast),
    "equalize": Operation(0.0, 1.0, _plan_equalize, _apply_tables, on_cpu.equalize),
    "brightness": Operation(0.05, 0.95, _plan_brightness, _apply_finished, on_cpu.brightness),
    "contrast": Operation(0.05, 0.95, _plan_contrast, _apply_finished, on_cpu.contrast),
    "posterize": Operation(4.0, 8.0, _plan_posterize, _apply_finished, on_cpu.posterize),
    "solarize": Operation(0.0, 256.0, _plan_solarize, _apply_finished, on_cpu.solarize),
    "rotate": Operation(-30.0, 30.0, _plan_rotate, _apply_affine, on_cpu.rotate),
    "shear_x": Operation(-0.3, 0.3, _plan_shear_x, _apply_affine, on_cpu.shear_x),
    "shear_y": Operation(-0.3, 0.3, _plan_shear_y, _apply_affine, on_cpu.shear_y),
    "translate_x": Operation(-0.3, 0.3, _plan_translate_x, _apply_affine, on_cpu.translate_x),
    "translate_y": Operation(-0.3, 0.3, _plan_translate_y, _apply_affine, on_cpu.translate_y),
}
