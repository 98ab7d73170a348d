"""Images in memory as a data set: arrays and tensors, data sets of PyTorch and Hugging Face, lists of paths and images.

What has no array is decoded and resized as files are; arrays become uint8 and are resized alike.

Legend: N images, C channels, H and W pixels.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from os import PathLike, fspath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pyarrow import fs

from dpl_ray.config.schema import DataConfig
from dpl_ray.config.section import suggest
from dpl_ray.data.dataset import ImageSet, Source
from dpl_ray.data.files.location import Location
from dpl_ray.data.images.convert import DecodeSettings, as_batch, convert_arrays, eight_bits
from dpl_ray.data.images.decode import Payload
from dpl_ray.data.images.decode_many import check_same_size
from dpl_ray.data.labeled.classes import find_class_names, find_targets
from dpl_ray.data.labeled.records import Records
from dpl_ray.data.labels import Label, clean_name, label_indices
from dpl_ray.data.labels import as_label as file_label
from dpl_ray.data.splits.sources import Reader
from dpl_ray.store.storage import Storage


@dataclass(frozen=True)
class _Part:
    """Images with their labels."""

    field: str  # of `fit_arrays`
    images: NDArray[np.uint8] | list[Any]  # (N, C, H, W), or one by one
    labels: list[Label]
    class_names: tuple[str, ...] | None  # where a data set lists them

    def records(self, data: DataConfig) -> Records:
        """As those of files, so that classes and targets are found and checked alike."""
        labels, class_names = self.labels, self.class_names
        if class_names and data.class_names is None:
            named = dict(enumerate(class_names))
            labels = [named.get(label, label) if isinstance(label, int) else label for label in labels]
        elif class_names is None and data.class_names is None:
            kinds = {type(label) for label in labels if label is not None}
            if len(kinds) > 1:
                raise ValueError(f"{self.field}: some labels are integers and others are names; give them one kind")
            # Of integers, those that occur are the classes: a slice of a data set may lack one in between.
            present = {label for label in labels if label is not None}
            class_names = tuple(map(str, sorted(present)))
            labels = [None if label is None else str(label) for label in labels]
        place = Location(self.field, f"{len(labels)} in memory", fs.LocalFileSystem(), "", "")
        return Records(place, self.ids, labels, self._payloads, class_names, are_listed=self.class_names is not None)

    @property
    def ids(self) -> list[str]:
        """Paths are called by themselves, all others by their places."""
        return [
            fspath(image) if isinstance(image, str | PathLike) else f"{self.field}/{place}"
            for place, image in enumerate(self.images)
        ]

    def _payloads(self) -> Iterator[Payload]:
        return (_payload(self.field, image) for image in self.images)


@dataclass(frozen=True)
class InMemory:
    """What `fit_arrays` was given."""

    train: _Part
    unlabeled: _Part | None
    test: _Part | None

    def overrides(self) -> list[str]:
        """What suits the images where nothing else is said: arrays as they are, all others as those of files."""
        images = self.train.images
        return ["data.image_size=32"] if isinstance(images, list) else [f"data.channels={images.shape[1]}"]

    def read(self, data: DataConfig) -> Source:
        """Decoded, in the form that `data` asks for.

        Raises:
            ValueError: labels, classes or sizes do not fit, or too many images cannot be read.
        """
        train = self.train.records(data)
        class_names = find_class_names(data, train)
        find_targets(train, class_names)
        parts = [part for part in (self.train, self.unlabeled, self.test) if part]
        reader = Reader(data, class_names, sum(len(part.labels) for part in parts), Counter())
        sets = {part.field: _decode(part, part.records(data), reader) for part in parts}
        images, test = sets["images"], sets.get("test")
        if self.test and test:
            find_targets(self.test.records(data), class_names, every=True)
        for other in sets.values():
            if len(other) and len(images):
                check_same_size((images.ids[0], images.images.shape[1:]), (other.ids[0], other.images.shape[1:]))
        return Source("images", class_names, images, sets.get("unlabeled"), test, tuple(reader.bad))


def gather(images: Any, labels: Any, unlabeled: Any, test: Any, data: DataConfig) -> InMemory:
    """What `fit_arrays` is given, as images and labels. Nothing is decoded but what a data set decodes.

    Args:
        data: names the columns of a data set of Hugging Face.

    Raises:
        ValueError: naming the argument, and what it takes.
    """
    train = _part("images", images, labels, data)
    if all(label is None for label in train.labels):
        raise ValueError("labels: not one image has a label; training starts from at least one of each class")
    tested, answers = test if isinstance(test, tuple) and len(test) == 2 else (test, None)
    return InMemory(
        train,
        None if unlabeled is None else _part("unlabeled", unlabeled, None, data),
        None if test is None else _part("test", tested, answers, data),
    )


def _part(field: str, given: Any, labels: Any, data: DataConfig) -> _Part:
    found, class_names = None, None
    if has_columns(given):
        given, found, class_names = _columns(field, given, data)
    elif _is_torch_data_set(given):
        given, found, class_names = _items(given)
    labels, class_names = (found, class_names) if labels is None else (labels, None)
    images = _images(field, given)
    if labels is None:
        return _Part(field, images, [None] * len(images), None)
    made = [as_label(value) for value in (labels.tolist() if hasattr(labels, "tolist") else labels)]
    if len(made) != len(images):
        raise ValueError(f"{field}: {len(images)} images, but {len(made)} labels; give one for each, -1 for none")
    return _Part(field, images, made, class_names)


def has_columns(given: Any) -> bool:
    """Whether it is a data set of Hugging Face, which is not imported to find it out."""
    return hasattr(given, "column_names") and hasattr(given, "features")


def _is_torch_data_set(given: Any) -> bool:
    from torch.utils.data import Dataset

    return isinstance(given, Dataset)


def _columns(field: str, given: Any, data: DataConfig) -> tuple[list[Any], list[Any] | None, tuple[str, ...] | None]:
    """Images, labels and class names of a data set of Hugging Face."""
    if data.image_column not in given.column_names:
        raise ValueError(
            f"data.image_column={data.image_column}: {field} has no such column; known: "
            f"{', '.join(given.column_names)}{suggest(data.image_column, given.column_names)}"
        )
    label = data.label_column if data.label_column in given.column_names else None
    rows = [(row[data.image_column], row[label] if label else None) for row in given]
    names = getattr(given.features[label], "names", None) if label else None
    images = [image for image, _ in rows]
    return images, [value for _, value in rows] if label else None, _names(names)


def _items(given: Any) -> tuple[list[Any], list[Any] | None, tuple[str, ...] | None]:
    """The same of a data set of PyTorch, of (image, label) or of images alone."""
    items = [given[place] for place in range(len(given))] if hasattr(given, "__len__") else list(given)
    if not items or not isinstance(items[0], tuple | list):
        return items, None, None
    return [item[0] for item in items], [item[1] for item in items], _names(getattr(given, "classes", None))


def _names(listed: Any) -> tuple[str, ...] | None:
    return tuple(map(clean_name, listed)) if listed and all(isinstance(name, str) for name in listed) else None


def as_label(value: Any) -> Label:
    """A label of any type as an integer or a name; None for -1, None, NaN and the empty text.

    Raises:
        ValueError: it is something else.
    """
    value = value.item() if hasattr(value, "item") else value
    if isinstance(value, bool):
        return str(value)
    if value is None or (isinstance(value, float) and math.isnan(value)) or str(value) == "<NA>":  # pandas.NA
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int | str):
        raise ValueError(f"labels: {value!r} is no label; give integers or names, and -1, None or NaN for unlabelled")
    return file_label(value)


def _images(field: str, given: Any) -> NDArray[np.uint8] | list[Any]:
    array = as_array(given)
    if array is None or array.dtype.kind in "OSU":
        if isinstance(given, str | bytes | PathLike | Image.Image) or not isinstance(given, Iterable):
            raise _unknown(field, given)
        given = list(given)
        if not given:
            raise ValueError(f"{field}: there is no image in it; give some, or leave it out")
        arrays = [as_array(image) for image in given]
        shapes = {None if each is None else each.shape for each in arrays}
        if None in shapes or len(shapes) > 1:
            return given
        array = np.stack(arrays)  # type: ignore[arg-type]
    return as_pixels(field, array)


def as_array(given: Any) -> NDArray | None:
    """An array or a tensor as an array on the CPU; None of anything else."""
    if hasattr(given, "detach"):  # torch.Tensor
        return given.detach().cpu().numpy()
    return given if isinstance(given, np.ndarray) else None


def as_pixels(field: str, array: NDArray) -> NDArray[np.uint8]:
    """Images as (N, C, H, W) uint8, of uint8 or of floats in [0, 1].

    Args:
        array: (N, H, W), (N, C, H, W) or (N, H, W, C).

    Raises:
        ValueError: the shape is none of these or two of them, or another type or range.
    """
    return eight_bits(as_batch(field, array))


def _payload(field: str, image: Any) -> Payload:
    """What the decoder takes."""
    if isinstance(image, dict) and {"bytes", "path"} & image.keys():  # of Hugging Face, not decoded
        image = image.get("bytes") or image.get("path")
    if isinstance(image, str | PathLike):
        return partial(_read_file, fspath(image))
    if isinstance(image, bytes | Image.Image):
        return image
    array = as_array(image)
    if array is None:
        raise _unknown(field, image)
    pixels = as_pixels(field, array[None])[0]
    return Image.fromarray(pixels[0] if len(pixels) == 1 else np.ascontiguousarray(pixels.transpose(1, 2, 0)))


def _read_file(path: str) -> bytes:
    return Storage(path).read()


def _unknown(field: str, given: Any) -> ValueError:
    return ValueError(
        f"{field}: a value of type {type(given).__name__} is not taken; give an array, a tensor, a data set of PyTorch "
        "or Hugging Face, or a list of paths, bytes, images of Pillow or arrays"
    )


def _decode(part: _Part, records: Records, reader: Reader) -> ImageSet:
    if isinstance(part.images, list):
        return reader.read(records.rows())
    images = convert_arrays(part.images, DecodeSettings.from_config(reader.data))
    return ImageSet(images, label_indices(records.labels, reader.class_names), np.array(records.ids, np.str_))
