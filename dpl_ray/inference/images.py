"""What a model can be asked about: paths, encoded images, images of Pillow, arrays, lists of these.

Imports no torch, so that a wrong path is answered before it is loaded.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from os import PathLike, fspath
from typing import TYPE_CHECKING

from numpy.typing import NDArray
from PIL import Image

from dpl_ray.data.files.location import open_location
from dpl_ray.data.formats.rows import PoolFiles, list_pool
from dpl_ray.data.images.decode import DecodeError, Payload
from dpl_ray.data.splits.arrays import as_array

if TYPE_CHECKING:
    from torch import Tensor

    OneImage = str | PathLike[str] | bytes | Image.Image | NDArray | Tensor
    Images = OneImage | PoolFiles | Iterable[OneImage]

Item = tuple[str, Payload | NDArray]
"""Id, and an image that is encoded, opened by Pillow or an array."""


def list_images(given: str | Sequence[str], image_column: str) -> PoolFiles:
    """The files of a path, a folder, a glob or a URI, or of a list of these, each file once.

    Raises:
        ValueError: there is no such place, or nothing in it that may be an image.
    """
    files = list_pool(open_location("images", given), image_column=image_column)
    files.check_image_column("data.image_column")
    return files


def read_items(images: Images, image_column: str) -> Iterator[Item]:
    """The images one after another, those of files not yet read. A list may name files that are not there.

    Raises:
        ValueError: of something else than these types, or of a path that is given alone and does not exist.
    """
    if isinstance(images, str | PathLike):
        images = list_images(fspath(images), image_column)
    if isinstance(images, PoolFiles):
        yield from ((sample_id, payload) for sample_id, payload, _ in images.read_all())
        return
    many = [images] if isinstance(images, bytes | Image.Image) else images
    if not isinstance(many, Iterable):
        raise _unknown(images)
    for place, image in enumerate(many):
        if isinstance(image, str | PathLike):
            yield from _read_path(fspath(image), image_column)
        elif isinstance(image, bytes | Image.Image):
            yield str(place), image
        elif (array := as_array(image)) is not None:
            yield str(place), array
        else:
            raise _unknown(image)


def _read_path(given: str, image_column: str) -> Iterator[Item]:
    """One path of a list: where it is wrong, the others are answered all the same."""
    try:
        files = list_images(given, image_column)
    except ValueError as error:
        reason = str(error).removeprefix(f"images={given}: ")

        def refuse() -> bytes:
            raise DecodeError(reason)

        yield given, refuse
    else:
        yield from read_items(files, image_column)


def _unknown(image: object) -> ValueError:
    return ValueError(
        f"images: {type(image).__name__} is no image; give a path, a folder, a glob, bytes, an image of Pillow, "
        "an array or a list of these"
    )
