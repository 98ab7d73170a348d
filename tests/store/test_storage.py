"""Storage: paths and files on a local disk; a bucket is the same code on another of pyarrow's file systems."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from pyarrow import fs

from dpl_ray.store import file_systems
from dpl_ray.store.storage import Storage


def test_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/somebody")
    assert str(Storage("runs")) == str(tmp_path / "runs")
    assert str(Storage("~/runs")) == "/home/somebody/runs"
    assert str(Storage("runs") / "a" / "b.json") == str(tmp_path / "runs" / "a" / "b.json")
    assert (Storage("runs") / "a").name == "a"
    assert str(Storage(f"file://{tmp_path}/x")) == f"{tmp_path}/x"
    assert not tmp_path.joinpath("runs").exists(), "naming is not making"


@pytest.fixture
def any_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Buckets are opened without asking whether they are there."""
    monkeypatch.setattr(file_systems, "_check_reach", lambda *_: None)


@pytest.mark.parametrize("path", ["/a/b", "/a b/c d", "gs://bucket/runs"])
def test_text_makes_it_again(path: str, any_answer: None) -> None:
    storage = Storage(path) / "run" / "step-1"
    again = Storage(str(storage))
    assert (str(again), again.path, again.is_local) == (str(storage), storage.path, storage.is_local)
    assert again.is_local == ("://" not in path)


@pytest.mark.parametrize("path", ["s4://bucket/runs", "http://host/runs", "nonsense://"])
def test_unknown_scheme(path: str) -> None:
    with pytest.raises(ValueError, match=f"{path}: no file system for this address") as error:
        Storage(path)
    assert "\n" not in str(error.value)


def test_files(tmp_path: Path) -> None:
    folder = Storage(str(tmp_path)) / "a" / "b"
    assert folder.list() == []
    assert not folder.exists()
    (folder / "one.txt").write(b"first")
    (folder / "one.txt").write(b"second")
    (folder / "two.txt").write(b"")
    assert (folder / "one.txt").read() == b"second"
    assert (folder / "two.txt").read() == b""
    assert sorted(folder.list()) == ["one.txt", "two.txt"], "and no file of a write that is not finished"
    assert folder.exists()
    with pytest.raises(FileNotFoundError):
        (folder / "three.txt").read()
    folder.delete()
    assert not folder.exists()
    assert (Storage(str(tmp_path)) / "a").exists()


def test_a_write_that_breaks_off_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = Storage(str(tmp_path)) / "file"
    file.write(b"old")

    write = os.write

    def fill(descriptor: int, data: bytes) -> int:
        if len(data) < 10:
            raise OSError(28, "No space left on device")
        return write(descriptor, data[:-9])

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", fill)
        for change in (file.write, file.append):
            with pytest.raises(OSError, match="No space"):
                change(b"new and not whole")
            assert (tmp_path / "file").read_bytes() == b"old"
    (Storage(str(tmp_path)) / "file").write(b"newer")
    assert (tmp_path / "file").read_bytes() == b"newer"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_delete_takes_the_manifest_first(tmp_path: Path) -> None:
    folder = Storage(str(tmp_path)) / "step-1"
    for name in ("a.bin", "manifest.json"):
        (folder / name).write(b"x")

    class Stuck(fs.LocalFileSystem):
        def delete_dir(self, path: str) -> None:
            raise OSError("interrupted")

    folder.filesystem = Stuck()
    with pytest.raises(OSError, match="interrupted"):
        folder.delete()
    assert folder.list() == ["a.bin"]


def test_the_options_of_a_bucket_stay_with_all_that_lies_in_it(any_answer: None) -> None:
    options = "?region=eu-west-1&endpoint_override=localhost%3A9"
    child = Storage(f"s3://bucket/runs{options}") / "first" / "step-1"
    assert str(child) == f"s3://bucket/runs/first/step-1{options}"
    assert str(Storage(str(child)) / "x") == f"s3://bucket/runs/first/step-1/x{options}"
    assert str(child.parent) == f"s3://bucket/runs/first{options}"


def test_writable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"")
    (Storage(str(tmp_path)) / "a" / "b").check_writable()
    for below in ("file", "file/a/b"):
        with pytest.raises(NotADirectoryError, match=f"{tmp_path}/file"):
            Storage(f"{tmp_path}/{below}").check_writable()
    with pytest.raises(OSError, match="'/proc'"):  # where root has every permission, and can make nothing
        Storage("/proc/a").check_writable()

    def refused(**_: object) -> None:
        raise PermissionError(13, "Permission denied", "some temporary name")

    monkeypatch.setattr("tempfile.TemporaryFile", refused)  # root may write everywhere else
    with pytest.raises(PermissionError, match=f"Permission denied: '{tmp_path}'"):
        (Storage(str(tmp_path)) / "a").check_writable()
    assert [path.name for path in tmp_path.iterdir()] == ["file"], "nothing is left behind"


def test_a_bucket_is_writable_where_a_file_can_be_written(tmp_path: Path) -> None:
    bucket = Storage(str(tmp_path))
    bucket.is_local = False
    bucket.check_writable()
    assert list(tmp_path.iterdir()) == []

    class ReadOnly(fs.LocalFileSystem):
        def open_output_stream(self, *arguments: object, **keywords: object) -> None:
            raise OSError("AWS Error ACCESS_DENIED during PutObject operation")

    bucket.filesystem = ReadOnly()
    with pytest.raises(OSError, match="ACCESS_DENIED"):
        bucket.check_writable()
