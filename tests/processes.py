"""Commands in processes of their own, for tests that kill them: forked from a server that has imported what they need.

To import it takes a new Python seconds before it does anything that could be interrupted. Other tests start
`python -m pipelines...` as a user does.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import runpy
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from dpl_ray.store.storage import Storage

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["tests.preload"])
SECONDS = 300.0  # for what is waited for to happen, on a machine that others use too


class Command:
    """`python -m MODULE ARGUMENTS` in a process group of its own; what it prints is in the file `printed`."""

    def __init__(
        self, module: str, arguments: Sequence[str], printed: Path, prepare: Callable[[], None] | None = None
    ) -> None:
        """
        Args:
            prepare: picklable; called in the process before the module is run.
        """
        self._printed = printed
        self._process = SERVER.Process(target=_run, args=(module, list(arguments), str(printed), prepare), daemon=True)
        self._process.start()
        assert self._process.pid is not None
        self.pid: int = self._process.pid

    @property
    def status(self) -> int | None:
        """Its exit status, negative for a signal; None while it runs."""
        return self._process.exitcode

    def wait_for(self, condition: Callable[[], bool]) -> None:
        """Until the condition holds, or the process has ended."""
        deadline = time.monotonic() + SECONDS
        while not condition() and self.status is None:
            assert time.monotonic() < deadline, f"it does not get there:\n{self._printed.read_text()}"
            time.sleep(0.005)

    def end(self) -> str:
        """Wait for its end; returns what it has printed."""
        self._process.join(SECONDS)
        assert self.status is not None, f"it does not end:\n{self._printed.read_text()}"
        return self._printed.read_text()

    def kill(self) -> None:
        """End it, and what it has started: Ray's processes would end by themselves somewhat later."""
        for pid in (self.pid, *descendants(self.pid)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.join()


def hold_after(path: Path) -> None:
    """Let this process stand still once it has written this file; for `Command`."""
    write = Storage.write

    def held(self: Storage, data: bytes) -> None:
        write(self, data)
        if self.path == str(path):
            time.sleep(SECONDS)
            raise AssertionError("it was not killed")

    Storage.write = held  # type: ignore[method-assign]


def _run(module: str, arguments: list[str], printed: str, prepare: Callable[[], None] | None) -> None:
    os.setsid()
    output = os.open(printed, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, sys.stdout.fileno())
    os.dup2(output, sys.stderr.fileno())
    # Ctrl-C means nothing to what a shell has started in the background, as these tests may have been.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv[1:] = arguments
    if prepare:
        prepare()
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def descendants(pid: int) -> dict[int, str]:
    """Process id -> title, of what a process has started, and what that has started."""
    found = {}
    parents: dict[int, list[int]] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            except (OSError, IndexError):
                continue
            parents.setdefault(parent, []).append(int(folder.name))
    left = [pid]
    while left:
        for child in parents.get(left.pop(), ()):
            left.append(child)
            try:
                found[child] = (Path("/proc") / str(child) / "cmdline").read_text().replace("\0", " ")
            except OSError:
                continue
    return found
