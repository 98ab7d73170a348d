"""Searches with Ray Tune: what it runs is what this process would run, and its driver may be killed."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.util.state import list_actors, list_objects

from dpl_ray.commands import cli
from dpl_ray.config.compose import load_config
from dpl_ray.config.parse import to_yaml
from dpl_ray.data.splits.sources import load_splits
from dpl_ray.studies.tuning.config import load_search
from dpl_ray.studies.tuning.console import TrialsProgress
from dpl_ray.studies.tuning.job import Search
from tests.studies.test_tuning import overrides_for, run, scores, start

ON_RAY = ("scale.num_workers=1", "scale.threads_per_worker=1")


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_tune_runs_what_this_process_would_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alone, _ = run(tmp_path / "here")
    pool = load_splits(load_search(overrides_for(tmp_path))[0].data, seed=0, uses_unlabeled=True).unlabeled
    finish, stored, actors = TrialsProgress.finish, list[int](), dict[str, Any]()
    here = {"address": ray.get_runtime_context().gcs_address, "limit": 10_000, "raise_on_missing_output": False}
    before = {found.actor_id for found in list_actors(**here)}
    # What the tests before this one left in the cluster that they share.
    objects_before = {found.object_id for found in list_objects(**here)}

    def looking(self: TrialsProgress, *given: Any) -> None:
        """How many objects in Ray's store are as large as the pool, and which actors there are."""
        finish(self, *given)
        objects = {found.object_id: found.object_size for found in list_objects(**here)}
        new = [size for object_id, size in objects.items() if object_id not in objects_before]
        stored.append(sum(size >= pool.images.nbytes for size in new))
        actors.update({found.actor_id: found for found in list_actors(**here, detail=True)})

    monkeypatch.setattr(TrialsProgress, "finish", looking)
    result, output = run(tmp_path, *ON_RAY, "cpus_per_trial=0.5", "max_concurrent=2")
    monkeypatch.undo()
    assert stored[:2] == [1, 1], "two trials at once have one copy of the pool"
    trials = [found for actor_id, found in actors.items() if actor_id not in before]
    assert len(trials) == 2, "the third trial has the process of one that has ended"
    for found in trials:
        reserved = [amount for name, amount in found.required_resources.items() if name.startswith("CPU_group_0_")]
        assert reserved == [0.5], "cpus_per_trial"
    assert scores(result) == scores(alone)
    assert result.failed == {}
    assert "3/3 trials ended" in output
    assert not (tmp_path / "first" / "tune").exists(), "what Tune pickles is not kept"
    assert run(tmp_path, *ON_RAY)[0].trials == result.trials, "nothing is left to be run"


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_one_after_another_with_asha_and_optuna_and_a_trial_that_diverges(tmp_path: Path) -> None:
    space = ("space={optim:{learning_rate:{choice:[0.01,0.02,1e30]}}}", "num_trials=6")
    options = ("tune=asha_optuna", "max_concurrent=1", "random_trials=3", "cpus_per_trial=1")
    result, _ = run(tmp_path, *ON_RAY, *space, *options)
    assert [each.number for each in sorted(result.trials, key=lambda each: each.number)] == list(range(6))
    for each in result.trials:
        assert (each.state == "diverged") == (each.values["optim.learning_rate"] == 1e30)
    assert "diverged" in {each.state for each in result.trials}
    assert result.trials[0].state == "finished"


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("ray_cluster")
def test_the_driver_is_interrupted_then_killed_and_the_same_command_goes_on(tmp_path: Path) -> None:
    longer = ("train.num_steps=60", "train.evaluate_every=10", "train.log_every=10", "num_trials=4")
    whole, _ = run(tmp_path / "whole", *longer, "scale.threads_per_worker=1")
    options = (*longer, *ON_RAY, "max_concurrent=1", f"scale.address={ray.get_runtime_context().gcs_address}")
    folder = tmp_path / "first"
    for number, status, pattern in (
        (signal.SIGINT, cli.INTERRUPTED, "trial-0001/step-*/manifest.json"),
        (signal.SIGKILL, -signal.SIGKILL, "trial-0002/step-*/manifest.json"),
    ):
        process = start(tmp_path, *options)
        try:
            process.wait_for(lambda pattern=pattern: any(folder.glob(pattern)))  # type: ignore[misc]
            first = (folder / "trial-0000" / "result.json").read_bytes()
            os.kill(process.pid, number)  # of the driver alone: its trials end by themselves, somewhat later
            printed = process.end()
        finally:
            process.kill()
        assert process.status == status
        assert printed.count("interrupted; go on with: python -m pipelines.tune ") == 1, "by the first signal alone"
        assert not (folder / "trial-0003" / "result.json").exists(), "it was killed too late to say anything"
    result, output = run(tmp_path, *options)
    assert "first goes on, " in output
    assert scores(result) == scores(whole)
    assert (folder / "trial-0000" / "result.json").read_bytes() == first


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_a_trial_that_fails_is_told_of_and_run_again(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "first" / "trial-0001" / "config.yaml"
    other.parent.mkdir(parents=True)
    other.write_text(to_yaml(load_config(["data=digits", "policy=fixmatch"])))
    one_by_one = (*ON_RAY, "max_concurrent=1", "num_trials=2")
    result, output = run(tmp_path, *one_by_one)
    assert list(result.failed) == ["trial-0001"]
    assert "trial 1 failed: ValueError: run.name=trial-0001: this run exists with " in output
    assert "Traceback" not in "".join(capfd.readouterr())
    other.unlink()
    again, _ = run(tmp_path, *one_by_one)
    assert (again.failed, len(again.trials)) == ({}, 2)
    assert not (other.parent / "error.txt").exists()


def test_trials_are_counted_by_node(tmp_path: Path) -> None:
    def count(nodes: list[dict[str, float]], *overrides: str) -> int:
        return Search(*load_search([*overrides_for(tmp_path), *overrides])).count_places(nodes, "the cluster")

    assert count([{"CPU": 3.0}, {"CPU": 4.0}], "cpus_per_trial=2") == 3
    assert count([{"CPU": 0.3}], "cpus_per_trial=0.1") == 3
    with pytest.raises(ValueError, match=r"cpus_per_trial=2: no node of the cluster has that many CPUs; at most 1\.5"):
        count([{"CPU": 1.5}, {"CPU": 1.0}], "cpus_per_trial=2")
    with pytest.raises(ValueError, match=r"max_concurrent=4: with cpus_per_trial=2 the cluster has room for 3"):
        count([{"CPU": 7.0}], "cpus_per_trial=2", "max_concurrent=4")
    gpu = ("cpus_per_trial=2", "scale.use_gpu=true", "gpus_per_trial=0.25")
    assert count([{"CPU": 8.0, "GPU": 1.0}, {"CPU": 8.0}], *gpu) == 4
    with pytest.raises(ValueError, match=r"has that many CPUs beside 0\.25 of a GPU; at most 1$"):
        count([{"CPU": 1.0, "GPU": 1.0}, {"CPU": 8.0}], *gpu)
