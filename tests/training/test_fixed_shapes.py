"""The step in fixed shapes, as on a GPU: the weights of the step that skips views, and the host reads no tensor."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import dpl_ray.training.state as state_module
from dpl_ray.data.batches import augment, rounds
from dpl_ray.data.batches.feed import Batch, BatchFeed
from dpl_ray.data.dataset import Splits
from dpl_ray.jobs.checks import check_places
from dpl_ray.jobs.phases import train_phases
from dpl_ray.store.storage import Storage
from dpl_ray.training.capture import NUM_PLAIN_STEPS, Captured
from dpl_ray.training.determinism import WORKSPACE
from dpl_ray.training.distributed import Workers
from dpl_ray.training.faults import NonFiniteLossError
from dpl_ray.training.fixed_shapes import FixedShapes, choose
from dpl_ray.training.loop import train
from dpl_ray.training.metrics import SUMS
from dpl_ray.training.prefetch import DeviceFeed
from dpl_ray.training.state import TrainState, build_state
from dpl_ray.training.step import train_step
from tests.builders import tiny_config, tiny_feed, tiny_splits
from tests.training.test_step import CASES

NUM_CLASSES = 3


#: Operations that `torch.use_deterministic_algorithms` refuses on a GPU, by its documentation.
WITHOUT_DETERMINISM = {
    "cumsum of floats", "bincount of weights", "histc", "kthvalue", "put_", "median.dim",
    "nll_loss2d_forward", "nll_loss2d_backward",
    "grid_sampler_2d_backward", "grid_sampler_3d_backward", "_adaptive_avg_pool2d_backward", "_embedding_bag",
    "adaptive_max_pool2d_backward", "avg_pool3d_backward", "max_pool3d_with_indices_backward", "max_unpool2d",
    "fractional_max_pool2d_backward", "upsample_linear1d_backward", "upsample_bicubic2d_backward", "_ctc_loss",
    "upsample_trilinear3d_backward", "reflection_pad1d_backward", "reflection_pad3d_backward",
    "replication_pad1d_backward", "replication_pad3d_backward", "_cdist_backward",
}  # fmt: skip


#: Operations of which the host reads the result, or the size of it: it waits for a device.
READS = {
    "_local_scalar_dense", "is_nonzero", "equal", "allclose", "nonzero", "masked_select", "bincount",
    "_unique", "_unique2", "unique_dim", "unique_consecutive",
}  # fmt: skip
INDEXED = {"index", "index_put", "index_put_", "_index_put_impl_"}


def reads(name: str, args: Any) -> bool:
    """Whether the host would wait for a device to run this operation."""
    if name in INDEXED:
        return any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])
    return name in READS


class Operations(TorchDispatchMode):
    """Names of the operations that run in this block; one for which the host waits raises."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.overloadpacket.__name__
        assert not reads(name, args), f"{name}: the host reads a tensor"
        if name == "cumsum" and args[0].is_floating_point():
            name = "cumsum of floats"
        if name == "bincount" and len(args) > 1 and args[1] is not None:
            name = "bincount of weights"
        self.names |= {name, f"{name}.{function._overloadname}"}
        return function(*args, **kwargs or {})


@pytest.fixture
def views_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Strong views as a GPU makes them."""
    monkeypatch.setattr(rounds, "apply_rounds", rounds.apply_rounds_to_all)
    monkeypatch.setattr(augment, "_is_on_cpu", lambda _: False)


@contextmanager
def unread() -> Iterator[Operations]:
    """What makes the host wait for a device raises in this block."""

    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("the host reads a tensor")

    names = ("item", "tolist", "nonzero", "cpu", "numpy", "__bool__", "__int__", "__float__", "__index__", "unique")
    with pytest.MonkeyPatch.context() as patch:
        for name in names:
            patch.setattr(Tensor, name, refuse)
        to = Tensor.to

        def move(self: Tensor, *arguments: Any, **named: Any) -> Tensor:
            """Not to a CPU by name; the device of other tensors is one here."""
            assert "cpu" not in [each for each in (*arguments, *named.values()) if isinstance(each, str)], "to the CPU"
            return to(self, *arguments, **named)

        patch.setattr(Tensor, "to", move)
        with Operations() as operations:
            yield operations


@pytest.mark.parametrize(
    "read",
    [
        lambda values: values.max().item(),
        lambda values: torch.ones(()).new_full((2,), values.max()),
        lambda values: bool(values.any()),
        lambda values: values[values > 1],
        lambda values: values.index_put_((values > 1,), torch.zeros(2)),
        lambda values: torch.where(values > 1),
        lambda values: torch.nn.functional.one_hot(values.long()),
        lambda values: torch.equal(values, values),
        lambda values: values.to("cpu"),
        lambda values: values.to(device="cpu"),
        lambda values: torch.Tensor.to(values, "cpu", torch.float64),
        lambda values: values.numpy(),
    ],
)
def test_a_read_raises_in_many_ways_to_write_it(read: Callable[[Tensor], object]) -> None:
    with unread(), pytest.raises(AssertionError):
        read(torch.arange(4.0))
    with unread() as operations:
        assert torch.arange(4.0)[torch.arange(2)].to(torch.float64).shape == (2,)
    assert {"index", "arange"} <= operations.names


def pair(policy: dict[str, Any], **groups: Any) -> tuple[Any, Any, TrainState, TrainState]:
    """Configuration, feed, and two states: one that skips views, one of fixed shapes."""
    config, splits = tiny_config(policy=policy, **groups), tiny_splits(NUM_CLASSES)
    states = [build_state(config, 3, NUM_CLASSES, Workers(), pool_size=len(splits.unlabeled)) for _ in range(2)]
    feed = tiny_feed(config, splits)
    states[1].fixed = FixedShapes(len(feed(0).images_unlabeled) * states[1].policy.uses_unlabeled, torch.device("cpu"))
    if policy["name"] == "dpl":  # as after a while: a fresh policy takes every sample in
        for state in states:
            state.policy.states.copy_(torch.tensor([[0.55], [0.52]]).expand(2, NUM_CLASSES))
    return config, feed, *states


@pytest.mark.parametrize("case", CASES)
@pytest.mark.usefixtures("views_of_all")
def test_the_step_reads_no_tensor_and_trains_the_weights_of_the_step_that_skips_views(case: str) -> None:
    optimizer = "adamw" if case == "softmatch" else "sgd"  # whose first steps turn rounding into as much as its rate
    groups: dict[str, Any] = {
        "model": {"normalization": "batch"},
        "optim": {"learning_rate": 0.003 if optimizer == "sgd" else 1e-4, "name": optimizer},
        "train": {"lambda_u": 0.5, "lambda_u_ramp": 0.3},
    }
    config, feed, skipping, fixed = pair(CASES[case], **groups)
    for step in range(4):
        batch = feed(step)
        expected = train_step(skipping, batch, config, Workers())
        with unread() as operations:
            sums = train_step(fixed, batch, config, Workers())
        assert sorted(operations.names & WITHOUT_DETERMINISM) == []
        torch.testing.assert_close(sums, expected, rtol=1e-4, atol=1e-5)
    for name in ("student", "teacher", "policy"):
        mine, theirs = (getattr(state, name).state_dict() for state in (fixed, skipping))
        for key, value in theirs.items():
            atol = 6e-6 if optimizer == "sgd" else 1e-4
            torch.testing.assert_close(mine[key], value, rtol=1e-4, atol=atol, msg=f"{name}.{key}")


def test_rows_that_fill_the_room_have_no_part_in_the_step() -> None:
    config, feed, _, fixed = pair({"name": "fixmatch", "threshold": 0.5}, model={"normalization": "batch"})
    batch = feed(0)
    sums = dict(zip(SUMS, train_step(fixed, batch, config, Workers()).tolist(), strict=True))
    assert 0 < sums["strong_views"] < sums["unlabeled"] == fixed.fixed.capacity


def test_the_room_follows_what_was_wanted_and_what_is_beyond_it_has_no_weight() -> None:
    fixed = FixedShapes(80, torch.device("cpu"))
    assert fixed.sizes == [20, 40, 60, 80]
    weights = torch.zeros(80)
    weights[::4] = 0.5
    chosen = choose(weights, 0.1, fixed)
    assert chosen.rows.tolist()[:20] == chosen.kept.tolist()[:20] == list(range(0, 80, 4))
    assert set(chosen.kept.tolist()[20:]) == {-1}
    assert sorted(chosen.rows.tolist()) == list(range(80))
    assert chosen.weights.tolist() == [0.5] * 20 + [0.0] * 60
    fixed.adapt()
    assert fixed.capacity == 40, "20 and some to spare"
    chosen = choose(torch.full((80,), 0.5), 0.1, fixed)
    assert chosen.kept.tolist() == list(range(40))
    assert chosen.number == 40
    assert chosen.weights_used.tolist() == [0.5] * 40 + [0.0] * 40
    fixed.adapt()
    assert fixed.capacity == 80
    assert [FixedShapes(number, torch.device("cpu")).sizes for number in (0, 1, 6)] == [[0], [1], [2, 3, 5, 6]]


@pytest.mark.usefixtures("views_of_all")
def test_a_fault_is_noted_and_nothing_is_trained_from_then_on() -> None:
    config, feed, _, state = pair({"name": "fixmatch", "threshold": 0.0})
    train_step(state, feed(0), config, Workers())
    bias = state.student.classifier.bias
    hook = state.student.register_forward_hook(
        lambda _module, _inputs, outputs: (outputs[0], outputs[1] * math.nan) if outputs[1].requires_grad else None
    )
    before = bias.detach().clone()
    with unread():
        train_step(state, feed(1), config, Workers())
        hook.remove()
        train_step(state, feed(2), config, Workers())
    assert torch.equal(bias, before)
    assert state.fixed is not None
    assert state.fixed.faults[0] == 2, "of the first such step"


def run_in_fixed_shapes(monkeypatch: pytest.MonkeyPatch, spoiled_at: int | None = None) -> None:
    """`train` on the CPU as on a GPU, up to the graph; a loss is NaN from that step on."""
    build = state_module.build_state

    def fixed_state(*arguments: Any, **named: Any) -> TrainState:
        state = build(*arguments, **named)
        state.fixed = FixedShapes(12, torch.device("cpu"))
        if spoiled_at is not None:
            state.student.register_forward_hook(
                lambda _module, _inputs, outputs: (
                    (outputs[0], outputs[1] * math.nan)
                    if outputs[1].requires_grad and state.step >= spoiled_at
                    else None
                )
            )
        return state

    monkeypatch.setattr("dpl_ray.training.loop.build_state", fixed_state)


@pytest.mark.usefixtures("views_of_all")
def test_the_loop_ends_with_the_metrics_of_the_loop_that_skips_views(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(policy={"name": "fixmatch", "threshold": 0.5}, train={"log_every": 5, "num_steps": 10})
    splits: Splits = tiny_splits(NUM_CLASSES)
    expected = train(config, splits, Workers(), Storage(str(tmp_path / "skipping")), lambda record: None)
    run_in_fixed_shapes(monkeypatch)
    found = train(config, splits, Workers(), Storage(str(tmp_path / "fixed")), lambda record: None)
    timed = ("time/", "throughput/")
    assert {key: value for key, value in found.metrics.items() if not key.startswith(timed)} == pytest.approx(
        {key: value for key, value in expected.metrics.items() if not key.startswith(timed)}, abs=1e-4
    )


def test_the_loop_names_a_fault_at_the_next_record_and_saves_no_checkpoint_of_it(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_in_fixed_shapes(monkeypatch, spoiled_at=6)
    config = tiny_config(policy={"name": "fixmatch"}, train={"log_every": 5, "num_steps": 20, "checkpoint_every": 4})
    with pytest.raises(NonFiniteLossError, match=r"^step 6: worker 0: labelled loss is nan"):
        train(config, tiny_splits(NUM_CLASSES), Workers(), Storage(str(tmp_path)), lambda record: None)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000004"]


def test_without_a_gpu_a_step_is_called_as_it_is() -> None:
    config, feed, _, fixed = pair({"name": "dpl"})
    captured = Captured(fixed, config, Workers())
    assert captured(train_step, feed(0))[SUMS.index("worker_steps")] == 1
    assert not captured.is_busy()


class FakeStream:
    """Of a GPU that is not there."""

    def wait_event(self, _event: Any) -> None: ...

    def record(self) -> None: ...


@pytest.mark.parametrize("is_compiled", [True, False])
@pytest.mark.parametrize(
    ("device", "world_size", "has_graphs"), [("cuda", 1, True), ("cuda", 2, False), ("cpu", 2, False)]
)
def test_every_gpu_compiles_where_asked_and_a_single_one_has_graphs(
    device: str, world_size: int, has_graphs: bool, is_compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, _, _, state = pair({"name": "fixmatch"}, train={"compile": is_compiled, "precision": "bfloat16"})
    compiled: list[str] = []
    monkeypatch.setattr(state.student, "compile", lambda *, dynamic: compiled.append(f"network, dynamic={dynamic}"))
    monkeypatch.setattr("dpl_ray.training.capture.compile_views", lambda: compiled.append("views"))
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    monkeypatch.setattr(torch.backends.cuda, "matmul", SimpleNamespace(allow_tf32=False))
    captured = Captured(state, config, Workers(0, world_size, torch.device(device)))
    assert captured.has_graphs == has_graphs
    is_on_gpu = device == "cuda"
    assert compiled == (["network, dynamic=False", "views"] if is_compiled and is_on_gpu else [])
    assert torch.backends.cudnn.benchmark == torch.backends.cuda.matmul.allow_tf32 == is_on_gpu


def test_several_gpus_launch_the_step_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    config, feed, _, state = pair({"name": "fixmatch"})
    monkeypatch.setattr(torch.cuda, "Event", FakeStream)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    workers = Workers(0, 2, torch.device("cuda"))
    captured = Captured(state, config, workers)
    given: list[Any] = []

    def step(*arguments: Any) -> Tensor:
        given.append(arguments)
        return torch.ones(1)

    for number in range(NUM_PLAIN_STEPS + 2):
        batch = feed(number)
        assert captured(step, batch).tolist() == [1]
        assert given[-1] == (state, batch, config, workers)
    assert captured._graphs == {}


@pytest.mark.parametrize("field", ["compile", "deterministic"])
def test_what_is_a_choice_on_a_gpu_is_refused_on_a_cpu_before_anything_starts(field: str) -> None:
    with pytest.raises(ValueError, match=rf"^train\.{field}=true: is for a GPU \(scale\.use_gpu=true\); on a CPU"):
        check_places(tiny_config(train={field: True}))
    check_places(tiny_config(train={field: True}, scale={"use_gpu": True, "num_workers": 0}))


def test_a_thread_makes_each_batch_once_and_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    config, feed, _, _ = pair({"name": "fixmatch"})
    for name in ("Stream", "Event", "current_stream"):
        monkeypatch.setattr(torch.cuda, name, lambda *_: FakeStream())
    monkeypatch.setattr(torch.cuda, "stream", lambda _stream: nullcontext())
    monkeypatch.setattr(Tensor, "record_stream", lambda *_: None)
    monkeypatch.setattr(Batch, "to", lambda self, _device: self)
    asked: list[int] = []
    is_made = {step: threading.Event() for step in range(3, 6)}

    class Counting(BatchFeed):
        def __call__(self, step: int) -> Batch:
            assert threading.current_thread().name.startswith("batches")
            asked.append(step)
            is_made[step].set()
            return super().__call__(step)

    source = DeviceFeed(Counting(config, feed.labeled, feed.unlabeled, 0, 1), torch.device("cuda"), num_steps=6)
    for step in range(3, 6):
        assert torch.equal(source(step).ids_unlabeled, feed(step).ids_unlabeled)
        if step < 5:
            assert is_made[step + 1].wait(60), "the next batch is made before it is asked for"
    source.close()
    assert asked == [3, 4, 5]


def test_a_batch_is_copied_to_a_gpu_from_pinned_memory_without_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    _, feed, _, _ = pair({"name": "fixmatch"})
    batch, device = feed(0), torch.device("cuda")
    pinned: list[Tensor] = []
    copied: list[Tensor] = []

    def pin(values: Tensor) -> Tensor:
        pinned.append(values.clone())
        return pinned[-1]

    def copy(values: Tensor, *arguments: Any, **named: Any) -> Tensor:
        assert any(values is each for each in pinned), "a copy from other memory waits for the device"
        assert (arguments, named) == ((device,), {"non_blocking": True})
        copied.append(values)
        return values

    monkeypatch.setattr(Tensor, "pin_memory", pin)
    monkeypatch.setattr(Tensor, "to", copy)
    moved = batch.to(device)
    assert len(copied) == len(pinned) == len(fields(Batch))
    for field in fields(Batch):
        assert torch.equal(getattr(moved, field.name), getattr(batch, field.name)), field.name


def test_deterministic_algorithms_hold_while_a_run_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    monkeypatch.setenv(WORKSPACE, "")  # so that it is put back
    monkeypatch.delenv(WORKSPACE)
    seen = []

    def note(*_: Any, **__: Any) -> None:
        seen.append((torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark))

    monkeypatch.setattr("dpl_ray.training.loop.train", note)
    for deterministic in (True, False):
        config = tiny_config(train={"deterministic": deterministic, "baseline": True})
        train_phases(config, tiny_splits(NUM_CLASSES), Storage(str(tmp_path)), Workers(), lambda _: None)
    assert seen == [(True, False)] * 2 + [(False, True)] * 2, "of the baseline too"
    assert os.environ[WORKSPACE] == ":4096:8"
