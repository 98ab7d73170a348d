"""One name for each class, however it was typed."""

from __future__ import annotations

from pathlib import Path
from unicodedata import normalize

from tests.data.test_sources import (
    all_labels,
    fails,
    load,
    png,
    write_csv,
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
