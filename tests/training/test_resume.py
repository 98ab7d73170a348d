"""Stop and go on: the same weights, bit for bit, as never having stopped."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dpl_ray.config.parse import parse_config
from dpl_ray.config.schema import Config
from dpl_ray.store.storage import Storage
from dpl_ray.training import loop
from dpl_ray.training.checkpoint import MODULES, list_checkpoints
from dpl_ray.training.distributed import Workers
from dpl_ray.training.interruption import Interrupted
from dpl_ray.training.loop import train
from dpl_ray.training.records import Outcome, Record
from dpl_ray.training.schedule import CheckpointClock, Wish
from tests.builders import PRETRAINED, adapted, tiny_splits

#: A network with BatchNorm, and one whose Dropout draws random numbers in every step.
MODELS = {
    "wide_resnet": {"depth": 10, "width": 1},
    "dropout": {"name": "torchvision", "architecture": "mobilenet_v3_small"},
    "frozen": PRETRAINED | {"train": "last:2"},
}


class StoppedError(Exception):
    """The run was stopped here."""


def run(
    folder: Path,
    *,
    stop_at: int | None = None,
    model: str = "wide_resnet",
    policy: str = "dpl",
    seed: int = 0,
    workers: Workers | None = None,
    records: list[Record] | None = None,
) -> tuple[Outcome, list[Record]]:
    config = parse_config(
        {
            "model": MODELS[model] if model in MODELS else adapted(folder.parent),
            "policy": {"name": policy},
            "train": {
                "batch_size": 4,
                "mu": 3,
                "num_steps": 9,
                "log_every": 2,
                "checkpoint_every": 3,
                "keep_checkpoints": 2,
                "seed": seed,
            },
        }
    )
    records = [] if records is None else records

    def record(news: Record) -> None:
        records.append(news)
        if stop_at is not None and news.step >= stop_at:
            raise StoppedError

    splits = tiny_splits(size=8 if model in MODELS else 16)
    return train(config, splits, workers or Workers(), Storage(str(folder)), record), records


def contents(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of the last checkpoint: student, teacher, policy and the optimizer's state."""
    last = Path(str(list_checkpoints(Storage(str(folder)))[-1]))
    tensors = {
        f"{name}/{key}": value for name in MODULES for key, value in load_file(last / f"{name}.safetensors").items()
    }
    trainer = torch.load(last / "trainer.pt", weights_only=True)
    for index, slots in trainer["optimizer"]["state"].items():
        tensors |= {
            f"optimizer/{index}/{slot}": torch.as_tensor(value) for slot, value in slots.items() if value is not None
        }
    return tensors


def assert_same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> None:
    assert left.keys() == right.keys()
    different = [name for name in left if not torch.equal(left[name], right[name])]
    assert different == []


@pytest.mark.parametrize(
    ("model", "policy"),
    [*((model, "dpl") for model in (*MODELS, "adapters")), ("wide_resnet", "fixmatch")],
)
def test_a_run_that_was_stopped_ends_like_one_that_was_not(tmp_path: Path, model: str, policy: str) -> None:
    outcome, _ = run(tmp_path / "whole", model=model, policy=policy)
    with pytest.raises(StoppedError):
        run(tmp_path / "halves", stop_at=4, model=model, policy=policy)
    assert [found.name for found in list_checkpoints(Storage(str(tmp_path / "halves")))] == ["step-00000003"]
    resumed, later = run(tmp_path / "halves", model=model, policy=policy)
    assert later[0].step > 3, "what the checkpoint holds is not computed again"
    assert_same(contents(tmp_path / "halves"), contents(tmp_path / "whole"))
    assert resumed.thresholds == outcome.thresholds
    assert resumed.metrics["eval/accuracy"] == outcome.metrics["eval/accuracy"]


class StopIn(threading.Event):
    """Set from so many questions on; the loop asks once a step."""

    def __init__(self, num_steps: int) -> None:
        super().__init__()
        self.num_left = num_steps

    def is_set(self) -> bool:
        self.num_left -= 1
        return self.num_left <= 0


def recorded(records: list[Record]) -> list[tuple[int, dict[str, float]]]:
    """What is measured at which step, without what the clock says."""
    timed = ("time/", "throughput/", "curve/seconds")
    found = [
        (record.step, {key: value for key, value in record.metrics.items() if not key.startswith(timed)})
        for record in records
    ]
    return [(step, metrics) for step, metrics in found if metrics]


@pytest.mark.parametrize("step", [1, 5, 6, 9])
def test_a_run_that_is_asked_to_stop_saves_its_step_and_loses_nothing(tmp_path: Path, step: int) -> None:
    """Between two records, at one, and at the last step."""
    _, expected = run(tmp_path / "whole")
    records: list[Record] = []
    with pytest.raises(Interrupted, match=f"^step {step} of 9 of dpl is saved$"):
        run(tmp_path / "halves", workers=Workers(stop=StopIn(step)), records=records)
    assert list_checkpoints(Storage(str(tmp_path / "halves")))[-1].name == f"step-{step:08d}"
    run(tmp_path / "halves", records=records)
    assert_same(contents(tmp_path / "halves"), contents(tmp_path / "whole"))
    assert recorded(records) == recorded(expected), "of steps before and after the stop, too"


def test_a_checkpoint_for_the_time_changes_neither_weights_nor_metrics(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, expected = run(tmp_path / "whole")
    wishes = iter([Wish.NOTHING, Wish.CHECKPOINT])
    monkeypatch.setattr(CheckpointClock, "wish", lambda *_: next(wishes, Wish.NOTHING))
    with pytest.raises(StoppedError):
        run(tmp_path / "timed", stop_at=3)
    assert [found.name for found in list_checkpoints(Storage(str(tmp_path / "timed")))] == ["step-00000002"]
    records: list[Record] = []
    run(tmp_path / "timed", records=records)
    assert_same(contents(tmp_path / "timed"), contents(tmp_path / "whole"))
    assert recorded(records) == [(step, metrics) for step, metrics in recorded(expected) if step > 2]


def test_the_same_seed_gives_the_same_weights_and_another_does_not(tmp_path: Path) -> None:
    for name, seed in (("first", 0), ("second", 0), ("other", 1)):
        run(tmp_path / name, seed=seed)
    first = contents(tmp_path / "first")
    assert_same(first, contents(tmp_path / "second"))
    assert not torch.equal(
        first["student/classifier.weight"], contents(tmp_path / "other")["student/classifier.weight"]
    )


def test_a_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    first, _ = run(tmp_path)
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    again, records = run(tmp_path)
    assert {record.step for record in records} == {9}
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()} == files
    assert again.metrics["eval/accuracy"] == first.metrics["eval/accuracy"]


def test_old_checkpoints_are_removed_and_the_newest_kept(tmp_path: Path) -> None:
    run(tmp_path)
    assert sorted(path.name for path in tmp_path.glob("step-*")) == ["step-00000006", "step-00000009"]


def test_a_checkpoint_that_was_not_finished_does_not_count(tmp_path: Path) -> None:
    run(tmp_path / "whole")
    with pytest.raises(StoppedError):
        run(tmp_path / "cut", stop_at=8)
    newest = tmp_path / "cut" / "step-00000006"
    (newest / "manifest.json").unlink()
    (newest / "teacher.safetensors").write_bytes(b"half")
    _, records = run(tmp_path / "cut")
    assert records[0].step in (4, 5)  # on from step 3
    assert_same(contents(tmp_path / "cut"), contents(tmp_path / "whole"))


def test_a_write_that_is_interrupted_at_any_file_leaves_the_older_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path / "whole")
    for place in range(7):
        folder = tmp_path / f"cut{place}"
        writes = _failing_after(Storage.write, 7 + place)  # the first checkpoint's 7 files are written
        with monkeypatch.context() as patch:
            patch.setattr(Storage, "write", writes)
            patch.setattr("dpl_ray.training.checkpoint.WAITS", ())
            with pytest.raises(OSError, match="disk is gone"):
                run(folder)
        assert [found.name for found in list_checkpoints(Storage(str(folder)))] == ["step-00000003"]
    run(folder)
    assert_same(contents(folder), contents(tmp_path / "whole"))


def test_storage_that_fails_for_a_while_costs_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path / "whole")
    monkeypatch.setattr("dpl_ray.training.checkpoint.WAITS", (0, 0, 0))
    monkeypatch.setattr(Storage, "write", _failing_after(Storage.write, 10, 3))
    with pytest.warns(UserWarning, match=r"step-00000006: cannot be written \(the disk is gone\); tried again in 0 s"):
        run(tmp_path / "disturbed")
    assert_same(contents(tmp_path / "disturbed"), contents(tmp_path / "whole"))


def _failing_after(
    write: Callable[[Storage, bytes], None], count: int, times: int = 10**9
) -> Callable[[Storage, bytes], None]:
    done = failed = 0

    def failing(self: Storage, data: bytes) -> None:
        nonlocal done, failed
        if done == count and failed < times:
            failed += 1
            raise OSError("the disk is gone")
        done += 1
        write(self, data)

    return failing


def test_training_reads_neither_test_split_nor_the_pools_labels(tmp_path: Path) -> None:
    """Other test images and other true labels of the pool: the same model."""
    run(tmp_path / "a")
    config = _config_of(tmp_path / "a")
    splits = tiny_splits()
    other = type(splits)(
        labeled=splits.labeled,
        unlabeled=type(splits.unlabeled)(
            splits.unlabeled.images, splits.unlabeled.targets[::-1].copy(), splits.unlabeled.ids
        ),
        validation=splits.validation,
        test=splits.labeled,
        class_names=splits.class_names,
        bad=(),
    )
    train(config, other, Workers(), Storage(str(tmp_path / "b")), lambda _: None)
    assert_same(contents(tmp_path / "a"), contents(tmp_path / "b"))


def _config_of(folder: Path) -> Config:
    import yaml

    last = Path(str(list_checkpoints(Storage(str(folder)))[-1]))
    return parse_config(yaml.safe_load((last / "config.yaml").read_text()))


def test_a_step_is_seeded_as_torch_does_it_without_a_stack_for_each_kind_of_device(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    monkeypatch.setattr("traceback.format_stack", lambda *_: pytest.fail("a millisecond a step"))
    loop._seed(7, torch.device("cpu"))
    assert torch.equal(torch.rand(3), expected)
