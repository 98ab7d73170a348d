"""One name for each class, however it was typed; what a CSV says where it says nothing; links and kinds of files."""

from __future__ import annotations

from pathlib import Path
from unicodedata import normalize

import pandas as pd
import pytest

from dpl_ray.data.decode import FORMATS
from dpl_ray.data.files import IMAGE_EXTENSIONS
from dpl_ray.data.labels import NOTHING, csv_label
from tests.data.test_sources import (
    CLASSES,
    all_labels,
    csv_lines,
    fails,
    load,
    png,
    write_csv,
    write_folder,
    write_parquet,
)

NFC, NFD = (normalize(form, "käfer") for form in ("NFC", "NFD"))


def write_class(folder: Path, values: range) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for value in values:
        (folder / f"{value}.png").write_bytes(png(value))


def test_a_name_is_one_in_every_unicode_form_and_with_blanks_around_it(tmp_path: Path) -> None:
    for number, name in enumerate([NFC, NFD, "ant", "ant "]):
        write_class(tmp_path / "train" / name, range(10 * number, 10 * number + 10))
    expected = {value: int(value < 20) for value in range(40)}
    for names in (None, ("ant", NFD), (" ant", NFC)):
        splits = load(train=tmp_path / "train", class_names=names)
        assert splits.class_names == ("ant", NFC)
        assert all_labels(splits) == expected
    assert all_labels(load(train=tmp_path / "train" / "*" / "*.png")) == expected
    labels = [NFC, "ant", NFD, " ant", f"{NFC} ", "ant"]
    path = write_parquet(tmp_path / "a.parquet", list(range(6)), labels)
    assert load("parquet", train=path).class_names == ("ant", NFC)
    path = write_parquet(tmp_path / "b.parquet", list(range(6)), [0, 1] * 3, names=("ant ", NFD))
    assert load("parquet", train=path).class_names == ("ant", NFC)
    pool = write_parquet(tmp_path / "pool.parquet", [100, 101], [NFD, " ant"])
    assert load(train=tmp_path / "train", unlabeled=pool, uses_unlabeled=True).unlabeled.targets.tolist() == [1, 0]


def test_names_that_differ_in_their_case_are_listed_or_refused(tmp_path: Path) -> None:
    for number, name in enumerate(["Ant", "ant"]):
        write_class(tmp_path / "train" / name, range(10 * number, 10 * number + 10))
    fails(
        r"data.train=.*: the classes Ant \(as of .*/Ant/0.png\) and ant \(as of .*/ant/10.png\) differ in their case "
        "alone; give them one name, or list both in data.class_names",
        train=tmp_path / "train",
    )
    lines = [f"train/{'Aa'[value // 10] + 'nt'}/{value}.png,{'Aa'[value // 10]}" for value in range(20)]
    table = write_csv(tmp_path, ["path,label", *lines])
    fails(r"the classes A \(as of .*/Ant/0.png\) and a \(as of", train=table)
    assert load(train=table, class_names=("A", "a")).class_names == ("A", "a")
    (tmp_path / "class_names.txt").write_text("A\na\n")
    assert all_labels(load(train=table)) == {value: value // 10 for value in range(20)}


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


# What a CSV says


@pytest.mark.parametrize("nothing", ["-1.0", "", " ", "NaN", "nan", "NA", "N/A", "null", "None", "<NA>", "-1", "-1."])
def test_floats_and_texts_for_nothing_in_a_csv(tmp_path: Path, nothing: str) -> None:
    write_folder(tmp_path / "train")
    lines = csv_lines(lambda label: f"{label}.0")
    lines[3] = f"train/ant/2.png,{nothing}"
    splits = load(train=write_csv(tmp_path, lines), uses_unlabeled=True)
    assert splits.class_names == ("0", "1", "2")
    assert all_labels(splits) == {50 * c + n: c for c in range(3) for n in range(10)} | {2: -1}


def test_every_text_that_pandas_reads_as_nothing_is_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("\n".join(["label", *(f'"{text}"' for text in NOTHING), "0.5"]))
    assert pd.read_csv(path, skip_blank_lines=False)["label"].isna().tolist() == [True] * len(NOTHING) + [False]
    assert {csv_label(text, ()) for text in NOTHING} == {None}
    from pandas._libs.parsers import STR_NA_VALUES

    assert set(NOTHING) == set(STR_NA_VALUES)


def test_a_class_that_is_really_called_na(tmp_path: Path) -> None:
    write_folder(tmp_path / "train", classes=("EU", "NA"))
    assert load(train=tmp_path / "train").class_names == ("EU", "NA")
    lines = [f"train/{name}/{number}.png,{name}" for name in ("EU", "NA") for number in range(10)]
    table = write_csv(tmp_path, ["path,label", *lines])
    fails("EU is not enough; there must be at least 2 classes", train=table)
    assert set(load(train=table, class_names=("EU", "NA")).test.targets) == {0, 1}


# Links


def test_links_to_the_folders_above_are_not_followed(tmp_path: Path) -> None:
    data = tmp_path / "data"
    write_folder(data / "train")
    write_folder(data / "test", 2)
    for place, target in (("train/ant/self", "."), ("train/ant/up", "../.."), ("train/all", "."), ("train/data", "..")):
        (data / place).symlink_to(target)
    expected = {50 * c + n: c for c in range(3) for n in range(10)}
    for train in ("train", "train/**/*.png", "train/*"):
        splits = load(train=data / train)
        assert all_labels(splits) == expected, train
        assert splits.class_names == CLASSES
    pool = load(train=write_folder(tmp_path / "other"), unlabeled=data / "train", uses_unlabeled=True).unlabeled
    assert len(pool) == 30


def test_a_folder_is_listed_once_however_many_links_lead_to_it(tmp_path: Path) -> None:
    """Under its own path where that is in the pool, else under the first link's."""
    write_class(tmp_path / "pool" / "m", range(2))
    write_class(tmp_path / "elsewhere" / "deep", range(10, 12))
    for link, target in (("a", "m"), ("z", "m"), ("c", "../elsewhere/deep"), ("b", "../elsewhere")):
        (tmp_path / "pool" / link).symlink_to(target)
    (tmp_path / "elsewhere" / "back").symlink_to("../pool")
    (tmp_path / "elsewhere" / "deep" / "round").symlink_to("..")
    train = write_folder(tmp_path / "train", 10)
    ids = load(train=train, unlabeled=tmp_path / "pool", image_size=4, uses_unlabeled=True).unlabeled.ids.tolist()
    assert ids == [str(tmp_path / "pool" / name) for name in ("b/deep/10.png", "b/deep/11.png", "m/0.png", "m/1.png")]
    ids = load(train=train, unlabeled=tmp_path / "pool" / "z" / "*", uses_unlabeled=True).unlabeled.ids.tolist()
    assert ids == [str(tmp_path / "pool" / "z" / name) for name in ("0.png", "1.png")], "a link that is named"


# Kinds of files


def test_every_name_that_pillow_gives_a_format_is_one_of_an_image() -> None:
    from PIL import Image

    known = {extension for extension, name in Image.registered_extensions().items() if name in FORMATS}
    assert known - {".pfm"} == set(IMAGE_EXTENSIONS)


@pytest.mark.parametrize("mode", ["memory", "stream"])
def test_what_is_an_image_is_told_by_its_content(tmp_path: Path, mode: str) -> None:
    """In the labelled folder and in the pool; what is none is counted, and broken only where it is called an image."""
    train, pool = write_folder(tmp_path / "train"), tmp_path / "pool"
    (train / "ant" / "0.png").rename(train / "ant" / "0.jfif")
    (train / "bee" / "3.png").rename(train / "bee" / "3")
    (train / "cat" / "7.png").rename(train / "cat" / "7.scan")
    write_class(pool, range(200, 205))
    (pool / "200.png").rename(pool / "200.JFIF")
    (pool / "201.png").rename(pool / "201.unknown")
    for folder in (train / "ant", pool):
        for name in ("notes.txt", "film.mp4", "index.db3", "LICENSE"):
            (folder / name).write_bytes(b"of another kind")
    (pool / "broken.jfif").write_bytes(b"no image")
    fields = {"unlabeled": pool, "image_size": 4, "uses_unlabeled": True, "max_bad_fraction": 0.05}
    splits = load(train=train, **fields, pool={"mode": mode})
    counts = {".txt": 2, ".mp4": 2, ".db3": 1, "without extension": 1}
    if mode == "memory":
        assert [(Path(bad.id).name, bad.reason) for bad in splits.bad] == [("broken.jfif", "not an image")]
        assert all_labels(splits) == {50 * c + n: c for c in range(3) for n in range(10)} | dict.fromkeys(
            range(200, 205), -1
        )
        counts |= {".db3": 2, "without extension": 2}
    assert splits.left_out == counts
