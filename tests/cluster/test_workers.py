"""What watches over the workers of Ray Train, without Ray."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import warnings
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import ray
from ray._private import worker
from ray.train import ScalingConfig
from ray.train.v2._internal.execution.controller.state import ReschedulingState, RestartingState

from dpl_ray.cluster import local, trainer, workers
from dpl_ray.cluster.trainer import DataParallelTrainer, Trainer, _ElasticScaling
from dpl_ray.cluster.workers import Watch, _Begun
from tests.processes import SECONDS


def test_workers_that_make_no_progress_are_ended_and_those_that_do_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    ended, all_ended = list[str](), threading.Event()

    def kill(actor: str) -> None:
        ended.append(actor)
        if len(ended) == 2:
            all_ended.set()

    monkeypatch.setattr(ray, "kill", kill)
    watch = Watch(0.02, "2 of 1 CPUs each")
    for rank in range(2):
        watch.hear(_Begun(rank, 2, f"worker {rank}"))
    assert not watch.has_news, "of a step"
    watch.hear("a record")
    assert watch.has_news
    thread = threading.Thread(target=watch.run)
    thread.start()
    assert all_ended.wait(SECONDS)
    watch.end()
    thread.join()
    assert sorted(ended) == ["worker 0", "worker 1"]
    patient = Watch(SECONDS, "2 of 1 CPUs each")
    patient.hear(_Begun(0, 1, "worker 2"))
    patient.end()
    patient.run()
    assert len(ended) == 2


def test_that_no_worker_runs_is_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    state = {"worker": "busy"}

    def get(answer: Any, timeout: float) -> None:
        if state["worker"] != "well":
            raise ray.exceptions.RayActorError if state["worker"] == "lost" else ray.exceptions.GetTimeoutError

    watch = Watch(SECONDS, "2 of 1.5 CPUs and a GPU each")
    pauses = iter(["busy", "lost", "lost", "well", "lost"])

    def wait(_: float) -> bool:
        state["worker"] = next(pauses, "the end")
        if state["worker"] == "well":
            watch.hear("a record")
        return state["worker"] == "the end"

    monkeypatch.setattr(ray, "get", get)
    monkeypatch.setattr(workers, "SECONDS_UNTOLD", -1.0)
    monkeypatch.setattr(watch, "_ended", SimpleNamespace(wait=wait))
    assert not watch.is_working(), "none has begun"
    watch.hear(_Begun(0, 2, SimpleNamespace(__ray_ready__=SimpleNamespace(remote=lambda: None))))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        watch.run()
    line = "no worker runs: workers start once there is room for 2 of 1.5 CPUs and a GPU each; Ctrl-C ends the run"
    assert [str(each.message) for each in said] == [line, line]


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


def test_what_hangs_at_the_end_of_a_ray_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    hanging = psutil.Popen(["sleep", "1000"])
    monkeypatch.setattr(local, "_below_raylet", lambda: [hanging])
    monkeypatch.setattr(local, "_watchers", [subprocess.Popen(["cat"], stdin=subprocess.PIPE)])
    local.stop()
    assert hanging.wait(SECONDS) == -signal.SIGKILL


def test_a_ray_of_its_own_starts_no_process_that_a_run_has_no_use_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DataParallelTrainer, "_initialize_and_run_controller", lambda _, **settings: settings)
    monkeypatch.setattr(Trainer, "_run_controller", lambda _, **settings: settings)

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


def test_how_many_workers_go_on_is_said() -> None:
    watch = Watch(SECONDS, "2 of 1 CPUs each")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for world_size in (2, 2, 1, 2):
            for rank in range(world_size):
                watch.hear(_Begun(rank, world_size, "worker"))
    assert [str(each.message) for each in said] == [
        "a worker was lost: all go on from the newest checkpoint",
        "1 in place of 2 workers go on from the newest checkpoint",
        "2 in place of 1 workers go on from the newest checkpoint",
    ]


def test_workers_of_a_range_are_as_many_as_the_batch_divides_by_and_there_is_room_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nodes of 2 CPUs with a worker of 1.5 each; the batch divides by 1, 2 and 4."""
    scaling = ScalingConfig(num_workers=(1, 4), resources_per_worker={"CPU": 1.5}, elastic_resize_monitor_interval_s=0)
    policy = _ElasticScaling(scaling, [1, 2, 4])
    nodes, free, slept = {"CPU": 1.5}, dict[str, Any](), list[float]()
    found = {"reserved": 0, "answer": 9}
    monkeypatch.setattr(policy, "_maybe_send_resource_request", lambda: None)
    monkeypatch.setattr(
        policy, "_get_reserved_resources", lambda: {str(number): nodes for number in range(found["reserved"])}
    )
    monkeypatch.setattr(trainer, "_answering", lambda: set(map(str, range(found["answer"]))))
    monkeypatch.setattr(trainer, "available_resources_per_node", lambda: free)
    monkeypatch.setattr(trainer.time, "sleep", slept.append)

    def started(reserved: int, answer: int = 9) -> int | None:
        found.update(reserved=reserved, answer=answer)
        decision = policy.make_decision_for_non_running_worker_group()
        return getattr(decision, "num_workers", None)

    def changed(current: int, reserved: int, num_free: int) -> int | None:
        found.update(reserved=reserved)
        free.clear()
        free.update({str(number): {"CPU": 2.0} for number in range(num_free)} | {"busy": {"CPU": 1.0}})
        state = SimpleNamespace(num_workers=current, start_time=0.0)
        return getattr(policy.make_decision_for_running_worker_group(state, None), "num_workers", None)

    assert [started(number) for number in (1, 2, 3, 4, 5)] == [1, 2, 2, 4, 4]
    assert started(4, answer=3) == 2, "one is gone, which Ray does not know yet"
    assert not slept
    assert started(0) is None
    assert slept == [trainer.SECONDS_TO_WAIT], "for a node"
    assert changed(2, reserved=4, num_free=2) == 4
    assert changed(2, reserved=4, num_free=1) is None, "others hold what is left"
    assert changed(1, reserved=4, num_free=2) == 2
    assert changed(2, reserved=1, num_free=0) is None, "two that are well are not ended"
    policy.after_controller_state_update(None, RestartingState(training_failed_error=None))
    assert started(2) == 2, "lost workers hold their resources until others start"
    policy.after_controller_state_update(None, ReschedulingState(training_failed_error=None))
    assert started(2) is None, "others hold them"
    free["1"] = {"CPU": 2.0}
    assert started(2) == 1
