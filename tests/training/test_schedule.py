"""schedule.py: what is due after a step."""

from __future__ import annotations

from typing import Any

import pytest

from dpl_ray.config.schema import TrainConfig
from dpl_ray.training.schedule import Due, due_after


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
