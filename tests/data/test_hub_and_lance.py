"""Pools on Hugging Face's hub and in Lance data sets, through stand-ins of their libraries on a local disk."""

from __future__ import annotations

import pickle
import shutil
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import Mock

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.dirfs import DirFileSystem

from dpl_ray.data.files import listing
from dpl_ray.data.files.location import open_location
from dpl_ray.data.formats import lance
from dpl_ray.data.formats.rows import list_pool
from dpl_ray.store.file_systems import open_uri
from tests.data.test_sources import CLASSES, all_labels, fails, load, png, write_parquet
from tests.data.test_tar import write_shard

VALUES = [50 * c + n for n in range(10) for c in range(3)]
LABELS = [0, 1, 2] * 10


class LocalHub(DirFileSystem):
    """`HfFileSystem`, of a folder."""

    cachable = False
    root = ""
    fault: Exception | None = None

    def __init__(self) -> None:
        super().__init__(path=self.root, fs=fsspec.filesystem("file"))

    def info(self, path: str, **options: Any) -> Any:
        if self.fault:
            raise self.fault
        return super().info(path, **options)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that stands for hf://datasets/me/photos."""
    monkeypatch.setattr("huggingface_hub.HfFileSystem", LocalHub)
    monkeypatch.setattr(LocalHub, "root", str(tmp_path / "hub"))
    folder = tmp_path / "hub" / "datasets" / "me" / "photos"
    folder.mkdir(parents=True)
    return folder


def test_files_of_the_hub_are_those_of_a_folder(hub: Path) -> None:
    write_parquet(hub / "train.parquet", VALUES, LABELS, names=CLASSES)
    write_shard(hub / "pool" / "shard-0.tar", range(200, 220))
    (hub / "pool" / "one.png").write_bytes(png(240))
    fields: dict[str, Any] = {"uses_unlabeled": True, "image_size": 4}
    there, here = (
        load("parquet", train=f"{place}/train.parquet", unlabeled=f"{place}/pool", **fields)
        for place in ("hf://datasets/me/photos", hub)
    )
    assert all_labels(there) == all_labels(here)
    assert np.array_equal(there.unlabeled.images, here.unlabeled.images)
    ids = [sample_id.replace(str(hub), "hf://datasets/me/photos") for sample_id in here.unlabeled.ids.tolist()]
    assert there.unlabeled.ids.tolist() == ids
    files = list_pool(open_location("pool", "hf://datasets/me/photos/pool/shard-{0..0}.tar"), image_column="image")
    again = pickle.loads(pickle.dumps(files))  # as workers of Ray get it
    shard = "hf://datasets/me/photos/pool/shard-0.tar"
    assert [row[0] for row in again.read_all()] == [f"{shard}:{level:04}.png" for level in range(200, 220)]
    assert again.location.filesystem.equals(files.location.filesystem)


def test_mistakes_with_the_hub(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train = "hf://datasets/me/photos/nothing"
    fails(rf"^data.train={train}: there is no such file or folder", train=train)
    monkeypatch.setattr(LocalHub, "fault", RuntimeError("no network\nat all"))
    fails(rf"^data.train={train}: cannot be read \(RuntimeError: no network at all\); check credentials", train=train)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    fails(rf"^data.train={train}: hf:// takes the package huggingface_hub: pip install huggingface_hub$", train=train)


# Lance


class LanceDataset:
    """What is used of `lance.LanceDataset`, of a folder with a parquet file."""

    def __init__(self, uri: str) -> None:
        if not Path(uri, "data.parquet").exists():
            raise ValueError(f"Dataset at path {uri} was not found")
        self._data = ds.dataset(f"{uri}/data.parquet")
        self.schema: pa.Schema = self._data.schema

    def count_rows(self) -> int:
        return self._data.count_rows()

    def to_table(self, columns: list[str]) -> pa.Table:
        return self._data.to_table(columns)

    def scanner(self, *, columns: list[str], offset: int, limit: int, batch_size: int) -> SimpleNamespace:
        rows = self._data.to_table(columns).slice(offset, limit)
        return SimpleNamespace(to_batches=lambda: rows.to_batches(batch_size))


@pytest.fixture
def lance_here(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("lance")
    module.dataset = LanceDataset  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "lance", module)
    monkeypatch.setattr(listing, "has_lance", lambda: True)


def write_lance(path: Path, values: list[int], labels: list[int]) -> None:
    path.mkdir(parents=True)
    pq.write_table(pa.table({"image": [png(value) for value in values], "label": labels}), path / "data.parquet")


@pytest.mark.parametrize("mode", ["memory", "stream"])
def test_lance_is_read_as_parquet_is(
    tmp_path: Path, lance_here: None, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    monkeypatch.setattr(lance, "_GROUP_ROWS", 7)
    fields: dict[str, Any] = {"uses_unlabeled": True, "image_size": 4, "class_names": CLASSES, "pool": {"mode": mode}}
    write_lance(tmp_path / "train.lance", VALUES, LABELS)
    write_lance(tmp_path / "pool.lance", list(range(200, 220)), [level % 3 for level in range(20)])
    write_parquet(tmp_path / "train.parquet", VALUES, LABELS)
    write_parquet(tmp_path / "pool.parquet", list(range(200, 220)), [level % 3 for level in range(20)])
    mine, theirs = (
        load("parquet", train=tmp_path / f"train.{kind}", unlabeled=tmp_path / f"pool.{kind}", **fields)
        for kind in ("lance", "parquet")
    )
    assert all_labels(mine) == all_labels(theirs) if mode == "memory" else len(mine.unlabeled) == len(theirs.unlabeled)
    files = list_pool(open_location("pool", str(tmp_path / "pool.lance")), image_column="image")
    rows = list(files.read_rows(0, np.array([0, 6, 7, 19])))
    assert [row[0] for row in rows] == [f"{tmp_path}/pool.lance:{row}" for row in (0, 6, 7, 19)]
    assert [row[1] for row in rows] == [png(level) for level in (200, 206, 207, 219)]


def test_mistakes_with_lance(tmp_path: Path, lance_here: None, monkeypatch: pytest.MonkeyPatch) -> None:
    write_lance(tmp_path / "a.lance", VALUES, LABELS)
    train = str(tmp_path / "a.lance")
    fails(r"^data.image_column=picture: .*/a.lance has no such column", "parquet", train=train, image_column="picture")
    shutil.copytree(train, tmp_path / "b.lance")
    (tmp_path / "b.lance" / "data.parquet").rename(tmp_path / "b.lance" / "x")
    fails(r"b.lance is not a readable parquet file \(Dataset at path", "parquet", train=tmp_path / "b.lance")
    panic = type("PanicException", (BaseException,), {})  # as a damaged manifest makes Lance's Rust raise
    for broken in ("__init__", "to_table", "scanner"):
        with monkeypatch.context() as patched:
            patched.setattr(LanceDataset, broken, Mock(side_effect=panic("range end index 9")))
            reason = "not one image has a label" if broken == "scanner" else "not a readable parquet file .range end"
            fails(reason, "parquet", train=train, max_bad_fraction=1.0)
    monkeypatch.setattr(listing, "has_lance", lambda: False)
    fails(
        rf"^data.train={train}: a Lance data set takes the package lance: pip install pylance$", "parquet", train=train
    )


def test_the_hub_itself_is_opened_without_a_request() -> None:
    assert open_uri("hf://datasets/me/photos")[1] == "datasets/me/photos"
