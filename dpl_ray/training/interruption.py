"""Ctrl-C and SIGTERM while a model is trained: the training saves a checkpoint after its step and ends."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType


class Interrupted(KeyboardInterrupt):
    """A training was asked to end; the text says what of it is saved."""

    run_name: str | None = None  # that a run was given which had none, and that it goes on under
    by_time: bool = False  # by the end of its time, and not by a signal


class Stop(threading.Event):
    """Set when a training is to save a checkpoint after its step and end."""

    def __init__(self) -> None:
        super().__init__()
        #: Called when it is asked for, where the training is not in this process; it raises `KeyboardInterrupt` where
        #: there is nothing to save yet.
        self.pass_on: Callable[[], None] = lambda: None
        self.by_time = False


@contextlib.contextmanager
def interruptible(grace_seconds: float, say: Callable[[str], None], ends_at: float | None = None) -> Iterator[Stop]:
    """The first Ctrl-C asks the training to stop. A second one, and the end of the grace, end it at once.

    SIGTERM does the same where it does what Ctrl-C does, as under the commands. In another thread than the main one,
    which gets no signals, nothing changes.

    Args:
        grace_seconds: from the first Ctrl-C on.
        say: is told what was asked for.
        ends_at: when the training is asked to stop without a signal, by `time.monotonic()`; None: never.
    """
    stop, is_left = Stop(), threading.Event()
    if ends_at is not None:
        threading.Thread(target=_stop_by_time, args=(stop, ends_at, is_left), daemon=True).start()
    try:
        with _signals(stop, grace_seconds, say):
            yield stop
    finally:
        is_left.set()


def _stop_by_time(stop: Stop, ends_at: float, is_left: threading.Event) -> None:
    while not is_left.wait(max(0.0, ends_at - time.monotonic())):
        try:
            stop.pass_on()
        except KeyboardInterrupt:  # there is nothing to save yet
            ends_at += 1.0
        else:
            stop.by_time = True
            stop.set()
            return


@contextlib.contextmanager
def _signals(stop: Stop, grace_seconds: float, say: Callable[[str], None]) -> Iterator[None]:
    main = threading.main_thread()
    if threading.current_thread() is not main:
        yield
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
        yield
    finally:
        timer.cancel()
        signal.signal(signal.SIGINT, before)
