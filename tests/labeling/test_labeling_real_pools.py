"""What is in real pools: everything that goes wrong with files, as a folder and as parquet, counted by reason."""

from __future__ import annotations

import os
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageFile

from dpl_ray.data.formats.parquet import NOT_PARQUET
from dpl_ray.data.images.decode import EMPTY, MISSING, NOT_AN_IMAGE, TOO_LARGE, TRUNCATED, UNREADABLE
from dpl_ray.labeling.parts import FOREIGN
from dpl_ray.labeling.plan import Plan
from tests.labeling.jobs import (
    encode,
    label,
    make_checkpoint,
    picture,
    png,
    rows,
    summary,
    write_images,
    write_parquet,
)


def bomb(side: int = 20_000) -> bytes:
    """A PNG of 20,000 x 20,000 pixels in a hundred bytes: its header says so."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    data = chunk(b"IDAT", zlib.compress(bytes(60)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + data + chunk(b"IEND", b"")


def rotated() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: 90 degrees
    return encode(picture(7, (12, 8)), "jpeg", exif=exif, quality=95)


def sixteen_bit() -> bytes:
    return encode(Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000))


def transparent_palette() -> bytes:
    image = picture(8).convert("P")
    return encode(image, "png", transparency=3)


GOOD = {
    "a.png": png(1),
    "twice.png": png(1),
    "once more/a.png": png(1),
    "really a png.jpg": png(2),
    "really a jpeg.PNG": encode(picture(3), "jpeg"),
    "moving.gif": encode(picture(4), "gif", save_all=True, append_images=[picture(5)]),
    "one pixel.png": encode(picture(6, (1, 1))),
    "cmyk.jpg": encode(picture(6).convert("CMYK"), "jpeg"),
    "16 bit.png": sixteen_bit(),
    "palette.png": transparent_palette(),
    "rotated.jpg": rotated(),
    "Übergröße mit Leerzeichen.png": png(9),
    "写真/猫 (1).png": png(10),
    "percent%20sign #1?.png": png(11),
    "without extension": png(12),
}
BAD = {
    "truncated.png": (png(20)[:-40], TRUNCATED),
    "truncated.jpg": (encode(picture(21, (64, 64)), "jpeg")[:400], TRUNCATED),
    "empty.png": (b"", EMPTY),
    "text.jpg": (b"this is no image", NOT_AN_IMAGE),
    "bomb.png": (bomb(), TOO_LARGE),
    "broken.png": (png(22)[:50] + bytes(30) + png(22)[80:], TRUNCATED),
}
FOREIGN_FILES = {"README.dat": b"about these images", "classes.yaml": b"- ant\n", "LICENSE": b""}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_checkpoint(tmp_path_factory.mktemp("run"))


def write(folder: Path, name: str, content: bytes) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(content)


def test_a_folder(checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = tmp_path / "a pool é"
    for name, content in (GOOD | FOREIGN_FILES | {name: content for name, (content, _) in BAD.items()}).items():
        write(pool, name, content)
    for name in ("gone.png", "locked.png"):
        write(pool, name, png(1))
    write(pool, ".hidden.png", png(1))
    vanish(monkeypatch, pool / "gone.png", into_folder=pool / "locked.png")
    # One at a time: on some CPUs rounding depends on how many are in a batch.
    result = label(checkpoint, pool, tmp_path / "out", max_bad_fraction=0.5, batch_size=1)
    found = rows(tmp_path / "out")
    expected = {name: reason for name, (_, reason) in BAD.items()}
    expected |= dict.fromkeys(FOREIGN_FILES, FOREIGN) | {"gone.png": MISSING, "locked.png": UNREADABLE}
    assert {name: row["error"] for name, row in found.items()} == {
        str(pool / name): expected.get(name) for name in [*GOOD, *expected]
    }
    counts = {reason: list(expected.values()).count(reason) for reason in expected.values()}
    assert result.unreadable == counts
    assert counts == {
        TRUNCATED: 3, EMPTY: 1, NOT_AN_IMAGE: 1, TOO_LARGE: 1, FOREIGN: 3, MISSING: 1, UNREADABLE: 1,
    }  # fmt: skip
    assert result.num_selected + result.num_rejected == len(GOOD)
    assert result.num_rows == len(GOOD) + len(expected)
    assert summary(tmp_path / "out")["num_foreign"] == 3
    first = found[str(pool / "a.png")] | {"sample_id": ""}
    for name in ("twice.png", "once more/a.png"):
        assert found[str(pool / name)] | {"sample_id": ""} == first, "equal images, equal labels"


def vanish(monkeypatch: pytest.MonkeyPatch, path: Path, *, into_folder: Path) -> None:
    """Between listing and reading, one file disappears and another one becomes a folder, which nobody can read."""
    read = Plan.read

    def reading(self: Plan, block: int) -> object:
        path.unlink(missing_ok=True)
        if into_folder.is_file():
            into_folder.unlink()
            into_folder.mkdir()
        return read(self, block)

    monkeypatch.setattr(Plan, "read", reading)


def test_parquet(checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = tmp_path / "a pool é"
    pool.mkdir()
    cells = [*GOOD.values(), *(content for content, _ in BAD.values()), *FOREIGN_FILES.values(), None]
    pq.write_table(pa.table({"image": pa.array(cells, pa.binary())}), pool / "cells.parquet", row_group_size=4)
    structs = [{"bytes": png(30), "path": "x"}, {"bytes": None, "path": "y"}, None]
    pq.write_table(pa.table({"image": structs}), pool / "structs.parquet")
    pq.write_table(pa.table({"picture": [png(31), png(32)]}), pool / "missing column.parquet")
    pq.write_table(pa.table({"image": [1, 2, 3]}), pool / "wrong type.parquet")
    write_parquet(pool / "none.parquet", range(0))
    with_empty_group(pool / "empty group.parquet")
    write_parquet(pool / "gone.parquet", range(2))
    write(pool, "text.parquet", b"this is no parquet")
    write(pool, "empty.parquet", b"")
    write(pool, "README.dat", b"about these files")
    vanish(monkeypatch, pool / "gone.parquet", into_folder=tmp_path / "nothing")
    result = label(checkpoint, pool, tmp_path / "out", max_bad_fraction=0.6)
    errors: dict[str, str | None] = {f"cells.parquet:{row}": None for row in range(len(GOOD))}
    reasons = [reason for _, reason in BAD.values()] + [NOT_AN_IMAGE, NOT_AN_IMAGE, EMPTY, EMPTY]
    errors |= {f"cells.parquet:{len(GOOD) + row}": reason for row, reason in enumerate(reasons)}
    errors |= {"structs.parquet:0": None, "structs.parquet:1": MISSING, "structs.parquet:2": EMPTY}
    errors |= {f"missing column.parquet:{row}": "no column image" for row in range(2)}
    errors |= {f"wrong type.parquet:{row}": "column image is no encoded image" for row in range(3)}
    errors |= {f"empty group.parquet:{row}": None for row in range(4)}
    errors |= {f"gone.parquet:{row}": MISSING for row in range(2)}
    errors |= {"text.parquet:0": NOT_PARQUET, "empty.parquet:0": NOT_PARQUET, "README.dat": FOREIGN}
    found = rows(tmp_path / "out")
    assert {name: row["error"] for name, row in found.items()} == {
        str(pool / name): reason for name, reason in errors.items()
    }
    told = [reason for reason in errors.values() if reason]
    assert result.unreadable == {reason: told.count(reason) for reason in told}
    assert result.num_selected + result.num_rejected == len(GOOD) + 5
    assert result.num_rows == len(errors)


def with_empty_group(path: Path) -> None:
    """Four rows, with a row group of none between them."""
    schema = pa.schema({"image": pa.binary()})
    with pq.ParquetWriter(path, schema) as writer:
        for numbers in (range(2), range(0), range(2, 4)):
            writer.write_table(pa.table({"image": [png(number) for number in numbers]}, schema=schema))
    assert [pq.read_metadata(path).row_group(group).num_rows for group in range(3)] == [2, 0, 2]


@pytest.mark.parametrize("side", [20_000, 10_000])
def test_a_bomb_is_refused_by_its_header(
    checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, side: int
) -> None:
    write(tmp_path / "pool", "bomb.png", bomb(side))
    write_images(tmp_path / "pool", range(3))
    loaded: list[tuple[int, int]] = []
    load = ImageFile.ImageFile.load

    def recording(self: ImageFile.ImageFile) -> object:
        loaded.append(self.size)
        return load(self)

    monkeypatch.setattr(ImageFile.ImageFile, "load", recording)
    result = label(checkpoint, tmp_path / "pool", tmp_path / "out", max_bad_fraction=0.5)
    assert (result.num_rows, result.unreadable) == (4, {TOO_LARGE: 1})
    assert set(loaded) == {(8, 8)}, "the bomb was not decoded"


def test_a_large_file_that_is_not_called_an_image_is_not_opened(
    checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_images(tmp_path / "pool", range(3))
    write(tmp_path / "pool", "archive.dat", png(1) + bytes(2000))
    write(tmp_path / "pool", "large.png", png(1) + bytes(2000))
    monkeypatch.setattr("dpl_ray.data.files.kinds.MAX_UNNAMED_BYTES", 2000)
    found = label(checkpoint, tmp_path / "pool", tmp_path / "out")
    assert found.unreadable == {FOREIGN: 1}


def test_a_folder_without_images_and_a_parquet_without_rows(checkpoint: str, tmp_path: Path) -> None:
    (tmp_path / "pool").mkdir()
    with pytest.raises(ValueError, match=r"^pool=.*: the folder is empty"):
        label(checkpoint, tmp_path / "pool", tmp_path / "out")
    write_parquet(tmp_path / "pool" / "none.parquet", range(0))
    with pytest.raises(ValueError, match=r"^pool=.*: the parquet files have no rows"):
        label(checkpoint, tmp_path / "pool", tmp_path / "out")


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere there are no such names")
def test_a_name_that_is_not_utf_8_is_told(checkpoint: str, tmp_path: Path) -> None:
    write_images(tmp_path / "pool", range(2))
    Path(os.fsdecode(os.fsencode(tmp_path / "pool") + b"/\xff.png")).write_bytes(png(1))
    with pytest.raises(ValueError, match=r"^pool=.*: cannot be listed: a name in it is not UTF-8 \(.*xff\.png"):
        label(checkpoint, tmp_path / "pool", tmp_path / "out")


def test_foreign_files_do_not_count_as_bad(checkpoint: str, tmp_path: Path) -> None:
    write_images(tmp_path / "pool", range(3))
    for number in range(20):
        write(tmp_path / "pool", f"{number}.dat", b"text")
    result = label(checkpoint, tmp_path / "pool", tmp_path / "out", max_bad_fraction=0)
    assert result.unreadable == {FOREIGN: 20}
