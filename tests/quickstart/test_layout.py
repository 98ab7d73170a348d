"""quickstart/layout.py: what lies where in a folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from dpl_ray.quickstart.layout import find_layout, role_of


def make(root: Path, *names: str) -> Path:
    """Empty files of these names; the layout is told by names alone."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


LAYOUTS: Mapping[str, tuple[tuple[str, ...], dict[str, str | tuple[str, ...]]]] = {
    "classes alone": (("cat/1.jpg", "dog/1.jpg"), {"train": "."}),
    "classes beside loose images": (
        ("cat/1.jpg", "dog/1.jpg", "9.jpg", "8.png"), {"train": ".", "unlabeled": ("*.jpg", "*.png")}
    ),
    "classes beside a pool": (
        ("cat/1.jpg", "dog/1.jpg", "unlabelled/9.jpg"), {"train": ".", "unlabeled": "unlabelled"}
    ),
    "three folders": (
        ("train/cat/1.jpg", "train/dog/1.jpg", "unlabeled/1.jpg", "test/cat/2.jpg", "test/dog/2.jpg"),
        {"train": "train", "unlabeled": "unlabeled", "test": "test"},
    ),
    "a test folder without classes": (("Train/cat/1.jpg", "Test/2.jpg"), {"train": "Train", "unlabeled": "Test"}),
    "test before val": (
        ("labelled/a/1.jpg", "val/a/2.jpg", "test/a/3.jpg"), {"train": "labelled", "test": "test"}
    ),
    "a folder for all": (("photos/cat/1.jpg", "photos/dog/1.jpg", "photos/9.jpg", "read.txt"),
                         {"train": "photos", "unlabeled": "photos/*.jpg"}),
    "a folder for all that is labelled": (
        ("photos/cat/1.jpg", "photos/dog/1.jpg", "pool/9.jpg"), {"train": "photos", "unlabeled": "pool"}
    ),
    "a class alone": (("cat/1.jpg", "pool/9.jpg"), {"train": ".", "unlabeled": "pool"}),
    "a table beside images": (("labels.csv", "images/1.jpg"), {"train": "labels.csv", "unlabeled": "."}),
    "a table before folders": (
        ("train.csv", "test.csv", "train/1.jpg"), {"train": "train.csv", "test": "test.csv", "unlabeled": "."}
    ),
    "shards": (
        ("train-0.parquet", "train-1.parquet", "test-0.parquet", "unlabelled-0.parquet"),
        {"train": "train*", "unlabeled": "unlabelled-0.parquet", "test": "test-0.parquet"},
    ),
    "shards without a role": (("0.parquet", "1.parquet"), {"train": "*.parquet"}),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_layout_is_found(name: str, tmp_path: Path) -> None:
    files, expected = LAYOUTS[name]
    found = find_layout(make(tmp_path, *files))

    def short(path: str) -> str:
        return path.replace(f"{tmp_path}/", "").replace(str(tmp_path), ".")

    shown = {
        role: short(places) if isinstance(places, str) else tuple(map(short, places))
        for role, places in found.fields.items()
    }
    assert shown == expected
    assert found.name == ("parquet" if files[0].endswith("parquet") else "image_folder")
    assert found.reasons.keys() == found.fields.keys()


def test_classes_beside_other_folders_are_named_one_by_one(tmp_path: Path) -> None:
    make(tmp_path, "cat/1.jpg", "dog/1.jpg", "pool/9.jpg", ".cache/1.jpg", "_old/1.jpg", "notes/read.txt")
    assert [path.name for path in find_layout(tmp_path).classes] == ["cat", "dog"]


@pytest.mark.parametrize(
    ("name", "role"),
    [("Train", "train"), ("train-00000-of-5.parquet", "train"), ("test.csv", "test"), ("UNLABELED images", "unlabeled"),
     ("trains", None), ("restaurant", None), ("pooldogs", None), ("1", None)],
)  # fmt: skip
def test_the_first_word_of_a_name_says_what_it_holds(name: str, role: str | None) -> None:
    assert role_of(Path(name)) == role


def test_a_folder_without_labels_is_answered_with_the_layouts_that_there_are(tmp_path: Path) -> None:
    make(tmp_path, "1.jpg", "2.jpg")
    with pytest.raises(ValueError, match=r"no labels are found; it takes a folder for each class, .*1\.jpg, 2\.jpg"):
        find_layout(tmp_path)
    with pytest.raises(ValueError, match=r"^folder=.*nowhere: there is no such folder"):
        find_layout(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"none of its parquet files is called train"):
        find_layout(make(tmp_path / "shards", "test-0.parquet"))
