"""What watches over the workers of Ray Train, without Ray."""

from __future__ import annotations

import subprocess
import sys
import threading
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray._private import worker

from dpl_ray.cluster import local
from dpl_ray.cluster.trainer import DataParallelTrainer, Trainer
from dpl_ray.cluster.workers import Watch, _Begun
from tests.processes import SECONDS


def test_workers_that_make_no_progress_are_ended_and_those_that_do_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    ended, all_ended = list[str](), threading.Event()

    def kill(actor: str) -> None:
        ended.append(actor)
        if len(ended) == 2:
            all_ended.set()

    monkeypatch.setattr(ray, "kill", kill)
    watch = Watch(0.02)
    for rank in range(2):
        watch.hear(_Begun(rank, f"worker {rank}"))
    assert not watch.has_news, "of a step"
    watch.hear("a record")
    assert watch.has_news
    thread = threading.Thread(target=watch.run)
    thread.start()
    assert all_ended.wait(SECONDS)
    watch.end()
    thread.join()
    assert sorted(ended) == ["worker 0", "worker 1"]
    patient = Watch(SECONDS)
    patient.hear(_Begun(0, "worker 2"))
    patient.end()
    patient.run()
    assert len(ended) == 2


def test_a_service_of_ray_that_is_gone_is_an_error_while_its_answer_is_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    never = threading.Event()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        found = {"raylet": [SimpleNamespace(process=process)], "dashboard": []}
        monkeypatch.setattr(worker, "_global_node", SimpleNamespace(all_processes=found))
        assert local.while_alive(lambda: "an answer") == "an answer"
        with pytest.raises(ZeroDivisionError):
            local.while_alive(lambda: 1 // 0)
        process.kill()
        with pytest.raises(local.EndedError, match=r"^Ray's raylet has ended \(status -9\)$"):
            local.while_alive(never.wait)
    never.set()


def test_a_ray_of_its_own_starts_no_process_that_a_run_has_no_use_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DataParallelTrainer, "_initialize_and_run_controller", lambda _, **settings: settings)

    def parts(is_own: bool, reads_data: bool = False) -> tuple[set[str], Any]:
        trainer = Trainer(print, is_own=is_own, reads_data=reads_data)
        callbacks = {type(each).__name__ for each in trainer._create_default_callbacks()}
        return callbacks, trainer._initialize_and_run_controller(scaling_policy="Ray's")["scaling_policy"]

    callbacks, policy = parts(is_own=False)
    assert "DatasetsCallback" not in callbacks
    assert policy == "Ray's"
    own_callbacks, own_policy = parts(is_own=True)
    assert callbacks - own_callbacks == {"PlacementGroupCleanerCallback"}
    own_policy.after_controller_start(SimpleNamespace(run_id="a"))  # would start an actor to tell it
    own_policy.make_decision_for_non_running_worker_group()
    assert not ray.is_initialized()
    assert parts(is_own=True, reads_data=True) == (own_callbacks, "Ray's")
