"""Weak and strong views against per-image references: Pillow for the operations, loops for the rest.

All comparisons with Pillow are exact: no operation is allowed a single grey level of difference.
"""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

from dpl_ray.config.schema import ViewsConfig
from dpl_ray.data.batches import augment, rounds
from dpl_ray.data.batches.augment import GREY, WEAK_UNIFORMS, num_strong_uniforms, strong, weak
from dpl_ray.data.batches.operations import OPERATIONS
from dpl_ray.data.batches.rounds import Operation

SIZES = [(32, 32), (28, 28), (17, 23), (8, 8), (5, 2), (3, 3), (1, 1)]
BELOW_ONE = float(np.nextafter(np.float32(1), np.float32(0)))


def all_but(*names: str) -> tuple[str, ...]:
    """What to exclude for the strong view to draw from these operations."""
    return tuple(name for name in OPERATIONS if name not in names)


def affine(image: Image.Image, *matrix: float) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.NEAREST)


PILLOW = {
    "identity": lambda image, v: image,
    "autocontrast": lambda image, v: ImageOps.autocontrast(image),
    "equalize": lambda image, v: ImageOps.equalize(image),
    "brightness": lambda image, v: ImageEnhance.Brightness(image).enhance(v),
    "contrast": lambda image, v: ImageEnhance.Contrast(image).enhance(v),
    "posterize": lambda image, v: ImageOps.posterize(image, int(v)),
    "solarize": lambda image, v: ImageOps.solarize(image, v),
    "rotate": lambda image, v: image.rotate(v, Image.Resampling.NEAREST),
    "shear_x": lambda image, v: affine(image, 1, v, 0, 0, 1, 0),
    "shear_y": lambda image, v: affine(image, 1, 0, 0, v, 1, 0),
    "translate_x": lambda image, v: affine(image, 1, 0, v * image.width, 0, 1, 0),
    "translate_y": lambda image, v: affine(image, 1, 0, 0, 0, 1, v * image.height),
    "color": lambda image, v: ImageEnhance.Color(image).enhance(v),
    "sharpness": lambda image, v: ImageEnhance.Sharpness(image).enhance(v),
}


def to_pillow(image: Tensor) -> Image.Image:
    array = image.permute(1, 2, 0).numpy()
    return Image.fromarray(array[..., 0] if array.shape[2] == 1 else array)


def from_pillow(image: Image.Image) -> Tensor:
    array = np.array(image)
    return torch.from_numpy(array[..., None] if array.ndim == 2 else array).permute(2, 0, 1)


def noise(num: int, channels: int, height: int, width: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (num, channels, height, width), dtype=torch.uint8, generator=generator)


def pictures(num: int, channels: int, height: int, width: int) -> Tensor:
    """Noise, smooth pictures of low contrast, pictures of two levels and flat ones, in turn."""
    images = noise(num, channels, height, width)
    y = torch.linspace(0, 1, height)[:, None]
    x = torch.linspace(0, 1, width)
    for i in range(num):
        if i % 4 == 1:
            for c in range(channels):
                wave = 90 + 20 * c + 60 * y * x + 25 * torch.sin(9 * x + i + c) + 3 * torch.rand(height, width)
                images[i, c] = wave.to(torch.uint8)
        elif i % 4 == 2:
            images[i] = torch.where(images[i] < 60, 17, 201)
        elif i % 4 == 3:
            images[i] = 13 * i % 256
    return images


def random_uniforms(num: int, columns: int, seed: int = 0) -> Tensor:
    return torch.rand(num, columns, generator=torch.Generator().manual_seed(seed))


def assert_same(actual: Tensor, expected: Tensor) -> None:
    assert actual.dtype == torch.uint8
    assert actual.shape == expected.shape
    assert torch.equal(actual, expected), f"{(actual != expected).sum()} of {actual.numel()} pixels differ"


def assert_gives(operation: Operation, images: Tensor, parameters: Tensor, expected: Tensor) -> None:
    before = images.clone()
    assert_same(operation.apply(images, operation.plan(images, parameters)), expected)
    assert_same(torch.from_numpy(operation.on_cpu(images.numpy(), parameters.numpy())), expected)
    assert torch.equal(images, before)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", OPERATIONS)
def test_operation_gives_pillows_bytes(name: str, channels: int, size: tuple[int, int]) -> None:
    operation = OPERATIONS[name]
    images = pictures(24, channels, *size)
    draws = torch.rand(24, generator=torch.Generator().manual_seed(1))
    draws[:4], draws[4:8] = 0.0, 1.0  # both ends of the range, on each kind of picture
    parameters = operation.low + (operation.high - operation.low) * draws
    expected = [PILLOW[name](to_pillow(image), float(v)) for image, v in zip(images, parameters, strict=True)]
    assert_gives(operation, images, parameters, torch.stack([from_pillow(image) for image in expected]))


@pytest.mark.parametrize("name", ["rotate", "shear_x", "shear_y", "translate_x", "translate_y"])
@pytest.mark.parametrize("size", [(32, 32), (17, 24)], ids=str)
def test_geometric_operation_gives_pillows_bytes_over_its_whole_range(name: str, size: tuple[int, int]) -> None:
    operation = OPERATIONS[name]
    # Regular steps, so that round angles and shifts, where nearest neighbours tie, are among them.
    parameters = torch.linspace(operation.low, operation.high, 241)
    images = noise(1, 1, *size).expand(241, -1, -1, -1)
    expected = [from_pillow(PILLOW[name](to_pillow(images[0]), float(v))) for v in parameters]
    assert_gives(operation, images, parameters, torch.stack(expected))


def test_color_of_one_channel_is_the_identity() -> None:
    images = pictures(8, 1, 9, 7)
    assert_gives(OPERATIONS["color"], images, torch.linspace(0.05, 0.95, 8), images)


@pytest.mark.parametrize("name", OPERATIONS)
def test_operation_takes_an_empty_batch(name: str) -> None:
    images, operation = noise(0, 3, 8, 8), OPERATIONS[name]
    assert_same(operation.apply(images, operation.plan(images, torch.empty(0))), images)


def weak_reference(image: Tensor, uniforms: Tensor, views: ViewsConfig) -> Tensor:
    """Pixel by pixel: where in the image the pixel of the flipped crop of the padded image comes from."""

    def source(position: int, side: int, uniform: float) -> int:
        padding = int(side * views.crop_padding)
        position += int(np.float32(uniform) * np.float32(2 * padding + 1)) - padding
        if position < 0:
            return -position
        return position if position < side else 2 * (side - 1) - position

    _, height, width = image.shape
    result = torch.empty_like(image)
    flip = views.horizontal_flip and float(uniforms[2]) < 0.5
    for y in range(height):
        for x in range(width):
            column = width - 1 - x if flip else x
            row = source(y, height, float(uniforms[0]))
            result[:, y, x] = image[:, row, source(column, width, float(uniforms[1]))]
    return result


def cutout_reference(image: Tensor, uniforms: Tensor, largest: float) -> Tensor:
    _, height, width = image.shape
    half = np.float32(uniforms[0]) * np.float32(largest * width / 2)
    centre_y = np.float32(uniforms[1]) * np.float32(height)
    centre_x = np.float32(uniforms[2]) * np.float32(width)
    result = image.clone()
    for y in range(height):
        for x in range(width):
            if abs(np.float32(y + 0.5) - centre_y) < half and abs(np.float32(x + 0.5) - centre_x) < half:
                result[:, y, x] = GREY
    return result


def strong_reference(image: Tensor, uniforms: Tensor, views: ViewsConfig) -> Tensor:
    result = to_pillow(weak_reference(image, uniforms, views))
    for r in range(views.num_operations):
        choice, magnitude = (np.float32(u) for u in uniforms[WEAK_UNIFORMS + 2 * r : WEAK_UNIFORMS + 2 * r + 2])
        names = [name for name in OPERATIONS if name not in views.exclude]
        name = names[int(choice * np.float32(len(names)))]
        operation = OPERATIONS[name]
        span = np.float32(operation.high - operation.low)
        result = PILLOW[name](result, float(np.float32(operation.low) + span * magnitude))
    last = uniforms[WEAK_UNIFORMS + 2 * views.num_operations :]
    return cutout_reference(from_pillow(result), last, views.cutout)


VARIANTS = [
    ViewsConfig(),
    ViewsConfig(crop_padding=0.3, horizontal_flip=False, num_operations=1, cutout=0.0),
    ViewsConfig(crop_padding=0.0, num_operations=2, cutout=1.0, exclude=all_but("solarize", "rotate", "color")),
    ViewsConfig(num_operations=5, exclude=all_but("equalize")),
]


@pytest.mark.parametrize("views", VARIANTS, ids=["default", "no flip", "three operations", "equalize"])
@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 9, 14), (3, 8, 5), (1, 1, 1)], ids=str)
def test_views_equal_the_loops(shape: tuple[int, int, int], views: ViewsConfig) -> None:
    images = pictures(14, *shape)
    uniforms = random_uniforms(14, num_strong_uniforms(views))
    uniforms[0], uniforms[1] = 0.0, BELOW_ONE
    pairs = list(zip(images, uniforms, strict=True))
    assert_same(weak(images, uniforms, views), torch.stack([weak_reference(*pair, views) for pair in pairs]))
    assert_same(strong(images, uniforms, views), torch.stack([strong_reference(*pair, views) for pair in pairs]))


@settings(max_examples=30)
@given(
    mask=st.lists(st.booleans(), max_size=20),
    channels=st.sampled_from([1, 3]),
    height=st.integers(1, 12),
    width=st.integers(1, 12),
    seed=st.integers(0, 2**31),
)
def test_a_view_depends_on_its_own_row_only(
    mask: list[bool], channels: int, height: int, width: int, seed: int
) -> None:
    views = ViewsConfig()
    images = noise(len(mask), channels, height, width, seed)
    uniforms = random_uniforms(len(mask), num_strong_uniforms(views), seed)
    kept = torch.tensor(mask, dtype=torch.bool)
    for view in (weak, strong):
        assert_same(view(images, uniforms, views)[kept], view(images[kept], uniforms[kept], views))


def test_large_batches_are_computed_in_parts_to_the_same_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    views = ViewsConfig()
    images, uniforms = noise(10, 3, 9, 8), random_uniforms(10, num_strong_uniforms(views))
    whole, numbers, cut_out = strong(images, uniforms, views), list[int](), augment._cut_out

    def noted(part: Tensor, uniforms: Tensor, views: ViewsConfig) -> Tensor:
        numbers.append(len(part))
        return cut_out(part, uniforms, views)

    monkeypatch.setattr(augment, "_cut_out", noted)
    for num_bytes, expected in ((3 * images[0].numel(), [3, 3, 3, 1]), (1, [1] * 10)):
        monkeypatch.setattr(augment, "MAX_BYTES", num_bytes)
        assert_same(strong(images, uniforms, views), whole)
        assert numbers == expected
        numbers.clear()


@pytest.mark.parametrize("size", [(9, 8), (5, 2), (2, 5), (1, 1)], ids=str)
@pytest.mark.parametrize("padding", [0.0, 0.5])
def test_weak_views_copied_by_rectangles_have_the_same_bytes(
    padding: float, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    views = ViewsConfig(crop_padding=padding)
    images, uniforms = noise(50, 3, *size), random_uniforms(50, WEAK_UNIFORMS)
    uniforms[:2], uniforms[2:4] = 0.0, BELOW_ONE
    expected = weak(images, uniforms, views)
    monkeypatch.setattr(augment, "WIDE", 1)
    assert_same(weak(images, uniforms, views), expected)


def test_levels_of_more_planes_than_int16_counts_are_equalized() -> None:
    images = pictures(100, 3, 9, 7)
    whole = OPERATIONS["equalize"].on_cpu(images.numpy(), np.zeros(100, dtype=np.float32))
    for image, expected in zip(images, whole, strict=True):
        assert_same(from_pillow(ImageOps.equalize(to_pillow(image))), torch.from_numpy(expected))


def test_a_view_depends_on_its_own_row_only_in_a_large_batch() -> None:
    views = ViewsConfig()
    images, uniforms = pictures(448, 3, 32, 32), random_uniforms(448, num_strong_uniforms(views))
    order = torch.randperm(448, generator=torch.Generator().manual_seed(3))[:113]
    assert_same(strong(images, uniforms, views)[order], strong(images[order], uniforms[order], views))


@pytest.mark.parametrize("channels", [1, 3])
def test_rounds_of_all_operations_on_all_images_give_the_same_bytes(
    channels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    views = ViewsConfig(exclude=("rotate",))
    images, uniforms = pictures(200, channels, 12, 10), random_uniforms(200, num_strong_uniforms(views))
    expected = strong(images, uniforms, views)
    monkeypatch.setattr(rounds, "apply_rounds", rounds.apply_rounds_to_all)
    monkeypatch.setattr(augment, "_is_on_cpu", lambda _: False)
    assert_same(strong(images, uniforms, views), expected)
    assert len(strong(images[:0], uniforms[:0], views)) == 0


@pytest.mark.parametrize("view", [weak, strong])
def test_a_view_is_a_function_of_its_arguments_and_leaves_them_alone(view) -> None:  # type: ignore[no-untyped-def]
    views = ViewsConfig()
    images, uniforms = pictures(40, 3, 16, 16), random_uniforms(40, num_strong_uniforms(views))
    images_before, uniforms_before = images.clone(), uniforms.clone()
    first = view(images, uniforms, views)
    torch.manual_seed(1)
    assert_same(view(images, uniforms, views), first)
    assert torch.equal(images, images_before)
    assert torch.equal(uniforms, uniforms_before)


@pytest.mark.parametrize("view", [weak, strong])
def test_a_view_is_an_ordinary_tensor_that_training_may_use(view) -> None:  # type: ignore[no-untyped-def]
    views = ViewsConfig(cutout=0.0)
    result = view(noise(4, 3, 8, 8), random_uniforms(4, num_strong_uniforms(views)), views)
    assert not result.is_inference()
    assert result.is_contiguous()


def test_memory_layout_does_not_matter() -> None:
    views = ViewsConfig()
    images, uniforms = pictures(20, 3, 12, 10), random_uniforms(20, num_strong_uniforms(views))
    strided = images.contiguous(memory_format=torch.channels_last)
    for view in (weak, strong):
        assert_same(view(strided, uniforms.t().contiguous().t(), views), view(images, uniforms, views))


@pytest.mark.parametrize("uniform", [0.0, BELOW_ONE])
@pytest.mark.parametrize("size", [*SIZES, (64, 96)], ids=str)
def test_uniforms_at_their_ends_are_taken(size: tuple[int, int], uniform: float) -> None:
    views = ViewsConfig()
    images = pictures(4, 3, *size)
    uniforms = torch.full((4, num_strong_uniforms(views)), uniform)
    pairs = list(zip(images, uniforms, strict=True))
    assert_same(strong(images, uniforms, views), torch.stack([strong_reference(*pair, views) for pair in pairs]))


@pytest.mark.parametrize("channels", [1, 3])
def test_an_empty_batch_gives_an_empty_view(channels: int) -> None:
    views = ViewsConfig()
    images, uniforms = noise(0, channels, 8, 6), torch.empty(0, num_strong_uniforms(views))
    assert_same(weak(images, uniforms, views), images)
    assert_same(strong(images, uniforms, views), images)


def test_without_operations_and_cutout_the_strong_view_is_the_weak_one() -> None:
    views = ViewsConfig(num_operations=0, cutout=0.0, exclude=tuple(OPERATIONS))
    images, uniforms = pictures(16, 3, 16, 12), random_uniforms(16, num_strong_uniforms(views))
    assert_same(strong(images, uniforms, views), weak(images, uniforms, views))


def test_the_weak_view_reads_its_own_columns_only() -> None:
    views = ViewsConfig()
    images, uniforms = pictures(16, 3, 16, 12), random_uniforms(16, num_strong_uniforms(views))
    assert_same(weak(images, uniforms[:, :WEAK_UNIFORMS], views), weak(images, uniforms, views))


def test_the_strong_view_reads_all_its_columns_and_no_more() -> None:
    views = ViewsConfig(num_operations=1, exclude=all_but("rotate", "brightness"))
    columns = num_strong_uniforms(views)
    images, uniforms = noise(64, 3, 16, 16), random_uniforms(64, columns + 1)
    first = strong(images, uniforms, views)
    for column in range(columns + 1):
        changed = uniforms.clone()
        changed[:, column] = (changed[:, column] + 0.5) % 1
        assert torch.equal(strong(images, changed, views), first) == (column == columns)


def test_every_allowed_operation_is_drawn_equally_often() -> None:
    # Noise is changed differently by each of these, so the result tells what was drawn.
    allowed = ("solarize", "identity", "posterize", "translate_x")
    views = ViewsConfig(crop_padding=0, horizontal_flip=False, num_operations=1, cutout=0, exclude=all_but(*allowed))
    images = noise(1, 1, 16, 16).expand(400, -1, -1, -1)
    uniforms = torch.zeros(400, num_strong_uniforms(views))
    uniforms[:, WEAK_UNIFORMS] = (torch.arange(400) + 0.5) / 400
    results = strong(images, uniforms, views)
    for name in allowed:
        operation = OPERATIONS[name]
        expected = operation.apply(images[:1], operation.plan(images[:1], torch.tensor([operation.low])))
        assert (results == expected).all(dim=(1, 2, 3)).sum() == 100


def test_the_order_in_which_operations_are_named_does_not_matter() -> None:
    names = ("rotate", "solarize", "color", "identity")
    images, uniforms = pictures(20, 3, 12, 10), random_uniforms(20, num_strong_uniforms(ViewsConfig()))
    first = strong(images, uniforms, ViewsConfig(exclude=names))
    assert_same(strong(images, uniforms, ViewsConfig(exclude=names[::-1])), first)


@pytest.mark.parametrize("view", [weak, strong])
@pytest.mark.parametrize(
    ("images", "uniforms", "message"),
    [
        (torch.zeros(2, 3, 8, 8), torch.zeros(2, 20), "images must be uint8 .*got torch.float32"),
        (torch.zeros(3, 8, 8, dtype=torch.uint8), torch.zeros(2, 20), "shape .N, C, H, W."),
        (torch.zeros(2, 4, 8, 8, dtype=torch.uint8), torch.zeros(2, 20), "1 or 3 channels"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.zeros(2, 20).double(), "uniforms must be float32"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.zeros(2, 2), "at least"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.zeros(3, 20), "one row per image, got 3 for 2"),
    ],
    ids=["float", "one image", "four channels", "double", "columns", "rows"],
)
def test_wrong_input_is_answered_with_what_is_right(view, images, uniforms, message) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=message):
        view(images, uniforms, ViewsConfig())
