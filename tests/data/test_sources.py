"""sources.py, listing.py and parquet.py: the user's own files, with the mistakes that users make."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from pyarrow import fs

from dpl_ray.config.schema import DataConfig
from dpl_ray.data.dataset import Splits
from dpl_ray.data.files.listing import Listing, list_files
from dpl_ray.data.files.location import Location
from dpl_ray.data.splits.sources import load_splits
from dpl_ray.store import file_systems

CLASSES = ("ant", "bee", "cat")


def png(value: int, size: tuple[int, int] = (4, 4)) -> bytes:
    """A grey image whose pixels are its number, so that a shifted label shows."""
    buffer = io.BytesIO()
    Image.new("L", size, value).save(buffer, "PNG")
    return buffer.getvalue()


def write_folder(root: Path, per_class: int = 10, classes: tuple[str, ...] = CLASSES) -> Path:
    """Class number c holds the images of value 50 c, 50 c + 1, ..."""
    for index, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for number in range(per_class):
            (root / name / f"{number}.png").write_bytes(png(50 * index + number))
    return root


def write_pool(root: Path, count: int = 5) -> Path:
    (root / "deep").mkdir(parents=True)
    for number in range(count):
        (root / ("deep" if number % 2 else ".") / f"{number}.png").write_bytes(png(200 + number))
    return root


def write_parquet(
    path: Path, values: list[int], labels: Any = None, *, struct: bool = True, names: Any = None, column: str = "image"
) -> Path:
    encoded = [png(value) for value in values]
    columns: dict[str, Any] = {column: [{"bytes": item, "path": None} for item in encoded] if struct else encoded}
    if struct:
        columns[column] = pa.array(columns[column], pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    if labels is not None:
        columns["label"] = labels
    table = pa.table(columns)
    if names:
        features = {"image": {"_type": "Image"}, "label": {"names": list(names), "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=7)
    return path


def write_csv(folder: Path, lines: list[str]) -> Path:
    path = folder / "labels.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def csv_lines(label: Any) -> list[str]:
    return ["path,label"] + [f"train/{name}/{n}.png,{label(c)}" for c, name in enumerate(CLASSES) for n in range(10)]


def load(name: Any = "image_folder", *, uses_unlabeled: bool = False, seed: int = 0, **fields: Any) -> Splits:
    fields = {key: str(value) if isinstance(value, Path) else value for key, value in fields.items()}
    data = DataConfig(name=name, channels=1, **fields)
    return load_splits(data, seed=seed, uses_unlabeled=uses_unlabeled)


def all_labels(splits: Splits) -> dict[int, int]:
    """Target of every image by its value; no value may be there twice."""
    found: dict[int, int] = {}
    for part in (splits.labeled, splits.unlabeled, splits.validation, splits.test):
        for value, target in zip(part.images[:, 0, 0, 0].tolist(), part.targets.tolist(), strict=True):
            assert value not in found
            found[value] = target
    return found


def fails(message: str, name: Any = "image_folder", **fields: Any) -> None:
    with pytest.raises(ValueError, match=message) as error:
        load(name, **fields)
    assert "\n" not in str(error.value)


# Folders


def test_folder_with_a_pool(tmp_path: Path) -> None:
    train, pool = write_folder(tmp_path / "train"), write_pool(tmp_path / "pool")
    (train / "notes.txt").write_text("not an image")
    (train / ".cache").mkdir()
    (train / "ant" / "._0.png").write_bytes(b"of a Mac")
    splits = load(train=train, unlabeled=pool, num_labels_per_class=2, validation_fraction=0.5, uses_unlabeled=True)
    assert splits.class_names == CLASSES
    assert (len(splits.labeled), len(splits.validation), len(splits.test), len(splits.unlabeled)) == (3, 3, 6, 23)
    assert all_labels(splits) == {50 * c + n: c for c in range(3) for n in range(10)} | {200 + n: -1 for n in range(5)}
    assert splits.unlabeled.ids[-1] == str(pool / "deep" / "3.png")
    assert splits.bad == ()


@pytest.mark.parametrize("glob", ["train/*/*.png", "train/**/*.png", "train/**", "tra*/*/[0-9].png", "train/*/?.png"])
def test_glob_takes_the_class_from_the_parent_folder(tmp_path: Path, glob: str) -> None:
    write_folder(tmp_path / "train")
    assert all_labels(load(train=tmp_path / glob)) == {50 * c + n: c for c in range(3) for n in range(10)}


def test_pool_by_glob_or_as_one_file(tmp_path: Path) -> None:
    train, pool = write_folder(tmp_path / "train"), write_pool(tmp_path / "pool")
    for unlabeled, count in ((pool / "*.png", 3), (pool / "de*", 2), (pool / "0.png", 1), (pool / "[!0-2].png", 1)):
        assert len(load(train=train, unlabeled=unlabeled, uses_unlabeled=True).unlabeled) == count


def test_brackets_in_a_folder_that_exists_are_no_glob(tmp_path: Path) -> None:
    assert len(load(train=write_folder(tmp_path / "photos [2024]")).labeled) == 24


def test_file_uri_and_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folder(tmp_path / "my train")
    monkeypatch.setenv("HOME", str(tmp_path))
    by_path = load(train=tmp_path / "my train")
    for given_path in ("~/my train", f"file://{tmp_path}/my%20train"):
        assert load(train=given_path).fingerprint() == by_path.fingerprint()


def test_separate_test_folder_needs_no_image_of_every_class(tmp_path: Path) -> None:
    train = write_folder(tmp_path / "train")
    test = write_folder(tmp_path / "test", classes=("ant", "bee"))
    splits = load(train=train, test=test, allow_overlap=True)
    assert (len(splits.labeled), len(splits.test)) == (30, 20)
    assert set(splits.test.targets) == {0, 1}
    write_folder(tmp_path / "odd", classes=("ant", "cats"))
    fails(
        r"data.test=.*/odd: label cats of .*0.png is not one of the classes ant, bee, cat; did you mean cat\?",
        train=train,
        test=tmp_path / "odd",
    )
    fails(r"data.test=.*: 20 of its images are in data.train too, as .*ant/0.png", train=train, test=train / "[ab]*")


def test_class_names_give_the_order(tmp_path: Path) -> None:
    splits = load(train=write_folder(tmp_path / "train"), class_names=("cat", "ant", "bee"))
    assert all_labels(splits) == {50 * c + n: (c + 1) % 3 for c in range(3) for n in range(10)}


def test_labelled_images_in_the_pool_folder_are_not_there_twice(tmp_path: Path) -> None:
    train = write_folder(tmp_path / "all" / "train")
    write_pool(tmp_path / "all" / "more")
    splits = load(train=train, unlabeled=tmp_path / "all", uses_unlabeled=True)
    assert len(splits.unlabeled) == 5
    assert len(all_labels(splits)) == 35


def test_paths_that_are_wrong(tmp_path: Path) -> None:
    train = write_folder(tmp_path / "train")
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text("")
    fails(r"data.train=.*/tran: there is no such file or folder; did you mean train\?", train=tmp_path / "tran")
    fails(r"data.train=.*: there is no such file or folder \(nor a folder .*/a\)", train=tmp_path / "a" / "b")
    fails(r"data.unlabeled=.*/poll: there is no such", train=train, unlabeled=tmp_path / "poll", uses_unlabeled=True)
    fails(r"data.test=.*/tst: there is no such", train=train, test=tmp_path / "tst")
    fails(r"data.train=.*/empty: the folder is empty", train=tmp_path / "empty")
    fails(r"data.train=.*/\*.jpg: no file matches", train=train / "*.jpg")
    fails(r"data.train=.*/x/\*.jpg: no file matches; the folder .*/x does not exist", train=tmp_path / "x" / "*.jpg")
    fails(r"data.train=.*: is neither a path nor a glob \(bad character range z-a", train=train / "[z-a]")
    fails(r"data.train=.*/text: no image and no parquet file in it \(1 .txt left out\)", train=tmp_path / "text")
    fails(r"data.train=' ': is empty", train=" ")
    fails(r"data.train=.*0.png: is one file; it takes a folder with a subfolder", train=train / "ant" / "0.png")
    fails(r"data.train=.*/ant: 10 images lie in it, but no subfolder per class", train=train / "ant")
    fails(
        r"data.train=.*: ant is not enough; there must be at least 2", train=write_folder(tmp_path / "1", 2, ("ant",))
    )
    fails(r"data.train=ftp://host/x: the file system does not answer \(Unrecognized filesystem", train="ftp://host/x")


def test_classes_that_are_wrong(tmp_path: Path) -> None:
    train = write_folder(tmp_path / "train")
    fails(r"data.class_names: ant is there more than once", train=train, class_names=("ant", "bee", "ant"))
    fails(r"data.class_names: ant is not enough; there must be at least 2", train=train, class_names=("ant",))
    fails(
        r"data.class_names=ant,bee: 2 names, but data.train=.* has 3 classes \(ant, bee, cat\)",
        train=train,
        class_names=("ant", "bee"),
    )
    fails(
        r"label cat of .*cat/0.png is not one of the classes ant, bee, cats; did you mean cats\?",
        train=train,
        class_names=("ant", "bee", "cats"),
    )
    fails(
        r"data.num_labels_per_class=9: class ant has only 8 labelled .*6 images .* held out.*use at most 8",
        train=train,
        num_labels_per_class=9,
    )
    fails(
        r"data.unlabeled=null: there is no unlabelled image to learn from; set data.unlabeled",
        train=train,
        uses_unlabeled=True,
    )
    (train / "dog").mkdir()
    fails(r"data.train=.*: no labelled image of the class dog; add some, or remove the class", train=train)
    (tmp_path / "beside" / "ant").mkdir(parents=True)
    (tmp_path / "beside" / "0.png").write_bytes(png(1))
    fails(r"data.train=.*/beside: none of its 0 images has a label", train=tmp_path / "beside")


# Bad images


def test_bad_images_cost_no_good_ones_and_shift_no_label(tmp_path: Path) -> None:
    train = write_folder(tmp_path / "train")
    (train / "ant" / "0.png").write_bytes(b"")
    (train / "bee" / "5.png").write_bytes(png(55)[:50])
    splits = load(train=train, max_bad_fraction=0.1, num_labels_per_class=3, uses_unlabeled=True)
    expected = {50 * c + n: c for c in range(3) for n in range(10) if 50 * c + n not in (0, 55)}
    assert all_labels(splits) == expected
    assert [(Path(bad.id).name, bad.reason) for bad in splits.bad] == [("0.png", "empty"), ("5.png", "truncated")]
    fails(
        r"data.max_bad_fraction=0.05: 2 of 30 images cannot be read \(6.7%\), as .*0.png \(empty\), .*5.png \(trunc",
        train=train,
        max_bad_fraction=0.05,
    )


def test_a_class_without_a_readable_image(tmp_path: Path) -> None:
    train = write_folder(tmp_path / "train")
    for path in (train / "bee").iterdir():
        path.write_bytes(b"<html>")
    fails(
        r"data.train=.*: no labelled image of the class bee \(10 images could not be read, as .*\(not an image\)",
        train=train,
        max_bad_fraction=1.0,
    )


def test_a_file_that_disappears_is_a_bad_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train = write_folder(tmp_path / "train")

    def list_then_lose(location: Location) -> Listing:
        found = list_files(location)
        (train / "cat" / "3.png").unlink()
        return found

    monkeypatch.setattr("dpl_ray.data.labeled.records.list_files", list_then_lose)
    splits = load(train=train, max_bad_fraction=0.1)
    assert [(Path(bad.id).name, bad.reason) for bad in splits.bad] == [("3.png", "file is missing")]
    assert len(all_labels(splits)) == 29


@given(bad=st.sets(st.integers(0, 29), max_size=12))
@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_image_is_in_one_split_or_bad(bad: set[int], tmp_path_factory: pytest.TempPathFactory) -> None:
    train = write_folder(tmp_path_factory.mktemp("data") / "train")
    values = [50 * c + n for c in range(3) for n in range(10)]
    bad_values = {values[index] for index in bad if index % 10 > 3}
    for value in bad_values:
        (train / CLASSES[value // 50] / f"{value % 50}.png").write_bytes(b"junk")
    splits = load(train=train, max_bad_fraction=1.0, num_labels_per_class=2)
    assert all_labels(splits) == {value: value // 50 for value in values if value not in bad_values}
    assert len(splits.bad) == len(bad_values)


def test_sizes_must_agree_without_image_size(tmp_path: Path) -> None:
    train, pool = write_folder(tmp_path / "train"), write_pool(tmp_path / "pool")
    (pool / "0.png").write_bytes(png(200, (6, 5)))
    message = r"data.image_size=null: images differ in size \(.* is ., .* is .\); set"
    fails(
        message.replace("is .,", "is 6x5,").replace("is .\\", "is 4x4\\"),
        train=train,
        unlabeled=pool,
        uses_unlabeled=True,
    )
    splits = load(train=train, unlabeled=pool, uses_unlabeled=True, image_size=8)
    assert splits.unlabeled.images.shape == (5, 1, 8, 8)
    fails(
        message.replace("is .,", "is 4x4,").replace("is .\\", "is 6x5\\"),
        train=train,
        unlabeled=pool / "0.png",
        uses_unlabeled=True,
    )


# File systems


def test_another_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bucket that is a folder here: s3:// is kept in the names, and a CSV here may name images there."""
    write_folder(tmp_path / "bucket" / "train")
    store = fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem())
    asked = []

    def from_uri(uri: str) -> tuple[fs.FileSystem, str]:
        asked.append(uri)
        return store, "bucket"

    file_systems._bucket.cache_clear()
    monkeypatch.setenv("AWS_REGION", "eu-west-3")
    monkeypatch.setattr(file_systems, "_check_reach", lambda *_: None)
    monkeypatch.setattr(file_systems.fs, "FileSystem", type("FileSystem", (), {"from_uri": staticmethod(from_uri)}))
    splits = load(train="s3://bucket/train/?endpoint_override=here")
    assert len(all_labels(splits)) == 30
    assert splits.labeled.ids[0].startswith("s3://bucket/train/ant/")
    splits = load(train="s3://bucket/train/*/?.png")
    assert len(all_labels(splits)) == 30
    assert asked == ["s3://bucket?endpoint_override=here&region=eu-west-3", "s3://bucket?region=eu-west-3"]
    lines = ["path,label", *(f"s3://bucket/train/{name}/{n}.png,{name}" for name in CLASSES for n in range(10))]
    assert len(all_labels(load(train=write_csv(tmp_path, lines), allowed_hosts=("bucket",)))) == 30
    fails(r"data.train=s3://bucket/trian: there is no such file or folder$", train="s3://bucket/trian")
    file_systems._bucket.cache_clear()


@pytest.mark.parametrize("scheme", ["s3", "gs"])
def test_a_bucket_out_of_reach_is_one_line(scheme: str) -> None:
    """Nothing listens at this endpoint."""
    fails(
        rf"data.train={scheme}://.*: the file system does not answer \(.*\); .* credentials and a network",
        train=f"{scheme}://bucket/x?scheme=http&endpoint_override=localhost:1",
    )


def test_where_classes_are_called_by_numbers_a_number_is_a_name(tmp_path: Path) -> None:
    """Folders 1, 2, 3 and a test CSV of labels 1 and 0: 1 is the first class, 0 is none of them."""
    write_folder(tmp_path / "train", classes=("1", "2", "3"))
    (tmp_path / "test.png").write_bytes(png(240))
    table = tmp_path / "test.csv"
    table.write_text("path,label\ntest.png,1\n")
    assert load(train=str(tmp_path / "train"), test=str(table)).test.targets.tolist() == [0]
    table.write_text("path,label\ntest.png,0\n")
    fails("label 0 of", train=str(tmp_path / "train"), test=str(table))


def test_a_test_split_of_which_nothing_can_be_read_is_an_error(tmp_path: Path) -> None:
    write_folder(tmp_path / "train", per_class=40)
    for name in CLASSES:
        (tmp_path / "test" / name).mkdir(parents=True)
        (tmp_path / "test" / name / "bad.png").write_bytes(b"no image")
    fields: dict[str, Any] = {"train": str(tmp_path / "train"), "test": str(tmp_path / "test")}
    fails("none of its 3 images can be read", **fields, max_bad_fraction=0.5)
