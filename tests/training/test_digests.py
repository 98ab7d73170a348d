"""The same seed gives the weights that it has given before: 20 steps of every policy, beside what was recorded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dpl_ray.algorithm.policies import POLICIES
from tests.builders import tiny_config
from tests.recorded.digests import FILE, digest

RECORDED = json.loads(FILE.read_text())


@pytest.mark.parametrize("policy", POLICIES)
def test_weights_are_those_that_were_recorded(policy: str, tmp_path: Path) -> None:
    # Another CPU sums in another order; a change of order, views, rules or losses moves these sums by far more.
    assert digest(tiny_config(policy={"name": policy}), tmp_path) == pytest.approx(RECORDED[policy], rel=1e-3, abs=1e-3)


def test_a_little_change_is_seen(tmp_path: Path) -> None:
    changed = digest(tiny_config(policy={"name": "dpl", "ema_decay": 0.98}), tmp_path)
    assert changed != pytest.approx(RECORDED["dpl"], rel=1e-3, abs=1e-3)
