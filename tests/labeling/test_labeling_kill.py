"""Exactly once: the job, or a process of it, is killed at random moments; in the end every sample is there once."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.labeling.gate import hold, let_through, num_parts
from tests.labeling.jobs import label, make_checkpoint, parts, rows, summary, write_images, write_parquet
from tests.processes import Command, descendants

NUM_IMAGES, NUM_ROWS = 150, 250


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_checkpoint(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pool")
    write_images(folder, range(NUM_IMAGES))
    write_parquet(folder / "a.parquet", range(NUM_IMAGES, NUM_IMAGES + NUM_ROWS - 50))
    write_parquet(folder / "b.parquet", range(NUM_IMAGES + NUM_ROWS - 50, NUM_IMAGES + NUM_ROWS))
    return folder


@pytest.fixture(scope="module")
def whole(checkpoint: str, pool: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of a labelling that nothing interrupted."""
    output = tmp_path_factory.mktemp("whole") / "out"
    label(checkpoint, pool, output, rows_per_part=5)
    return output


def start(checkpoint: str, pool: Path, output: Path, *more: str, prepare: Callable[[], None] | None = None) -> Command:
    fields = [f"checkpoint={checkpoint}", f"pool={pool}", f"output={output}", "rows_per_part=5", "batch_size=3"]
    return Command("pipelines.label", [*fields, "tracking.enabled=false", *more], output.parent / "printed", prepare)


def check_same(output: Path, whole: Path) -> None:
    found, expected = rows(output), rows(whole)
    assert len(found) == NUM_IMAGES + NUM_ROWS
    assert found.keys() == expected.keys()
    for sample_id, row in found.items():
        other = expected[sample_id]
        assert row["pseudo_label"] == other["pseudo_label"], sample_id
        assert row["confidence"] == pytest.approx(other["confidence"], abs=1e-4)
        assert row["weight"] == pytest.approx(other["weight"], abs=1e-3)
    told = summary(output)
    assert told["num_selected"] + told["num_rejected"] + told["num_unreadable"] == len(found)
    assert len(parts(output)) == len(parts(whole)) == num_parts(output)
    assert not list(output.glob(".*")), "nothing half written is left"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_job_is_killed_at_random_moments_and_goes_on(
    checkpoint: str, pool: Path, whole: Path, tmp_path: Path
) -> None:
    seed = random.SystemRandom().randrange(10**6)
    print(f"seed {seed}")
    moments = random.Random(seed)
    output, total = tmp_path / "out", len(parts(whole))
    before: dict[str, tuple[int, bytes]] = {}
    for target in sorted(moments.sample(range(1, total), 3)):
        process = start(checkpoint, pool, output, "scale.num_workers=0")
        process.wait_for(lambda target=target: num_parts(output) >= target)  # type: ignore[misc]
        process.kill()
        after = parts(output)
        assert {name: part for name, part in after.items() if name in before} == before, seed
        before = after
    process = start(checkpoint, pool, output, "scale.num_workers=0")
    told = process.end()
    assert process.status == 0, told
    assert "logging.cc" not in told, "nothing of Ray's core"
    assert {name: part for name, part in parts(output).items() if name in before} == before, "not computed again"
    check_same(output, whole)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.ray
def test_an_actor_is_killed_then_a_task_then_the_job_and_all_are_made_up_for(
    checkpoint: str, pool: Path, whole: Path, tmp_path: Path
) -> None:
    seed = random.SystemRandom().randrange(10**6)
    print(f"seed {seed}")
    moments = random.Random(seed)
    output, total = tmp_path / "out", len(parts(whole))
    # The rest of a CPU has room for two tasks that read: a process each, which take longer to start than to read.
    arguments = ("scale.num_workers=1", f"scale.cpus_per_worker={(os.cpu_count() or 1) - 0.5}")
    first, second, third = sorted(moments.sample(range(1, total), 3))

    def let_through_to(number: int) -> None:
        let_through(output, number)
        process.wait_for(lambda: num_parts(output) >= number)

    let_through(output, first)
    process = start(checkpoint, pool, output, *arguments, prepare=hold)
    let_through_to(first)
    actors = [pid for pid, title in descendants(process.pid).items() if "ray::_Actor" in title]
    assert actors, "the actor is not found"
    for pid in actors:
        os.kill(pid, signal.SIGKILL)
    let_through_to(second)
    titles = ("ray::_Actor", "ray::_decode")
    tasks = [pid for pid, title in descendants(process.pid).items() if title.startswith(titles)]
    assert tasks, "neither the actor nor a task is found"
    os.kill(moments.choice(tasks), signal.SIGKILL)
    let_through_to(third)
    process.kill()
    assert "logging.cc" not in process.end(), "nothing of Ray's core"
    before = parts(output)
    assert len(before) == third, seed
    label(checkpoint, pool, output, rows_per_part=5)
    assert {name: part for name, part in parts(output).items() if name in before} == before, "not computed again"
    check_same(output, whole)
