"""N workers train the model that one worker trains: real gloo processes on one global batch."""

from __future__ import annotations

import math
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed import distributed_c10d

from dpl_ray.config.schema import Config
from dpl_ray.data.batches.feed import BatchFeed
from dpl_ray.store.storage import Storage
from dpl_ray.training import distributed
from dpl_ray.training.checkpoint import ModelInfo, load_state, save_checkpoint
from dpl_ray.training.distributed import GradientBuckets, Workers
from dpl_ray.training.evaluation import evaluate_split
from dpl_ray.training.faults import NonFiniteLossError
from dpl_ray.training.fixed_shapes import FixedShapes
from dpl_ray.training.metrics import SUMS
from dpl_ray.training.schedule import Wish
from dpl_ray.training.state import TrainState, build_state
from dpl_ray.training.step import train_step
from tests.builders import PRETRAINED, tiny_config, tiny_feed, tiny_splits
from tests.processes import SERVER

NUM_STEPS = 20
NUM_CLASSES = 4
SYNCED = ("shapes of the data", "fixed shapes")
NUM_STRONG = 18  # of a step of `setup`, where all views have a weight
#: Policies with more to them than sums of the unlabelled samples: labels in shards, a loss over the strong views of all
#: workers, labelled views, classifiers of their own. Half the confidence is enough here, or no sample would count.
PEERS: dict[str, dict[str, Any]] = {
    "adamatch": {"name": "adamatch"},
    "flexmatch": {"name": "flexmatch", "threshold": 0.3},
    "freematch": {"name": "freematch", "ema_decay": 0.5},
    "abc": {"name": "abc", "threshold": 0.3},
    "debiaspl": {"name": "debiaspl", "threshold": 0.3},
    "simpro": {"name": "simpro", "threshold": 0.3, "ema_decay": 0.5},
    "iomatch": {"name": "iomatch", "threshold": 0.3},
    "openmatch": {"name": "openmatch", "threshold": 0.3},
    "dpl that looks for foreign images": {"name": "dpl", "open_set": True, "ema_decay": 0.9},
    "dpl that estimates the shares": {"name": "dpl", "shares": "estimated", "balance": 0.5, "ema_decay": 0.9},
    "dpl on frozen layers with adapters": {"name": "dpl"},
}


def setup(
    workers: Workers, policy: dict[str, Any] | None = None, *, frozen: bool = False, normalization: str = "group"
) -> tuple[Config, TrainState, BatchFeed]:
    # 6 labelled images divide by 1, 2 and 3 workers.
    # At a rate of 0.03 this small network itself turns float32's rounding into 6e-4 within 20 steps (in float64 it
    # would not); at 0.01 what is left is rounding.
    config = tiny_config(
        model=PRETRAINED | {"adapter": "lora"} if frozen else {"normalization": normalization},
        train={"batch_size": 6, "mu": 3, "num_steps": NUM_STEPS},
        optim={"learning_rate": 0.01},
        # Thresholds that move fast enough to leave some samples out within 20 steps.
        policy=policy or {"name": "dpl", "ema_decay": 0.9},
    )
    splits = tiny_splits(NUM_CLASSES)
    state = build_state(config, 3, NUM_CLASSES, workers, pool_size=len(splits.unlabeled))
    return config, state, tiny_feed(config, splits, workers.rank, workers.world_size)


@contextmanager
def counted_sums() -> Iterator[list[int]]:
    """Number of values of every sum that a step asks of the workers."""
    asked, ask = list[int](), Workers.all_reduce_sum

    def counted(self: Workers, values: torch.Tensor) -> torch.Tensor:
        asked.append(len(values))
        return ask(self, values)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Workers, "all_reduce_sum", counted)
        yield asked


def train_peer(workers: Workers, policy: str, folder: Storage) -> dict[str, Any]:
    """Student and policy after 6 steps and after as many with a checkpoint halfway."""
    chosen, frozen = PEERS[policy], "frozen" in policy
    config, state, feed = setup(workers, chosen, frozen=frozen)
    with counted_sums() as asked:
        for _ in range(3):
            train_step(state, feed(state.step), config, workers)
    save_checkpoint(folder, state, config, ModelInfo(("a", "b", "c", "d"), 3, (8, 8)), workers, keep=1)
    workers.gather_json(None)  # the checkpoint is there
    _, resumed, _ = setup(workers, chosen, frozen=frozen)
    load_state(folder / "step-00000003", resumed, workers)
    saved = safetensors.torch.load((folder / "step-00000003" / "policy.safetensors").read())
    for each in (state, resumed):
        for _ in range(3):
            train_step(each, feed(each.step), config, workers)
    return {
        "student": state.student.state_dict(),
        "resumed": resumed.student.state_dict(),
        "saved": saved,
        "num_sums": len(asked),
        "num_counted": int(saved["last_labels"].count_nonzero()) if policy == "flexmatch" else 0,
    }


def train_peers(workers: Workers, folder: Storage) -> dict[str, dict[str, Any]]:
    return {name: train_peer(workers, name, folder / name) for name in PEERS}


def train_some(workers: Workers) -> dict[str, Any]:
    """Student, policy and weights after NUM_STEPS, and how often the workers were asked to sum."""
    config, state, feed = setup(workers)
    weights, weigh = [], type(state.policy).weights

    def kept(self: Any, pseudo: Any) -> torch.Tensor:
        weights.append(weigh(self, pseudo))
        return weights[-1]

    with counted_sums() as asked, pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(state.policy), "weights", kept)
        for _ in range(NUM_STEPS):
            train_step(state, feed(state.step), config, workers)
    return {
        "student": state.student.state_dict(),
        "teacher": state.teacher.state_dict(),
        "policy": state.policy.state_dict(),
        "weights": torch.stack(weights),
        "num_sums": len(asked),
        "evaluation": evaluate_split(state.teacher, tiny_splits(NUM_CLASSES).test, workers),
    }


def train_in_buckets(workers: Workers) -> dict[str, Any]:
    """Students after 3 steps with gradients averaged at once and in buckets, and sizes of what a step has sent."""
    students, sent = [], []
    send, finish, num_early = dist.all_reduce, GradientBuckets.finish, 0

    def finish_later(self: GradientBuckets) -> None:
        nonlocal num_early
        num_early = sum(number > 0 for number in sent)
        finish(self)

    def counted(values: torch.Tensor, **named: Any) -> Any:
        sent.append(len(values) if named else 0)
        return send(values, **named)

    for size in (math.inf, 1000):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(distributed, "bucket_bytes", lambda _device, size=size: size)
            config, state, feed = setup(workers)
            for _ in range(3):
                sent.clear()
                patch.setattr(dist, "all_reduce", counted)
                patch.setattr(GradientBuckets, "finish", finish_later)
                train_step(state, feed(state.step), config, workers)
        students.append(state.student.state_dict())
    return {"students": students, "sent": [number for number in sent if number], "num_early": num_early}


def train_compiled(workers: Workers) -> dict[str, Any]:
    """Students after 3 steps in fixed shapes, the second network compiled, and what was sent within backward."""
    students, sent = [], []
    send, finish = dist.all_reduce, GradientBuckets.finish

    def counted(values: torch.Tensor, **named: Any) -> Any:
        sent[-1] += bool(named)
        return send(values, **named)

    def finished(self: GradientBuckets) -> None:
        assert self._next == len(self._buckets), "each was sent by a hook"
        finish(self)

    for is_compiled in (False, True):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(distributed, "bucket_bytes", lambda _device: 1000)
            patch.setattr(dist, "all_reduce", counted)
            patch.setattr(GradientBuckets, "finish", finished)
            config, state, feed = setup(workers, {"name": "fixmatch", "threshold": 0.3})
            state.fixed = FixedShapes(9, workers.device)
            if is_compiled:
                state.student.compile(dynamic=False, backend="aot_eager")  # needs no compiler of C++
            sent.append(0)
            for _ in range(3):
                train_step(state, feed(state.step), config, workers)
        students.append(state.student.state_dict())
    return {"students": students, "sent": sent}


def train_synced(workers: Workers) -> dict[str, Any]:
    """Students after 3 steps with the batch statistics of all workers, and how many strong views had a weight.

    By form of the step: in one the views without a weight are skipped, in the other they fill the room.
    """
    found: dict[str, Any] = {}
    for form in SYNCED:
        config, state, feed = setup(workers, {"name": "fixmatch", "threshold": 0.4}, normalization="sync")
        if form == "fixed shapes":
            state.fixed = FixedShapes(NUM_STRONG // workers.world_size, workers.device)
        sums = [train_step(state, feed(state.step), config, workers) for _ in range(3)]
        num_strong = [int(each[SUMS.index("strong_views")]) for each in sums]
        found[form] = {"student": state.student.state_dict(), "num_strong": num_strong}
    return found


def train_poisoned(workers: Workers) -> dict[str, Any]:
    """Worker 1's images make its loss NaN in step 0; what each worker then says, and whether anything moved."""
    config, state, feed = setup(workers)
    before = {name: value.clone() for name, value in state.student.state_dict().items()}
    batch = feed(0)
    if workers.rank == 1:
        forward = state.student.classifier.forward
        poison = lambda: torch.nan if torch.is_grad_enabled() else 1  # noqa: E731 of the gradient pass alone
        state.student.classifier.forward = lambda features: forward(features) * poison()  # type: ignore[method-assign]
    try:
        train_step(state, batch, config, workers)
        message = ""
    except NonFiniteLossError as error:
        message = str(error)
    moved = [name for name, value in state.student.state_dict().items() if not torch.equal(value, before[name])]
    return {"message": message, "moved": moved, "step": state.step, "optimizer": len(state.optimizer.state)}


def train_in_halves(workers: Workers, folder: Storage) -> list[str]:
    """Tensors that differ between 8 steps in one go and 4 + 4 with a checkpoint between."""
    config, whole, feed = setup(workers)
    _, first, _ = setup(workers)
    _, second, _ = setup(workers)
    for _ in range(8):
        train_step(whole, feed(whole.step), config, workers)
    for _ in range(4):
        train_step(first, feed(first.step), config, workers)
    save_checkpoint(folder, first, config, ModelInfo(("a", "b", "c", "d"), 3, (8, 8)), workers, keep=1)
    workers.gather_json(None)  # the checkpoint is there
    load_state(folder / "step-00000004", second, workers)
    for _ in range(4):
        train_step(second, feed(second.step), config, workers)
    parts = ("student", "teacher", "policy")
    pairs = {
        f"{part} {name}": (value, getattr(second, part).state_dict()[name])
        for part in parts
        for name, value in getattr(whole, part).state_dict().items()
    }
    return [name for name, (left, right) in pairs.items() if not torch.equal(left, right)]


def agree(workers: Workers, folder: Storage) -> dict[str, Any]:
    """What all do after steps in which each worker wants something else, and the sums that they go on with."""
    config, state, feed = setup(workers)
    wishes = []
    for mine in (Wish.NOTHING, Wish.CHECKPOINT, Wish.STOP):
        state.wish = Wish.STOP if workers.rank else mine
        state.sums += train_step(state, feed(state.step), config, workers)
        wishes.append(state.wish.name)
    save_checkpoint(folder, state, config, ModelInfo(("a", "b", "c", "d"), 3, (8, 8)), workers, keep=1)
    workers.gather_json(None)  # the checkpoint is there
    resumed = {}
    for name, others in (("same", workers), ("alone", Workers())):
        _, second, _ = setup(workers)
        load_state(folder / "step-00000003", second, others)
        resumed[name] = second.sums
    return {"wishes": wishes, "sums": state.sums, **resumed}


def gather(workers: Workers) -> dict[str, Any]:
    """Rows of which the workers have different numbers, worker 0 none; and values of JSON."""
    found = {
        str(dtype): workers.gather(torch.full((workers.rank, 2), workers.rank).to(dtype))
        for dtype in (torch.uint8, torch.int64, torch.float32)
    }
    return found | {"json": workers.gather_json({"é\udc80": [workers.rank, None]})}


def worker(rank: int, world_size: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    # What a peer sends is never unpickled: that would execute what it says.
    distributed_c10d._tensor_to_object = None  # type: ignore[assignment]
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world_size)
    found = {"trained": train_some(Workers.current()), "poisoned": train_poisoned(Workers.current())}
    found["peers"] = train_peers(Workers.current(), Storage(folder))
    found["agreed"] = agree(Workers.current(), Storage(folder) / "agreed")
    found["synced"] = train_synced(Workers.current())
    found["buckets"] = train_in_buckets(Workers.current())
    if world_size == 2:  # compiling takes seconds
        found["compiled"] = train_compiled(Workers.current())
    found["gathered"] = gather(Workers.current())
    found["different"] = train_in_halves(Workers.current(), Storage(folder) / "run")
    torch.save(found, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def alone() -> dict[str, Any]:
    return train_some(Workers())


@pytest.fixture(scope="module")
def peers_alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    return train_peers(Workers(), Storage(str(tmp_path_factory.mktemp("peers"))))


@pytest.fixture(scope="module", params=[2, 3], ids=["2 workers", "3 workers"])
def together(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of so many processes found."""
    folder, world_size = tmp_path_factory.mktemp("workers"), request.param
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.start_processes(
        worker, (world_size, port, str(folder)), nprocs=world_size, start_method=SERVER.get_start_method()
    )
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(world_size)]


def test_what_workers_gather_is_tensors_and_json(together: list[dict[str, Any]]) -> None:
    for found in (each["gathered"] for each in together):
        assert found["json"] == [{"é\udc80": [rank, None]} for rank in range(len(together))]
        for dtype in (torch.uint8, torch.int64, torch.float32):
            for rank, rows in enumerate(found[str(dtype)]):
                assert (rows.dtype, rows.tolist()) == (dtype, rank * [[rank, rank]])
    assert Workers().gather_json(None) == [None]


def test_workers_train_the_model_of_one_worker(alone: dict[str, Any], together: list[dict[str, Any]]) -> None:
    trained = [found["trained"] for found in together]
    for found in trained:
        for part in ("student", "teacher", "policy"):
            for name, expected in alone[part].items():
                torch.testing.assert_close(found[part][name], expected, rtol=0, atol=1e-5, msg=f"{part} {name}")
        assert found["evaluation"] == pytest.approx(alone["evaluation"], abs=1e-5)
    # The workers' weights, side by side, are those of the global batch in every step.
    weights = torch.cat([found["weights"] for found in trained], dim=1)
    torch.testing.assert_close(weights, alone["weights"], rtol=0, atol=1e-5)
    assert alone["weights"].std() > 0, "a rule that weighs all alike would prove nothing"


@pytest.mark.parametrize("name", PEERS)
def test_peers_too_train_the_model_of_one_worker_and_go_on_exactly(
    name: str, peers_alone: dict[str, dict[str, Any]], together: list[dict[str, Any]]
) -> None:
    expected = peers_alone[name]
    for found in (each["peers"][name] for each in together):
        for part in ("student", "saved"):
            for key, value in expected[part].items():
                torch.testing.assert_close(found[part][key], value, rtol=0, atol=1e-5, msg=f"{part} {key}")
        for key, value in found["student"].items():
            assert torch.equal(found["resumed"][key], value)
    if name == "flexmatch":
        assert expected["num_counted"] > 10, "without confident samples nothing would be kept in shards"


def test_a_step_has_one_collective_of_statistics(together: list[dict[str, Any]]) -> None:
    for found in together:
        assert found["trained"]["num_sums"] == NUM_STEPS
        assert {name: peer["num_sums"] for name, peer in found["peers"].items()} == dict.fromkeys(PEERS, 3)


def test_workers_that_stop_and_go_on_end_with_the_same_bits(together: list[dict[str, Any]]) -> None:
    assert [found["different"] for found in together] == [[]] * len(together)


def test_what_worker_0_wants_is_what_all_do(together: list[dict[str, Any]]) -> None:
    for found in (found["agreed"] for found in together):
        assert found["wishes"] == ["NOTHING", "CHECKPOINT", "STOP"]


def test_the_sums_since_the_last_record_go_on_with_any_number_of_workers(together: list[dict[str, Any]]) -> None:
    agreed = [found["agreed"] for found in together]
    total = torch.stack([found["sums"] for found in agreed]).sum(dim=0)
    for found in agreed:
        assert torch.equal(found["same"], found["sums"])
        torch.testing.assert_close(found["alone"], total)


def test_a_loss_that_is_not_finite_on_one_worker_stops_all_and_names_it(together: list[dict[str, Any]]) -> None:
    for found in (found["poisoned"] for found in together):
        assert found["message"].startswith("step 0: worker 1: labelled loss is nan")
        assert "worker 0" not in found["message"]
        assert found["moved"] == []
        assert (found["step"], found["optimizer"]) == (0, 0)


def test_gradients_are_averaged_in_buckets_in_one_order(together: list[dict[str, Any]]) -> None:
    sent = [found["buckets"]["sent"] for found in together]
    assert len(sent[0]) > 5
    assert all(numbers == sent[0] for numbers in sent)
    assert [found["buckets"]["num_early"] for found in together] == [len(sent[0])] * len(together), (
        "while backward runs"
    )
    for found in together:
        whole, parts = found["buckets"]["students"]
        for name, value in whole.items():
            torch.testing.assert_close(parts[name], value, rtol=0, atol=1e-6, msg=name)


def test_the_hooks_of_a_compiled_network_average_its_gradients(together: list[dict[str, Any]]) -> None:
    for found in (each["compiled"] for each in together if "compiled" in each):
        plain, compiled = found["students"]
        for name, value in plain.items():
            torch.testing.assert_close(compiled[name], value, rtol=0, atol=1e-6, msg=name)
        assert found["sent"][0] == found["sent"][1] > 15


def test_synced_batch_statistics_are_those_of_one_worker(together: list[dict[str, Any]]) -> None:
    alone = train_synced(Workers())
    expected, num_strong = alone[SYNCED[0]]["student"], alone[SYNCED[0]]["num_strong"]
    assert all(0 < number < NUM_STRONG for number in num_strong), "some views have a weight, and some have none"
    for form in SYNCED:
        synced = [found["synced"][form] for found in together]
        numbers = [each["num_strong"] for each in synced]
        assert alone[form]["num_strong"] == num_strong == [sum(step) for step in zip(*numbers, strict=True)]
        for each in (alone[form], *synced):
            for name, value in expected.items():
                torch.testing.assert_close(each["student"][name], value, rtol=1e-4, atol=1e-4, msg=f"{form} {name}")
