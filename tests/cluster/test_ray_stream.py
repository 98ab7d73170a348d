"""Streamed pools through Ray: the same windows as without it, and a run whose workers are killed and change."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch
from ray.exceptions import RayError
from safetensors.torch import load_file

from dpl_ray.cluster.connect import cause_line, check_readers
from dpl_ray.cluster.windows import read_windows
from dpl_ray.cluster.workers import WorkersLostError
from dpl_ray.config.schema import Config, ScaleConfig
from dpl_ray.data.images.convert import DecodeSettings
from dpl_ray.data.pool.windows import StreamedPool, Windows, read_here
from dpl_ray.jobs.fit import fit
from tests.builders import tiny_config, write_images
from tests.data.test_pool_files import pool as list_files

pytestmark = pytest.mark.ray
DIES_AT = (7, 23)  # of 35 steps, with a checkpoint every 5, a window every 4, and 26 steps a pass


def test_ray_data_reads_the_same_windows_in_the_same_order(
    ray_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_images(tmp_path / "a.parquet", range(50), row_group_size=10, images=None)
    (tmp_path / "b.png").write_bytes(b"no image")
    monkeypatch.setattr("dpl_ray.cluster.windows.WINDOWS_PER_DATASET", 2)
    pool, windows = StreamedPool((list_files(tmp_path),), DecodeSettings(4, 3), ("0", "1")), Windows(2, 2, 4, seed=0)
    for expected, found in zip(
        read_here(pool, windows, range(1, 6), 1, 2), read_windows(pool, windows, range(1, 6), 1, 2), strict=True
    ):
        assert expected.keys() == found.keys()
        for name, rows in expected.items():
            assert np.array_equal(rows, found[name]), name


def test_what_fails_in_a_reading_task_is_named(ray_cluster: None, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"no image")
    pool = StreamedPool((list_files(tmp_path),), DecodeSettings(4, 3), ("0", "1"))
    with pytest.raises(RayError) as error:
        list(read_windows(pool, Windows(1, 2, 1, seed=0), range(1), 0, 1))
    assert re.search(r"UnreadablePoolError: none of 2 images .* as .*a\.png \(not an image\)", cause_line(error.value))


def config_for(folder: Path, name: str, num_workers: int | tuple[int, int]) -> Config:
    return tiny_config(
        data={
            "name": "parquet",
            "train": str(folder / "train.parquet"),
            "unlabeled": str(folder / "pool.parquet"),
            "image_size": 8,
            "pool": {"mode": "stream", "shuffle_rows": 64},
        },
        optim={"learning_rate": 0.003},
        train={"batch_size": 4, "mu": 4, "num_steps": 35, "checkpoint_every": 5, "baseline": False, "log_every": 5},
        run={"storage_path": str(folder / "runs"), "name": name},
        # Of 4 CPUs one is left: for two tasks that read, which take longer to start than to read.
        scale={
            "num_workers": num_workers,
            "max_failures": 1,
            "cpus_per_worker": 1.5,
            "address": ray.get_runtime_context().gcs_address if num_workers else None,
        },
        tracking={"enabled": False},
    )


def train_and_die_twice(starts: Path) -> Callable[..., Any]:
    """What a worker runs, where worker 1 is killed twice: within a window, after a checkpoint.

    Args:
        starts: file in which it writes the step that it starts from.
    """

    def work(*given: Any) -> Any:  # not of the module, which the workers would not find
        from ray.train import get_context

        from dpl_ray.jobs.phases import train_on_worker
        from dpl_ray.training import loop

        step, begun = loop.train_step, []

        def dying(state: Any, *more: Any) -> Any:
            if not begun:
                begun.append(state.step)
                with starts.open("a") as stream:
                    stream.write(f"{state.step}\n")
            if state.step == DIES_AT[starts.read_text().count("\n") - 1]:
                os.kill(os.getpid(), signal.SIGKILL)
            return step(state, *more)

        if get_context().get_world_rank() == 1:
            loop.train_step = dying  # in this process, which ends with the worker
        return train_on_worker(*given)

    return work


def test_a_streamed_run_that_one_process_finishes_after_killed_workers_ends_as_one_in_a_single_process(
    ray_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed within a pass, by 2 workers what 1 would take: no image is taken twice in a pass, and none left out."""
    write_images(tmp_path / "train.parquet", range(20))
    write_images(tmp_path / "pool.parquet", range(20, 421), row_group_size=40)  # 401 rows: uneven in every way
    alone = fit(config_for(tmp_path, "alone", 0))
    starts = tmp_path / "starts"
    monkeypatch.setattr("dpl_ray.jobs.phases.train_on_worker", train_and_die_twice(starts))
    with pytest.raises(WorkersLostError):
        fit(config_for(tmp_path, "changing", (1, 2)))
    assert starts.read_text() == "0\n5\n", "from the newest checkpoint before the kill"
    result = fit(config_for(tmp_path, "changing", 0))
    for name in ("student", "teacher"):
        mine, theirs = (load_file(Path(run.checkpoint) / f"{name}.safetensors") for run in (result, alone))
        for key, expected in theirs.items():
            torch.testing.assert_close(mine[key], expected, atol=1e-4, rtol=1e-3)


def test_workers_that_leave_no_cpu_to_read_with_are_refused(ray_cluster: None) -> None:
    check_readers(ScaleConfig(num_workers=2, cpus_per_worker=1.5))
    message = r"scale\.cpus_per_worker=1 with scale\.num_workers=4 leaves 0 of 4 CPUs, .* at most 0\.875 CPUs a worker"
    with pytest.raises(ValueError, match=message):
        check_readers(ScaleConfig(num_workers=4, cpus_per_worker=1))
