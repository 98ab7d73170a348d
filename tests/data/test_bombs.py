"""Files of a few bytes that declare to be huge are refused by what they declare, before anything is unpacked."""

from __future__ import annotations

import copy
import gzip
import io
import random
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from dpl_ray.config.compose import load_config
from dpl_ray.config.schema import DataConfig
from dpl_ray.data.files.location import open_location
from dpl_ray.data.formats import parquet
from dpl_ray.data.formats.parquet_pages import CheckedPages
from dpl_ray.data.images import decode as decoding
from dpl_ray.data.images.convert import DecodeSettings
from dpl_ray.data.images.decode import DecodeError, decode
from dpl_ray.data.splits.pseudo_labels import read_pseudo_labels
from dpl_ray.models.weights import read_weights
from dpl_ray.reviewing.labels import open_labels
from dpl_ray.store.records import from_yaml, parse_tree
from tests.data.test_sources import fails, load, png
from tests.labeling.outputs import SCHEMA, write_labels

WIDTH, HEIGHT = 77, 99  # of the small images, whose headers are changed
SIDE = 13_000


def small(kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (WIDTH, HEIGHT)).save(buffer, kind, **options)
    return buffer.getvalue()


def declaring(encoded: bytes, form: str, side: int = SIDE) -> bytes:
    """The image with another size in every place where its size stands."""
    old = struct.pack(form, WIDTH) + struct.pack(form, HEIGHT)
    swapped = struct.pack(form, HEIGHT) + struct.pack(form, WIDTH)
    assert old in encoded or swapped in encoded
    new = struct.pack(form, side) * 2
    return encoded.replace(old, new).replace(swapped, new)


def huge_png() -> bytes:
    encoded = bytearray(declaring(small("PNG"), ">I"))
    encoded[29:33] = zlib.crc32(bytes(encoded[12:29])).to_bytes(4, "big")
    return bytes(encoded)


def icon(content: bytes) -> bytes:
    """Of 32 x 32 pixels, as its directory says."""
    return struct.pack("<3H4B2H2I", 0, 1, 1, 32, 32, 0, 0, 1, 32, len(content), 22) + content


def tiff(side: int, tile: int) -> bytes:
    """A deflated tile."""
    data = zlib.compress(bytes(1024))
    tags = {256: side, 257: side, 258: 8, 259: 8, 262: 1, 277: 1, 322: tile, 323: tile, 324: 8, 325: len(data)}
    entries = b"".join(struct.pack("<2H2I", tag, 4, 1, value) for tag, value in tags.items())
    return struct.pack("<2sHI", b"II", 42, 8 + len(data)) + data + struct.pack("<H", len(tags)) + entries + bytes(4)


BOMBS: dict[str, Callable[[], bytes]] = {
    "PNG": huge_png,
    "JPEG": lambda: declaring(small("JPEG"), ">H"),
    "GIF": lambda: declaring(small("GIF"), "<H"),
    "frame of a GIF": lambda: (
        small("GIF")[:6] + declaring(small("GIF"), "<H")[6:10] + declaring(small("GIF"), "<H")[10:]
    ),
    "BMP": lambda: declaring(small("BMP"), "<i"),
    "PPM": lambda: b"P6 13000 13000 255\n",
    "JPEG2000": lambda: declaring(small("JPEG2000"), ">I"),
    "AVIF": lambda: declaring(small("AVIF"), ">I"),
    "TIFF": lambda: tiff(SIDE, 32),
    "tile of a TIFF": lambda: tiff(32, 20_000),
    "PNG in an icon": lambda: icon(huge_png()),
    "BMP in an icon": lambda: icon(declaring(small("BMP"), "<i")[14:]),
}


@pytest.mark.parametrize("kind", BOMBS)
def test_an_image_is_refused_by_its_header(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "_convert", lambda *_: pytest.fail("it is decoded"))
    with pytest.raises(DecodeError, match=decoding.TOO_LARGE):
        decode(BOMBS[kind](), DecodeSettings(8))


def test_a_jpeg_of_many_scans_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each takes 100 bytes, and 25 ms of an image of 64 megapixels."""
    monkeypatch.setattr(decoding, "_QUICK", 0)
    whole = small("JPEG", progressive=True)
    last = whole[whole.rindex(b"\xff\xda") : -2]
    many, usual = (whole[:-2] + last * number + whole[-2:] for number in (decoding.MAX_SCANS, 50))
    assert decode(usual, DecodeSettings(8)).shape == (3, 8, 8)
    monkeypatch.setattr(decoding, "_convert", lambda *_: pytest.fail("it is decoded"))
    with pytest.raises(DecodeError, match=decoding.TOO_MANY_SCANS):
        decode(many, DecodeSettings(8))


def write(path: Path, values: list[bytes], labels: list[Any], **options: Any) -> Path:
    pq.write_table(pa.table({"image": values, "label": labels}), path, compression="zstd", **options)
    return path


def test_a_column_of_parquet_that_unpacks_to_far_more_than_the_file_has_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with the bounds of the product and 100 times as much of it."""
    monkeypatch.setattr(parquet, "_MAX_UNPACKED", 2**20)
    path = write(tmp_path / "a.parquet", [bytes(2**19)] * 3, [0, 1, 2], use_dictionary=False)
    assert path.stat().st_size < 5_000
    message = r"a\.parquet is not a readable parquet file \(it would unpack to 1,57\d,\d+ bytes in a column, of"
    fails(message, "parquet", train=path)
    images = [png(value) for value in range(30)]
    train = write(tmp_path / "train.parquet", images, [row % 3 for row in range(30)])
    pool = load(
        "parquet", train=train, unlabeled=path, uses_unlabeled=True, num_labels_per_class=2, max_bad_fraction=1.0
    )
    assert [bad.reason for bad in pool.bad] == [parquet.NOT_PARQUET]
    noise = write(tmp_path / "b.parquet", [random.Random(0).randbytes(2**20)] * 3, [0, 1, 2])
    with parquet.open_table(open_location("pool", str(noise)), str(noise)) as opened:  # no more than it may be
        assert opened.metadata.num_rows == 3


@pytest.mark.parametrize("compression", ["zstd", "snappy", "gzip", "none"])
@pytest.mark.parametrize("version", ["1.0", "2.0"])
def test_pages_of_every_form_are_read(tmp_path: Path, version: str, compression: str) -> None:
    images, labels = [png(value) for value in range(100)] * 2, [str(row % 3) for row in range(200)]
    table = pa.table({"image": images, "label": labels, "more": [[None, row, 0.5] for row in range(200)]})
    options = {"data_page_version": version, "data_page_size": 1000, "row_group_size": 90, "write_page_checksum": True}
    pq.write_table(table, tmp_path / "a.parquet", compression=compression, write_page_index=True, **options)
    location, path = open_location("data.train", str(tmp_path)), str(tmp_path / "a.parquet")
    with parquet.open_table(location, path) as opened:
        assert opened.read(list(table.column_names)) == table
    assert [row[0] for row in parquet.read_rows(location, path, np.arange(200), "image")] == images


def test_pages_that_unpack_to_more_than_the_footer_says_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", [bytes(2**20)] * 8 + [png(1)], [0] * 9, use_dictionary=False)
    whole, said = path.read_bytes(), pq.read_metadata(path).row_group(0).column(0).total_uncompressed_size
    old, new = (
        bytes((2 * value >> 7 * place & 127) | 128 for place in range(3)) + bytes([2 * value >> 21])
        for value in (said, 999)
    )
    assert whole.count(old) == 1
    path.write_bytes(whole.replace(old, new))
    assert pq.read_metadata(path).row_group(0).column(0).total_uncompressed_size == 999
    location = open_location("data.train", str(tmp_path))
    for payload, _ in parquet.read_rows(location, str(path), np.arange(9), "image"):
        assert decoding.decode_or_reason(payload, DecodeSettings(8)) == decoding.UNREADABLE
    with parquet.open_table(location, str(path)) as opened, pytest.raises(pa.ArrowInvalid, match="more than the 999 b"):
        opened.read(["image"])


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"\x15\x00\x15\x02",
        b"\x19\xf1" + b"\xff" * 8 + b"\x7f",
        b"\x1c" * 9999,
        b"\x15" + b"\xff" * 99,
        b"\x1b\x01",
    ],
    ids=["none", "cut off", "long list", "deep", "long number", "map"],
)
def test_pages_that_lie_in_their_headers_are_refused_at_once(header: bytes) -> None:
    data = header or b"\0" * 9
    with pytest.raises(pa.ArrowInvalid, match="a page has no header"):
        CheckedPages(pa.BufferReader(data), {0: (len(data), 9)}).read()


def test_rows_that_a_footer_only_says_are_not_made(tmp_path: Path) -> None:
    number = 10**6
    table = pa.table({"image": pa.nulls(number, pa.binary()), "label": pa.nulls(number, pa.int8())})
    pq.write_table(table, tmp_path / "a.parquet")
    fails(r"it would unpack to 1,000,000 rows, of [\d,]+ bytes", "parquet", train=tmp_path / "a.parquet")


def test_values_that_a_dictionary_has_once_are_not_multiplied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.parquet", [bytes(2**14)] * 500, ["x" * 2**14] * 500)
    location = open_location("data.train", str(path))
    _, labels, _ = parquet.read_labels(location, str(path), image_column="image", label_column="label")
    assert len(labels) == 500
    assert len({id(label) for label in labels}) == 1
    monkeypatch.setattr(parquet, "_BATCH_BYTES", 2**20)
    batches = []

    def count(batch: pa.RecordBatch, **_: Any) -> list[tuple[None, None]]:
        batches.append(len(batch))
        return [(None, None)] * len(batch)

    monkeypatch.setattr(parquet, "_rows_of", count)
    assert len(list(parquet.read_rows(location, str(path), np.arange(500), "image"))) == 500
    assert max(batches) < 64


@pytest.mark.parametrize("form", ["packed", "twice", "bytearray"])
def test_weights_that_would_take_more_memory_than_their_file_are_not_loaded(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch packs nothing, but unpacks what is packed, and makes a bytearray of any size."""
    path, buffer = tmp_path / "w.pth", io.BytesIO()
    torch.save({"weight": torch.zeros(2**16)}, buffer)
    if form == "bytearray":
        path.write_bytes(b"\x80\x02c__builtin__\nbytearray\nK\x09\x85R.")
    else:
        with zipfile.ZipFile(buffer) as whole, zipfile.ZipFile(path, "w") as archive:
            for name in whole.namelist():
                packs = form == "packed" and name.endswith("data/0")
                archive.writestr(name, whole.read(name), zipfile.ZIP_DEFLATED if packs else zipfile.ZIP_STORED)
            if form == "twice":
                archive.filelist += [copy.copy(each) for each in archive.filelist]
                archive._didModify = True
        assert path.stat().st_size < 2**20
    torch.save({"weight": torch.ones(2)}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert read_weights("old.pth", str(tmp_path / "old.pth"))["weight"].tolist() == [1, 1]
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("it is loaded"))
    with pytest.raises(ValueError, match="holds more than tensors" if form == "bytearray" else "would unpack to more"):
        read_weights("w.pth", str(path))


def test_labels_that_unpack_to_far_more_than_a_part_has_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet, "_ROWS_PER_BYTE", 1)
    number, names = 10**5, ("a", "b")
    labels = write_labels(tmp_path / "labels", [("a", 0, 0.5, True)], class_names=names, pool=tmp_path)
    (part,) = labels.glob("*.parquet")
    pq.write_table(pa.table({field.name: pa.nulls(number, field.type) for field in SCHEMA}), part)
    message = r"it would unpack to 100,000 rows, of [\d,]+ bytes"
    with pytest.raises(ValueError, match=message):
        read_pseudo_labels(DataConfig(name="image_folder", labels=str(labels)))
    with pytest.raises(ValueError, match=message):
        open_labels("labels", str(labels)).read(part.name, ["sample_id"])


def test_a_configuration_that_is_packed_is_not_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml.gz"
    path.write_bytes(gzip.compress(b"data: {}\n" + b"#" * 2**20))
    with pytest.raises(ValueError, match=r"^config=.*: cannot be read"):
        load_config([f"config={path}"])


@pytest.mark.parametrize("metadata", ["[" * 100_000, "9" * 5_000, '{"info": ' * 5_000], ids=["deep", "long", "objects"])
def test_metadata_that_no_parser_takes_name_no_classes(tmp_path: Path, metadata: str) -> None:
    table = pa.table({"image": [png(value) for value in range(30)], "label": [value % 3 for value in range(30)]})
    pq.write_table(table.replace_schema_metadata({"huggingface": metadata}), tmp_path / "a.parquet")
    assert load("parquet", train=tmp_path / "a.parquet").class_names == ("0", "1", "2")


def test_numbers_of_more_digits_than_python_converts_are_no_indices(tmp_path: Path) -> None:
    (tmp_path / "0.png").write_bytes(png(0))
    digits = "9" * 5_000
    (tmp_path / "a.csv").write_text(f"path,label\n0.png,{digits}\n0.parquet:{digits},1\n")
    fails(
        r"a\.csv: no labelled image of the class 1 \(1 images could not be read, as .*999",
        train=tmp_path / "a.csv",
        max_bad_fraction=1.0,
    )
    with pytest.raises(ValueError, match=r"it has the number 99999999999999999999\.\.\."):
        parse_tree(b'{"a": %s}' % digits.encode())


@pytest.mark.parametrize(
    "text",
    [
        "a: &a [x, x, x, x, x, x, x, x, x, x]\n"
        + "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 10)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)),
        "a: &a [*a, *a]",
        "a: &a {b: *a}",
        "[" * 100_000,
    ],
    ids=["aliases of aliases", "a list in itself", "a mapping in itself", "deep"],
)
def test_yaml_that_stands_for_more_than_it_says_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"^config=.*: cannot be read \((its aliases stand for more than|.*deep)"):
        load_config([f"config={tmp_path / 'config.yaml'}"])


def test_aliases_as_people_write_them_are_read() -> None:
    tree = from_yaml(b"a: &a {x: 1}\nb: *a\nc: {<<: *a, y: 2}\nd: [*a, *a]\n")
    assert tree == {"a": {"x": 1}, "b": {"x": 1}, "c": {"x": 1, "y": 2}, "d": [{"x": 1}, {"x": 1}]}
    assert len(from_yaml(b"- 1\n" * 1_000)) == 1_000
    assert from_yaml(b"") is None
