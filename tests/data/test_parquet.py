"""parquet.py: own images in parquet files, with the mistakes that users make and the types that writers choose."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any
from unicodedata import normalize

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.data.test_sources import (
    CLASSES,
    all_labels,
    fails,
    load,
    png,
    write_folder,
    write_parquet,
    write_pool,
)

VALUES = [50 * c + n for n in range(10) for c in range(3)]
LABELS = [0, 1, 2] * 10
TRUTH = dict(zip(VALUES, LABELS, strict=True))


@pytest.mark.parametrize("struct", [True, False])
@pytest.mark.parametrize("place", ["train.parquet", ".", "*.parquet"])
def test_parquet(tmp_path: Path, struct: bool, place: str) -> None:
    write_parquet(tmp_path / "train.parquet", VALUES, LABELS, struct=struct, names=CLASSES)
    splits = load("parquet", train=tmp_path / place, num_labels_per_class=3, uses_unlabeled=True)
    assert splits.class_names == CLASSES
    assert all_labels(splits) == TRUTH
    assert splits.test.ids[0].startswith(f"{tmp_path}/train.parquet:")


def test_parquet_shards_in_order_and_rows_without_label(tmp_path: Path) -> None:
    for shard in range(3):
        labels: list[Any] = LABELS[:10] if shard == 0 else [*LABELS[10 * shard : 10 * shard + 8], None, -1]
        write_parquet(tmp_path / f"{shard}.parquet", VALUES[10 * shard : 10 * shard + 10], labels)
    splits = load("parquet", train=tmp_path, uses_unlabeled=True)
    without = [VALUES[index] for index in (18, 19, 28, 29)]
    assert all_labels(splits) == TRUTH | dict.fromkeys(without, -1)
    assert sorted(splits.unlabeled.images[:, 0, 0, 0].tolist()) == sorted(without)
    assert splits.class_names == ("0", "1", "2")


@pytest.mark.parametrize("dictionary", [True, False])
def test_parquet_labels_by_name(tmp_path: Path, dictionary: bool) -> None:
    labels = pa.array([CLASSES[label] for label in LABELS])
    path = write_parquet(tmp_path / "a.parquet", VALUES, labels.dictionary_encode() if dictionary else labels)
    assert all_labels(load("parquet", train=path)) == TRUTH
    splits = load("parquet", train=path, class_names=("cat", "ant", "bee"))
    assert all_labels(splits) == {value: (label + 1) % 3 for value, label in TRUTH.items()}


@pytest.mark.parametrize("names", [None, ("0", "1", "2")])
def test_labels_of_parquet_mean_what_they_mean_in_a_csv(tmp_path: Path, names: tuple[str, ...] | None) -> None:
    """Of pandas' floats and of texts: whole floats are indices, NaN and its texts are none, unless they are listed."""
    floats = [float(label) for label in LABELS]
    floats[3] = float("nan")
    expected = dict(zip(VALUES, LABELS, strict=True)) | {VALUES[3]: -1}
    for labels in (floats, [str(label) for label in floats]):
        path = write_parquet(tmp_path / "a.parquet", VALUES, labels)
        splits = load("parquet", train=path, class_names=names, uses_unlabeled=True)
        assert all_labels(splits) == expected
        assert splits.class_names == ("0", "1", "2")
    path = write_parquet(tmp_path / "b.parquet", VALUES, ["nan" if label else "0.0" for label in LABELS])
    splits = load("parquet", train=path, class_names=("0.0", "nan"))
    assert all_labels(splits) == {value: int(label > 0) for value, label in zip(VALUES, LABELS, strict=True)}


def test_parquet_class_names_beside_it(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", VALUES, LABELS)
    (tmp_path / "class_names.txt").write_text("ant\nbee\ncat\n")
    assert load("parquet", train=path).class_names == CLASSES
    (tmp_path / "class_names.txt").write_text("ant\nbee\n")
    fails(r"label 2 of .*a.parquet:2 is outside the 2 classes 0 to 1", "parquet", train=path)


def test_parquet_with_other_pools_and_tests(tmp_path: Path) -> None:
    train = write_parquet(tmp_path / "train.parquet", VALUES, LABELS, names=CLASSES)
    pool = write_pool(tmp_path / "pool")
    splits = load(
        "parquet",
        train=train,
        unlabeled=pool,
        test=write_parquet(tmp_path / "t.parquet", [180], [2]),
        uses_unlabeled=True,
    )
    assert all_labels(splits) == TRUTH | {200 + n: -1 for n in range(5)} | {180: 2}
    for labels, target in ((None, -1), ([1], 1), ([7], -1), ([0.5], -1)):
        unlabeled = write_parquet(tmp_path / "pool.parquet", [220], labels)
        splits = load("parquet", train=train, unlabeled=unlabeled, uses_unlabeled=True)
        assert splits.unlabeled.targets.tolist() == [target]
    test = write_parquet(tmp_path / "t.parquet", [180, 181], [2, None])
    fails(r"data.test=.*: 1 of its 2 images have no label", "parquet", train=train, test=test)
    images = write_folder(tmp_path / "images")
    splits = load(train=images, unlabeled=write_parquet(tmp_path / "p.parquet", [230]), uses_unlabeled=True)
    assert splits.unlabeled.images[:, 0, 0, 0].tolist() == [230]


def test_parquet_bad_images(tmp_path: Path) -> None:
    images = [png(value) for value in VALUES]
    for index, payload in ((4, None), (9, b""), (20, b"junk")):
        images[index] = payload  # type: ignore[call-overload]
    pq.write_table(pa.table({"image": images, "label": LABELS}), tmp_path / "a.parquet")
    splits = load("parquet", train=tmp_path / "a.parquet", max_bad_fraction=0.1)
    assert [(bad.id.rsplit(":")[1], bad.reason) for bad in splits.bad] == [
        ("4", "empty"),
        ("9", "empty"),
        ("20", "not an image"),
    ]
    assert all_labels(splits) == {v: label for i, (v, label) in enumerate(TRUTH.items()) if i not in (4, 9, 20)}


def test_parquet_that_is_wrong(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "img.parquet", VALUES, LABELS, column="img")
    fails(
        r"data.image_column=image: .* has no such column but img: struct<.*>, label: int64; did you mean img\?",
        "parquet",
        train=path,
    )
    fails(
        r"data.image_column=label: .* has int64 there; images are encoded bytes",
        "parquet",
        train=path,
        image_column="label",
    )
    fails(
        r"data.label_column=lable: .* has no such column but img: .*, label: int64; did you mean label\?",
        "parquet",
        train=path,
        image_column="img",
        label_column="lable",
    )
    fails(
        r"none of its 30 images has a label \(data.label_column=null reads none\)",
        "parquet",
        train=path,
        image_column="img",
        label_column=None,
    )
    fails(
        r"data.label_column=label: .* has double there; labels are integers",
        "parquet",
        train=write_parquet(tmp_path / "f.parquet", VALUES, [0.5] * 30),
    )
    fails(
        r"none of its 30 images has a label \(all are null or -1\)",
        "parquet",
        train=write_parquet(tmp_path / "n.parquet", VALUES, [None] * 30),
    )
    fails(
        r"the parquet files have no rows",
        "parquet",
        train=write_parquet(tmp_path / "e.parquet", [], pa.array([], pa.int64())),
    )
    fails(
        r"data.train=.*: holds no parquet file .* take data=image_folder",
        "parquet",
        train=write_folder(tmp_path / "images"),
    )
    fails(r"data.train=.*: holds parquet files, which data=parquet reads", train=path)


def test_parquet_that_is_corrupt(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", VALUES, LABELS, struct=False)
    whole = path.read_bytes()
    message = r"data.train=.*: .*a.parquet is not a readable parquet file"
    for content in (b"", b"junk", whole[: len(whole) // 2]):
        path.write_bytes(content)
        fails(message, "parquet", train=path)
    # A damaged page is found only when the images are read; the footer and the labels are whole.
    offset = pq.ParquetFile(io.BytesIO(whole)).metadata.row_group(1).column(0).dictionary_page_offset
    path.write_bytes(whole[:offset] + b"\xff" * 40 + whole[offset + 40 :])
    fails(r"7 of 30 images cannot be read .* as .*a.parquet:7 \(file cannot be read\)", "parquet", train=path)
    splits = load("parquet", train=path, max_bad_fraction=0.3)
    assert all_labels(splits) == {value: label for row, (value, label) in enumerate(TRUTH.items()) if not 7 <= row < 14}


def encoded_as(kind: str, images: list[bytes]) -> pa.Array:
    if kind == "dictionary":
        return pa.array(images, pa.binary()).dictionary_encode()
    return pa.array(images, getattr(pa, kind)())


@pytest.mark.parametrize("labels", ["string", "string_view", "large_string"])
@pytest.mark.parametrize("kind", ["binary", "large_binary", "binary_view", "dictionary"])
def test_the_types_that_writers_choose(tmp_path: Path, kind: str, labels: str) -> None:
    names = pa.array([CLASSES[label] for label in LABELS], getattr(pa, labels)())
    table = pa.table({"image": encoded_as(kind, [png(value) for value in VALUES]), "label": names})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=7)
    splits = load("parquet", train=tmp_path, unlabeled=tmp_path, num_labels_per_class=3, uses_unlabeled=True)
    assert all_labels(splits) == TRUTH
    assert splits.class_names == CLASSES


def test_an_image_may_lie_beside_the_parquet_file_but_not_outside_of_the_data(tmp_path: Path) -> None:
    write_folder(tmp_path / "data" / "images")
    (tmp_path / "secret.png").write_bytes(png(222))
    paths = [f"../images/{CLASSES[label]}/{row // 3}.png" for row, label in enumerate(LABELS)]
    for escape in ("../../secret.png", str(tmp_path / "secret.png"), "../../data/../secret.png"):
        cells = [{"path": path} for path in [*paths, escape]]
        (tmp_path / "data" / "shards").mkdir(exist_ok=True)
        pq.write_table(pa.table({"image": cells, "label": [*LABELS, 0]}), tmp_path / "data" / "shards" / "a.parquet")
        splits = load("parquet", train=tmp_path / "data", max_bad_fraction=0.1)
        assert all_labels(splits) == TRUTH
        assert [bad.reason for bad in splits.bad] == ["path leads out of the folder of the data"]
    fails(r"31 of 31 images cannot be read", "parquet", train=tmp_path / "data" / "shards")


def test_an_image_beside_the_parquet_file_is_found_in_the_other_unicode_form(tmp_path: Path) -> None:
    write_folder(tmp_path / normalize("NFD", "käfer"))
    cells = [{"path": normalize("NFC", f"käfer/{CLASSES[c]}/{row // 3}.png")} for row, c in enumerate(LABELS)]
    pq.write_table(pa.table({"image": cells, "label": LABELS}), tmp_path / "a.parquet")
    assert all_labels(load("parquet", train=tmp_path / "a.parquet")) == TRUTH


def test_a_column_name_that_is_there_twice(tmp_path: Path) -> None:
    images, path = [png(value) for value in VALUES], tmp_path / "a.parquet"
    for columns in (["image", "label", "image"], ["image", "label", "label"]):
        values = [images if name == "image" else LABELS for name in columns]
        pq.write_table(pa.table(values, names=columns), path)
        name = columns[2]
        fails(rf"data.{name}_column={name}: .*a.parquet has 2 columns of this name; rename all", "parquet", train=path)
    other = pa.table([images, LABELS, LABELS, LABELS], names=["image", "label", "other", "other"])
    pq.write_table(other, path)
    assert all_labels(load("parquet", train=path)) == TRUTH


def test_folders_that_begin_with_an_underscore_are_no_data(tmp_path: Path) -> None:
    write_parquet(tmp_path / "data" / "a.parquet", VALUES, LABELS)
    for name in ("_temporary/b.parquet", "deep/_x/b.parquet", "_c.parquet"):
        write_parquet(tmp_path / "data" / name, [200], [7])
    splits = load("parquet", train=tmp_path / "data")
    assert all_labels(splits) == TRUTH
    assert splits.left_out == {"_temporary/": 1, "_x/": 1, ".parquet": 1}
    assert len(load("parquet", train=tmp_path / "data", unlabeled=tmp_path / "data").unlabeled) == 0


# Shards


def write_shards(folder: Path, orders: list[tuple[str, ...] | None], kind: str = "index") -> None:
    """A third of the images in each file, whose labels are indices of its own order of names, or names."""
    for shard, names in enumerate(orders):
        rows = slice(10 * shard, 10 * shard + 10)
        labels: list[Any] = [CLASSES[label] for label in LABELS[rows]]
        if names is not None or kind == "index":
            labels = [(names or CLASSES).index(name) for name in labels]
        write_parquet(folder / f"{shard}.parquet", VALUES[rows], labels, names=names)


OTHER = ("cat", "ant", "bee")


@pytest.mark.parametrize("class_names", [None, ("bee", "cat", "ant")])
def test_shards_with_their_classes_in_another_order_are_read_by_name(
    tmp_path: Path, class_names: tuple[str, ...] | None
) -> None:
    write_shards(tmp_path / "train", [CLASSES, OTHER, ("cat", "bee", "ant")])
    write_parquet(tmp_path / "test.parquet", [201, 202], [0, 1], names=OTHER)
    write_parquet(tmp_path / "pool" / "a.parquet", [211, 212, 213], [0, 1, 2], names=OTHER)
    write_parquet(tmp_path / "pool" / "b.parquet", [221, 222, 223], [0, 1, 2], names=("dog", "bee", "ant"))
    given = {"train": tmp_path / "train", "test": tmp_path / "test.parquet", "unlabeled": tmp_path / "pool"}
    splits = load("parquet", **given, class_names=class_names, uses_unlabeled=True)
    names = splits.class_names
    assert names == (class_names or CLASSES)
    found = {value: names[target] if target >= 0 else None for value, target in all_labels(splits).items()}
    assert found == {value: CLASSES[label] for value, label in TRUTH.items()} | {
        201: "cat", 202: "ant", 211: "cat", 212: "ant", 213: "bee", 221: None, 222: "bee", 223: "ant",
    }  # fmt: skip


def test_a_streamed_pool_of_shards_in_another_order_is_read_by_name(tmp_path: Path) -> None:
    write_shards(tmp_path / "train", [CLASSES, OTHER, ("cat", "bee", "ant")])
    fields = {"num_labels_per_class": 2, "image_size": 4, "uses_unlabeled": True, "pool": {"mode": "stream"}}
    pool = load("parquet", train=tmp_path / "train", **fields).unlabeled
    rows = [row for part in pool.parts for span in part.spans.tolist() for row in part.read(*span)]
    ids = [f"{tmp_path}/train/{row // 10}.parquet:{row % 10}" for row in range(30)]
    labels = dict(zip(ids, LABELS, strict=True))
    assert len(rows) > 10
    assert [row[2] for row in rows] == [labels[row[0]] for row in rows]


def test_class_names_may_rename_those_of_the_files(tmp_path: Path) -> None:
    """Indices keep their meaning: that of the files' own order."""
    write_shards(tmp_path / "train", [CLASSES, OTHER, CLASSES])
    write_parquet(tmp_path / "test.parquet", [201], [0], names=OTHER)
    write_parquet(tmp_path / "pool.parquet", [211], [0], names=OTHER)
    given = {"train": tmp_path / "train", "test": tmp_path / "test.parquet", "unlabeled": tmp_path / "pool.parquet"}
    splits = load("parquet", **given, class_names=("Ameise", "Biene", "Katze"), uses_unlabeled=True)
    assert splits.class_names == ("Ameise", "Biene", "Katze")
    assert all_labels(splits) == TRUTH | {201: 2, 211: 2}


def test_shards_that_do_not_fit_together(tmp_path: Path) -> None:
    write_shards(tmp_path / "a", [CLASSES, ("ant", "bee", "cat", "dog"), CLASSES])
    fails(
        r"data.train=.*: the classes of .*/1.parquet are ant, bee, cat, dog, but those of .*/0.parquet are ant, bee, "
        r"cat; name them alike, or list all in data.class_names",
        "parquet",
        train=tmp_path / "a",
    )
    write_shards(tmp_path / "b", [CLASSES, OTHER, None])
    fails(
        r"data.train=.*: .*/0.parquet and .*/1.parquet have their classes in another order, and .*/2.parquet does not "
        r"say what its class indices mean",
        "parquet",
        train=tmp_path / "b",
    )
    for shard, labels in enumerate((LABELS[:10], [CLASSES[label] for label in LABELS[10:20]])):
        write_parquet(tmp_path / "c" / f"{shard}.parquet", VALUES[10 * shard : 10 * shard + 10], labels)
    fails(
        r"data.train=.*: the labels are integers in some files and names in others, as of .*/0.parquet:9 and "
        r".*/1.parquet:9; list the names in the order of the integers in data.class_names",
        "parquet",
        train=tmp_path / "c",
    )
    expected = dict(list(TRUTH.items())[:20])
    assert all_labels(load("parquet", train=tmp_path / "c", class_names=CLASSES)) == expected
    write_parquet(tmp_path / "d.parquet", VALUES, LABELS, names=CLASSES)
    test = write_parquet(tmp_path / "test.parquet", [201], [1], names=("ant", "wasp"))
    message = r"data.test=.*: the classes of .*test.parquet are ant, wasp, but those of data.train are ant, bee, cat"
    fails(message, "parquet", train=tmp_path / "d.parquet", test=test)
    test = write_parquet(tmp_path / "test.parquet", [201], [2], names=("cat", "ant"))
    message = r"data.test=.*: label 2 of .*test.parquet:0 is outside the 2 classes cat, ant"
    fails(message, "parquet", train=tmp_path / "d.parquet", test=test)


@pytest.mark.parametrize("class_names", [CLASSES, ("bee", "cat", "ant")])
def test_indices_mean_the_names_beside_them_whatever_the_order_of_the_folders(
    tmp_path: Path, class_names: tuple[str, ...]
) -> None:
    train = write_folder(tmp_path / "train")
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "x.png").write_bytes(png(201))
    (tmp_path / "test" / "class_names.txt").write_text("\n".join(OTHER))
    test, pool = (
        tmp_path / "test" / "test.csv",
        write_parquet(tmp_path / "pool.parquet", [211, 212], [0, 1], names=OTHER),
    )
    test.write_text("path,label\nx.png,0\n")
    splits = load(train=train, test=test, unlabeled=pool, class_names=class_names, uses_unlabeled=True)
    assert [class_names[target] for target in splits.test.targets] == ["cat"]
    assert [class_names[target] for target in splits.unlabeled.targets] == ["cat", "ant"]
