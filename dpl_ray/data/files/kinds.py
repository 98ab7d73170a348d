"""What a file may be, told by its name and its content, and reading one.

Whether a file is an image is told by its content, when it is read. Left out by their names are those that begin with
`.` or `_` (cameras' `_MG_1.JPG` stay), and extensions of other kinds of files, as .txt or .mp4.
"""

from __future__ import annotations

import mimetypes
from collections.abc import Mapping

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import fs

from dpl_ray.data.files.shards import LANCE_EXTENSIONS, TAR_EXTENSIONS, by_extension, extension_of
from dpl_ray.data.images.decode import DecodeError, has_image_header
from dpl_ray.store.file_systems import open_file

#: What Pillow calls the formats that are decoded. A file that is called so and is no image is broken.
IMAGE_EXTENSIONS = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".bmp", ".dib", ".gif", ".ico", ".webp", ".tif", ".tiff",
    ".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k", ".jpc", ".jpf", ".jpx", ".j2c", ".avif", ".avifs",
)  # fmt: skip
#: Reason of a file that is no image and is not called one: counted apart from those that cannot be read.
FOREIGN = "neither an image nor called one"
MAX_UNNAMED_BYTES = 64 * 2**20  # a larger file that is not called an image is not read: it may be an archive
_ANYTHING = "application/octet-stream"
NAMELESS = "without extension"
_MAX_KINDS = 8  # that a line names
_TYPES = mimetypes.MimeTypes()  # Python's own table, the same on every machine


def passed_over(name: str, is_folder: bool) -> str | None:
    """As what a file or folder of this name below the root is left out; "" where it is not counted either."""
    *folders, last = name.split("/")
    if last.startswith(".") or any(part.startswith((".", "_")) for part in folders):
        return ""
    if not last.startswith("_") or (not is_folder and is_image(last)):
        return None
    return f"{last}/" if is_folder else kind_of(last)


def is_image(path: str) -> bool:
    """Whether the file is called an image, by its extension."""
    return extension_of(path) in IMAGE_EXTENSIONS


def are_images(paths: pa.LargeStringArray) -> NDArray[np.bool_]:
    """(F,) `is_image` of each."""
    return by_extension(paths, is_image)


def is_foreign(extension: str) -> bool:
    """Whether it is known to be that of something else than images."""
    kind, encoding = _TYPES.guess_type(f"x{extension}")
    if extension in (*TAR_EXTENSIONS, *LANCE_EXTENSIONS):
        return extension in LANCE_EXTENSIONS
    return encoding is not None or (kind not in (None, _ANYTHING) and not kind.startswith("image/"))


def kind_of(path: str) -> str:
    """As what a file that is no image is counted."""
    return extension_of(path) or NAMELESS


def as_text(left_out: Mapping[str, int]) -> str:
    """As `3 .txt, 1 .mp4`, the most first."""
    most = sorted(left_out.items(), key=lambda item: (-item[1], item[0]))
    more = [f"{len(most) - _MAX_KINDS} other kinds"] if len(most) > _MAX_KINDS else []
    return ", ".join([f"{count:,} {kind}" for kind, count in most[:_MAX_KINDS]] + more)


def read_file(filesystem: fs.FileSystem, path: str) -> bytes:
    """A file's bytes; `OSError` where it cannot be read."""
    try:
        with open_file(filesystem, path) as file:
            content: bytes = file.read()
    except pa.ArrowException as error:
        raise OSError(str(error)) from error
    return content


def read_image_file(filesystem: fs.FileSystem, path: str) -> bytes:
    """The bytes of what may be an image.

    Raises:
        DecodeError: it is not called an image, and is none.
        OSError: it cannot be read.
    """
    named = is_image(path)
    if not named and (filesystem.get_file_info(path).size or 0) > MAX_UNNAMED_BYTES:
        raise DecodeError(FOREIGN)
    content = read_file(filesystem, path)
    if not named and not has_image_header(content):
        raise DecodeError(FOREIGN)
    return content
