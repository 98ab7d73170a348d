"""Listing files: which, in what order, what is left out, and how little is held of each."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pyarrow.fs import LocalFileSystem, SubTreeFileSystem

from benchmarks.listing import CASES, Bucket, Disk, Place, label, label_more
from benchmarks.listing import train as plan_to_train
from dpl_ray.data.files.kinds import IMAGE_EXTENSIONS, are_images, is_image
from dpl_ray.data.files.listing import list_files
from dpl_ray.data.files.location import Location, open_location
from dpl_ray.data.files.shards import PARQUET_EXTENSIONS, are_parquet, is_parquet
from dpl_ray.data.formats import rows as pool_files
from dpl_ray.data.formats.rows import PoolFiles, list_pool
from dpl_ray.data.images.decode import FORMATS
from dpl_ray.labeling.plan import CHECKSUM_BYTES, Plan, empty_plan, extend_plan
from tests.builders import png, write_images
from tests.data.test_class_names import write_class
from tests.data.test_sources import CLASSES, all_labels, load, write_folder

NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
ENDINGS = st.sampled_from(["", *IMAGE_EXTENSIONS, *PARQUET_EXTENSIONS, "jpg", ".pq.txt", ".png\n", ".jp"])


@given(st.lists(st.tuples(NAMES, ENDINGS, st.booleans()), max_size=5))
def test_what_a_file_is_called_is_told_of_an_array_as_of_each(parts: list[tuple[str, str, bool]]) -> None:
    paths = [name + (ending.upper() if upper else ending) for name, ending, upper in parts]
    array = pa.array(paths, pa.large_string())
    assert are_images(array).tolist() == [is_image(path) for path in paths]
    assert are_parquet(array).tolist() == [is_parquet(path) for path in paths]


@pytest.mark.parametrize("at_a_time", [1, 3, 1000])
def test_files_of_all_folders_are_sorted_and_hidden_ones_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_a_time: int
) -> None:
    monkeypatch.setattr("dpl_ray.data.files.walk.AT_A_TIME", at_a_time)
    names = ["a/z.png", "a b.png", "a/b/c/1.png", "a/b/2.png", "a.png", "é/ü.png", "Z.png", "linked/3.png"]
    for name in [*names[:-1], ".hidden.png", ".folder/a.png", "a/.b/c.png", "../elsewhere/3.png"]:
        path = tmp_path / "pool" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * len(name))
    (tmp_path / "pool" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "pool" / "empty").mkdir()
    location = open_location("pool", str(tmp_path / "pool"))
    assert list_files(location).paths.to_pylist() == sorted(f"{tmp_path}/pool/{name}" for name in names)
    found = list_files(location)
    assert dict(zip(found.paths.to_pylist(), found.sizes.tolist(), strict=True)) == {
        str(tmp_path / "pool" / name): len("../elsewhere/3.png" if name == "linked/3.png" else name) for name in names
    }


def test_of_a_bucket_the_same_files_are_left_out_as_of_a_folder(tmp_path: Path) -> None:
    for name in ("a.png", "_b.txt", "_MG_1.JPG", "x/c.png", "x/_y/d.png", "_z/e/f.png", ".h/g.png", "x/notes.txt"):
        path = tmp_path / "pool" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    of_folder = list_files(open_location("pool", str(tmp_path / "pool")))
    bucket = Location("pool", "s3://pool", SubTreeFileSystem(str(tmp_path), LocalFileSystem()), "pool", "s3://")
    of_bucket = list_files(bucket)
    assert of_bucket.paths.to_pylist() == ["pool/_MG_1.JPG", "pool/a.png", "pool/x/c.png"]
    assert of_folder.paths.to_pylist() == [f"{tmp_path}/{path}" for path in of_bucket.paths.to_pylist()]
    assert of_bucket.left_out == of_folder.left_out == {"_y/": 1, "_z/": 1, ".txt": 2}


def test_footers_are_read_some_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_files, "_SHARDS_AT_A_TIME", 2)
    for number in range(5):
        write_images(tmp_path / f"{number}.parquet", range(number))
        (tmp_path / f"{number}.png").write_bytes(png(number))
    (tmp_path / "3.parquet").write_bytes(b"PAR1")
    listed = list_pool(open_location("pool", str(tmp_path)), image_column="image")
    assert listed.num_rows.tolist() == [0, 1, 1, 1, 2, 1, 1, 1, 4, 1]
    assert listed.spans.tolist() == [
        [1, 0, 1], [2, 0, 1], [3, 0, 1], [4, 0, 2], [5, 0, 1], [6, 0, 1], [7, 0, 1], [8, 0, 4], [9, 0, 1],
    ]  # fmt: skip
    assert listed.unopened == (6,)


@pytest.mark.parametrize("place", [Disk(1), Disk(20), Bucket(20)], ids=str)
def test_no_object_is_held_for_each_file(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file takes its path of 80 letters and some numbers; a Python object each would take several times as much.

    With 175 bytes each, 10⁷ files and a process without any stay below 2 GB.
    """
    for module in ("files.walk.AT_A_TIME", "files.shards._AT_A_TIME", "formats.rows._PATHS_AT_A_TIME"):
        monkeypatch.setattr(f"dpl_ray.data.{module}", 200)
    monkeypatch.setattr("dpl_ray.labeling.plan._FILES_AT_A_TIME", 200)
    monkeypatch.setattr("dpl_ray.data.files.walk._REQUESTS", 1)

    def work(number: int) -> PoolFiles:
        with place.of(number) as location:
            listed = list_pool(location, image_column="image")
        label(listed)
        label_more(listed)
        plan_to_train(listed)
        return listed

    def peak(number: int) -> int:
        before = pa.total_allocated_bytes()
        tracemalloc.start()
        listed = work(number)
        held = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert len(listed) == number
        return held + pa.total_allocated_bytes() - before

    work(1000)  # what is imported late is there
    few, many = 10_000, 30_000
    assert (peak(many) - peak(few)) / (many - few) < 175


def test_the_benchmark_lists_a_bucket_of_one_folder_too() -> None:
    places = {str(place): place for place, _ in CASES}
    assert {"a disk, 1 folder", "a bucket, 1 folder", "a bucket, 1,000 folders"} <= places.keys()
    for name, place in places.items():
        with place.of(2000) as location:
            paths = list_files(location).paths.to_pylist()
        assert len(set(paths)) == 2000, name
        assert paths == sorted(paths)


def test_a_plan_whose_paths_were_written_with_short_offsets_is_the_same(tmp_path: Path) -> None:
    (tmp_path / "é.png").write_bytes(png(1))
    listed = list_pool(open_location("pool", str(tmp_path)), image_column="image")
    plan = extend_plan(empty_plan(listed), listed, 4)
    table = pa.ipc.open_file(plan.to_bytes()[:-CHECKSUM_BYTES]).read_all()
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema.set(0, pa.field("path", pa.string()))) as writer:
        writer.write_table(table.set_column(0, "path", table["path"].cast(pa.string())))
    again = Plan.from_bytes(sink.getvalue().to_pybytes(), listed)
    assert again.sample_ids(0) == plan.sample_ids(0)
    assert extend_plan(again, listed, 4) is again


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
    other = write_folder(tmp_path / "other")
    assert len(load(train=other, unlabeled=data / "train", uses_unlabeled=True, allow_overlap=True).unlabeled) == 30


def test_a_folder_is_listed_once_however_many_links_lead_to_it(tmp_path: Path) -> None:
    """Under its own path where that is in the pool, else under the first link's."""
    write_class(tmp_path / "pool" / "m", range(200, 202))
    write_class(tmp_path / "elsewhere" / "deep", range(210, 212))
    for link, target in (("a", "m"), ("z", "m"), ("c", "../elsewhere/deep"), ("b", "../elsewhere")):
        (tmp_path / "pool" / link).symlink_to(target)
    (tmp_path / "elsewhere" / "back").symlink_to("../pool")
    (tmp_path / "elsewhere" / "deep" / "round").symlink_to("..")
    train = write_folder(tmp_path / "train", 10)
    ids = load(train=train, unlabeled=tmp_path / "pool", image_size=4, uses_unlabeled=True).unlabeled.ids.tolist()
    assert ids == [
        str(tmp_path / "pool" / name) for name in ("b/deep/210.png", "b/deep/211.png", "m/200.png", "m/201.png")
    ]
    ids = load(train=train, unlabeled=tmp_path / "pool" / "z" / "*", uses_unlabeled=True).unlabeled.ids.tolist()
    assert ids == [str(tmp_path / "pool" / "z" / name) for name in ("200.png", "201.png")], "a link that is named"


# Kinds of files


def test_every_name_that_pillow_gives_a_format_is_one_of_an_image() -> None:
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
