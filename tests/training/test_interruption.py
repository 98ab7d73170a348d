"""What a first and a second Ctrl-C mean to a training."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable

import pytest

from dpl_ray.training.interruption import interruptible
from tests.processes import SECONDS

pytestmark = pytest.mark.usefixtures("ctrl_c")


def test_the_first_one_asks_and_the_second_one_ends() -> None:
    said: list[str] = []
    with interruptible(SECONDS, said.append) as stop:
        assert not stop.is_set()
        signal.raise_signal(signal.SIGINT)
        assert stop.is_set()
        assert said == [f"a checkpoint is saved after this step, within {SECONDS:g} s; a second Ctrl-C ends at once"]
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_the_end_of_the_grace_is_a_second_one() -> None:
    def train() -> None:
        with interruptible(0.01, lambda _: None):
            signal.raise_signal(signal.SIGINT)
            time.sleep(SECONDS)  # as a step that takes too long

    with pytest.raises(KeyboardInterrupt):
        train()


def test_where_there_is_nothing_to_save_yet_the_first_one_ends() -> None:
    def nothing() -> None:
        raise KeyboardInterrupt

    with interruptible(SECONDS, lambda _: None) as stop:
        stop.pass_on = nothing
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert not stop.is_set()


def test_the_end_of_the_time_asks_once_there_is_something_to_save() -> None:
    asked = []

    def pass_on() -> None:
        asked.append(stop.is_set())
        if len(asked) == 1:
            raise KeyboardInterrupt  # there is nothing yet

    with interruptible(SECONDS, lambda _: None, time.monotonic() + 0.05) as stop:
        stop.pass_on = pass_on
        assert stop.wait(SECONDS)
    assert asked == [False, False]
    assert stop.by_time
    with interruptible(SECONDS, lambda _: None, time.monotonic() + SECONDS) as stop:
        pass
    assert not stop.is_set()


def test_in_the_background_of_a_shell_ctrl_c_means_nothing_and_sigterm_asks() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with interruptible(SECONDS, lambda _: None) as stop:
        signal.raise_signal(signal.SIGINT)
        assert not stop.is_set()
        handler = signal.getsignal(signal.SIGINT)
        assert isinstance(handler, Callable)  # type: ignore[arg-type]
        handler(signal.SIGTERM, None)  # as a command answers it
        assert stop.is_set()
