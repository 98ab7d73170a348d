"""What only a GPU can show: every policy's step there, views, copies, precision and NCCL. Skipped without one."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from dpl_ray.algorithm.policies import POLICIES
from dpl_ray.data.batches import views
from dpl_ray.data.batches.augment import strong, weak
from dpl_ray.store.storage import Storage
from dpl_ray.training.capture import Captured
from dpl_ray.training.determinism import WORKSPACE, algorithms
from dpl_ray.training.distributed import GradientBuckets, Workers
from dpl_ray.training.evaluation import predict_split
from dpl_ray.training.loop import train
from dpl_ray.training.metrics import SUMS
from dpl_ray.training.state import build_state
from dpl_ray.training.step import train_step
from tests.builders import tiny_config, tiny_feed, tiny_splits

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]

os.environ.setdefault(WORKSPACE, ":4096:8")  # before the first test computes there
CPU, GPU = torch.device("cpu"), torch.device("cuda")
NUM_CLASSES = 3


def train_on(device: torch.device, workers: Workers | None = None, **groups: Any) -> tuple[dict[str, Any], list[Any]]:
    """Parameters of the student and the sums of each of 4 steps, on the CPU."""
    config, splits = tiny_config(**groups), tiny_splits(NUM_CLASSES)
    workers = workers or Workers(device=device)
    state = build_state(config, 3, NUM_CLASSES, workers, pool_size=len(splits.unlabeled))
    feed = tiny_feed(config, splits)
    sums = [train_step(state, feed(state.step).to(device), config, workers).cpu().tolist() for _ in range(4)]
    there = predict_split(state.teacher, splits.test, Workers(device=device))
    assert there.device.type == "cpu"
    torch.testing.assert_close(there, predict_split(state.teacher.cpu(), splits.test), rtol=0, atol=1e-3)
    return {name: value.cpu() for name, value in state.student.state_dict().items()}, sums


#: Parameters with which some samples count within a few steps, and others do not.
LENIENT: dict[str, dict[str, Any]] = {
    "dash": {"warmup": 0.0},
    "dpl": {"classifier_from": 0.1, "ema_decay": 0.5},
    "fixmatch": {"threshold": 0.4},
    "flexmatch": {"threshold": 0.4},
    "freematch": {"ema_decay": 0.5},
    "pseudolabel": {"threshold": 0.4},
    "uda": {"threshold": 0.4},
}


@pytest.fixture
def float32_products(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Convolutions and products with all the digits of float32."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    # Not by `monkeypatch`: it would delete the attribute afterwards, which the object's own `__dict__` does not have.
    before, torch.backends.cuda.matmul.allow_tf32 = torch.backends.cuda.matmul.allow_tf32, False
    yield
    torch.backends.cuda.matmul.allow_tf32 = before


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.usefixtures("float32_products")
def test_a_step_on_the_gpu_is_the_step_on_the_cpu(policy: str) -> None:
    groups: dict[str, Any] = {
        "policy": {"name": policy} | LENIENT.get(policy, {}),
        "optim": {"learning_rate": 0.01},
    }
    (on_cpu, sums_cpu), (on_gpu, sums_gpu) = train_on(CPU, **groups), train_on(GPU, **groups)
    for name, value in on_cpu.items():
        torch.testing.assert_close(on_gpu[name], value, rtol=0, atol=1e-4)
    for mine, theirs in zip(sums_cpu, sums_gpu, strict=True):
        assert dict(zip(SUMS, theirs, strict=True)) == pytest.approx(dict(zip(SUMS, mine, strict=True)), abs=2e-3)


@pytest.mark.parametrize("normalization", ["batch", "group"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_precisions_and_normalizations_train_on_the_gpu(precision: str, normalization: str) -> None:
    groups = {"train": {"precision": precision}, "model": {"normalization": normalization}}
    parameters, sums = train_on(GPU, **groups)
    assert all(value.isfinite().all() for value in parameters.values())
    assert all(value.dtype == torch.float32 for name, value in parameters.items() if "num_batches" not in name)
    assert all(step[SUMS.index("loss_labeled")] > 0 for step in sums)


def test_views_on_the_gpu_are_those_of_the_cpu() -> None:
    splits, config = tiny_splits(NUM_CLASSES, size=32), tiny_config()
    feed = tiny_feed(config, splits)
    views = config.data.views
    batch = feed(0)
    moved = batch.to(GPU)
    assert moved.images_unlabeled.device.type == "cuda"
    for make, uniforms in ((weak, "uniforms_weak"), (strong, "uniforms_strong")):
        on_cpu = make(batch.images_unlabeled, getattr(batch, uniforms), views)
        on_gpu = make(moved.images_unlabeled, getattr(moved, uniforms), views).cpu()
        # Rounding of a rotated coordinate may fall on the other side of a pixel's edge now and then.
        assert (on_gpu.int() - on_cpu.int()).abs().gt(1).float().mean() < 0.01


def test_the_collectives_of_a_step_run_through_nccl() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    dist.init_process_group("nccl", init_method=f"tcp://127.0.0.1:{port}", rank=0, world_size=1)
    try:
        # A group of one that is told it is two: its sums are its own, its averages half of them.
        workers = Workers(0, 2, GPU)
        values = workers.all_reduce_sum(torch.ones(3, dtype=torch.float64, device=GPU))
        assert values.tolist() == [1, 1, 1]
        layer = torch.nn.Linear(2, 2).to(GPU)
        buckets = GradientBuckets(layer.parameters(), workers)
        layer(torch.ones(1, 2, device=GPU)).sum().backward()
        buckets.finish()
        assert layer.bias.grad is not None
        assert layer.bias.grad.tolist() == [0.5, 0.5]
        _, sums = train_on(GPU, workers, train={"batch_size": 4, "mu": 2})
        assert len(sums) == 4
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("policy", POLICIES)
def test_the_host_never_waits_for_the_gpu_in_a_step(policy: str) -> None:
    groups: dict[str, Any] = {
        "policy": {"name": policy} | LENIENT.get(policy, {}),
        "model": {"normalization": "batch"},
    }
    config, splits = tiny_config(**groups), tiny_splits(NUM_CLASSES)
    workers = Workers(device=GPU)
    state = build_state(config, 3, NUM_CLASSES, workers, pool_size=len(splits.unlabeled))
    batches = [tiny_feed(config, splits)(step).to(GPU) for step in range(4)]
    train_step(state, batches[0], config, workers)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for batch in batches[1:]:
            train_step(state, batch, config, workers)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert state.fixed is not None
    assert not state.fixed.faults[0]


@pytest.mark.parametrize(("policy", "optimizer"), [*((policy, "sgd") for policy in POLICIES), ("dpl", "adamw")])
def test_a_captured_step_is_the_step(policy: str, optimizer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    config = tiny_config(
        policy={"name": policy} | LENIENT.get(policy, {}),
        model={"normalization": "batch"},
        optim={"name": optimizer, "learning_rate": 0.01 if optimizer == "sgd" else 1e-4},
    )
    splits, workers = tiny_splits(NUM_CLASSES), Workers(device=GPU)
    feed = tiny_feed(config, splits)
    states = [build_state(config, 3, NUM_CLASSES, workers, pool_size=len(splits.unlabeled)) for _ in range(2)]
    plain, state = states
    captured = Captured(state, config, workers)
    for step in range(14):
        sums = captured(train_step, feed(step).to(GPU)).clone()
        torch.testing.assert_close(sums, train_step(plain, feed(step).to(GPU), config, workers), rtol=1e-3, atol=1e-2)
        if step == 6:
            for each in states:
                assert each.fixed is not None
                each.fixed.adapt()
    assert state.step == plain.step == 14
    assert captured._graphs
    for name, value in plain.student.state_dict().items():
        torch.testing.assert_close(state.student.state_dict()[name], value, rtol=1e-2, atol=1e-3, msg=name)


@pytest.mark.parametrize("policy", POLICIES)
def test_deterministic_algorithms_train_the_same_weights_twice(policy: str) -> None:
    groups: dict[str, Any] = {
        "policy": {"name": policy} | LENIENT.get(policy, {}),
        "model": {"normalization": "batch"},
        "train": {"deterministic": True, "precision": "bfloat16"},
        "optim": {"learning_rate": 0.01},
    }
    with algorithms(deterministic=True):
        (first, sums), (again, same_sums) = train_on(GPU, **groups), train_on(GPU, **groups)
    assert same_sums == sums
    for name, value in first.items():
        assert torch.equal(again[name], value), name


def test_a_compiled_step_trains_nearly_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(views, "_compiled", {})  # which compiling fills
    splits, workers = tiny_splits(NUM_CLASSES), Workers(device=GPU)
    losses = []
    for compiled in (False, True):
        config = tiny_config(
            policy={"name": "fixmatch", "threshold": 0.4},
            model={"normalization": "batch"},
            train={"compile": compiled},
            optim={"learning_rate": 0.01},
        )
        state = build_state(config, 3, NUM_CLASSES, workers, pool_size=len(splits.unlabeled))
        captured, feed = Captured(state, config, workers), tiny_feed(config, splits)
        sums = [captured(train_step, feed(step).to(GPU)).tolist() for step in range(6)]
        losses.append([row[SUMS.index("loss_labeled")] for row in sums])
        assert state.step == 6
    assert losses[1] == pytest.approx(losses[0], rel=0.2)


def test_training_on_the_gpu_records_what_training_on_the_cpu_does(tmp_path: Path) -> None:
    config = tiny_config(policy={"name": "fixmatch", "threshold": 0.4}, train={"log_every": 7, "checkpoint_every": 9})
    found = [
        train(config, tiny_splits(NUM_CLASSES), Workers(device=device), Storage(str(tmp_path / device.type)), print)
        for device in (CPU, GPU)
    ]
    on_cpu, on_gpu = (
        {key: value for key, value in outcome.metrics.items() if not key.startswith(("time/", "throughput/"))}
        for outcome in found
    )
    assert on_gpu == pytest.approx(on_cpu, abs=0.1)
