"""A pool in a bucket, and its labels in another one: a real S3 server on this machine."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from pyarrow import fs

from dpl_ray.data.formats import tar
from dpl_ray.labeling.blocks import BlockLabeler
from dpl_ray.reviewing.job import review
from tests.data.test_tar import pack
from tests.labeling.jobs import label, make_checkpoint, png, rows, write_images


def put(filesystem: fs.S3FileSystem, path: str, content: bytes) -> None:
    with filesystem.open_output_stream(path) as stream:
        stream.write(content)


def test_the_pool_is_read_from_a_bucket_and_the_labels_written_there(
    s3: tuple[fs.S3FileSystem, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filesystem, options = s3
    checkpoint = make_checkpoint(tmp_path / "run")
    for number in range(6):
        put(filesystem, f"images/pool/a é/{number:04d}.png", png(number))
    put(filesystem, "images/pool/broken.png", png(1)[:50])
    put(filesystem, "images/pool/notes", b"notes")
    for name in ("notes.txt", "_ledger/job.json", "_x/y/0001.png", ".z/0001.png"):
        put(filesystem, f"images/pool/{name}", png(1))
    sink = io.BytesIO()
    pq.write_table(pa.table({"image": [png(number) for number in range(6, 17)]}), sink, row_group_size=3)
    put(filesystem, "images/pool/b.parquet", sink.getvalue())
    put(filesystem, "images/pool/c-00.tar", pack((f"{number}.png", png(number)) for number in range(17, 23)))
    pool, output = f"s3://images/pool{options}", f"s3://labels/some/where{options}"

    whole, written = BlockLabeler.write, []

    def stopping(self: BlockLabeler, block: Any) -> Any:
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(block)
        return whole(self, block)

    def counting(self: BlockLabeler, block: Any) -> Any:
        written.append(block)
        return whole(self, block)

    monkeypatch.setattr(BlockLabeler, "write", stopping)
    with pytest.raises(KeyboardInterrupt):
        label(checkpoint, pool, output, max_bad_fraction=0.1)
    assert num_parts(filesystem) == 2
    monkeypatch.setattr(BlockLabeler, "write", counting)
    tar._recent.clear()  # so that the index is read from the output
    result = label(checkpoint, pool, output, max_bad_fraction=0.1)
    assert (result.num_rows, result.unreadable) == (25, {"neither an image nor called one": 1, "truncated": 1})
    numbers = [block.number for block in written]
    assert len(set(numbers)) == len(numbers) == num_parts(filesystem), "what was labelled before is not labelled again"

    found = ds.dataset("labels/some/where", filesystem=filesystem).to_table().to_pylist()
    by_id = {row["sample_id"]: row for row in found}
    assert len(found) == len(by_id) == 25
    # The same images on a local disk get the same labels.
    write_images(tmp_path / "pool", range(23))
    label(checkpoint, tmp_path / "pool", tmp_path / "out")
    local = list(rows(tmp_path / "out").values())
    names = [f"a é/{number:04d}.png" for number in range(6)] + [f"b.parquet:{row}" for row in range(11)]
    for number, name in enumerate([*names, *(f"c-00.tar:{number}.png" for number in range(17, 23))]):
        mine = by_id[f"s3://images/pool/{name}"]
        assert mine["pseudo_label"] == local[number]["pseudo_label"]
        assert mine["confidence"] == pytest.approx(local[number]["confidence"], abs=1e-5)
    with filesystem.open_input_stream("labels/some/where/_report/summary.json") as stream:
        assert json.loads(stream.read())["num_rows"] == 25
    with filesystem.open_input_stream("labels/some/where/_report/bad.csv") as stream:
        assert b"s3://images/pool/broken.png,truncated" in stream.read()

    asked = review(labels=output, pool=pool, num=100)
    assert asked.page.startswith("s3://labels/some/where-review/review.html?")
    with filesystem.open_input_stream("labels/some/where-review/review.html") as stream:
        text = stream.read()
    assert text.count(b"data:image/png;base64,") == 23, "files, rows and members of tars"
    assert b"s3://images/pool/b.parquet:3" in text


def num_parts(filesystem: fs.S3FileSystem) -> int:
    infos = filesystem.get_file_info(fs.FileSelector("labels/some/where"))
    return sum(info.base_name.startswith("part-") for info in infos)


def test_mistakes_with_buckets(s3: tuple[fs.S3FileSystem, str], tmp_path: Path) -> None:
    filesystem, options = s3
    checkpoint = make_checkpoint(tmp_path / "run")
    put(filesystem, "images/pool/a.png", png(1))
    with pytest.raises(ValueError, match=r"^pool=s3://images/nothing.*: there is no such file or folder"):
        label(checkpoint, f"s3://images/nothing{options}", tmp_path / "out")
    with pytest.raises(ValueError, match=r"^output=s3://nowhere/out.*: cannot be written"):
        label(checkpoint, f"s3://images/pool{options}", f"s3://nowhere/out{options}")
    with pytest.raises(ValueError, match=r"^output=s3://images/pool/out.*: lies in the pool"):
        label(checkpoint, f"s3://images/pool{options}", f"s3://images/pool/out{options}")
