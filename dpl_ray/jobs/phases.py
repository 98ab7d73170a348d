"""The phases of a run, the supervised baseline and the policy: in this process, or on Ray Train's workers.

torch is imported where training begins: a mistake in fields, files or paths is answered before it is loaded.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from threading import Event
from typing import TYPE_CHECKING

from dpl_ray.cluster.workers import run_workers
from dpl_ray.config.policies import SupervisedConfig
from dpl_ray.config.schema import Config
from dpl_ray.data.dataset import ImageSet, Splits
from dpl_ray.runs.folder import RunFolder
from dpl_ray.runs.history_writer import HistoryWriter
from dpl_ray.store.storage import Storage
from dpl_ray.training.interruption import Interrupted, Stop, interruptible

if TYPE_CHECKING:
    from dpl_ray.data.pool.windows import WindowReader
    from dpl_ray.training.distributed import Workers
    from dpl_ray.training.records import Outcome, Record


def train_phases(
    config: Config,
    splits: Splits,
    folder: Storage,
    workers: Workers,
    tell: Callable[[Record], None],
    read: WindowReader | None = None,
) -> list[Outcome]:
    """The supervised baseline, where it is wanted, then the policy; each from its newest checkpoint.

    Args:
        folder: of the run, to which the records are added.
        tell: is told of every record, after it is kept.
        read: reads a pool that is streamed; None: this process does.
    """
    from dpl_ray.data.pool.windows import read_here
    from dpl_ray.training.determinism import algorithms
    from dpl_ray.training.loop import train

    outcomes, history = [], HistoryWriter(folder)

    def record(news: Record) -> None:
        if news.metrics:
            history.add(news)
        tell(news)

    try:
        with algorithms(deterministic=config.train.deterministic):
            if config.train.baseline and config.policy.name != "supervised":
                baseline = config.model_copy(update={"policy": SupervisedConfig()})
                place = folder / "baseline"
                outcomes.append(train(baseline, splits, workers, place, record, save_history=history.save))
            outcomes.append(train(config, splits, workers, folder, record, read or read_here, history.save))
    finally:
        history.save()
    return outcomes


def run_phases(
    config: Config,
    splits: Splits,
    folder: RunFolder,
    receive: Callable[[Record], None],
    say: Callable[[str], None],
    ends_at: float | None = None,
) -> list[Outcome]:
    """The outcomes of all phases, from Ray's workers or from this process.

    Args:
        say: is told what Ctrl-C has asked for.
        ends_at: when the training is interrupted, by `time.monotonic()`; None: never.

    Raises:
        Interrupted: by Ctrl-C, SIGTERM or the time; a checkpoint is saved.
    """
    train = _train_on_ray if config.scale.num_workers else _train_here
    with interruptible(config.run.grace_seconds, say, ends_at) as stop:
        try:
            found = train(config, splits, folder, receive, stop)
        except Interrupted as error:
            found = error
    if isinstance(found, Interrupted):
        found.by_time = stop.by_time
    if isinstance(found, BaseException):
        raise found
    if stop.is_set() and not stop.by_time:
        raise Interrupted("all steps are trained and saved")
    return found


def _train_here(
    config: Config, splits: Splits, folder: RunFolder, receive: Callable[[Record], None], stop: Stop
) -> list[Outcome]:
    import torch

    from dpl_ray.training.distributed import Workers

    device = torch.device("cuda" if config.scale.use_gpu else "cpu")
    return train_phases(config, splits, folder.storage, Workers(device=device, stop=stop), receive)


def _train_on_ray(
    config: Config, splits: Splits, folder: RunFolder, receive: Callable[[Record], None], stop: Stop
) -> list[Outcome] | BaseException:
    fewest, most = config.scale.worker_range
    found: list[Outcome] | BaseException = run_workers(
        partial(train_on_worker, config, folder.storage),
        splits,
        scale=config.scale,
        name=folder.name,
        storage_path=str(Storage(config.run.storage_path) / "ray"),
        on_news=receive,
        stop=stop,
        reads_data=not isinstance(splits.unlabeled, ImageSet),
        allowed=[number for number in range(fewest, most + 1) if config.train.batch_size % number == 0],
    )
    return found


def train_on_worker(
    config: Config, folder: Storage, splits: Splits, tell: Callable[[Record], None], stop: Event
) -> list[Outcome] | BaseException:
    import torch
    from ray.train import get_context
    from ray.train.torch import get_device

    from dpl_ray.cluster.windows import read_windows
    from dpl_ray.training.distributed import Workers
    from dpl_ray.training.faults import NonFiniteLossError

    num_threads = config.scale.threads_per_worker or (os.cpu_count() or 1) // get_context().get_local_world_size()
    torch.set_num_threads(max(1, num_threads))
    try:
        return train_phases(config, splits, folder, Workers.current(get_device(), stop), tell, read_windows)
    except (NonFiniteLossError, ValueError, Interrupted) as error:
        # Returned, not raised: another attempt would only meet it again, or train what was to be ended.
        return error
