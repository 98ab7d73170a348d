"""records.py: own images that a CSV names, with the mistakes that users make."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unicodedata import normalize

import pytest

from dpl_ray.data.labels import NOTHING, as_label
from dpl_ray.store.records import csv_text, from_cell
from tests.data.test_class_names import NFC, NFD, write_class
from tests.data.test_sources import CLASSES, all_labels, csv_lines, fails, load, write_csv, write_folder, write_parquet


@pytest.mark.parametrize(
    ("label", "names"), [(lambda c: CLASSES[c], CLASSES), (lambda c: c, ("0", "1", "2")), (lambda c: f" 0{c} ", None)]
)
def test_csv_with_names_or_indices(tmp_path: Path, label: Any, names: Any) -> None:
    write_folder(tmp_path / "train")
    lines = csv_lines(label)
    lines[1], lines[11], lines[12] = "train/ant/0.png,", "train/bee/0.png,-1", "train/bee/1.png"
    splits = load(train=write_csv(tmp_path, lines), uses_unlabeled=True)
    expected = {50 * c + n: c for c in range(3) for n in range(10)} | {0: -1, 50: -1, 51: -1}
    assert all_labels(splits) == expected
    assert splits.class_names == (names or ("0", "1", "2"))
    assert sorted(splits.unlabeled.images[:, 0, 0, 0].tolist()) == [0, 50, 51]


def test_csv_with_class_names_beside_it_and_columns_in_any_order(tmp_path: Path) -> None:
    write_folder(tmp_path / "train")
    (tmp_path / "class_names.txt").write_text("ant\nbee\ncat\n\n")
    lines = [
        "\ufeffwhen,label,path",
        "",
        *(f"now,{c},train/{name}/{n}.png" for c, name in enumerate(CLASSES) for n in range(3)),
    ]
    splits = load(train=write_csv(tmp_path, lines))
    assert splits.class_names == CLASSES
    assert len(all_labels(splits)) == 9


@pytest.mark.parametrize(
    ("name", "delimiter", "encoding"),
    [("a.tsv", "\t", "utf-8"), ("a.csv", ";", "utf-8"), ("a.csv", "\t", "utf-16"), ("a.csv", ",", "utf-16-be"),
     ("a.csv", ",", "utf-16-le")],
)  # fmt: skip
def test_csv_as_spreadsheets_write_it(tmp_path: Path, name: str, delimiter: str, encoding: str) -> None:
    write_folder(tmp_path / "train")
    text = "\n".join(csv_lines(lambda c: f"é {CLASSES[c]}")).replace(",", delimiter)
    mark = "\ufeff" if encoding == "utf-16-be" else ""
    (tmp_path / name).write_bytes((mark + text).encode(encoding))
    splits = load(train=tmp_path / name)
    assert splits.class_names == tuple(f"é {name}" for name in CLASSES)
    assert all_labels(splits) == {50 * c + n: c for c in range(3) for n in range(10)}


def test_backslashes_in_a_csv_separate_folders_unless_a_file_is_called_so(tmp_path: Path) -> None:
    write_folder(tmp_path / "train")
    (tmp_path / "train" / "ant" / "0.png").rename(tmp_path / "train\\ant\\0.png")
    lines = [line.replace("/", "\\") for line in csv_lines(lambda c: c)]
    assert all_labels(load(train=write_csv(tmp_path, lines))) == {50 * c + n: c for c in range(3) for n in range(10)}


def test_csv_naming_a_missing_file_counts_as_bad(tmp_path: Path) -> None:
    write_folder(tmp_path / "train")
    path = write_csv(tmp_path, [*csv_lines(lambda c: c), "train/ant/99.png,0"])
    splits = load(train=path, max_bad_fraction=0.1)
    assert [bad.reason for bad in splits.bad] == ["file is missing"]
    assert all_labels(splits) == {50 * c + n: c for c in range(3) for n in range(10)}
    fails(r"data.max_bad_fraction=0.0: 1 of 31 images .*ant/99.png \(file is missing\)", train=path, max_bad_fraction=0)


def test_csv_that_is_wrong(tmp_path: Path) -> None:
    write_folder(tmp_path / "train")
    good = csv_lines(lambda c: CLASSES[c])
    for lines, message in (
        (["file,label", *good[1:]], r"labels.csv: the header is file,label; it needs the columns path and label"),
        (["path,labels", *good[1:]], r"the header is path,labels; .*; did you mean labels\?"),
        ([], r"the header is missing; it needs the columns path and label"),
        (good[:1], r"no row below the header"),
        ([*good, ",ant"], r"row 31 has no path"),
        ([*good, "train/../train/ant/0.png,bee"], r"row 31 names .*/train/ant/0.png again"),
        ([*good[:-1], "train/cat/9.png,cta"], r"label cta of .*cat/9.png is not one of the classes ant, bee, cat, cta"),
        (["path,label", *(line.rsplit(",")[0] + "," for line in good[1:])], r"none of its 30 images has a label"),
    ):
        if "cta" in message:
            fails(
                message.replace(", cta", r"; did you mean cat\?"), train=write_csv(tmp_path, lines), class_names=CLASSES
            )
        else:
            fails(message, train=write_csv(tmp_path, lines))
    indices = csv_lines(lambda c: c)
    fails(
        r"label -2 of .*0.png is outside the 3 classes 0 to 2; -1 or an empty",
        train=write_csv(tmp_path, ["path,label", "train/ant/0.png,-2", *indices[2:]]),
    )
    fails(
        r"label 3 of .*0.png is outside the 3 classes",
        class_names=CLASSES,
        train=write_csv(tmp_path, ["path,label", "train/ant/0.png,3", *indices[2:]]),
    )
    fails(
        r"label 999999999999 among 30 images; labels are class indices from 0 to C - 1, or names",
        train=write_csv(tmp_path, ["path,label", "train/ant/0.png,999999999999", *indices[2:]]),
    )
    (tmp_path / "labels.csv").write_bytes(b"path,label\n\xff\xfe,1\n")
    fails(r"labels.csv: cannot be read as CSV in UTF-8", train=tmp_path / "labels.csv")


def test_paths_of_a_csv_are_found_in_the_other_unicode_form(tmp_path: Path) -> None:
    """And are the same images in the pool."""
    write_class(tmp_path / NFD / f"{NFC} 1", range(5))
    write_class(tmp_path / NFD / f"{NFD} 2", range(10, 15))
    for form in ("NFC", "NFD"):
        lines = [normalize(form, f"{NFC}/{NFC} {n // 10 + 1}/{n}.png,{n // 10}") for n in (*range(5), *range(10, 15))]
        table = write_csv(tmp_path, ["path,label", *lines])
        splits = load(train=table, unlabeled=tmp_path / NFC, num_labels_per_class=2, uses_unlabeled=True)
        assert all_labels(splits) == {value: value // 10 for value in (*range(5), *range(10, 15))}
        assert splits.bad == ()


@pytest.mark.parametrize("nothing", ["-1.0", "", " ", "NaN", "nan", "NA", "N/A", "null", "None", "<NA>", "-1", "-1."])
def test_floats_and_texts_for_nothing_in_a_csv(tmp_path: Path, nothing: str) -> None:
    write_folder(tmp_path / "train")
    lines = csv_lines(lambda label: f"{label}.0")
    lines[3] = f"train/ant/2.png,{nothing}"
    splits = load(train=write_csv(tmp_path, lines), uses_unlabeled=True)
    assert splits.class_names == ("0", "1", "2")
    assert all_labels(splits) == {50 * c + n: c for c in range(3) for n in range(10)} | {2: -1}


def test_every_text_that_pandas_reads_as_nothing_is_nothing(tmp_path: Path) -> None:
    pd = pytest.importorskip("pandas")  # mlflow brings it
    path = tmp_path / "a.csv"
    path.write_text("\n".join(["label", *(f'"{text}"' for text in NOTHING), "0.5"]))
    assert pd.read_csv(path, skip_blank_lines=False)["label"].isna().tolist() == [True] * len(NOTHING) + [False]
    assert {as_label(text, ()) for text in NOTHING} == {None}


def test_a_class_that_is_really_called_na(tmp_path: Path) -> None:
    write_folder(tmp_path / "train", classes=("EU", "NA"))
    assert load(train=tmp_path / "train").class_names == ("EU", "NA")
    lines = [f"train/{name}/{number}.png,{name}" for name in ("EU", "NA") for number in range(10)]
    table = write_csv(tmp_path, ["path,label", *lines])
    fails("EU is not enough; there must be at least 2 classes", train=table)
    assert set(load(train=table, class_names=("EU", "NA")).test.targets) == {0, 1}


def test_rows_of_parquet_files_in_a_csv(tmp_path: Path) -> None:
    """In any order, beside image files; each row is the image of its number, and is no image of the pool as well."""
    write_folder(tmp_path / "train", per_class=2)
    pool = write_parquet(tmp_path / "pool" / "rows.parquet", [*range(60, 80), *range(110, 130)], column="img")
    rows = [("ant", "train/ant/0.png"), ("ant", "train/ant/1.png")]
    rows += [("bee", f"pool/rows.parquet:{row}") for row in (19, 3, 12, 0)]
    rows += [("cat", f"{pool}:{row}") for row in (39, 20, 31)]
    lines = [f"{path},{label}" for label, path in (rows[place] for place in (8, 2, 0, 6, 1, 4, 3, 7, 5))]
    table = write_csv(tmp_path, ["path,label", *lines])
    splits = load(train=table, unlabeled=pool.parent, image_column="img", test_fraction=0.3, uses_unlabeled=True)
    found = all_labels(splits)
    labels = {0: 0, 1: 0, **dict.fromkeys((79, 63, 72, 60), 1), **dict.fromkeys((129, 110, 121), 2)}
    assert {value: target for value, target in found.items() if target >= 0} == labels
    assert len(splits.unlabeled) == 40 - 7
    again = write_csv(tmp_path, ["path,label", *lines, f"{pool}:019,bee"])
    fails(r"row 10 names .*/rows.parquet:19 again", train=again, image_column="img")
    gone = write_csv(tmp_path, ["path,label", *lines, f"{pool}:40,bee"])
    bad = load(train=gone, image_column="img", max_bad_fraction=0.2).bad
    assert [(image.id, image.reason) for image in bad] == [(f"{pool}:40", "file is missing")]


def test_names_that_a_spreadsheet_would_run_are_read_as_they_were_before_they_were_written(tmp_path: Path) -> None:
    """So that a table of ours is safe to open, and to train on."""
    names = ("+bee", "-ant", "=1+1")
    write_folder(tmp_path, classes=names)
    rows = [(f"{name}/{number}.png", name) for name in names for number in range(10)]
    table = tmp_path / "labels.csv"
    table.write_text(csv_text([("path", "label"), *rows]))
    assert table.read_text().splitlines()[1] == "'+bee/0.png,'+bee"
    splits = load(train=table)
    assert splits.class_names == names
    assert splits.bad == ()
    assert [from_cell(cell) for cell in ("'a", "'", "-1", "'-1", "'=1")] == ["'a", "'", "-1", "'-1", "=1"]
