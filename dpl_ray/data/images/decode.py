"""Encoded images of any mode and size to uint8 arrays of one kind; unreadable ones are set aside.

Legend: N images, C channels, H and W pixels, S = data.image_size.

Choices, for every source alike:
- the formats of FORMATS are read, whatever a file is called; all others (as EPS, for which Pillow starts Ghostscript)
  are not images;
- the camera's EXIF rotation is applied; an animation gives its first frame;
- 16-bit grey becomes 8-bit by dividing by 256 (as Pillow does for 16-bit RGB), 12-bit grey by dividing by 16; float
  pixels and 32-bit integers have no fixed range and are refused;
- a JPEG of 4 S and more is decoded at 1/2, 1/4 or 1/8 of its size, to no less than 2 S: many times faster.

The model for MLflow carries a copy of this file and of convert.py, so that it reads images as training did
(inference/exported_model.py): beside each other, they import nothing of this package.
"""

from __future__ import annotations

import io
import os
import struct
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, TiffImagePlugin, UnidentifiedImageError
from PIL.ImageFile import ImageFile
from PIL.TiffImagePlugin import BITSPERSAMPLE, TILELENGTH, TILEWIDTH

from .convert import DecodeSettings, to_array, to_mode

Payload = bytes | Callable[[], bytes] | Image.Image | NDArray[np.float16] | None
"""Encoded bytes, or a function that reads them (called in a worker thread), or an image of Pillow, or nothing; or
stored features in place of an image, which are as they are."""

FORMATS = ("AVIF", "BMP", "DIB", "GIF", "ICO", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")  # of Pillow
MAX_PIXELS = 64 * 2**20
MAX_SCANS = 200  # of a JPEG: each goes over all pixels, and may take a few bytes; usual are ten
_QUICK = 2**40  # bytes times pixels: as many scans as there could be take some seconds
MAX_DECODING = 2**30  # bytes of the images that are decoded at once, unless a single one takes more

EMPTY = "empty"
MISSING = "file is missing"
UNREADABLE = "file cannot be read"
NOT_AN_IMAGE = "not an image"
TRUNCATED = "truncated"
TOO_LARGE = f"more than {MAX_PIXELS // 2**20} megapixels"
TOO_MANY_SCANS = f"JPEG of more than {MAX_SCANS} scans"
CORRUPT = "cannot be decoded"
UNSUPPORTED_MODE = "unsupported pixel format"
EIGHT_BITS_IN_16 = "16-bit grey with values below 256 alone, which would be black: store it as 8-bit"

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
#: EXIF orientation -> what brings the image upright.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class DecodeError(ValueError):
    """An image that cannot be read; the message is one of the reasons above."""


def decode(
    encoded: bytes | Image.Image, settings: DecodeSettings, *, least_side: int | None = None
) -> NDArray[np.uint8]:
    """Decode one image to (C, S, S), or to (C, H, W) as it is where S is None; `DecodeError` says why not.

    Args:
        least_side: a JPEG may become smaller, as long as its shorter side has twice as many pixels; None: S.
    """
    if not encoded:
        raise DecodeError(EMPTY)
    try:
        with quiet_pillow():
            if isinstance(encoded, Image.Image):
                return _convert(encoded, settings)
            return _decode(encoded, settings, least_side or settings.image_size)
    except DecodeError:
        raise
    except Exception as error:  # Pillow's plugins let anything out that a broken file provokes
        if isinstance(encoded, bytes) and (smaller := without_texts(encoded)) != encoded:
            return decode(smaller, settings, least_side=least_side)
        raise DecodeError(_reason(error)) from error


def _decode(encoded: bytes, settings: DecodeSettings, least_side: int | None) -> NDArray[np.uint8]:
    with open_image(encoded) as image:
        if least_side is not None:
            # Only JPEG has drafts. The mode stays, so that grey is made in one place.
            image.draft(image.mode, (2 * least_side, 2 * least_side))
        return _convert(image, settings)


def open_image(encoded: bytes) -> ImageFile:
    """Pillow's image, not decoded yet; `DecodeError` where it, a tile of a TIFF or an icon is declared too large, or
    a JPEG has too many scans."""
    if any(abs(width * height) > MAX_PIXELS for width, height in _icons(encoded)):  # which are decoded when opened
        raise DecodeError(TOO_LARGE)
    image = Image.open(io.BytesIO(encoded), formats=FORMATS)
    tags = image.tag_v2 if isinstance(image, TiffImagePlugin.TiffImageFile) else {}
    if max(image.width * image.height, tags.get(TILEWIDTH, 0) * tags.get(TILELENGTH, 0)) > MAX_PIXELS:
        raise DecodeError(TOO_LARGE)
    is_jpeg = encoded.startswith(b"\xff\xd8")
    if is_jpeg and len(encoded) * image.width * image.height > _QUICK and encoded.count(b"\xff\xda") > MAX_SCANS:
        raise DecodeError(TOO_MANY_SCANS)
    return image


def _icons(encoded: bytes) -> Iterator[tuple[int, int]]:
    """Width and height of each image of an icon, from its own header: the directory has a byte for each."""
    is_icon = encoded.startswith(b"\0\0\1\0")
    with suppress(struct.error):  # ends too early
        for number in range(struct.unpack_from("<H", encoded, 4)[0] if is_icon else 0):
            (start,) = struct.unpack_from("<I", encoded, 18 + 16 * number)
            form, at = (">2I", 16) if encoded.startswith(PNG_SIGNATURE, start) else ("<2i", 4)
            yield struct.unpack_from(form, encoded, start + at)


def _convert(image: Image.Image, settings: DecodeSettings) -> NDArray[np.uint8]:
    # Pillow holds four bytes a pixel, and compositing three more such images.
    with _memory.taken(image.width * image.height * (16 if image.has_transparency_data else 8)):
        image.load()
        upright = _upright(_eight_bits(image), image)
        return to_array(to_mode(upright, settings.channels), settings)


def decode_or_reason(payload: Payload, settings: DecodeSettings, *, least_side: int | None = None) -> NDArray | str:
    """The decoded image, or the reason why there is none; arguments as those of `decode`."""
    if isinstance(payload, np.ndarray):
        return payload
    try:
        return decode((payload() if callable(payload) else payload) or b"", settings, least_side=least_side)
    except DecodeError as error:
        return str(error)
    except FileNotFoundError:
        return MISSING
    except OSError:
        return UNREADABLE


def without_texts(encoded: bytes) -> bytes:
    """A PNG without its texts and colour profile, of which Pillow refuses those above 1 MB; anything else as it is."""
    if not encoded.startswith(PNG_SIGNATURE):
        return encoded
    kept, start = [PNG_SIGNATURE], len(PNG_SIGNATURE)
    while start < len(encoded):
        end = start + 12 + int.from_bytes(encoded[start : start + 4], "big")  # length, type, data, checksum
        if encoded[start + 4 : start + 8] not in (b"iCCP", b"tEXt", b"zTXt", b"iTXt"):
            kept.append(encoded[start:end])
        start = end
    return b"".join(kept)


def _eight_bits(image: Image.Image) -> Image.Image:
    """Grey of 12 and 16 bits as 8-bit grey; other images as they are."""
    if image.mode == "F" or (image.mode == "I" and image.format != "PPM"):  # in a PPM they are scaled to 16 bits
        raise DecodeError(UNSUPPORTED_MODE)
    if not image.mode.startswith("I"):
        return image
    is_12_bit = isinstance(image, TiffImagePlugin.TiffImageFile) and image.tag_v2.get(BITSPERSAMPLE) == (12,)
    values = np.asarray(image).clip(0, 65535)
    if not is_12_bit and 0 < values.max() < 256:
        raise DecodeError(EIGHT_BITS_IN_16)
    return Image.fromarray((values >> (4 if is_12_bit else 8)).astype(np.uint8))


def _upright(image: Image.Image, original: Image.Image) -> Image.Image:
    """Turned as the camera was. Not ImageOps.exif_transpose: it writes all tags anew, which an odd one makes fail.

    Args:
        original: with the tags of the file.
    """
    try:
        turn = _TURNS.get(original.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # Pillow lets anything out that broken tags provoke; the pixels are whole
        turn = None
    return image if turn is None else image.transpose(turn)


def has_image_header(encoded: bytes) -> bool:
    """Whether it begins as an image does: broken ones too, text and archives not."""
    try:
        with quiet_pillow(), open_image(encoded):
            return True
    except UnidentifiedImageError:
        return False
    except Exception:  # as a header that ends too early
        return True


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return NOT_AN_IMAGE
    if isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning)):
        return TOO_LARGE
    message = str(error).lower()
    if isinstance(error, EOFError) or "truncated" in message or "broken data stream" in message:
        return TRUNCATED
    return CORRUPT


class _Memory:
    """A number of bytes that threads share: who wants more than is left waits."""

    def __init__(self, size: int) -> None:
        self.size, self.in_use, self.freed = size, 0, threading.Condition()

    @contextmanager
    def taken(self, num_bytes: int) -> Iterator[None]:
        with self.freed:
            self.freed.wait_for(lambda: not self.in_use or self.in_use + num_bytes <= self.size)
            self.in_use += num_bytes
        try:
            yield
        finally:
            with self.freed:
                self.in_use -= num_bytes
                self.freed.notify_all()


_memory = _Memory(MAX_DECODING)


def share_memory(num_cpus: float) -> None:
    """Decode within this process's share of MAX_DECODING, where each process of the machine has so many CPUs."""
    _memory.size = int(MAX_DECODING * min(1.0, num_cpus / (os.cpu_count() or 1)))


_quiet_lock = threading.Lock()
_quiet_depth = 0
_quiet_filters = warnings.catch_warnings()


@contextmanager
def quiet_pillow() -> Iterator[None]:
    """Keep Pillow's warnings (large images, odd EXIF) from the user: bad images are reported by their reasons.

    `warnings.catch_warnings` alone is not safe in threads: whoever leaves last restores the filters that it
    found, so the first one in saves them here and the last one out brings them back.
    """
    global _quiet_depth, _quiet_filters
    with _quiet_lock:
        if _quiet_depth == 0:
            _quiet_filters = warnings.catch_warnings()
            _quiet_filters.__enter__()
            warnings.filterwarnings("ignore", module=r"PIL\b")
        _quiet_depth += 1
    try:
        yield
    finally:
        with _quiet_lock:
            _quiet_depth -= 1
            if _quiet_depth == 0:
                _quiet_filters.__exit__(None, None, None)
