"""One command at a time in a folder: two that wrote the same files would each lose what the other has done.

On a disk the operating system locks a file. In a bucket each command writes a file of its own, its lease, before it
looks for those of others. What is written there is listed at once (S3, GCS), so that of two commands at least one sees
the other. A command renews its lease while it works; one that was killed does not, and after `LEASE_SECONDS` the lease
has expired: the next command removes it. Times are those of the store alone, which dates the files.

A command that stood still for so long finds its lease gone. It looks for it before each write, also in other processes,
and writes nothing more. What was on its way to the store when it was stopped may still arrive.
"""

from __future__ import annotations

import contextlib
import random
import signal
import threading
import time
import uuid
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

from filelock import FileLock, Timeout

from dpl_ray.store.file_systems import one_line
from dpl_ray.store.storage import Storage

LOCK_FILE = ".lock"  # stays; the lock on it ends with the process that holds it. In a bucket the folder of the leases
LEASE_SECONDS, SECONDS_TO_RENEW = 60, 15.0


@contextlib.contextmanager
def sole_use(field: str, folder: Storage, *more: Storage) -> Iterator[None]:
    """Keep other commands out of a folder, which is made; where the file system knows no locks, nobody is kept out.

    In a bucket, a command whose folder another one has taken over, as after a long SIGSTOP, is interrupted as by
    Ctrl-C, and what it writes through the folder is refused.

    Args:
        field: the folder's, and its value, for the message.
        more: what is written through these is refused then, too.

    Raises:
        ValueError: the folder cannot be made, or another command is at work here.
    """
    other = field.partition("=")[0]
    try:
        held = _lock(Path(folder.path)) if folder.is_local else _lease(field, folder, *more)
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


def _lease(field: str, *folders: Storage) -> contextlib.AbstractContextManager[object]:
    """Of the first folder; raises `Timeout` where another command renews its own."""
    leases, seen = folders[0] / LOCK_FILE, dict[str, int]()
    while True:
        mine = leases / uuid.uuid4().hex
        mine.write(b"")
        now = mine.changed()
        others = {name: (leases / name).changed() for name in leases.list() if name != mine.name}
        alive = {name: changed for name, changed in others.items() if now - changed < LEASE_SECONDS * 1e9}
        if not alive:
            for name in others:
                (leases / name).remove()
            return _renewed(field, mine, folders)
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
def _renewed(field: str, lease: Storage, folders: Sequence[Storage]) -> Iterator[None]:
    is_left = threading.Event()
    for folder in folders:
        folder.lease = lease

    def renew() -> None:
        while not is_left.wait(SECONDS_TO_RENEW):
            with contextlib.suppress(OSError):  # the store fails for a while
                if not _renew(lease):
                    with contextlib.suppress(UserWarning):  # where warnings are errors
                        warnings.warn(f"{field}: another command has taken this folder over", stacklevel=2)
                    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
                    return

    renewal = threading.Thread(target=renew, daemon=True)
    renewal.start()
    try:
        yield
    finally:
        is_left.set()
        renewal.join()
        for folder in folders:
            folder.lease = None
        with contextlib.suppress(OSError):  # it expires
            lease.remove()


def _renew(lease: Storage) -> bool:
    """False where another command has taken over."""
    if not lease.exists():
        return False
    before = lease.changed()
    lease.write(b"")
    # One that found it expired may just have removed it; it is there itself then.
    if lease.changed() - before < LEASE_SECONDS * 1e9 or lease.parent.list() == [lease.name]:
        return True
    lease.remove()
    return False
