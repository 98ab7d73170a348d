"""Labelling in actors: blocks on their way, and blocks over which processes die."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import torch

from dpl_ray.config.schema import ScaleConfig
from dpl_ray.labeling import on_ray
from dpl_ray.labeling.on_ray import MAX_DEATHS, WorkersFailedError
from dpl_ray.labeling.plan import MAX_DECODED_BYTES, Plan
from dpl_ray.runs.splits import write_splits
from dpl_ray.store.storage import Storage
from tests.builders import tiny_splits
from tests.labeling.jobs import label, make_checkpoint, parts, rows, summary, write_images, write_parquet

pytestmark = pytest.mark.ray
NUM_ROWS = 42  # in 11 blocks
DEADLY = 8


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_checkpoint(tmp_path_factory.mktemp("run"))


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    write_images(tmp_path / "pool", range(20))
    write_parquet(tmp_path / "pool" / "a.parquet", range(20, NUM_ROWS), row_group_size=4)
    return tmp_path / "pool"


def on_one_actor() -> dict[str, Any]:
    """Of the 4 CPUs, so that few tasks read at once, which take longer to start than to read."""
    address = ray.get_runtime_context().gcs_address
    return {"scale": {"num_workers": 1, "cpus_per_worker": 3.5, "address": address}}


@contextmanager
def threads_of_an_actor(cpus_per_worker: float) -> Iterator[None]:
    """In this process: some CPUs round by the number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(on_ray.num_threads(ScaleConfig(cpus_per_worker=cpus_per_worker)))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def dying(block: int, deaths: Path, times: int) -> Callable[[int], None]:
    """Kills the process that calls it with this block, so many times in all."""

    def die(number: int) -> None:
        if number == block and (not deaths.exists() or deaths.stat().st_size < times):
            with deaths.open("a") as file:
                file.write("x")
            os.kill(os.getpid(), signal.SIGKILL)

    return die


def die_in_tasks(monkeypatch: pytest.MonkeyPatch, die: Callable[[int], None]) -> None:
    whole = on_ray._decode

    def decode(plan: Plan, block: int, settings: Any) -> Any:
        die(block)
        return whole(plan, block, settings)

    monkeypatch.setattr(on_ray, "_decode", decode)


def die_in_actors(monkeypatch: pytest.MonkeyPatch, die: Callable[[int], None]) -> None:
    class Dying(on_ray._Actor):
        def __init__(self, *arguments: Any, **keywords: Any) -> None:
            super().__init__(*arguments, **keywords)
            whole = self._labeler.write

            def label(block: Any) -> Any:
                die(block.number)
                return whole(block)

            self._labeler = SimpleNamespace(write=label)

    monkeypatch.setattr(on_ray, "_Actor", Dying)


def die_in_starts(monkeypatch: pytest.MonkeyPatch, die: Callable[[int], None]) -> None:
    class Dying(on_ray._Actor):
        def __init__(self, *arguments: Any, **keywords: Any) -> None:
            die(DEADLY)
            super().__init__(*arguments, **keywords)

    monkeypatch.setattr(on_ray, "_Actor", Dying)


def test_what_reads_and_decodes_does_not_import_torch() -> None:
    code = "import sys, dpl_ray.labeling.on_ray, dpl_ray.labeling.decoding; print('torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "False\n"


def watch_blocks(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """(blocks on their way, most blocks that one actor has) whenever blocks are given to the actors."""
    whole, seen = on_ray._Run._give, list[tuple[int, int]]()

    def give(run: on_ray._Run) -> None:
        whole(run)
        given = [len(worker.blocks) for worker in run._workers]
        seen.append((run._num_on_their_way, max(given)))

    monkeypatch.setattr(on_ray._Run, "_give", give)
    return seen


def test_as_many_actors_as_there_is_room_for_with_a_task_that_reads_for_each() -> None:
    scale = ScaleConfig(cpus_per_worker=0.75)
    nodes = [{"CPU": 16.0}, {"CPU": 2.0}, {"CPU": 0.5}]
    assert on_ray.usual_actors(nodes, scale) == 16 + 2
    assert on_ray.count_actors(nodes, scale) == 21 + 2, "where so many are asked for"
    assert on_ray.usual_actors([{"CPU": 0.5}], scale) == 1


def test_a_new_actor_waits_until_there_is_room_beside_what_decodes(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [{"CPU": 3.0}]
    monkeypatch.setattr(on_ray.cluster, "connected_nodes", lambda: nodes)
    run = object.__new__(on_ray._Run)
    run._scale, run._shared_plan, run._shared_labeler = ScaleConfig(cpus_per_worker=0.75), None, None
    actor = SimpleNamespace(ready=SimpleNamespace(remote=object))
    run._actor_class = SimpleNamespace(remote=lambda *_: actor)
    run._workers, run._without_actor = [], [on_ray._Worker() for _ in range(4)]
    run._start_actors()
    assert (len(run._workers), len(run._without_actor)) == (3, 1), "the fourth would take the last CPU"
    nodes.append({"CPU": 1.0})
    run._start_actors()
    assert (len(run._workers), len(run._without_actor)) == (4, 0)


@pytest.mark.slow
def test_blocks_on_their_way_fill_half_of_the_object_stores_at_most(
    ray_cluster: None, checkpoint: str, pool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = watch_blocks(monkeypatch)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"object_store_memory": 4 * MAX_DECODED_BYTES})
    label(checkpoint, pool, tmp_path / "out", **on_one_actor())
    assert max(number for number, _ in seen) == 2
    assert len(rows(tmp_path / "out")) == NUM_ROWS


@pytest.mark.slow
def test_few_blocks_are_on_their_way_and_each_comes_once(
    ray_cluster: None, checkpoint: str, pool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = watch_blocks(monkeypatch)
    monkeypatch.setattr(on_ray, "BLOCKS_PER_ACTOR", 4)
    label(checkpoint, pool, tmp_path / "out", **on_one_actor())
    assert [max(numbers) for numbers in zip(*seen, strict=True)] == [4, on_ray.BLOCKS_GIVEN]
    with threads_of_an_actor(3.5):
        label(checkpoint, pool, tmp_path / "here")
    assert rows(tmp_path / "out") == rows(tmp_path / "here")
    assert len(parts(tmp_path / "out")) == 11


@pytest.mark.slow
def test_no_actor_keeps_a_second_block_while_another_has_none(
    ray_cluster: None, checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_images(tmp_path / "pool", range(8))
    seen = watch_blocks(monkeypatch)
    label(checkpoint, tmp_path / "pool", tmp_path / "out", scale={"num_workers": 2, "cpus_per_worker": 0.5})
    assert len(parts(tmp_path / "out")) == 2
    assert max(most for _, most in seen) == 1


@pytest.mark.slow
def test_images_that_are_lost_with_a_node_are_decoded_again(
    ray_cluster: None, checkpoint: str, pool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, lost = on_ray._Run._end_decode, list[int]()

    @ray.remote(num_cpus=0)
    def gone() -> None:
        raise ray.exceptions.ObjectReconstructionFailedError("0" * 56, "", "")

    def lose(run: on_ray._Run, reference: Any) -> None:
        whole(run, reference)
        if run._decoded[-1].number == DEADLY and len(lost) < MAX_DEATHS - 1:
            run._decoded[-1] = replace(run._decoded[-1], images=gone.remote())
            lost.append(DEADLY)

    monkeypatch.setattr(on_ray._Run, "_end_decode", lose)
    label(checkpoint, pool, tmp_path / "out", **on_one_actor())
    assert len(lost) == MAX_DEATHS - 1
    assert len(rows(tmp_path / "out")) == NUM_ROWS


@pytest.mark.slow
def test_an_actor_that_takes_too_much_memory_twice_is_made_up_for(
    ray_cluster: None, checkpoint: str, pool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, killed = on_ray._Run._end_label, list[Any]()

    def refuse(*_: Any) -> None:
        raise ray.exceptions.OutOfMemoryError("killed by the memory monitor")

    def end_label(run: on_ray._Run, worker: on_ray._Worker) -> Any:
        if worker.blocks[0][1].number != DEADLY or len(killed) == MAX_DEATHS - 1:
            return whole(run, worker)
        killed.append(worker.actor)
        with monkeypatch.context() as patched:
            patched.setattr(ray, "get", refuse)
            return whole(run, worker)

    monkeypatch.setattr(on_ray._Run, "_end_label", end_label)
    label(checkpoint, pool, tmp_path / "out", **on_one_actor())
    assert len(set(killed)) == MAX_DEATHS - 1
    assert len(rows(tmp_path / "out")) == NUM_ROWS


@pytest.mark.slow
def test_no_block_pays_for_actors_that_were_lost_while_they_had_nothing_to_do(
    ray_cluster: None, checkpoint: str, pool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, runs, lost = on_ray._Run._give, list[on_ray._Run](), list[Any]()

    def give(run: on_ray._Run) -> None:
        runs.append(run)
        idle = [worker.actor for worker in run._workers if worker.start is None and not worker.blocks]
        if len(lost) < 3:
            if len(idle) < 3:
                return  # until all have started
            lost.extend(idle)
            for actor in idle:
                ray.kill(actor)
        whole(run)

    monkeypatch.setattr(on_ray._Run, "_give", give)
    monkeypatch.setattr(on_ray, "BLOCKS_PER_ACTOR", 1)
    label(checkpoint, pool, tmp_path / "out", scale={"num_workers": 3, "cpus_per_worker": 0.3})
    assert len(rows(tmp_path / "out")) == NUM_ROWS
    assert len(lost) == 3
    assert set(runs[0]._deaths.values()) <= {1}


@pytest.mark.slow
def test_two_workers_select_by_the_certified_thresholds_as_one_process_does(
    ray_cluster: None, checkpoint: str, pool: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    unsure = make_checkpoint(run, scale=0.2)
    write_splits(Storage(str(run)), tiny_splits())
    answers = tmp_path / "answers.csv"
    answers.write_text("path,label\n" + "".join(f"pool/a.parquet:{row},ant\n" for row in range(NUM_ROWS - 20)))
    given = {"max_error": 0.9, "confidence": 0.6, "audit": str(answers)}
    with threads_of_an_actor(0.3):
        here = label(unsure, pool, tmp_path / "here", **given)
    label(unsure, pool, tmp_path / "out", **given, scale={"num_workers": 2, "cpus_per_worker": 0.3})
    assert rows(tmp_path / "out") == rows(tmp_path / "here")
    assert summary(tmp_path / "out")["certificate"] == here.certificate


@pytest.mark.slow
@pytest.mark.parametrize(
    ("die_in", "over", "advice"),
    [
        (die_in_tasks, r".*/0008\.png \.\.\. .*/0011\.png", "an image of these crashes its decoder .* rows_per_part=1"),
        (die_in_actors, r".*/0008\.png \.\.\. .*/0011\.png", "the model may .* batch_size goes on"),
        (die_in_starts, "the start of an actor", "the model may .* scale.num_workers goes on"),
    ],
    ids=["reads", "labels", "starts"],
)
def test_a_block_over_which_every_process_dies_ends_the_job_and_costs_no_other(
    ray_cluster: None,
    checkpoint: str,
    pool: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    die_in: Callable[[pytest.MonkeyPatch, Callable[[int], None]], None],
    over: str,
    advice: str,
) -> None:
    output, deaths = tmp_path / "out", tmp_path / "deaths"
    monkeypatch.setattr(on_ray, "BLOCKS_PER_ACTOR", 2)  # so that most of those before it are done
    with monkeypatch.context() as patched:
        die_in(patched, dying(DEADLY, deaths, 1000))
        with pytest.raises(WorkersFailedError, match=rf"3 processes died over {over}: {advice}") as held:
            label(checkpoint, pool, output, **on_one_actor())
    assert deaths.stat().st_size == MAX_DEATHS
    before = parts(output)
    assert len(before) >= (0 if die_in is die_in_starts else 6)
    assert held.tb is not None, "what the error holds takes no CPU from the next labelling"
    with monkeypatch.context() as patched:
        die_in(patched, dying(DEADLY, tmp_path / "again", MAX_DEATHS - 1))
        label(checkpoint, pool, output, **on_one_actor())
    assert (tmp_path / "again").stat().st_size == MAX_DEATHS - 1
    assert {name: part for name, part in parts(output).items() if name in before} == before
    assert len(rows(output)) == summary(output)["num_rows"] == NUM_ROWS
