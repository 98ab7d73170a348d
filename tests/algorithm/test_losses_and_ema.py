"""losses.py and ema.py, and from state.py the schedule and the optimizer's groups."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from dpl_ray.algorithm.ema import ema_, update_teacher, warmed_decay
from dpl_ray.algorithm.losses import annealed, consistency, ramp
from dpl_ray.algorithm.policies import POLICIES
from dpl_ray.config.schema import OptimConfig
from dpl_ray.training.distributed import Workers
from dpl_ray.training.state import build_state, learning_rate
from tests.builders import tiny_config


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
@pytest.mark.parametrize(("num_strong", "num_unlabeled"), [(6, 6), (6, 20), (0, 6), (0, 0), (1, 1)])
def test_consistency_is_the_mean_over_all_unlabelled_images(num_strong: int, num_unlabeled: int, soft: bool) -> None:
    logits = randn(num_strong, 3).requires_grad_()
    weights = torch.rand(num_strong, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(num_strong) % 3
    targets = randn(num_strong, 3, seed=2).softmax(dim=1) if soft else labels
    rows = targets.tolist() if soft else [[float(k == label) for k in range(3)] for label in labels]
    total = 0.0  # a skipped view adds nothing to it
    for row, target, weight in zip(logits.tolist(), rows, weights.tolist(), strict=True):
        normalizer = math.log(sum(math.exp(value) for value in row))
        total += weight * sum(share * (normalizer - value) for share, value in zip(target, row, strict=True))
    loss = consistency(logits, targets, weights, num_unlabeled)
    assert loss.item() == pytest.approx(total / num_unlabeled if num_unlabeled else 0, abs=1e-6)
    loss.backward()
    assert logits.grad.isfinite().all()


def test_a_view_of_weight_zero_is_as_good_as_skipped() -> None:
    logits, targets, weights = randn(5, 3), torch.tensor([0, 1, 2, 0, 1]), torch.tensor([0.5, 0, 1, 0, 0.2])
    kept = weights > 0
    torch.testing.assert_close(
        consistency(logits, targets, weights, 5), consistency(logits[kept], targets[kept], weights[kept], 5)
    )


@pytest.mark.parametrize("decay", [0.0, 0.3, 0.99])
def test_ema_moves_only_where_it_may(decay: float) -> None:
    state, value = randn(2, 4).double(), randn(2, 4, seed=1)
    where = torch.tensor([[True, False, True, False], [False, False, True, True]])
    expected = [
        [decay * s + (1 - decay) * v if free else s for s, v, free in zip(*rows, strict=True)]
        for rows in zip(state.tolist(), value.tolist(), where.tolist(), strict=True)
    ]
    kept = state[~where].clone()
    moved = state.clone()
    assert ema_(moved, value, decay, where) is None
    torch.testing.assert_close(moved, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-15)
    assert torch.equal(moved[~where], kept)
    ema_(state, value, decay)
    torch.testing.assert_close(state[where], moved[where], rtol=0, atol=0)
    assert (state[~where] != kept).all()


def test_ema_does_not_look_at_values_where_it_may_not_move() -> None:
    state = torch.tensor([0.25, 0.5])
    ema_(state, torch.tensor([math.nan, 1.0]), 0.5, torch.tensor([False, True]))
    assert state.tolist() == [0.25, 0.75]


def test_ema_of_a_constant_stays_and_of_decay_zero_is_the_value() -> None:
    state = torch.tensor([0.1, 0.7], dtype=torch.float64)
    ema_(state, state.clone(), 0.9)
    torch.testing.assert_close(state, torch.tensor([0.1, 0.7], dtype=torch.float64), rtol=0, atol=1e-16)
    ema_(state, torch.tensor([0.3, 0.4], dtype=torch.float64), 0.0)
    assert state.tolist() == [0.3, 0.4]


@given(decay=st.floats(0, 0.9999), step=st.integers(0, 10**6))
def test_a_young_teachers_decay_rises_to_the_full_one(decay: float, step: int) -> None:
    assert warmed_decay(decay, step) == min(decay, (1 + step) / (10 + step))
    assert 0 <= warmed_decay(decay, step) <= warmed_decay(decay, step + 1) <= decay


def test_the_teacher_moves_towards_the_student_and_takes_its_buffers() -> None:
    torch.manual_seed(0)
    student, teacher = (nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)) for _ in range(2))
    teacher.requires_grad_(False)
    student(randn(8, 3))  # moves BatchNorm's statistics
    before = [parameter.tolist() for parameter in teacher.parameters()]
    student_before = [parameter.clone() for parameter in student.parameters()]
    update_teacher(teacher, student, 0.9)

    def mix(old: float | list, new: float | list) -> float | list:
        if isinstance(old, list):
            return [mix(*pair) for pair in zip(old, new, strict=True)]
        return 0.9 * old + 0.1 * new

    for old, now, theirs in zip(before, teacher.parameters(), student.parameters(), strict=True):
        torch.testing.assert_close(now, torch.tensor(mix(old, theirs.tolist())), rtol=0, atol=1e-6)
        assert not now.requires_grad
        assert now.data_ptr() != theirs.data_ptr()
    for now, theirs in zip(teacher.buffers(), student.buffers(), strict=True):
        assert torch.equal(now, theirs)
        assert now.data_ptr() != theirs.data_ptr()
    assert all(torch.equal(*pair) for pair in zip(student_before, student.parameters(), strict=True))


def test_a_teacher_of_decay_zero_is_the_student_and_one_without_buffers_is_fine() -> None:
    student, teacher = nn.Linear(3, 2), nn.Linear(3, 2)
    update_teacher(teacher, student, 0.0)
    assert torch.equal(teacher.weight, student.weight)


def test_the_learning_rate_falls_along_seven_sixteenths_of_a_cosine() -> None:
    config = OptimConfig(learning_rate=0.5)
    rates = [learning_rate(config, step, 100) for step in range(101)]
    assert rates[0] == 0.5
    assert rates[50] == pytest.approx(0.5 * math.cos(7 * math.pi / 32))
    assert rates[100] == pytest.approx(0.5 * math.cos(7 * math.pi / 16))
    assert all(later < earlier for earlier, later in pairwise(rates))


@given(num_warmup_steps=st.integers(0, 50), rest=st.integers(1, 200), rate=st.floats(1e-4, 10))
def test_the_warm_up_is_linear_and_the_schedule_has_no_jump(num_warmup_steps: int, rest: int, rate: float) -> None:
    config, num_steps = OptimConfig(learning_rate=rate, num_warmup_steps=num_warmup_steps), num_warmup_steps + rest
    rates = [learning_rate(config, step, num_steps) for step in range(num_steps + 1)]
    for step in range(num_warmup_steps):
        assert rates[step] == pytest.approx(rate * (step + 1) / num_warmup_steps)
    assert rates[num_warmup_steps] == pytest.approx(rate)
    assert rates[-1] == pytest.approx(rate * math.cos(7 * math.pi / 16))
    assert all(0 < each <= rate * (1 + 1e-12) for each in rates)
    # The cosine falls by at most its slope, 7 pi / 16, times the share of the run that a step is.
    steepest = rate * max(7 * math.pi / 16 / rest, 1 / num_warmup_steps if num_warmup_steps else 0)
    assert all(abs(b - a) <= steepest * (1 + 1e-9) for a, b in pairwise(rates))


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("normalization", ["batch", "group"])
def test_weight_decay_is_on_matrices_and_kernels_only(policy: str, optimizer: str, normalization: str) -> None:
    config = tiny_config(
        model={"normalization": normalization},
        policy={"name": policy},
        optim={"name": optimizer, "weight_decay": 0.25, "learning_rate": 0.5, "momentum": 0.75},
    )
    state = build_state(config, 3, 4, Workers())
    decay: dict[int, float] = {}
    for group in state.optimizer.param_groups:
        assert group["lr"] == 0.5
        assert group["momentum" if optimizer == "sgd" else "betas"] == (0.75 if optimizer == "sgd" else (0.75, 0.999))
        for parameter in group["params"]:
            assert id(parameter) not in decay
            decay[id(parameter)] = group["weight_decay"]
    trained = [*state.student.named_parameters(), *state.policy.named_parameters()]
    assert len(decay) == len(trained)
    for name, parameter in trained:
        assert decay[id(parameter)] == (0.25 if parameter.ndim >= 2 else 0), name
    assert {parameter.ndim >= 2 for _, parameter in trained} == {True, False}


def test_the_teacher_starts_as_the_student_and_is_not_trained() -> None:
    state = build_state(tiny_config(model={"normalization": "batch"}), 3, 4, Workers())
    assert not state.teacher.training
    assert state.student.training
    for (name, mine), theirs in zip(
        state.teacher.state_dict().items(), state.student.state_dict().values(), strict=True
    ):
        assert torch.equal(mine, theirs), name
        assert mine.data_ptr() != theirs.data_ptr(), name
    assert not any(parameter.requires_grad for parameter in state.teacher.parameters())
    for head in (state.policy.heads.low, state.policy.heads.high):
        assert torch.equal(head.weight, state.student.classifier.weight)


def test_the_start_is_a_function_of_the_seed() -> None:
    first, again, other = (
        build_state(tiny_config(train={"seed": seed}), 3, 4, Workers()).student.state_dict() for seed in (3, 3, 4)
    )
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["backbone.stem.weight"], other["backbone.stem.weight"])


def test_every_policy_starts_from_the_same_student() -> None:
    students = [
        build_state(tiny_config(policy={"name": name}), 3, 4, Workers()).student.state_dict() for name in POLICIES
    ]
    for student in students[1:]:
        assert all(torch.equal(student[name], value) for name, value in students[0].items())


@pytest.mark.parametrize(
    ("progress", "share", "expected"),
    [(0, 0, 1), (0.5, 0, 1), (0, 0.4, 0), (0.1, 0.4, 0.25), (0.4, 0.4, 1), (1, 0.4, 1)],
)
def test_the_unlabelled_loss_ramps_up_over_its_share_of_the_run(progress: float, share: float, expected: float) -> None:
    assert ramp(progress, share) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("step", "half", "expected"), [(0, None, 1), (1e6, None, 1), (0, 200, 1), (200, 200, 0.5), (600, 200, 0.25)]
)
def test_the_unlabelled_loss_falls_after_some_steps(step: float, half: float | None, expected: float) -> None:
    assert annealed(step, half) == pytest.approx(expected)
