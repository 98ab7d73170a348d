"""Tars of images: as WebDataset's own writer writes them, as others do, and as attackers and full disks do."""

from __future__ import annotations

import io
import json
import os
import tarfile
import threading
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import webdataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console

from dpl_ray import fit, load_config
from dpl_ray.data.dataset import ImageSet
from dpl_ray.data.files.location import Location, indexes_in, open_location
from dpl_ray.data.files.reach import OUTSIDE
from dpl_ray.data.formats import rows as formats_rows
from dpl_ray.data.formats import tar
from dpl_ray.data.formats.rows import PoolFiles, list_pool
from dpl_ray.data.formats.samples import read_samples
from dpl_ray.data.images.convert import DecodeSettings
from dpl_ray.data.images.decode_many import decode_many
from dpl_ray.data.labeled.records import list_records
from dpl_ray.data.pool.windows import StreamedPool, Windows, read_window
from tests.data.test_real_pools import read_streamed
from tests.data.test_sources import CLASSES, all_labels, fails, load, png, write_parquet

Members = Iterable[tuple[str | tarfile.TarInfo, bytes]]


def write_shard(path: Path, levels: Iterable[int], **labels: Any) -> None:
    """As WebDataset writes it; its parity is the label of each, unless `labels` has extension -> level -> content."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kinds = labels or {"cls": lambda level: level % 2}
    with webdataset.TarWriter(str(path)) as sink:
        for level in levels:
            parts = {kind: say(level) for kind, say in kinds.items()}
            sink.write({"__key__": f"{level:04d}", "png": png(level)} | parts)


def pack(members: Members, form: int = tarfile.PAX_FORMAT) -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=form) as archive:
        for name, content in members:
            info = tarfile.TarInfo(name) if isinstance(name, str) else name
            info.size = len(content) if info.isreg() else 0
            archive.addfile(info, io.BytesIO(content))
    return sink.getvalue()


def pool(place: Path | str, label_column: str | None = "label") -> PoolFiles:
    return list_pool(open_location("pool", str(place)), image_column="image", label_column=label_column)


def read(files: PoolFiles) -> dict[str, int | str]:
    """What is named below the folder of the tar -> level of its image, or the reason why there is none."""
    rows = list(files.read_all())
    images, kept, bad = decode_many([row[:2] for row in rows], DecodeSettings())
    found: dict[str, int | str] = {rows[place][0]: int(images[at, 0, 0, 0]) for at, place in enumerate(kept)}
    found |= {image.id: image.reason for image in bad}
    return {row[0].rpartition("/x.tar:")[2] or row[0]: found[row[0]] for row in rows}


def test_memory_stream_and_parquet_give_the_same(tmp_path: Path) -> None:
    for number, levels in enumerate((range(60), range(60, 90))):
        write_shard(tmp_path / "tar" / f"shard-{number:03}.tar", levels)
        write_parquet(tmp_path / "parquet" / f"{number}.parquet", [*levels], [level % 2 for level in levels])
    write_shard(tmp_path / "more.tar", range(90, 120), txt=lambda level: str(level % 2))
    write_parquet(tmp_path / "more.parquet", [*range(90, 120)], [level % 2 for level in range(90, 120)])
    fields: dict[str, Any] = {"num_labels_per_class": 5, "image_size": 4, "uses_unlabeled": True}
    tars: dict[str, Any] = {"train": f"{tmp_path}/tar/shard-{{000..001}}.tar", "unlabeled": tmp_path / "more.tar"}
    parquet: dict[str, Any] = {"train": tmp_path / "parquet", "unlabeled": tmp_path / "more.parquet"}
    memory, other = load("webdataset", **tars, **fields), load("parquet", **parquet, **fields)
    for name in ("labeled", "unlabeled", "test"):
        mine, expected = getattr(memory, name), getattr(other, name)
        assert np.array_equal(mine.images, expected.images)
        assert mine.targets.tolist() == expected.targets.tolist()
    assert str(tmp_path / "more.tar:0090.png") in memory.unlabeled.ids
    streamed = load("webdataset", **tars, **fields, pool={"mode": "stream"}).unlabeled
    assert isinstance(streamed, StreamedPool)
    images, bad = read_streamed(streamed)
    assert not bad
    assert images.ids.tolist() == memory.unlabeled.ids.tolist()
    assert images.targets.tolist() == memory.unlabeled.targets.tolist()
    assert np.array_equal(images.images, memory.unlabeled.images)
    of_parquet = load("parquet", **parquet, **fields, pool={"mode": "stream"}).unlabeled
    windows = Windows(4, 3, 2, seed=1)
    for number in range(5):
        whole = read_window(streamed, windows, number, 0, 1)
        halves = [read_window(streamed, windows, number, rank, 2) for rank in range(2)]
        assert np.array_equal(whole["images"], read_window(of_parquet, windows, number, 0, 1)["images"])
        assert np.array_equal(whole["images"], np.concatenate([half["images"] for half in halves]))


@pytest.mark.parametrize(
    "labels",
    [
        {"cls": lambda level: level % 3},
        {"txt": lambda level: CLASSES[level % 3]},
        {"json": lambda level: {"label": CLASSES[level % 3], "caption": "x"}, "txt": lambda level: "a caption"},
        {"json": lambda level: {"label": level % 3}},
        {"json": lambda level: {"caption": "x"}, "cls": lambda level: level % 3, "txt": lambda level: "a caption"},
    ],
    ids=["cls", "txt", "json", "json index", "cls first"],
)
def test_labels(tmp_path: Path, labels: dict[str, Any]) -> None:
    write_shard(tmp_path / "x.tar", range(30), **labels)
    splits = load("webdataset", train=tmp_path / "x.tar", class_names=CLASSES)
    assert all_labels(splits) == {level: level % 3 for level in range(30)}


def test_members_without_a_label_join_the_pool_and_null_reads_none(tmp_path: Path) -> None:
    write_shard(tmp_path / "x.tar", range(40), cls=lambda level: level % 2 if level < 30 else -1)
    splits = load("webdataset", train=tmp_path / "x.tar", uses_unlabeled=True)
    assert isinstance(splits.unlabeled, ImageSet)
    assert sorted(splits.unlabeled.ids) == [f"{tmp_path}/x.tar:{level:04}.png" for level in range(30, 40)]
    fails(
        r"none of its 40 images has a label \(data.label_column=null", "webdataset", train=tmp_path, label_column=None
    )
    fails(r"holds tars, which data=webdataset reads", train=tmp_path)
    fails(r"holds no tar; image files take data=image_folder", "webdataset", train=__file__)


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_names_of_every_form(tmp_path: Path, form: int) -> None:
    long = f"{'folder/' * 12}{'n' * 90}" if form == tarfile.USTAR_FORMAT else f"{'folder é/' * 30}{'n' * 200}"
    names = {f"{long}.png": 1, "./a.PNG": 2, "a b/写真.jpg": 3, "c:1.webp": 4, "_MG_5.jpg": 5, "d.png": 6}
    others = ["d.seg.png", "e.mp3", "README", ".hidden.png", "a/._a.png", "_x.txt"]
    (tmp_path / "x.tar").write_bytes(
        pack([*((name, png(level)) for name, level in names.items()), *((name, png(9)) for name in others)], form)
    )
    files = pool(tmp_path / "x.tar")
    assert read(files) == {name.removeprefix("./"): level for name, level in names.items()}
    assert files.left_out == {".seg.png": 1, ".mp3": 1, "without extension": 1, ".txt": 1}


def test_links_and_devices_are_left_out_and_of_a_name_that_comes_again_the_last_counts(tmp_path: Path) -> None:
    kinds = {
        "link.png": tarfile.SYMTYPE,
        "hard.png": tarfile.LNKTYPE,
        "fifo.png": tarfile.FIFOTYPE,
        "f": tarfile.DIRTYPE,
    }
    odd = [tarfile.TarInfo(name) for name in kinds]
    for info in odd:
        info.type, info.linkname = kinds[info.name], "a.png"
    plain = [("a.png", png(1)), ("b.png", png(2)), ("a.png", png(3)), ("../c.png", png(4)), ("/d.png", png(5))]
    (tmp_path / "x.tar").write_bytes(pack([*plain, *((info, b"") for info in odd)]))
    files = pool(tmp_path)
    assert read(files) == {"b.png": 2, "a.png": 3, "../c.png": OUTSIDE, "/d.png": OUTSIDE}
    assert files.left_out == {"link": 2, "special file": 1}


def test_samples_are_found_by_their_names(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.tar", range(5))
    write_parquet(tmp_path / "b.parquet", [5, 6, 7])
    files = pool(tmp_path)
    ids = [row[0] for row in files.read_all()]
    assert files.rows([ids[1], ids[3], ids[6], f"{tmp_path}/a.tar:9999.png", "x"]) == {0: [1, 3], 1: [1]}
    assert [row[0] for row in files.without([ids[1], ids[6]]).read_all()] == [*ids[:1], *ids[2:6], *ids[7:]]
    assert files.ids_ending("a.tar:0002.png") == [f"{tmp_path}/a.tar:0002.png"]
    assert files.ids_ending("b.parquet:2") == [ids[7]]
    wanted = [ids[4], ids[0], ids[7], f"{tmp_path}/a.tar:none.png"]
    found = list(read_samples(wanted, "image", lambda file: replace(files.location, path=file)))
    assert found[:3] == [png(4), png(0), png(7)]
    with pytest.raises(ValueError, match="file is missing"):
        found[3]()


# Indexes


class CountedHeaders(tar._Headers):
    """Which parts of a file are read for its index."""

    places: list[int] = []

    def __init__(self, raw: Any, size: int) -> None:
        class Raw(io.RawIOBase):
            readable = seekable = lambda self: True
            seek, tell = raw.seek, raw.tell

            def readinto(self, buffer: memoryview) -> int:
                CountedHeaders.places.append(len(buffer))
                return raw.readinto(buffer)

        super().__init__(Raw(), size)


def test_an_index_is_made_of_headers_once_and_anew_when_the_tar_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tar, "_Headers", CountedHeaders)
    monkeypatch.setattr(CountedHeaders, "places", [])
    path = tmp_path / "x.tar"
    bodies = [png(level) + bytes(300_000) for level in range(20)]
    path.write_bytes(pack((f"{level}.png", body) for level, body in enumerate(bodies)))
    with indexes_in(str(tmp_path / "run")):
        location = open_location("pool", str(path))

    def again() -> PoolFiles:
        tar._recent.clear()  # as in another process
        CountedHeaders.places.clear()
        return list_pool(location, image_column="image")

    assert list(again().read_all())[3][1] == bodies[3]
    assert 0 < sum(CountedHeaders.places) < 0.05 * path.stat().st_size, "headers, and not what follows them"
    assert list(again().read_all())[3][1] == bodies[3]
    assert not CountedHeaders.places
    before = path.stat()
    path.write_bytes(pack((f"{level}.png", body) for level, body in enumerate(reversed(bodies))))
    os.utime(path, ns=(0, before.st_mtime_ns + 1))
    assert path.stat().st_size == before.st_size
    assert list(again().read_all())[3][1] == bodies[16]
    (kept,) = (tmp_path / "run" / ".tar-index").iterdir()
    kept.write_bytes(b"damaged")
    assert len(again()) == 20


def test_a_tar_that_is_gone_after_it_was_listed_costs_its_own_images(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_shard(tmp_path / f"{name}.tar", range(3))
    files = pool(tmp_path)
    (tmp_path / "a.tar").unlink()
    assert [*read(files).values()] == ["file is missing"] * 3 + [0, 1, 2]
    tar._recent.clear()
    assert [*read(files)][:3] == [f"{tmp_path}/a.tar:0", f"{tmp_path}/a.tar:1", f"{tmp_path}/a.tar:2"]


# What is broken

DEEP = "long/" * 30
WHOLE = pack(
    (f"{DEEP}{level}.{kind}", png(level) if kind == "png" else b"1") for level in range(6) for kind in ("png", "cls")
)
IMAGES = {f"{DEEP}{level}.png": level for level in range(6)}


def broken(folder: Path, content: bytes) -> tuple[dict[str, int | str], PoolFiles]:
    (folder / "x.tar").write_bytes(content)
    tar._recent.clear()
    files = pool(folder / "x.tar")
    return read(files), files


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=25)
@given(st.integers(0, len(WHOLE)))
def test_a_tar_that_is_cut_off_loses_what_is_cut_off(tmp_path: Path, length: int) -> None:
    with tarfile.open(fileobj=io.BytesIO(WHOLE)) as archive:
        ends = {member.name: member.offset_data + member.size for member in archive if member.name.endswith("png")}
        last = max(member.offset_data + member.size for member in archive)
    found, files = broken(tmp_path, WHOLE[:length])
    whole = {name: IMAGES[name] for name, end in ends.items() if end <= length}
    rest = {name: reason for name, reason in found.items() if name not in whole}
    assert {name: found[name] for name in whole} == whole
    assert len(rest) <= 1
    assert all(reason in (tar.NOT_TAR, tar.BROKEN) for reason in rest.values())
    assert bool(rest) == bool(files.unopened)
    if length >= last:
        assert not rest


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=30)
@given(st.lists(st.tuples(st.integers(0, len(WHOLE) - 1), st.integers(1, 255)), min_size=1, max_size=4))
def test_flipped_bytes_never_stop_a_listing(tmp_path: Path, flips: list[tuple[int, int]]) -> None:
    content = bytearray(WHOLE)
    for place, flip in flips:
        content[place] ^= flip
    found, _ = broken(tmp_path, bytes(content))
    touched = {place // 512 for place, _ in flips}
    with tarfile.open(fileobj=io.BytesIO(WHOLE)) as archive:
        first = [(member.name, member.offset_data + member.size) for member in archive]
    untouched = [name for name, end in first if end <= 512 * min(touched) and name in IMAGES]
    assert {name: found[name] for name in untouched} == {name: IMAGES[name] for name in untouched}


def with_size(field: bytes) -> bytes:
    """A tar whose second header declares another size, with a checksum that is right."""
    first, second = pack([("a.png", png(1))])[:1536], bytearray(pack([("b.png", png(2))]))
    second[124:136] = field
    second[148:156] = b" " * 8
    second[148:156] = b"%06o\0 " % sum(second[:512])
    return first[: 512 + -(-len(png(1)) // 512) * 512] + bytes(second)


@pytest.mark.parametrize(
    "field", [b"\xff" * 11 + b"\x00", b"\x80" + b"\xff" * 11, b"77777777777\0", b"\x80\0\0\0\x10\0\0\0\0\0\0\0"]
)
def test_sizes_that_lie_end_the_listing_and_take_no_memory(tmp_path: Path, field: bytes) -> None:
    """Negative ones, for which tarfile would read a header for ever, and such as no tar of this size has."""
    found, files = broken(tmp_path, with_size(field))
    assert found == {"a.png": 1, "1024": tar.BROKEN}
    assert files.unopened == (0,)
    with pytest.raises(ValueError, match=r"^x=0.1: 1 of 1 tars of the pool cannot be opened, some 50.0% of its images"):
        files.check_unopened("x", 0.1)


def test_an_image_and_a_header_that_are_too_long_are_refused_unread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tar, "MAX_IMAGE_BYTES", 1000)
    found, _ = broken(tmp_path, pack([("a.png", png(1)), ("b.png", png(2) + bytes(1000)), ("c.png", png(3))]))
    assert found == {"a.png": 1, "b.png": tar.TOO_LONG, "c.png": 3}
    monkeypatch.setattr(tar, "_MAX_HEADER_BYTES", 2048)
    found, _ = broken(tmp_path, pack([("a.png", png(1)), (f"{'n' * 5000}.png", png(2)), ("c.png", png(3))]))
    assert list(found.values()) == [1, tar.BROKEN]


def test_a_pool_of_one_broken_tar_is_refused_and_among_many_it_is_named(tmp_path: Path) -> None:
    for number in range(4):
        write_shard(tmp_path / f"{number}.tar", range(10 * number, 10 * number + 10))
    whole = (tmp_path / "2.tar").read_bytes()
    (tmp_path / "2.tar").write_bytes(whole[: len(whole) // 2])
    fields = {"train": tmp_path / "0.tar", "unlabeled": tmp_path, "uses_unlabeled": True}
    message = r"^data.max_bad_fraction=0.01: 1 of 4 tars of the pool cannot be opened, some .*: /.*/2.tar; repair"
    fails(message, "webdataset", **fields)
    splits = load("webdataset", **fields, max_bad_fraction=0.3)
    assert [image.reason for image in splits.bad] == [tar.BROKEN]
    assert splits.bad[0].id.startswith(f"{tmp_path}/2.tar:")
    assert len(splits.unlabeled) > 20
    fails(rf"^data.train=.*/2.tar: {tar.BROKEN} \(byte \d+\)", "webdataset", train=tmp_path)
    (tmp_path / "x.tar").write_bytes(pack([("notes.txt", b"x"), ("a.mp3", b"x")]))
    with pytest.raises(ValueError, match=r"^pool=.*x.tar: no image in the tars \(1 \.mp3 left out\); give tars of"):
        pool(tmp_path / "x.tar")


def test_labelled_tars_are_indexed_at_once_in_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(4):
        write_shard(tmp_path / f"{number}.tar", range(10 * number, 10 * number + 10))
    done, make = [threading.Event() for _ in range(5)], tar._make
    done[4].set()

    def in_reverse(location: Location, path: str, *given: Any) -> pa.Table:
        number = int(Path(path).stem)
        assert done[number + 1].wait(60), "the next tar waits for this one"
        try:
            return make(location, path, *given)
        finally:
            done[number].set()

    monkeypatch.setattr(tar, "_make", in_reverse)
    data = load_config(["data=webdataset", f"data.train={tmp_path}"]).data
    records = list_records(data, "data.train", str(tmp_path))
    assert records.ids == [f"{tmp_path}/{level // 10}.tar:{level:04}.png" for level in range(40)]
    assert records.labels == [str(level % 2) for level in range(40)]
    for number in (2, 1):
        (tmp_path / f"{number}.tar").write_bytes(b"no tar")
    tar._recent.clear()
    with pytest.raises(ValueError, match=r"^data.train=.*/1.tar: not a readable tar file"):
        list_records(data, "data.train", str(tmp_path))


def test_json_that_is_odd_gives_no_label() -> None:
    for content in (b"", b"[1]", b"{", b'{"label": [1]}', b'{"label": true}', b"[" * 100_000, b"\xff"):
        assert tar._parse("json", content, "label") is None
    assert tar._parse("json", json.dumps({"label": 1.0}).encode(), "label") == "1.0"


def test_what_takes_long_to_list_says_how_far_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(3):
        write_shard(tmp_path / f"{number}.tar", range(2))
    told: list[tuple[int, int]] = []
    for seconds, expected in ((60.0, []), (-1.0, [(1, 3), (2, 3), (3, 3)])):
        monkeypatch.setattr(formats_rows, "SECONDS_UNTOLD", seconds)
        with formats_rows.shards_told(lambda done, total: told.append((done, total))):
            pool(tmp_path)
        pool(tmp_path)
        assert told == expected


def test_a_training_shows_how_far_the_listing_of_its_pool_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats_rows, "SECONDS_UNTOLD", -1.0)
    write_shard(tmp_path / "x.tar", range(4))
    shown = io.StringIO()
    given = ["data=webdataset", f"data.train={tmp_path}/x.tar", f"run.storage_path={tmp_path}/runs", "run.name=a"]
    with pytest.raises(ValueError, match="data"):  # so few images
        fit([*given, "tracking.enabled=false", "scale.num_workers=0"], console=Console(file=shown, width=120))
    assert "1/1 shards looked at" in shown.getvalue()
