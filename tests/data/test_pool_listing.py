"""Listing a pool: which files, in what order, and how little is held of each."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpl_ray.data import files
from dpl_ray.data.files import are_images, are_parquet, is_image, is_parquet, list_files, open_location
from dpl_ray.data.pool import files as pool_files
from dpl_ray.data.pool.files import list_pool
from dpl_ray.labeling.plan import Plan, empty_plan, extend_plan
from tests.builders import png, write_images

NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
ENDINGS = st.sampled_from(["", *files.IMAGE_EXTENSIONS, *files.PARQUET_EXTENSIONS, "jpg", ".pq.txt", ".png\n", ".jp"])


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
    monkeypatch.setattr(files, "_INFOS_AT_A_TIME", at_a_time)
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


def test_footers_are_read_some_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_files, "_FOOTERS_AT_A_TIME", 2)
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


def test_no_object_is_held_for_each_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In arrays a file takes its path and some numbers; a Python object each would take several times as much."""
    monkeypatch.setattr(files, "_INFOS_AT_A_TIME", 100)
    number = 4000
    for folder in range(40):
        (tmp_path / str(folder)).mkdir()
        for file in range(number // 40):
            (tmp_path / str(folder) / f"{file}.png").touch()
    location = open_location("pool", str(tmp_path))
    list_pool(location, image_column="image")  # what is imported late is there
    tracemalloc.start()
    listed = list_pool(location, image_column="image")
    plan = extend_plan(empty_plan(location, "image"), listed, 512)
    assert extend_plan(Plan.from_bytes(plan.to_bytes(), location, "image"), listed, 512).num_blocks == plan.num_blocks
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak / number < 250


def test_a_plan_whose_paths_were_written_with_short_offsets_is_the_same(tmp_path: Path) -> None:
    (tmp_path / "é.png").write_bytes(png(1))
    listed = list_pool(open_location("pool", str(tmp_path)), image_column="image")
    plan = extend_plan(empty_plan(listed.location, "image"), listed, 4)
    table = pa.ipc.open_file(plan.to_bytes()).read_all()
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema.set(0, pa.field("path", pa.string()))) as writer:
        writer.write_table(table.set_column(0, "path", table["path"].cast(pa.string())))
    again = Plan.from_bytes(sink.getvalue().to_pybytes(), listed.location, "image")
    assert again.sample_ids(0) == plan.sample_ids(0)
    assert extend_plan(again, listed, 4) is again
