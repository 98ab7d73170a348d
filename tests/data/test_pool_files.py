"""The files of a pool: listing, spans, reading rows, and what cannot be read."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpl_ray.data.files.kinds import as_text
from dpl_ray.data.files.location import open_location
from dpl_ray.data.formats import parquet
from dpl_ray.data.formats.rows import ROWS_PER_SPAN, PoolFiles, _merge, list_pool
from dpl_ray.data.images.convert import DecodeSettings
from dpl_ray.data.images.decode_many import decode_many
from tests.builders import png, write_images


def pool(folder: Path, label_column: str | None = "label") -> PoolFiles:
    return list_pool(open_location("data.unlabeled", str(folder)), image_column="image", label_column=label_column)


def all_ids(files: PoolFiles) -> list[str]:
    return [row[0] for span in files.spans.tolist() for row in files.read(*span)]


def test_every_row_is_there_once_and_in_order(tmp_path: Path) -> None:
    write_images(tmp_path / "b.parquet", range(10, 18), row_group_size=3)
    (tmp_path / "a b é.png").write_bytes(png(1))
    (tmp_path / "notes.txt").write_text("nothing")
    files = pickle.loads(pickle.dumps(pool(tmp_path)))
    rows = [row for span in files.spans.tolist() for row in files.read(*span)]
    b = tmp_path / "b.parquet"
    assert [row[0] for row in rows] == [str(tmp_path / "a b é.png"), *(f"{b}:{row}" for row in range(8))]
    assert [row[2] for row in rows] == [None, 0, 1, 0, 1, 0, 1, 0, 1]
    images, kept, bad = decode_many([row[:2] for row in rows], DecodeSettings())
    assert kept == list(range(9))
    assert not bad
    assert images[:, 0, 0, 0].tolist() == [1, *range(10, 18)]
    assert len(files) == 9


def test_rows_in_the_middle_of_row_groups(tmp_path: Path) -> None:
    write_images(tmp_path / "a.parquet", range(10), row_group_size=3)
    found = pool(tmp_path).read(0, 2, 5)
    assert [row[0].rpartition(":")[2] for row in found] == ["2", "3", "4", "5", "6"]
    images, _, _ = decode_many([row[:2] for row in found], DecodeSettings())
    assert images[:, 0, 0, 0].tolist() == [2, 3, 4, 5, 6]


@given(st.lists(st.integers(0, 2 * ROWS_PER_SPAN), max_size=12))
def test_spans_are_whole_row_groups(row_groups: list[int]) -> None:
    spans = list(_merge(row_groups))
    ends = set(np.cumsum(row_groups).tolist())
    assert sum(count for _, count in spans) == sum(row_groups)
    assert [first for first, _ in spans] == [0, *(first + count for first, count in spans)][: len(spans)]
    assert all(first + count in ends for first, count in spans)
    assert all(count >= ROWS_PER_SPAN for _, count in spans[:-1])


def test_without_leaves_out_single_rows(tmp_path: Path) -> None:
    write_images(tmp_path / "a.parquet", list(range(5)))
    for name in ("b.png", "c.png"):
        (tmp_path / name).write_bytes(png(7))
    files = pool(tmp_path)
    ids = all_ids(files)
    gone = {f"{tmp_path / 'a.parquet'}:{row}" for row in (0, 2, 3, 99)} | {str(tmp_path / "b.png"), "elsewhere.png"}
    left = files.without(gone)
    assert all_ids(left) == [sample_id for sample_id in ids if sample_id not in gone]
    assert len(left) == 3
    assert files.without({"elsewhere.png:3"}) is files
    assert left.fingerprint() != files.fingerprint()


@settings(max_examples=30)
@given(st.lists(st.sets(st.integers(0, 29)), min_size=1, max_size=3))
def test_what_is_left_out_is_gone_from_every_span_and_no_other_row(
    tmp_path_factory: pytest.TempPathFactory, steps: list[set[int]]
) -> None:
    folder = tmp_path_factory.mktemp("pool")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("dpl_ray.data.formats.rows.ROWS_PER_SPAN", 5)
        write_images(folder / "a.parquet", range(30), row_group_size=4)
        left = pool(folder)
    rows = [row[:2] for row in left.read_all()]
    for gone in steps:
        ids = {f"{folder / 'a.parquet'}:{row}" for row in gone}
        left = left.without(ids)
        rows = [row for row in rows if row[0] not in ids]
        assert [row[:2] for row in left.read_all()] == rows
        by_span = [row[:2] for span in left.spans.tolist() for row in left.read(*span)]
        assert by_span == rows
        for file, first, count in left.spans.tolist():
            parts = [row[:2] for place in range(first, first + count) for row in left.read(file, place, 1)]
            assert parts == [row[:2] for row in left.read(file, first, count)]
        assert len(left) == len(rows)
        assert left.rows(ids) == {}
        assert all(left.rows({sample_id}) for sample_id, _ in rows)


def test_leaving_rows_out_does_not_cut_spans(tmp_path: Path) -> None:
    """A span that is read as one stays one: else a pool of which half is labelled is read row by row."""
    write_images(tmp_path / "a.parquet", range(40))
    files = pool(tmp_path)
    half = files.without({f"{tmp_path / 'a.parquet'}:{row}" for row in range(0, 40, 2)})
    assert len(half.spans) == len(files.spans) == 1
    assert len(half) == 20


def test_what_cannot_be_read_has_a_reason_and_costs_nothing_else(tmp_path: Path) -> None:
    write_images(tmp_path / "a.parquet", list(range(3)))
    (tmp_path / "b.parquet").write_bytes(b"PAR1 this is no parquet file PAR1")
    pq.write_table(pa.table({"picture": [png(1)]}), tmp_path / "c.parquet")
    pq.write_table(pa.table({"image": ["text", "text"]}), tmp_path / "d.parquet")
    pq.write_table(pa.table({"image": pa.array([None, png(2)], pa.binary())}), tmp_path / "e.parquet")
    write_images(tmp_path / "f.parquet", [1, 2])
    write_images(tmp_path / "g.parquet", [1, 2, 3, 4])
    files = pool(tmp_path)
    (tmp_path / "f.parquet").unlink()
    write_images(tmp_path / "g.parquet", [1])
    rows = [row[:2] for span in files.spans.tolist() for row in files.read(*span)]
    _, kept, bad = decode_many(rows, DecodeSettings())
    reasons = [(image.id.removeprefix(f"{tmp_path}/"), image.reason) for image in bad]
    assert reasons == [
        ("b.parquet:0", "not a readable parquet file"),
        ("c.parquet:0", "no column image"),
        ("d.parquet:0", "column image is no encoded image"),
        ("d.parquet:1", "column image is no encoded image"),
        ("e.parquet:0", "empty"),
        ("f.parquet:0", "file is missing"),
        ("f.parquet:1", "file is missing"),
        ("g.parquet:1", "file is missing"),
        ("g.parquet:2", "file is missing"),
        ("g.parquet:3", "file is missing"),
    ]
    assert len(kept) == 5


def test_files_that_cannot_be_opened_are_as_long_as_the_others(tmp_path: Path) -> None:
    for name, numbers in (("a", range(30)), ("b", range(50))):
        write_images(tmp_path / f"{name}.parquet", numbers)
    for number in range(20):
        (tmp_path / f"{number}.png").write_bytes(png(number))
    pool(tmp_path).check_unopened("limit", 0.0)
    for name in ("c", "d"):
        (tmp_path / f"{name}.parquet").write_bytes(b"PAR1")
    files = pool(tmp_path)
    files.check_unopened("limit", 80 / 180)
    message = rf"^limit=0.44: 2 of 4 parquet files of the pool .* some 44\.4% of its images: {tmp_path}/c.parquet, "
    with pytest.raises(ValueError, match=message):
        files.check_unopened("limit", 0.44)
    for name in ("a", "b"):
        (tmp_path / f"{name}.parquet").unlink()
    with pytest.raises(ValueError, match=r"^limit=0.05: 2 of 2 parquet files .* some 9\.1% of its images"):
        pool(tmp_path).check_unopened("limit", 0.05)


def test_labels_that_are_no_text_cost_no_image(tmp_path: Path) -> None:
    binary = pa.array([b"cat", b"\xff"])
    labels = pa.StringArray.from_buffers(2, *binary.buffers()[1:])
    pq.write_table(pa.table({"image": [png(0), png(1)], "label": labels}), tmp_path / "a.parquet")
    rows = pool(tmp_path).read(0, 0, 2)
    assert [row[1:] for row in rows] == [(png(0), None), (png(1), None)]


def write_broken_group(path: Path) -> None:
    """Nine rows; the row group of the three in the middle cannot be read."""
    write_images(path, range(9), row_group_size=3)
    start = pq.read_metadata(path).row_group(1).column(0).data_page_offset
    content = bytearray(path.read_bytes())
    content[start : start + 40] = bytes(40)
    path.write_bytes(content)


def test_a_broken_row_group_costs_its_own_rows(tmp_path: Path) -> None:
    write_broken_group(tmp_path / "a.parquet")
    files = pool(tmp_path)
    rows = [row[:2] for span in files.spans.tolist() for row in files.read(*span)]
    _, kept, bad = decode_many(rows, DecodeSettings())
    assert kept == [0, 1, 2, 6, 7, 8]
    assert {image.reason for image in bad} == {"file cannot be read"}


@pytest.mark.parametrize("first", [0, 3])
def test_a_page_that_breaks_costs_no_row_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: int) -> None:
    """Ten rows of a page each in one row group, of which row 6 has a broken header, read two by two."""
    path, options = tmp_path / "a.parquet", {"use_dictionary": False, "compression": "none"}
    table = pa.table({"image": [png(level) for level in range(10)], "label": [0] * 10})
    pq.write_table(table, path, data_page_size=1, write_batch_size=1, **options)
    content = bytearray(path.read_bytes())
    start = content.index(png(6)) - 20
    content[start : start + 16] = b"\xff" * 16
    path.write_bytes(content)
    monkeypatch.setattr("dpl_ray.data.formats.parquet._BATCH_ROWS", 2)
    rows = pool(tmp_path).read(0, first, 10 - first)
    assert [row[0] for row in rows] == [f"{path}:{row}" for row in range(first, 10)]
    _, kept, bad = decode_many([row[:2] for row in rows], DecodeSettings())
    assert [first + position for position in kept] == list(range(first, 6))
    assert {image.reason for image in bad} == {"file cannot be read"}


@pytest.mark.parametrize("rows_per_batch", [1, 4, 1000])
def test_all_rows_are_those_of_the_spans(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows_per_batch: int) -> None:
    monkeypatch.setattr("dpl_ray.data.formats.parquet._BATCH_ROWS", rows_per_batch)
    write_images(tmp_path / "a.parquet", range(10), row_group_size=6)
    (tmp_path / "b.png").write_bytes(png(10))
    cells = [{"bytes": png(level), "path": "x"} for level in range(11, 14)] + [None, {"bytes": None, "path": None}]
    pq.write_table(pa.table({"image": cells, "label": ["1", "", None, "0", "-1"]}), tmp_path / "c.parquet")
    write_images(tmp_path / "d.parquet", [7])
    files = pool(tmp_path)
    a, c, d = (tmp_path / f"{name}.parquet" for name in "acd")
    left = files.without({f"{a}:{row}" for row in (0, 4, 5, 6)} | {f"{c}:1", f"{d}:0"})
    for some in (files, left):
        expected = [row for span in some.spans.tolist() for row in some.read(*span)]
        found = list(some.read_all())
        assert [(row[0], row[2]) for row in found] == [(row[0], row[2]) for row in expected]
        assert [payload for _, payload, _ in found if not callable(payload)] == [
            payload for _, payload, _ in expected if not callable(payload)
        ]
    assert [row[0].rpartition("/")[2] for row in left.read_all()] == [
        *(f"a.parquet:{row}" for row in (1, 2, 3, 7, 8, 9)), "b.png", *(f"c.parquet:{row}" for row in (0, 2, 3, 4)),
    ]  # fmt: skip
    assert [row[2] for row in left.read_all()][-4:] == ["1", None, "0", None]
    assert [row[1] for row in left.read_all()][-4:] == [png(11), png(13), None, None]


def test_a_file_is_opened_once_and_not_read_to_its_end_before_its_rows_are_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a row group of 40 rows, those that are taken are read, and no more than a batch beyond."""
    monkeypatch.setattr("dpl_ray.data.formats.parquet._BATCH_ROWS", 5)
    write_images(tmp_path / "a.parquet", range(40))
    opened, made = [], []
    parquet_file, rows_of = pq.ParquetFile, parquet._rows_of

    def opening(file: object, **options: object) -> pq.ParquetFile:
        opened.append(file)
        return parquet_file(file, **options)

    def making(batch: pa.RecordBatch, **options: object) -> list:
        made.append(len(batch))
        return rows_of(batch, **options)

    monkeypatch.setattr(parquet, "_rows_of", making)
    files = pool(tmp_path).without({f"{tmp_path / 'a.parquet'}:{row}" for row in range(1, 40, 2)})
    monkeypatch.setattr(pq, "ParquetFile", opening)
    rows = files.read_all()
    for _ in range(4):
        next(rows)
    assert made == [5, 3]
    assert len(list(rows)) == 16
    assert made == [5, 3] * 4
    assert len(opened) == 1


def test_parquet_files_without_a_row_are_an_error(tmp_path: Path) -> None:
    write_images(tmp_path / "a.parquet", [])
    with pytest.raises(ValueError, match=r"^data.unlabeled=.*: the parquet files have no rows"):
        pool(tmp_path)
    write_images(tmp_path / "b.parquet", [1])
    assert len(pool(tmp_path)) == 1


def test_what_may_be_an_image_is_listed_and_the_rest_counted(tmp_path: Path) -> None:
    names = ["a.png", "b.JFIF", "picture.dat", "no extension", "c.heic", "_MG_1.jpg"]
    others = ["a.txt", "b.TXT", "film.mp4", "a.png.gz", "_SUCCESS", "_x.dat", "_ledger/a.png", "d/_e/f/a.png"]
    for name in [*names, *others, ".hidden", ".DS_Store", ".git/a.png"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(png(1))
    files = pool(tmp_path)
    assert [files.name(file) for file in range(len(files))] == sorted(str(tmp_path / name) for name in names)
    counts = {".txt": 2, ".mp4": 1, ".gz": 1, "without extension": 1, ".dat": 1, "_ledger/": 1, "_e/": 1}
    assert files.left_out == counts
    assert as_text(files.left_out) == "2 .txt, 1 .dat, 1 .gz, 1 .mp4, 1 _e/, 1 _ledger/, 1 without extension"
