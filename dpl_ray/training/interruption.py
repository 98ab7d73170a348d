"""Ctrl-C and SIGTERM while a model is trained: the training saves a checkpoint after its step and ends."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType


class Interrupted(KeyboardInterrupt):
    """A training was asked to end; the text says what of it is saved."""

    run_name: str | None = None  # that a run was given which had none, and that it goes on under


class Stop(threading.Event):
    """Set when a training is to save a checkpoint after its step and end."""

    def __init__(self) -> None:
        super().__init__()
        #: Called when it is asked for, where the training is not in this process; it raises `KeyboardInterrupt` where
        #: there is nothing to save yet.
        self.pass_on: Callable[[], None] = lambda: None


@contextlib.contextmanager
def interruptible(grace_seconds: float, say: Callable[[str], None]) -> Iterator[Stop]:
    """The first Ctrl-C asks the training to stop. A second one, and the end of the grace, end it at once.

    SIGTERM does the same where it does what Ctrl-C does, as under the commands. In another thread than the main one,
    which gets no signals, nothing changes.

    Args:
        grace_seconds: from the first Ctrl-C on.
        say: is told what was asked for.
    """
    stop = Stop()
    main = threading.main_thread()
    if threading.current_thread() is not main:
        yield stop
        return
    before = signal.getsignal(signal.SIGINT)
    is_over = threading.Event()

    def expire() -> None:
        is_over.set()
        signal.pthread_kill(main.ident or 0, signal.SIGINT)

    timer = threading.Timer(grace_seconds, expire)
    timer.daemon = True

    def handle(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and before == signal.SIG_IGN and not is_over.is_set():
            return  # as of what a shell has started in the background
        if stop.is_set():
            (before if callable(before) else signal.default_int_handler)(number, frame)
            return
        stop.pass_on()
        stop.set()
        timer.start()
        say(f"a checkpoint is saved after this step, within {grace_seconds:g} s; a second Ctrl-C ends at once")

    signal.signal(signal.SIGINT, handle)
    try:
        yield stop
    finally:
        timer.cancel()
        signal.signal(signal.SIGINT, before)
