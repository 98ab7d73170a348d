"""The curve of the teacher: told on the way, and without any influence on what is trained."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch

from dpl_ray.config.schema import Config
from dpl_ray.data.dataset import ImageSet
from dpl_ray.store.storage import Storage
from dpl_ray.training import loop, scores
from dpl_ray.training import records as records_module
from dpl_ray.training.distributed import Workers
from dpl_ray.training.evaluation import evaluate_split
from dpl_ray.training.loop import train
from dpl_ray.training.records import Outcome, Record
from dpl_ray.training.scores import draw_curve_split
from tests.builders import tiny_config, tiny_splits
from tests.training.test_resume import assert_same, contents


def config_with(**fields: Any) -> Config:
    """With BatchNorm, whose running statistics an evaluation could move."""
    numbers = {"num_steps": 9, "checkpoint_every": 3, "log_every": 2}
    groups = {"model": {"normalization": "batch"}, "policy": {"name": "dpl"}, "data": {"validation_fraction": 0.5}}
    return tiny_config(**groups, train=numbers | fields)


def run(folder: Path, **fields: Any) -> tuple[Outcome, list[Record]]:
    records: list[Record] = []
    return train(config_with(**fields), tiny_splits(), Workers(), Storage(str(folder)), records.append), records


def points(records: list[Record]) -> list[tuple[int, float, float]]:
    return [
        (record.step, record.metrics["curve/accuracy"], record.metrics["curve/seconds"])
        for record in records
        if "curve/accuracy" in record.metrics
    ]


def test_the_weights_are_the_same_bit_for_bit_with_and_without(tmp_path: Path) -> None:
    without, records = run(tmp_path / "without", curve_images=0)
    assert points(records) == []
    for every in (1, 4):
        outcome, _ = run(tmp_path / f"every{every}", curve_every=every, curve_images=7)
        assert_same(contents(tmp_path / f"every{every}"), contents(tmp_path / "without"))
        assert outcome.metrics["eval/accuracy"] == without.metrics["eval/accuracy"]
        assert outcome.metrics["train/loss_labeled"] == without.metrics["train/loss_labeled"]


def test_its_points_are_at_every_n_steps_and_at_the_last(tmp_path: Path) -> None:
    outcome, records = run(tmp_path, curve_every=4, curve_images=2000)
    assert [step for step, _, _ in points(records)] == [4, 8, 9]
    assert points(records)[-1][1] == outcome.metrics["eval/accuracy"], "of all test images where there are few"
    assert points(records)[-1][2] == outcome.training_seconds
    assert 0 < points(records)[0][2] < points(records)[1][2]


def test_it_is_made_of_the_same_images_for_every_seed_and_not_of_the_first_ones() -> None:
    test = tiny_splits(num_test=30).test
    part = draw_curve_split(test, 10)
    assert len(part) == 10
    assert part.ids.tolist() == draw_curve_split(test, 10).ids.tolist()
    assert part.ids.tolist() != test.ids[:10].tolist()
    assert set(part.ids.tolist()) <= set(test.ids.tolist())
    assert draw_curve_split(test, 99) is test


def test_a_run_that_was_stopped_keeps_its_seconds(tmp_path: Path) -> None:
    class StoppedError(Exception):
        pass

    told: list[Record] = []

    def stop(record: Record) -> None:
        told.append(record)
        if record.step >= 5:
            raise StoppedError

    config = config_with(curve_every=3)
    with pytest.raises(StoppedError):
        train(config, tiny_splits(), Workers(), Storage(str(tmp_path)), stop)
    records: list[Record] = []
    train(config, tiny_splits(), Workers(), Storage(str(tmp_path)), records.append)
    assert [step for step, _, _ in points(records)] == [6, 9]
    assert points(records)[0][2] > points(told)[0][2], "counted on from the checkpoint of step 3"


def test_neither_evaluation_nor_checkpoints_are_training_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that steps, evaluations and checkpoints move, and nothing else."""
    now, train_step, save_checkpoint = 0.0, loop.train_step, loop.save_checkpoint
    evaluated: list[int] = []

    def evaluating(model: Any, split: ImageSet, workers: Workers) -> dict[str, float]:
        nonlocal now
        now += 100.0
        evaluated.append(len(split))
        return evaluate_split(model, split, workers)

    def stepping(*arguments: Any) -> torch.Tensor:
        nonlocal now
        now += 1.0
        return train_step(*arguments)

    def saving(*arguments: Any, **named: Any) -> Storage:
        nonlocal now
        now += 1000.0
        return save_checkpoint(*arguments, **named)

    monkeypatch.setattr(loop, "train_step", stepping)
    monkeypatch.setattr(loop, "save_checkpoint", saving)
    monkeypatch.setattr(scores, "evaluate_split", evaluating)
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    monkeypatch.setattr(records_module, "SECONDS_BETWEEN_PROGRESS", 0)
    told: list[Record] = []
    config = config_with(curve_every=3, log_every=1000, evaluate_every=3, curve_images=7)
    outcome = train(config, tiny_splits(), Workers(), Storage(str(tmp_path)), told.append)
    assert [(step, seconds) for step, _, seconds in points(told)] == [(3, 3), (6, 6), (9, 9)]
    assert outcome.training_seconds == 9
    assert outcome.metrics["time/step"] == 1, "of the window of all 9 steps, with all the others in it"
    assert {record.images_per_second for record in told} == {16.0}, "images of one step in its second, at all times"
    assert sorted(evaluated) == [7, 7, 7, 20, 20, 20], "the validation split of the last step is not scored again"


def test_where_nothing_is_said_the_curve_has_twenty_points(tmp_path: Path) -> None:
    outcome, records = run(tmp_path, num_steps=40)
    assert [step for step, _, _ in points(records)] == list(range(2, 41, 2))
    assert outcome.test is not None
    right = outcome.test.labels == tiny_splits().test.targets
    assert outcome.metrics["eval/accuracy"] == pytest.approx(right.mean())


def test_a_data_set_without_test_images_has_no_curve(tmp_path: Path) -> None:
    splits = tiny_splits(num_test=0)
    records: list[Record] = []
    train(config_with(curve_every=3), splits, Workers(), Storage(str(tmp_path)), records.append)
    assert points(records) == []
