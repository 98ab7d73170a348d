"""One command at a time in a folder: two that wrote the same files would each lose what the other has done.

On a disk the operating system locks a file. In a bucket each command writes a file of its own, its lease, before it
looks for those of others. What is written there is listed at once (S3, GCS), so that of two commands at least one sees
the other. A command renews its lease while it works; one that was killed does not, and after `LEASE_SECONDS` the lease
has expired. Times are those of the store alone, which dates the files.
"""

from __future__ import annotations

import contextlib
import random
import signal
import threading
import time
import uuid
import warnings
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from dpl_ray.store.file_systems import one_line
from dpl_ray.store.storage import Storage

LOCK_FILE = ".lock"  # stays; the lock on it ends with the process that holds it. In a bucket the folder of the leases
LEASE_SECONDS, SECONDS_TO_RENEW = 60, 15.0


@contextlib.contextmanager
def sole_use(field: str, folder: Storage) -> Iterator[None]:
    """Keep other commands out of a folder, which is made; where the file system knows no locks, nobody is kept out.

    In a bucket, a command whose lease another one has taken over, as after a long SIGSTOP, is interrupted as by Ctrl-C.

    Args:
        field: the folder's, and its value, for the message.

    Raises:
        ValueError: the folder cannot be made, or another command is at work here.
    """
    other = field.partition("=")[0]
    try:
        held = _lock(Path(folder.path)) if folder.is_local else _lease(field, folder / LOCK_FILE)
    except Timeout:
        raise ValueError(
            f"{field}: another command is at work in this folder; wait for its end, or take another {other}"
        ) from None
    except OSError as error:
        raise ValueError(f"{field}: the folder cannot be made ({one_line(error)}); take another {other}") from None
    with held:
        yield


def _lock(path: Path) -> contextlib.AbstractContextManager[object]:
    path.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path / LOCK_FILE, blocking=False)
    try:
        return lock.acquire()
    except Timeout:
        raise
    except (OSError, NotImplementedError):  # as on some network file systems
        return contextlib.nullcontext()


def _lease(field: str, leases: Storage) -> contextlib.AbstractContextManager[object]:
    """Raises `Timeout` where another command renews its own."""
    seen: dict[str, int] = {}
    while True:
        mine = leases / uuid.uuid4().hex
        mine.write(b"")
        now = mine.changed()
        others = {name: (leases / name).changed() for name in leases.list() if name != mine.name}
        alive = {name: changed for name, changed in others.items() if now - changed < LEASE_SECONDS * 1e9}
        if not alive:
            for name in others:
                (leases / name).remove()
            return _renewed(field, mine)
        mine.remove()
        if any(changed > seen.get(name, changed) for name, changed in alive.items()):
            raise Timeout(str(leases))
        if not seen:
            warnings.warn(
                f"{field}: another command is at work in this folder, or was killed there; which one is known within "
                f"{LEASE_SECONDS} s",
                stacklevel=4,
            )
        seen |= alive
        time.sleep(random.uniform(0.5, 1.5))  # two that came together must not come together again


@contextlib.contextmanager
def _renewed(field: str, lease: Storage) -> Iterator[None]:
    is_left = threading.Event()

    def renew() -> None:
        while not is_left.wait(SECONDS_TO_RENEW):
            with contextlib.suppress(OSError):  # the store fails for a while
                if not lease.exists():
                    with contextlib.suppress(UserWarning):  # where warnings are errors
                        warnings.warn(f"{field}: another command has taken this folder over", stacklevel=2)
                    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
                    return
                lease.write(b"")

    renewal = threading.Thread(target=renew, daemon=True)
    renewal.start()
    try:
        yield
    finally:
        is_left.set()
        renewal.join()
        with contextlib.suppress(OSError):  # it expires
            lease.remove()
