"""Weak and strong views of whole uint8 batches, as pure functions of (images, uniforms).

N images, C channels (1 or 3), H rows, W columns, n images that drew one operation, K random columns.

All randomness is an argument: `uniforms`, float32 (N, K) in [0, 1), row i belonging to image i. A view is
therefore reproducible, and row-independent bit for bit: `weak(x, u, s)[mask] == weak(x[mask], u[mask], s)`.
The columns are, in this order,

    row offset, column offset, flip                             weak() reads these three
    (operation, magnitude) for each of the num_operations       strong() reads on
    side, centre row, centre column of the cutout

The recipe is that of FixMatch (Sohn 2020) as in USB's `classic_cv`; the operations are RandAugment's
(Cubuk 2020), their ranges USB's. The arithmetic is Pillow's: same tables, same 16.16 fixed-point
coordinates, same truncations, so each operation gives the bytes that Pillow gives.

The rounds of operations of a strong view are in rounds.py.
"""

from contextlib import nullcontext

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dpl_ray.config.schema import ViewsConfig
from dpl_ray.data.batches.rounds import Operation, block_size, draw, rounds_on

WEAK_UNIFORMS = 3
CUTOUT_UNIFORMS = 3
GREY = 127
MAX_BYTES = 16 << 20  # of images whose strong views a CPU computes at a time
WIDE = 64  # columns: pieces of rows of such images are copied in less time on a CPU than single pixels


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
    if images.device.type == "cpu" and not torch.compiler.is_compiling():
        histogram = bins.bincount(minlength=num_bins).int()
    else:  # of which a GPU's host would wait for the largest bin
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


def _move_rows(images: Tensor, matrices: Tensor) -> Tensor:
    """_apply_affine for a = e = 1 and d = 0: every row shows a part of one row, and is copied as one piece."""
    num_images, num_channels, height, width = images.shape
    # By numpy, which does small sums in half of the time.
    a, b, c = matrices.numpy().reshape(-1, 2, 3, 1).transpose(2, 0, 1, 3)
    along_y, constant = (np.floor((1 << 16) * part + 0.5).astype(np.int64) for part in (b, c + 0.5 * (a + b)))
    columns, rows = ((along_y * np.arange(height) + constant) >> 16).transpose(1, 0, 2)
    columns = np.where((rows >= 0) & (rows < height), columns.clip(-width, width), -width)
    # Black left of each row, where the row above ends, and below the last.
    framed = F.pad(images.flatten(0, 2), (width, 0, 0, 1))
    starts = rows.clip(0, height - 1) * (2 * width) + columns + width
    planes = np.arange(num_images * num_channels).reshape(num_images, num_channels, 1) * (height * 2 * width)
    return _windows(framed, torch.from_numpy(planes + starts[:, None]), images.shape)


def _windows(framed: Tensor, starts: Tensor, shape: torch.Size) -> Tensor:
    """Rows of uint8 (N, C, H, W) are pieces of `framed`, which begin where int64 `starts` (N, C, H) says."""
    return framed.flatten().unfold(0, shape[3], 1).index_select(0, starts.flatten()).view(shape)


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
    "identity": Operation(0.0, 1.0, _plan_identity, _apply_finished),
    "color": Operation(0.05, 0.95, _plan_color, _apply_finished),
    "sharpness": Operation(0.05, 0.95, _plan_sharpness, _apply_finished),
    "autocontrast": Operation(0.0, 1.0, _plan_autocontrast, _apply_tables),
    "equalize": Operation(0.0, 1.0, _plan_equalize, _apply_tables),
    "brightness": Operation(0.05, 0.95, _plan_brightness, _apply_finished),
    "contrast": Operation(0.05, 0.95, _plan_contrast, _apply_finished),
    "posterize": Operation(4.0, 8.0, _plan_posterize, _apply_finished),
    "solarize": Operation(0.0, 256.0, _plan_solarize, _apply_finished),
    "rotate": Operation(-30.0, 30.0, _plan_rotate, _apply_affine),
    "shear_x": Operation(-0.3, 0.3, _plan_shear_x, _apply_affine, _move_rows),
    "shear_y": Operation(-0.3, 0.3, _plan_shear_y, _apply_affine),
    "translate_x": Operation(-0.3, 0.3, _plan_translate_x, _apply_affine, _move_rows),
    "translate_y": Operation(-0.3, 0.3, _plan_translate_y, _apply_affine, _move_rows),
}


def num_strong_uniforms(settings: ViewsConfig) -> int:
    """Number of columns of `uniforms` that `strong` reads."""
    return WEAK_UNIFORMS + 2 * settings.num_operations + CUTOUT_UNIFORMS


def weak(images: Tensor, uniforms: Tensor, settings: ViewsConfig) -> Tensor:
    """Random crop of the image padded by reflection, then a horizontal flip of every second image.

    uint8 (N, C, H, W), float32 (N, K >= WEAK_UNIFORMS) -> new uint8 (N, C, H, W) on the same device.
    """
    _check(images, uniforms, WEAK_UNIFORMS)
    num_images, num_channels, height, width = images.shape
    if _is_on_cpu(images) and width >= WIDE and num_images:
        return _weak_by_rows(images, uniforms, settings)
    rows = _crop(uniforms[:, 0], height, settings.crop_padding)
    columns = _crop(uniforms[:, 1], width, settings.crop_padding)
    if settings.horizontal_flip:
        columns = torch.where(uniforms[:, 2, None] < 0.5, columns.flip(1), columns)
    planes = torch.arange(num_images * num_channels, device=images.device).view(num_images, num_channels, 1)
    cropped = images.flatten(0, 2).index_select(0, (planes * height + rows[:, None]).flatten())
    return cropped.view(images.shape).gather(3, columns[:, None, None].expand(images.shape))


def _weak_by_rows(images: Tensor, uniforms: Tensor, settings: ViewsConfig) -> Tensor:
    """weak(): each of its rows is a piece of a row that is reflected at its ends again and again."""
    num_images, num_channels, height, width = images.shape
    rows = _crop(uniforms[:, 0], height, settings.crop_padding)
    padding = int(width * settings.crop_padding)
    columns = _offsets(uniforms[:, 1], padding)
    if settings.horizontal_flip:
        columns = torch.where(uniforms[:, 2] < 0.5, width - 1 - columns, columns)
    framed_width = 2 * width - 1 + 2 * padding
    planes = torch.arange(num_images)[:, None] % block_size(images) * num_channels + torch.arange(num_channels)
    starts = (planes[..., None] * height + rows[:, None]) * framed_width + (columns + padding)[:, None, None]

    views = torch.empty(images.shape, dtype=torch.uint8)
    with torch.inference_mode():
        for view, part, start in zip(*(it.split(block_size(images)) for it in (views, images, starts)), strict=True):
            flipped = part.flip(3)
            ends = flipped[..., width - 1 - padding : width - 1], flipped[..., 1:], part[..., 1 : 1 + padding]
            pieces = torch.cat((ends[0], part, *ends[1:]), dim=3).flatten().unfold(0, width, 1)
            torch.index_select(pieces, 0, start.flatten(), out=view.view(-1, width))
    return views


def strong(images: Tensor, uniforms: Tensor, settings: ViewsConfig) -> Tensor:
    """The weak view of the same columns, then `num_operations` random operations, then cutout.

    uint8 (N, C, H, W), float32 (N, K >= num_strong_uniforms(settings)) -> new uint8 (N, C, H, W) on the
    same device.
    """
    _check(images, uniforms, num_strong_uniforms(settings))
    column = WEAK_UNIFORMS + 2 * settings.num_operations
    draws, last = uniforms[:, WEAK_UNIFORMS:column], uniforms[:, column : column + CUTOUT_UNIFORMS]
    if _is_on_cpu(images):
        views = weak(images, uniforms, settings)
        size = max(1, MAX_BYTES // max(1, images[:1].numel()))
        # Hundreds of small kernels: without autograd's bookkeeping a CPU launches them faster.
        with torch.inference_mode():
            for view, drawn, square in zip(views.split(size), draws.split(size), last.split(size), strict=True):
                view.copy_(_cut_out(_in_rounds(view, drawn, settings), square, settings.cutout))
        return views
    # torch.compile has no such bookkeeping, and no inference tensors.
    with nullcontext() if torch.compiler.is_compiling() else torch.inference_mode():
        views = _in_rounds(weak(images, uniforms, settings), draws, settings)
    # Outside, so that what the caller gets is an ordinary tensor.
    return _cut_out(views, last, settings.cutout)


def _in_rounds(views: Tensor, draws: Tensor, settings: ViewsConfig) -> Tensor:
    if settings.num_operations == 0:
        return views
    operations = [operation for name, operation in OPERATIONS.items() if name not in settings.exclude]
    return rounds_on(views.device)(views, draws[:, 0::2], draws[:, 1::2], operations)


def _is_on_cpu(images: Tensor) -> bool:
    return images.device.type == "cpu" and not torch.compiler.is_compiling()


def _offsets(uniforms: Tensor, padding: int) -> Tensor:
    """float32 (N,) -> int64 (N,), uniform over -padding .. padding."""
    return draw(uniforms, 2 * padding + 1) - padding


def _crop(uniforms: Tensor, side: int, padding: float) -> Tensor:
    """float32 (N,) -> int64 (N, side): which row (or column) each row of the crop shows."""
    position = torch.arange(side, device=uniforms.device) + _offsets(uniforms, int(side * padding))[:, None]
    return (side - 1) - ((side - 1) - position.abs()).abs()  # reflected at 0, then at side - 1


def _cut_out(views: Tensor, uniforms: Tensor, largest: float) -> Tensor:
    """Grey out, on a CPU in place, the pixels of views whose centres lie in a square of side U(0, largest) * W.

    Its centre is uniform over the image and what sticks out is lost (DeVries and Taylor 2017).
    """
    height, width = views.shape[2:]
    half = uniforms[:, 0, None] * (largest * width / 2)
    y = torch.arange(height, device=views.device) + 0.5
    x = torch.arange(width, device=views.device) + 0.5
    rows = (y - uniforms[:, 1, None] * height).abs() < half
    columns = (x - uniforms[:, 2, None] * width).abs() < half
    rows, columns = rows.to(torch.uint8)[:, :, None], columns.to(torch.uint8)[:, None, :]
    if not _is_on_cpu(views):
        hole = (rows * columns)[:, None]
        return views * (1 - hole) + GREY * hole
    for part, *lines in zip(*(it.split(block_size(views)) for it in (views, rows, columns)), strict=True):
        hole = (lines[0] * lines[1])[:, None]
        part.mul_(1 - hole).add_(GREY * hole)  # bytes throughout: several times masked_fill's speed
    return views


def _check(images: Tensor, uniforms: Tensor, num_uniforms: int) -> None:
    if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[1] not in (1, 3):
        raise ValueError(
            "images must be uint8 of shape (N, C, H, W) with 1 or 3 channels, "
            f"got {images.dtype} of shape {tuple(images.shape)}"
        )
    if uniforms.dtype != torch.float32 or uniforms.dim() != 2 or uniforms.shape[1] < num_uniforms:
        raise ValueError(
            f"uniforms must be float32 of shape (N, at least {num_uniforms}), "
            f"got {uniforms.dtype} of shape {tuple(uniforms.shape)}"
        )
    if len(uniforms) != len(images):
        raise ValueError(f"uniforms must have one row per image, got {len(uniforms)} for {len(images)} images")
