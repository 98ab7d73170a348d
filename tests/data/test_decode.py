"""decode.py and convert.py: every mode and size becomes one kind of array; what cannot is set aside with a reason."""

from __future__ import annotations

import io
import struct
import threading
import warnings
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from dpl_ray.data.dataset import BadImage
from dpl_ray.data.images import decode as decoding
from dpl_ray.data.images.convert import DecodeSettings, convert_arrays
from dpl_ray.data.images.decode import DecodeError, decode
from dpl_ray.data.images.decode_many import decode_many

AS_IT_IS = DecodeSettings()
GREY = DecodeSettings(channels=1)


def encode(image: Image.Image | np.ndarray, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, kind, **options)
    return buffer.getvalue()


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def test_rgb_png_keeps_every_pixel() -> None:
    pixels = noise(5, 7, 3)
    array = decode(encode(pixels), AS_IT_IS)
    assert array.dtype == np.uint8
    assert array.flags.c_contiguous
    np.testing.assert_array_equal(array, pixels.transpose(2, 0, 1))


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_grey_of_8_bit_values_is_refused_and_all_black_is_an_image(kind: str) -> None:
    values = np.zeros((6, 6), np.uint16)
    assert decode(encode(Image.fromarray(values), kind), AS_IT_IS).max() == 0
    values[2, 3] = 255
    with pytest.raises(DecodeError, match="store it as 8-bit"):
        decode(encode(Image.fromarray(values), kind), AS_IT_IS)
    values[2, 3] = 256
    assert decode(encode(Image.fromarray(values), kind), AS_IT_IS).max() == 1


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "I;16"])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_mode_becomes_the_channels_asked_for(mode: str, channels: Any) -> None:
    image = Image.fromarray(noise(6, 6, 3))
    image = Image.fromarray(np.full((6, 6), 51200, np.uint16)) if mode == "I;16" else image.convert(mode)
    kind = {"CMYK": "TIFF", "YCbCr": "JPEG", "LAB": "TIFF"}.get(mode, "PNG")
    array = decode(encode(image, kind), DecodeSettings(channels=channels))
    assert array.shape == (channels, 6, 6)
    if mode == "I;16":
        assert (array == 200).all(), "16-bit is divided by 256"


def test_transparency_is_composited_on_white() -> None:
    pixels = np.zeros((2, 2, 4), np.uint8)
    pixels[0, :, 3] = 255
    np.testing.assert_array_equal(decode(encode(pixels), GREY)[0], [[0, 0], [255, 255]])
    palette = Image.new("P", (2, 1))
    palette.putpalette([0, 0, 0, 10, 20, 30])
    palette.putpixel((1, 0), 1)
    transparent = decode(encode(palette, transparency=0), AS_IT_IS)
    np.testing.assert_array_equal(transparent[:, 0].T, [[255, 255, 255], [10, 20, 30]])


def test_exif_rotation_is_applied() -> None:
    image = Image.fromarray(noise(4, 8, 3))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned by 90 degrees
    array = decode(encode(image, exif=exif), AS_IT_IS)
    np.testing.assert_array_equal(array, np.asarray(image.transpose(Image.Transpose.ROTATE_270)).transpose(2, 0, 1))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_rotation_is_that_of_pillow_and_odd_tags_cost_nothing(orientation: int) -> None:
    image = Image.fromarray(noise(4, 8, 3))
    exif = Image.Exif()
    exif[0x0112] = orientation
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(encode(image, exif=exif)))))
    np.testing.assert_array_equal(decode(encode(image, exif=exif), AS_IT_IS), expected.transpose(2, 0, 1))
    # ResolutionUnit as a fraction: Pillow reads it, and cannot write it as the whole number that it has to be.
    tags = b"Exif\0\0II*\0\x08\0\0\0\x02\0" + struct.pack("<HHII", 0x0112, 3, 1, orientation)
    tags += struct.pack("<HHII", 0x0128, 5, 1, 38) + bytes(4) + struct.pack("<II", 1, 2)
    odd, even = (decode(encode(image, "JPEG", exif=each), AS_IT_IS) for each in (tags, exif))
    np.testing.assert_array_equal(odd, even)


@pytest.mark.parametrize("kind", [b"iCCP", b"tEXt", b"zTXt", b"iTXt"])
def test_a_png_keeps_its_pixels_whatever_its_texts_and_its_profile_are(kind: bytes) -> None:
    pixels, large = noise(5, 7, 3), bytes(2 * 2**20)
    data = {
        b"iCCP": b"profile\0\0" + zlib.compress(large),
        b"tEXt": b"key\0" + large,
        b"zTXt": b"key\0\0" + zlib.compress(large),
        b"iTXt": b"key\0\x01\0\0\0" + zlib.compress(large),
    }[kind]
    chunk = struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    encoded = encode(pixels)
    with_text = encoded[:33] + chunk + encoded[33:]
    np.testing.assert_array_equal(decode(with_text, AS_IT_IS), pixels.transpose(2, 0, 1))
    with pytest.raises(DecodeError, match=decoding.TRUNCATED):
        decode(with_text[:-40], AS_IT_IS)


@pytest.mark.parametrize(("bits", "level"), [(12, 3200), (16, 51200)])
def test_grey_of_more_bits_keeps_its_brightness(bits: int, level: int) -> None:
    if bits == 16:
        as_ppm = b"P5 2 2 65535\n" + level.to_bytes(2, "big") * 4
        assert (decode(as_ppm, GREY) == 200).all()
        return
    rows = bytes([level >> 4, (level & 15) << 4 | level >> 8, level & 255])  # two pixels of 12 bits
    tags = {256: 2, 257: 2, 258: 12, 259: 1, 262: 1, 273: 8, 277: 1, 278: 2, 279: 6}
    entries = b"".join(struct.pack("<HHII", tag, 3, 1, value) for tag, value in tags.items())
    tiff = b"II*\0" + struct.pack("<I", 14) + rows * 2 + struct.pack("<H", len(tags)) + entries + bytes(4)
    assert (decode(tiff, GREY) == 200).all()


def test_large_images_wait_for_each_other_and_one_that_is_too_large_does_not_wait_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    memory, has_room, asked = decoding._Memory(10), list[bool](), threading.Event()
    wait_for = memory.freed.wait_for
    with monkeypatch.context() as patch:
        patch.setattr(memory.freed, "wait_for", lambda holds: has_room.append(holds()))
        with memory.taken(4), memory.taken(6), memory.taken(1):
            pass
        with memory.taken(25), memory.taken(1):
            pass
    assert has_room == [True, True, False, True, False]
    monkeypatch.setattr(memory.freed, "wait_for", lambda holds: (asked.set(), wait_for(holds)))

    def take() -> None:
        with memory.taken(5):
            pass

    with memory.taken(6):
        asked.clear()
        waiting = threading.Thread(target=take)
        waiting.start()
        asked.wait()
    waiting.join()
    assert memory.in_use == 0


def test_decoding_takes_the_memory_that_an_image_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []
    memory = decoding._Memory(2**30)
    taking = memory.taken
    monkeypatch.setattr(memory, "taken", lambda num_bytes: (taken.append(num_bytes), taking(num_bytes))[1])
    monkeypatch.setattr(decoding, "_memory", memory)
    decode(encode(noise(8, 4, 4)), AS_IT_IS)
    decode(encode(noise(64, 64, 3), "JPEG"), DecodeSettings(image_size=8))
    assert taken == [8 * 4 * 16, 16 * 16 * 8], "of the draft, which is decoded at a quarter"


def test_processes_of_a_machine_share_the_memory_for_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "_memory", decoding._Memory(0))
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    for num_cpus, share in ((0.25, 1 / 16), (0.5, 1 / 8), (4, 1), (8, 1)):
        decoding.share_memory(num_cpus)
        assert decoding._memory.size == share * decoding.MAX_DECODING


def test_an_animation_gives_its_first_frame() -> None:
    frames = [Image.new("L", (3, 3), value) for value in (10, 200)]
    array = decode(encode(frames[0], "GIF", save_all=True, append_images=frames[1:]), GREY)
    assert (array == 10).all()


@pytest.mark.parametrize(
    ("encoded", "reason"),
    [
        (b"", decoding.EMPTY),
        (b"<html>404</html>", decoding.NOT_AN_IMAGE),
        (encode(noise(40, 40, 3))[:700], decoding.TRUNCATED),
        (encode(noise(40, 40, 3), "JPEG")[:900], decoding.TRUNCATED),
        (encode(noise(40, 40, 3), "BMP")[:900], decoding.TRUNCATED),
        (encode(noise(40, 40, 3), "WEBP")[:900], decoding.CORRUPT),
        (encode(np.zeros((4, 4), np.float32), "TIFF"), decoding.UNSUPPORTED_MODE),
        (encode(np.full((4, 4), 200, np.int32), "TIFF"), decoding.UNSUPPORTED_MODE),
        (encode(noise(4, 4, 3), "EPS"), decoding.NOT_AN_IMAGE),
        (encode(noise(4, 4, 3), "TGA"), decoding.NOT_AN_IMAGE),
    ],
)
def test_reasons(encoded: bytes, reason: str) -> None:
    with pytest.raises(DecodeError) as error:
        decode(encoded, AS_IT_IS)
    assert str(error.value) == reason


@pytest.mark.parametrize("side", [9_000, 12_000, 30_000])
def test_too_many_pixels_are_refused_from_the_header(side: int) -> None:
    """9,000 is beyond our limit, 12,000 where Pillow warns, 30,000 where it raises; no pixel is there to decode."""
    encoded = bytearray(encode(noise(1, 1)))
    encoded[16:24] = side.to_bytes(4, "big") * 2
    encoded[29:33] = zlib.crc32(bytes(encoded[12:29])).to_bytes(4, "big")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(DecodeError, match="64 megapixels"):
            decode(bytes(encoded), AS_IT_IS)


def test_no_warning_of_pillow_leaks_and_the_filters_come_back() -> None:
    broken_exif = encode(noise(8, 8, 3), "JPEG", exif=b"Exif\x00\x00II*\x00\x08\x00\x00\x00\x05\x00\x12\x01")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        before = list(warnings.filters)
        threads = [threading.Thread(target=decode, args=(broken_exif, AS_IT_IS)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert list(warnings.filters) == before
        warnings.warn("ours", UserWarning, stacklevel=1)
    assert [str(warning.message) for warning in caught] == ["ours"]


@pytest.mark.parametrize("fit", ["crop", "pad", "squash"])
@pytest.mark.parametrize("interpolation", ["area", "bilinear", "bicubic"])
@pytest.mark.parametrize("shape", [(1, 1), (3, 17), (17, 3), (16, 16), (32, 8), (200, 150)])
def test_every_shape_becomes_the_size(fit: Any, interpolation: Any, shape: tuple[int, int]) -> None:
    array = decode(encode(noise(*shape, 3), "PNG"), DecodeSettings(8, 3, fit, interpolation))
    assert array.shape == (3, 8, 8)


def test_fits() -> None:
    pixels = np.zeros((4, 8), np.uint8)
    pixels[:, 2:6] = 200

    def fitted(fit: Any) -> list[int]:
        return decode(encode(pixels), DecodeSettings(4, 1, fit, "area"))[0, 2].tolist()

    assert fitted("crop") == [200, 200, 200, 200]
    assert fitted("squash") == [0, 200, 200, 0]
    padded = decode(encode(np.full((4, 8), 9, np.uint8)), DecodeSettings(4, 1, "pad", "area"))[0]
    assert padded.tolist() == [[0] * 4, [9] * 4, [9] * 4, [0] * 4]


@given(factor=st.integers(1, 5), size=st.integers(4, 6), seed=st.integers(0, 99), channels=st.sampled_from([1, 3]))
@settings(max_examples=40)
def test_area_at_a_whole_factor_is_the_exact_mean(factor: int, size: int, seed: int, channels: Any) -> None:
    side = factor * size
    images = noise(2, channels, side, side, seed=seed)
    wanted = DecodeSettings(size, channels, "crop", "area")
    expected = np.zeros((2, channels, size, size), np.uint8)
    for index in np.ndindex(*expected.shape):
        n, c, i, j = index
        block = images[n, c, i * factor : (i + 1) * factor, j * factor : (j + 1) * factor]
        expected[index] = int(np.floor(block.astype(np.int64).sum() / factor**2 + 0.5))
    np.testing.assert_array_equal(convert_arrays(images, wanted), expected)
    single = images[0].transpose(1, 2, 0).squeeze()
    np.testing.assert_array_equal(decode(encode(single), wanted), expected[0])


@pytest.mark.parametrize("channels", [(1, 1), (1, 3), (3, 1), (3, 3)])
@pytest.mark.parametrize("size", [None, 4, 5, 12])
@pytest.mark.parametrize("interpolation", ["area", "bilinear"])
def test_arrays_are_converted_as_files_are(channels: tuple[Any, Any], size: int | None, interpolation: Any) -> None:
    images = noise(3, channels[0], 8, 8)
    wanted = DecodeSettings(size, channels[1], "crop", interpolation)
    converted = convert_arrays(images, wanted)
    for image, result in zip(images, converted, strict=True):
        np.testing.assert_array_equal(decode(encode(image.transpose(1, 2, 0).squeeze()), wanted), result)


def test_large_jpeg_by_draft_is_near_the_full_decode() -> None:
    smooth = np.linspace(0, 255, 256 * 256).reshape(256, 256).astype(np.uint8)
    drafted = decode(encode(smooth, "JPEG", quality=95), DecodeSettings(16, 1))
    full = decode(encode(smooth, "PNG"), DecodeSettings(16, 1))
    assert np.abs(drafted.astype(int) - full).max() <= 3
    as_it_is = encode(np.full((400, 800, 3), 90, np.uint8), "JPEG")
    assert decode(as_it_is, DecodeSettings()).shape == (3, 400, 800)
    assert decode(as_it_is, DecodeSettings(), least_side=50).shape == (3, 100, 200)


def test_many_keeps_order_and_sets_bad_ones_aside() -> None:
    def read_missing() -> bytes:
        raise FileNotFoundError("gone")

    def read_forbidden() -> bytes:
        raise PermissionError("no")

    def reader(index: int) -> Callable[[], bytes]:
        return lambda: encode(np.full((4, 4), index, np.uint8))

    payloads: list[Any] = [reader(index) if index % 2 else reader(index)() for index in range(200)]
    payloads[3], payloads[50], payloads[51], payloads[199] = read_missing, None, read_forbidden, b"junk"
    images, kept, bad = decode_many(((f"image{i}", payload) for i, payload in enumerate(payloads)), GREY)
    assert kept == [i for i in range(200) if i not in (3, 50, 51, 199)]
    assert images[:, 0, 0, 0].tolist() == kept
    assert bad == [
        BadImage("image3", decoding.MISSING),
        BadImage("image50", decoding.EMPTY),
        BadImage("image51", decoding.UNREADABLE),
        BadImage("image199", decoding.NOT_AN_IMAGE),
    ]


def test_many_of_nothing() -> None:
    images, kept, bad = decode_many([], DecodeSettings(8))
    assert images.shape == (0, 3, 8, 8)
    assert kept == []
    assert bad == []


def test_many_reads_a_bounded_number_ahead() -> None:
    read = 0

    def payloads() -> Any:
        nonlocal read
        for index in range(100_000):
            read += 1
            yield f"{index}", (encode(noise(4, 4)) if index == 0 else encode(noise(4, 5)))

    with pytest.raises(ValueError, match="differ in size"):
        decode_many(payloads(), GREY, num_threads=1)
    assert read < 1000


def test_many_names_two_images_that_differ_in_size() -> None:
    items = [("a.png", encode(noise(4, 4))), ("b.png", encode(noise(4, 6)))]
    with pytest.raises(ValueError, match=r"data.image_size=null: .*a.png is 4x4, b.png is 6x4.*data.image_size=32"):
        decode_many(items, GREY)
