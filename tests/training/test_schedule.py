"""schedule.py: what is due after a step."""

from __future__ import annotations

import time
from threading import Event
from typing import Any

import pytest

from dpl_ray.config.schema import CHECKPOINT_SHARE, TrainConfig
from dpl_ray.training.schedule import CheckpointClock, Due, Wish, due_after


@pytest.mark.parametrize("kind", Due._fields)
def test_each_has_its_own_period_and_all_but_the_validation_the_last_step(kind: str) -> None:
    fields = {"record": "log_every", "validation": "evaluate_every", "curve": "curve_every"}
    never: dict[str, Any] = {"log_every": 100, "curve_every": 100, "checkpoint_every": 100}
    config = TrainConfig(num_steps=10, **never | {fields.get(kind, "checkpoint_every"): 4})
    due = [step for step in range(1, 11) if getattr(due_after(step, config), kind)]
    assert due == ([4, 8] if kind == "validation" else [4, 8, 10])


def test_without_a_period_the_curve_has_twenty_points_and_the_validation_none() -> None:
    config = TrainConfig(num_steps=100)
    due = [due_after(step, config) for step in range(1, 101)]
    assert sum(each.curve for each in due) == 20
    assert not any(each.validation for each in due)
    short = TrainConfig(num_steps=7)
    assert all(due_after(step, short).curve for step in range(1, 8))


def test_a_wish_adds_a_checkpoint_and_nothing_else() -> None:
    config = TrainConfig(num_steps=10, log_every=100, curve_every=100, checkpoint_every=100)
    assert due_after(3, config) == Due(False, False, False, False)
    for wish in (Wish.CHECKPOINT, Wish.STOP):
        assert due_after(3, config, wish) == Due(False, False, False, True)


def test_a_checkpoint_is_due_within_the_seconds_and_more_rarely_where_it_takes_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    clock, stop = CheckpointClock(60.0), Event()

    def due() -> list[float]:
        """After how many seconds one is due, of some."""
        nonlocal now
        start, found = now, []
        for seconds in (0.0, 59.0, 60.0, 149.0, 150.0):
            now = start + seconds
            found += [seconds] if clock.wish(stop) is Wish.CHECKPOINT else []
        return found

    def save(seconds: float) -> None:
        nonlocal now
        with clock.saving():
            now += seconds

    assert due() == [60.0, 149.0, 150.0]
    save(1.0)
    assert due() == [60.0, 149.0, 150.0], "a second is less than the share"
    save(150.0 * CHECKPOINT_SHARE)
    assert due() == [150.0]
    stop.set()
    save(1.0)
    assert clock.wish(stop) is Wish.STOP
