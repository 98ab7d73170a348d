"""The training loop: batches into steps, and what is recorded, scored and saved on the way."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from typing import Any

import torch

from dpl_ray.algorithm.policies import POLICIES
from dpl_ray.config.schema import Config
from dpl_ray.data.batches.feed import BatchFeed
from dpl_ray.data.dataset import ImageSet, Splits
from dpl_ray.data.order import layer_seed
from dpl_ray.data.pool.windows import PoolFeed, StreamedPool, WindowReader, Windows, read_here
from dpl_ray.store.storage import Storage
from dpl_ray.training.capture import Captured
from dpl_ray.training.checkpoint import ModelInfo, list_checkpoints, load_state, save_checkpoint
from dpl_ray.training.distributed import Workers
from dpl_ray.training.faults import raise_fault
from dpl_ray.training.interruption import Interrupted
from dpl_ray.training.memory import keep_freed_memory
from dpl_ray.training.prefetch import DeviceFeed
from dpl_ray.training.records import Outcome, Record, Window
from dpl_ray.training.schedule import CheckpointClock, Wish, due_after
from dpl_ray.training.scores import Scores
from dpl_ray.training.state import TrainState, build_state, standardize
from dpl_ray.training.step import train_step
from dpl_ray.training.unreadable import Unreadable

STANDARDIZED_ROWS = 65_536  # of a streamed pool of features, by which these are scaled


def train(
    config: Config,
    splits: Splits,
    workers: Workers,
    folder: Storage,
    record: Callable[[Record], None],
    read: WindowReader = read_here,
    save_history: Callable[[], int] = lambda: 0,
) -> Outcome:
    """Train to train.num_steps, from the newest checkpoint in `folder` where there is one.

    Every worker calls this with the same arguments; `record` is called on worker 0 alone, and `read` reads a pool that
    is streamed. `save_history` is as `save_checkpoint` has it.

    Raises:
        Interrupted: `workers.stop` was set; a checkpoint is saved.
    """
    began = time.perf_counter()
    if workers.device.type == "cpu":
        keep_freed_memory()
    phase, num_steps, seed = config.policy.name, config.train.num_steps, config.train.seed
    info = ModelInfo.of(splits)
    state = _start(config, info, splits, folder, workers)
    pool = _open_pool(splits, config, workers, state.step, read) if POLICIES[phase].uses_unlabeled else None
    window = Window(workers, record, phase, num_steps, info.class_names, state.sums)
    scores = Scores(state, splits, config.train.curve_images, workers)
    clock = CheckpointClock(config.train.checkpoint_seconds)
    captured = Captured(state, config, workers)
    batches = BatchFeed(config, splits.labeled, pool, workers.rank, workers.world_size)
    with closing(DeviceFeed(batches, workers.device, num_steps)) as feed:
        unreadable = Unreadable(config, pool, splits.bad, folder, workers, window)
        while state.step < num_steps:
            # Layers that draw (dropout) do so from a function of seed, step and worker: no random state to save.
            _seed(layer_seed(seed, state.step, workers.rank), workers.device)
            asked = time.perf_counter()
            batch = feed(state.step)
            waited = 0.0 if captured.is_busy() else time.perf_counter() - asked
            state.wish = clock.wish(workers.stop)
            sums = captured(train_step, batch)
            window.add(sums, state.step, len(batch), waited)
            state.wish = _agreed_wish(state, config, workers)
            due = due_after(state.step, config.train, state.wish)
            if state.fixed is not None and any(due):
                raise_fault(state.fixed.faults, workers)
            if due.record:
                window.close(state.step, state.policy.thresholds())
                if state.fixed is not None:
                    state.fixed.adapt()
            state.seconds += time.perf_counter() - asked
            if due.record:
                unreadable.check(state.step)
            with window.paused():
                if due.validation and (found := scores.validation()):
                    window.tell(state.step, found | {"time/training": state.seconds})
                if due.curve and (found := scores.curve()):
                    window.tell(state.step, found)
                if due.checkpoint:
                    with clock.saving():
                        keep = config.train.keep_checkpoints
                        save_checkpoint(folder, state, config, info, workers, keep=keep, save_history=save_history)
            if state.wish is Wish.STOP:
                raise Interrupted(f"step {state.step:,} of {num_steps:,} of {phase} is saved")
    found, test = scores.final()
    window.tell(state.step, found)
    return Outcome(
        phase=phase,
        metrics=window.metrics | found,
        thresholds={name: values.tolist() for name, values in state.policy.thresholds().items()},
        checkpoint=str(folder / f"step-{state.step:08d}"),
        seconds=time.perf_counter() - began,
        training_seconds=state.seconds,
        test=test,
    )


def _seed(seed: int, device: torch.device) -> None:
    """`torch.manual_seed`, which would note for three kinds of devices that are not there where it was called."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed_all(seed)


def _start(config: Config, info: ModelInfo, splits: Splits, folder: Storage, workers: Workers) -> TrainState:
    """The state of the newest checkpoint, or that of step 0."""
    saved = list_checkpoints(folder)
    model = config.model.changed(weights=None) if saved else config.model  # those of a checkpoint are in it
    num_classes = len(info.class_names)
    state = build_state(
        config.changed(model=model),
        info.channels,
        num_classes,
        workers,
        pool_size=len(splits.unlabeled),
        labeled_counts=torch.from_numpy(splits.labeled.targets).bincount(minlength=num_classes),
    )
    newest = workers.gather_json(saved[-1].name if saved else "none")
    if len(set(newest)) > 1:
        raise ValueError(
            f"run.storage_path: the workers see different newest checkpoints in {folder} ({', '.join(newest)}); "
            "give a folder that all nodes share, or s3://"
        )
    if saved:
        load_state(saved[-1], state, workers)
    elif config.model.name == "head":
        known: Any = splits.unlabeled
        if isinstance(known, StreamedPool):  # its first rows: spans in random order
            known = known.take(0, min(len(known), STANDARDIZED_ROWS), config.train.seed)
        standardize(state, [splits.labeled.images, known.images])
    return state


def _agreed_wish(state: TrainState, config: Config, workers: Workers) -> Wish:
    """What all workers do after a step: several GPUs, which do not read its sums, ask worker 0 before a record."""
    if state.fixed is None or workers.world_size == 1:
        return state.wish
    is_asked = due_after(state.step, config.train).record
    return Wish(workers.gather_json(state.wish.value)[0]) if is_asked else Wish.NOTHING


def _open_pool(
    splits: Splits, config: Config, workers: Workers, first_step: int, read: WindowReader
) -> ImageSet | PoolFeed:
    if not isinstance(splits.unlabeled, StreamedPool):
        assert isinstance(splits.unlabeled, ImageSet)
        return splits.unlabeled
    return PoolFeed(
        splits.unlabeled,
        Windows.from_config(config),
        first_step=first_step,
        num_steps=config.train.num_steps,
        rank=workers.rank,
        world_size=workers.world_size,
        read=read,
    )
