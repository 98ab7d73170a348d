"""Files on a disk that are there whole, the old one or the new one, wherever the process or the machine stops.

A file is written aside, brought to the disk (fsync), and given its name; then the name is brought to the disk, with
those of the folders that were made for it.
"""

from __future__ import annotations

import errno
import os
import uuid
from pathlib import Path

UNKNOWN = (errno.EINVAL, errno.ENOTSUP)  # what file systems say that know no fsync, of a folder or at all


def replace(path: Path, data: bytes) -> None:
    """Write a whole file, in the place of one that may be there."""
    _make_folder(path.parent)
    # Hidden, for what reads a folder of files; and no two writers share it, as those of a job that was killed may.
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        file = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            _write(file, data)
            _sync(file)
        finally:
            os.close(file)
        aside.replace(path)
    except OSError:
        aside.unlink(missing_ok=True)
        raise
    sync(path.parent)


def append(path: Path, data: bytes) -> None:
    """Write at the end of a file, new or old; of what cannot be written whole, as on a full disk, nothing is left."""
    _make_folder(path.parent)
    is_new = not path.exists()
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    try:
        if is_new:
            sync(path.parent)
        size = os.fstat(file).st_size
        try:
            _write(file, data)
        except OSError:
            os.ftruncate(file, size)
            raise
    finally:
        os.close(file)


def remove(path: Path) -> None:
    """Remove a file, if it is there, before anything that is done later."""
    if path.exists():
        path.unlink()
        sync(path.parent)


def sync(path: Path) -> None:
    """Bring what was appended to a file, or the names in a folder, to the disk."""
    file = os.open(path, os.O_RDONLY)
    try:
        _sync(file)
    finally:
        os.close(file)


def _write(file: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(file, left) :]


def _sync(file: int) -> None:
    try:
        os.fsync(file)
    except OSError as error:
        if error.errno not in UNKNOWN:
            raise


def _make_folder(path: Path) -> None:
    if path.is_dir():
        return
    _make_folder(path.parent)
    path.mkdir(exist_ok=True)
    sync(path.parent)
