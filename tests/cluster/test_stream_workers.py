"""A streamed pool over real gloo processes, without Ray: what one worker cannot read concerns all."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from dpl_ray.config.schema import Config
from dpl_ray.data.pool.windows import StreamedPool, Windows
from dpl_ray.data.splits.bad_images import write_bad
from dpl_ray.data.splits.sources import load_splits
from dpl_ray.store.storage import Storage
from dpl_ray.training import loop
from dpl_ray.training.distributed import Workers
from tests.builders import png, tiny_config, write_images
from tests.processes import SERVER

NUM_IMAGES, LOG_EVERY = 100, 2


def config_for(folder: Path) -> Config:
    return tiny_config(
        data={
            "name": "parquet",
            "train": str(folder / "train.parquet"),
            "unlabeled": str(folder / "pool"),
            "image_size": 4,
            "max_bad_fraction": 0.04,
            "pool": {"mode": "stream", "shuffle_rows": 40},
        },
        train={"batch_size": 4, "mu": 2, "num_steps": 10, "log_every": LOG_EVERY},
    )


def train_until_too_many(config: Config, workers: Workers, folder: Storage) -> dict[str, Any]:
    """What the run is ended by, and after how many steps."""
    steps, step = [], loop.train_step

    def counted(*given: Any) -> torch.Tensor:
        steps.append(given)
        return step(*given)

    splits = load_splits(config.data, seed=0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "train_step", counted)
        with pytest.raises(ValueError, match="max_bad_fraction") as error:
            loop.train(config, splits, workers, folder, lambda _: None)
    return {"message": str(error.value), "num_steps": len(steps)}


def worker(rank: int, world_size: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world_size)
    place = Path(folder)
    found = train_until_too_many(config_for(place), Workers.current(), Storage(str(place / str(rank))))
    torch.save(found, place / f"{rank}.pt")
    dist.destroy_process_group()


def test_what_one_worker_cannot_read_stops_all_in_the_same_step(tmp_path: Path) -> None:
    """2 bad images are known to worker 0's list alone, 3 are met by worker 1 alone: together they are too many."""
    write_images(tmp_path / "train.parquet", range(10))
    for number in range(NUM_IMAGES):
        path = tmp_path / "pool" / f"{number:02d}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(png(number))
    config = config_for(tmp_path)
    pool, windows = load_splits(config.data, seed=0).unlabeled, Windows.from_config(config)
    assert isinstance(pool, StreamedPool)
    share = windows.rows // 2
    known, met = (
        [row[0] for row in pool.read(start, count, windows.seed)[0]] for start, count in ((windows.rows, 2), (share, 3))
    )
    for path in met:
        Path(path).write_bytes(b"no image")
    write_bad(Storage(str(tmp_path / "0")), dict.fromkeys(known, "truncated"))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.start_processes(worker, (2, port, str(tmp_path)), nprocs=2, start_method=SERVER.get_start_method())
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert first == second
    assert first["num_steps"] == LOG_EVERY
    assert f"5 of {NUM_IMAGES} images of the pool cannot be read, as {tmp_path}/pool/" in first["message"]
    assert first["message"].count("(not an image)") == 3, "the new ones"
