"""One command at a time in a folder: two that wrote the same files would each lose what the other has done."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from dpl_ray.store.file_systems import one_line
from dpl_ray.store.storage import Storage

LOCK_FILE = ".lock"  # stays; the lock on it ends with the process that holds it


@contextlib.contextmanager
def sole_use(field: str, folder: Storage) -> Iterator[None]:
    """Keep other commands out of a folder, which is made; where the file system knows no locks, nobody is kept out.

    Args:
        field: the folder's, and its value, for the message.

    Raises:
        ValueError: the folder cannot be made, or another command is at work here. In a bucket, which has no locks,
            this is never found out.
    """
    if not folder.is_local:
        yield
        return
    path, other = Path(folder.path), field.partition("=")[0]
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"{field}: the folder cannot be made ({one_line(error)}); take another {other}") from None
    lock = FileLock(path / LOCK_FILE, blocking=False)
    try:
        lock.acquire()
    except Timeout:
        raise ValueError(
            f"{field}: another command is at work in this folder; wait for its end, or take another {other}"
        ) from None
    except (OSError, NotImplementedError):
        pass  # as on some network file systems
    try:
        yield
    finally:
        lock.release()
