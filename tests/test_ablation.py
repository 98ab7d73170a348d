"""The variants of dpl that were tried: each still trains, and differs from dpl in what it changes."""

from __future__ import annotations

import pytest
import torch

from benchmarks.dpl_variants import VARIANTS
from dpl_ray.algorithm.policies import POLICIES
from dpl_ray.training.distributed import Workers
from dpl_ray.training.state import build_state
from dpl_ray.training.step import train_step
from tests.builders import tiny_config, tiny_feed, tiny_splits


def train_some(policy: str) -> torch.Tensor:
    """The student's parameters after some steps, with states and strong views as after a while."""
    config, splits = (
        tiny_config(policy={"name": policy}, train={"num_steps": 40}),
        tiny_splits(),
    )
    state = build_state(config, 3, 3, Workers(), pool_size=len(splits.unlabeled))
    state.policy.get_buffer("states").copy_(torch.tensor([[0.6], [0.5]]).expand(2, 3))
    state.policy.get_buffer("mean_probs").copy_(torch.tensor([0.6, 0.3, 0.1]))
    feed = tiny_feed(config, splits)
    for _ in range(8):
        assert train_step(state, feed(state.step), config, feed.views, Workers()).isfinite().all()
    return torch.cat([parameter.detach().flatten() for parameter in state.student.parameters()])


@pytest.fixture(scope="module")
def kept() -> torch.Tensor:
    return train_some("dpl")


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_trains_something_else_than_dpl(
    name: str, kept: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(POLICIES, name, VARIANTS[name])
    assert not torch.equal(train_some(name), kept)
