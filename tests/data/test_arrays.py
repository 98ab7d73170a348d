"""Images in memory: every kind of them gives the same pixels and targets, and mistakes are named."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from dpl_ray.config.compose import load_config
from dpl_ray.data.dataset import UNLABELED, Source
from dpl_ray.data.splits.arrays import gather
from dpl_ray.data.splits.sources import load_splits

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 8, 9, 3), dtype=np.uint8)
LABELS = [0, 1, -1, 1, 0, -1]


def read(images: Any, labels: Any = None, unlabeled: Any = None, test: Any = None, *overrides: str) -> Source:
    first = load_config(["data=arrays", *overrides])
    memory = gather(images, labels, unlabeled, test, first.data)
    return memory.read(load_config(["data=arrays", *memory.overrides(), *overrides]).data)


def pillow() -> list[Image.Image]:
    return [Image.fromarray(image) for image in IMAGES]


def encoded() -> list[bytes]:
    files = [io.BytesIO() for _ in IMAGES]
    for image, file in zip(pillow(), files, strict=True):
        image.save(file, "png")
    return [file.getvalue() for file in files]


class TorchData(torch.utils.data.Dataset):
    """A data set that does not know its end when it is only iterated."""

    classes = ("ant", "bee")

    def __init__(self, images: list[Any], labels: list[int] | None) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, place: int) -> Any:
        image = self.images[place % len(self.images)]
        return image if self.labels is None else (image, torch.tensor(self.labels[place]))


class HuggingFaceData:
    """What is asked of a data set of Hugging Face."""

    column_names = ("image", "label")
    features = {"image": None, "label": SimpleNamespace(names=["ant", "bee"])}

    def __init__(self, images: list[Any]) -> None:
        self.images = images

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter({"image": image, "label": label} for image, label in zip(self.images, LABELS, strict=True))


@pytest.mark.parametrize(
    "given",
    [
        lambda: IMAGES,
        lambda: IMAGES.transpose(0, 3, 1, 2),
        lambda: torch.from_numpy(IMAGES),
        lambda: IMAGES / 255,
        lambda: torch.from_numpy(IMAGES.transpose(0, 3, 1, 2) / 255).float(),
        lambda: list(IMAGES),
        pillow,
        encoded,
        lambda: [{"bytes": content, "path": None} for content in encoded()],
        lambda: [IMAGES[0], *pillow()[1:]],
    ],
)
def test_every_kind_of_images_gives_the_same_pixels(given: Callable[[], Any]) -> None:
    source = read(given(), LABELS, None, None, "data.image_size=null")
    assert np.array_equal(source.train.images, IMAGES.transpose(0, 3, 1, 2))
    assert source.train.targets.tolist() == LABELS
    assert source.train.ids.tolist() == [f"images/{place}" for place in range(6)]
    assert source.class_names == ("0", "1")


@pytest.mark.parametrize("kind", [HuggingFaceData, lambda images: TorchData(images, LABELS)])
def test_data_sets_bring_their_labels_and_the_names_of_their_classes(kind: Any) -> None:
    source = read(kind(pillow()), None, kind(pillow()))
    assert source.class_names == ("ant", "bee")
    assert source.train.images.shape == (6, 3, 32, 32)
    assert source.train.targets.tolist() == LABELS
    assert source.unlabeled is not None
    assert source.unlabeled.targets.tolist() == LABELS, "known, so that pseudo-labels can be measured"
    assert read(kind(pillow()), ["x", "y"] * 3).class_names == ("x", "y")
    listed = read(kind(pillow()), None, None, None, "data.class_names=[A,B]")
    assert (listed.class_names, listed.train.targets.tolist()) == (("A", "B"), LABELS)


def test_a_data_set_of_pytorch_may_hold_images_alone() -> None:
    source = read(IMAGES, LABELS, TorchData(list(IMAGES), None))
    assert source.unlabeled is not None
    assert np.array_equal(source.unlabeled.images, source.train.images)
    assert set(source.unlabeled.targets.tolist()) == {UNLABELED}


def test_paths_are_read_as_files_are(tmp_path: Path) -> None:
    for place, content in enumerate(encoded()):
        (tmp_path / f"{place}.png").write_bytes(content)
    paths = [tmp_path / f"{place}.png" for place in range(6)]
    (tmp_path / "5.png").write_bytes(b"no image")
    source = read([*paths, str(tmp_path / "gone.png")], [*LABELS, 1], None, None, "data.max_bad_fraction=0.5")
    assert source.train.ids.tolist() == list(map(str, paths[:5]))
    assert source.train.images.shape == (5, 3, 32, 32), "of the size of data=image_folder"
    assert {image.id: image.reason for image in source.bad} == {
        str(paths[5]): "not an image",
        str(tmp_path / "gone.png"): "file is missing",
    }
    assert read(np.array(list(map(str, paths[:5]))), LABELS[:5]).train.targets.tolist() == LABELS[:5]
    assert len(read(paths, LABELS).bad) == 1, "one is always allowed"
    with pytest.raises(ValueError, match=r"^data\.max_bad_fraction=0\.01: 2 of 7 images cannot be read"):
        read([*paths, tmp_path / "gone.png"], [*LABELS, 1])


@pytest.mark.parametrize(
    ("labels", "class_names", "targets"),
    [
        (np.array([7, 3, -1, 3, 7, 3]), ("3", "7"), [1, 0, -1, 0, 1, 0]),
        ([7.0, 3.0, float("nan"), 3.0, 7.0, -1.0], ("3", "7"), [1, 0, -1, 0, 1, -1]),
        (["b", "a", None, "", "b ", "-1"], ("a", "b"), [1, 0, -1, -1, 1, -1]),
        (pd.Series([1, 2, None, 1, 2, 1], dtype="Int64"), ("1", "2"), [0, 1, -1, 0, 1, 0]),
        (pd.Series(["x", "y", None, "x", "y", "x"]), ("x", "y"), [0, 1, -1, 0, 1, 0]),
        (torch.tensor([10, 9, -1, 9, 9, 9]), ("9", "10"), [1, 0, -1, 0, 0, 0]),
        ([True, False, None, True, True, True], ("False", "True"), [1, 0, -1, 1, 1, 1]),
    ],
)
def test_labels_of_any_kind(labels: Any, class_names: tuple[str, ...], targets: list[int]) -> None:
    source = read(IMAGES, labels)
    assert (source.class_names, source.train.targets.tolist()) == (class_names, targets)


def test_grey_arrays_stay_grey() -> None:
    for images in (IMAGES[..., 0], IMAGES[..., :1], IMAGES[:, None, :, :, 0]):
        assert read(images, LABELS).train.images.shape == (6, 1, 8, 9)
    assert read(IMAGES[..., 0], LABELS, None, None, "data.channels=3").train.images.shape == (6, 3, 8, 9)
    assert read(IMAGES, LABELS, IMAGES[..., 0], None, "data.image_size=4").unlabeled.images.shape == (6, 3, 4, 4)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((IMAGES[0], LABELS), r"images of shape \(8, 9, 3\)|images: 8 images, but 6 labels"),
        ((np.zeros((6, 3, 8, 1), np.uint8), LABELS), r"images of shape \(6, 3, 8, 1\): two axes may be the channels"),
        ((np.zeros((6, 8, 8, 2), np.uint8), LABELS), r"images of shape \(6, 8, 8, 2\): no axis is that of channels"),
        ((np.zeros((6, 64), np.uint8), LABELS), r"images of shape \(6, 64\): no axis is that of channels"),
        ((IMAGES.astype(int), LABELS), "images of type int64: must be uint8"),
        ((IMAGES * 1.0, LABELS), r"images of floats from 0 to 255: must be in \[0, 1\]"),
        ((IMAGES, LABELS, IMAGES / 16), "unlabeled of floats from 0 to 15.9"),
        ((IMAGES, LABELS[:5]), "images: 6 images, but 5 labels"),
        ((IMAGES, [-1] * 6), "labels: not one image has a label"),
        ((IMAGES, None), "labels: not one image has a label"),
        ((IMAGES, [0, 0, 0, 0, 0, -1]), "0 is not enough; there must be at least 2 classes"),
        ((IMAGES, [0.5, *LABELS[1:]]), r"labels: 0\.5 is no label; give integers or names"),
        ((IMAGES, [0, "a", 1, 1, 1, 1]), "images: some labels are integers and others are names"),
        ((IMAGES, ["a", "A", *"bbbb"]), "the classes A .as of images/1. and a .as of images/0. differ in their case"),
        ((IMAGES, LABELS, []), "unlabeled: there is no image in it"),
        ((IMAGES, LABELS, "photos"), "unlabeled: a value of type str is not taken; give an array"),
        (([3] * 6, LABELS), "images: a value of type int is not taken"),
        (
            (IMAGES, LABELS, IMAGES[:, :4]),
            r"data\.image_size=null: images differ in size .images/0 is 9x8, unlabeled/0 is",
        ),
        ((IMAGES, LABELS, None, (IMAGES, LABELS)), "test=6 in memory: 2 of its 6 images have no label"),
        ((IMAGES, LABELS, None, (IMAGES, [7] * 6)), "test=6 in memory: label 7 of test/0 is outside the 2 classes"),
        (
            (HuggingFaceData(pillow()), None, None, None, "data.image_column=img"),
            "data.image_column=img: images has no",
        ),
    ],
)
def test_mistakes_are_named(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        read(*arguments)
    assert "\n" not in str(error.value)


def test_bytes_of_another_range_are_questioned() -> None:
    with pytest.warns(UserWarning, match=r"^images of uint8 from 0 to 15: nearly black, as white is 255"):
        read(IMAGES // 16, LABELS)


def test_the_command_line_has_no_such_images() -> None:
    with pytest.raises(ValueError, match=r"^data=arrays: those images were in memory; fit_arrays of Python takes them"):
        load_splits(load_config(["data=arrays"]).data, seed=0)
