"""The training loop: batches into steps, and what is recorded, evaluated and saved on the way."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from dpl_ray.algorithm.policies import POLICIES
from dpl_ray.config.schema import CURVE_POINTS, Config
from dpl_ray.data.bad_images import read_bad
from dpl_ray.data.batches import BatchFeed, view_settings
from dpl_ray.data.dataset import BadImage, ImageSet, Splits
from dpl_ray.data.order import layer_seed
from dpl_ray.data.pool.windows import PoolStream, StreamedPool, WindowReader, Windows, read_here
from dpl_ray.store.storage import Storage
from dpl_ray.training.checkpoint import ModelInfo, list_checkpoints, load_state, save_checkpoint
from dpl_ray.training.distributed import Workers
from dpl_ray.training.evaluation import Predictions, classification_metrics, evaluate_split, predict_split
from dpl_ray.training.metrics import SUMS, mean_metrics
from dpl_ray.training.state import build_state
from dpl_ray.training.step import train_step

SECONDS_BETWEEN_PROGRESS = 0.5


@dataclass(frozen=True)
class Record:
    """News of a run from worker 0: always how far it is, and now and then metrics."""

    phase: str
    step: int
    num_steps: int
    images_per_second: float
    metrics: dict[str, float] = field(default_factory=dict)
    bad: tuple[BadImage, ...] = ()  # of a streamed pool, found since the last record


@dataclass(frozen=True)
class Outcome:
    """What is left of a finished run."""

    phase: str
    metrics: dict[str, float]
    thresholds: dict[str, list[float]]
    checkpoint: str
    seconds: float  # of this call
    training_seconds: float  # in steps alone, of all calls that trained
    test: Predictions | None = None  # of the last teacher on the test split; None where there is none


def train(
    config: Config,
    splits: Splits,
    workers: Workers,
    folder: Storage,
    record: Callable[[Record], None],
    read: WindowReader = read_here,
) -> Outcome:
    """Train to train.num_steps, from the newest checkpoint in `folder` where there is one.

    Every worker calls this with the same arguments; `record` is called on worker 0 alone, and `read` reads a pool that
    is streamed.
    """
    train_config, phase = config.train, config.policy["name"]
    image_shape = splits.labeled.images.shape[1:]
    info = ModelInfo(splits.class_names, image_shape[0], (image_shape[1], image_shape[2]))
    pool_size = len(splits.unlabeled)
    state = build_state(config, info.channels, len(info.class_names), workers, pool_size=pool_size)
    saved = list_checkpoints(folder)
    newest = workers.gather(saved[-1].name if saved else "none")
    if len(set(newest)) > 1:
        raise ValueError(
            f"run.storage_path: the workers see different newest checkpoints in {folder} ({', '.join(newest)}); "
            "give a folder that all nodes share, or s3://"
        )
    if saved:
        load_state(saved[-1], state, workers)
    views = view_settings(config.data.views)
    pool: ImageSet | PoolStream | None = None
    if POLICIES[phase].uses_unlabeled:
        pool = _open_pool(splits, config, workers, state.step, read)
    feed = BatchFeed(
        splits.labeled,
        pool,
        batch_size=train_config.batch_size,
        mu=train_config.mu,
        seed=train_config.seed,
        views=views,
        rank=workers.rank,
        world_size=workers.world_size,
    )
    curve_split = _curve_split(splits.test, train_config.curve_images)
    every = train_config.curve_every or max(1, train_config.num_steps // CURVE_POINTS)
    curve_every = every if len(curve_split) else None
    window = _Window(workers, record, phase, train_config.num_steps, info.class_names)
    began = time.perf_counter()
    with closing(feed):
        unreadable = _Unreadable(config, pool, splits.bad, folder, workers, window)
        while state.step < train_config.num_steps:
            # Layers that draw (dropout) do so from a function of seed, step and worker: no random state to save.
            torch.manual_seed(layer_seed(train_config.seed, state.step, workers.rank))
            asked = time.perf_counter()
            batch = feed(state.step).to(workers.device)
            waited = time.perf_counter() - asked
            sums = train_step(state, batch, config, views, workers)
            state.seconds += time.perf_counter() - asked
            window.add(sums, state.step, len(batch), waited)
            last = state.step == train_config.num_steps
            if state.step % train_config.log_every == 0 or last:
                window.close(state.step, state.policy.thresholds())
                unreadable.check(state.step)
            if _due(state.step, train_config.evaluate_every) and len(splits.validation):
                found = evaluate_split(state.teacher, splits.validation, workers)
                metrics = {f"validation/{key.removeprefix('eval/')}": value for key, value in found.items()}
                window.tell(state.step, metrics | {"time/training": state.seconds})
            if curve_every and (_due(state.step, curve_every) or last):
                with window.paused():
                    accuracy = evaluate_split(state.teacher, curve_split, workers)["eval/accuracy"]
                window.tell(state.step, {"curve/accuracy": accuracy, "curve/seconds": state.seconds})
            if _due(state.step, train_config.checkpoint_every) or last:
                save_checkpoint(folder, state, config, info, workers, keep=train_config.keep_checkpoints)
    scores: dict[str, float] = {}
    if len(splits.validation):
        found = evaluate_split(state.teacher, splits.validation, workers)
        scores |= {key.replace("eval/", "validation/"): value for key, value in found.items()}
    test = None
    if len(splits.test):
        probs = predict_split(state.teacher, splits.test, workers)
        scores |= classification_metrics(probs, torch.from_numpy(splits.test.targets))
        test = Predictions.from_probs(probs)
    window.tell(state.step, scores)
    return Outcome(
        phase=phase,
        metrics=window.metrics | scores,
        thresholds={name: values.tolist() for name, values in state.policy.thresholds().items()},
        checkpoint=str(folder / f"step-{state.step:08d}"),
        seconds=time.perf_counter() - began,
        training_seconds=state.seconds,
        test=test,
    )


def _open_pool(
    splits: Splits, config: Config, workers: Workers, first_step: int, read: WindowReader
) -> ImageSet | PoolStream:
    if not isinstance(splits.unlabeled, StreamedPool):
        assert isinstance(splits.unlabeled, ImageSet)
        return splits.unlabeled
    return PoolStream(
        splits.unlabeled,
        Windows.from_config(config),
        first_step=first_step,
        num_steps=config.train.num_steps,
        rank=workers.rank,
        world_size=workers.world_size,
        read=read,
    )


def _due(step: int, every: int | None) -> bool:
    return every is not None and step % every == 0


def _curve_split(test: ImageSet, num_images: int) -> ImageSet:
    """The same test images for every run: drawn, because a test split may be sorted by class."""
    return test.subset(np.sort(np.random.default_rng(0).permutation(len(test))[:num_images]))


class _Window:
    """The steps since the last record: their sums, their times, and the news of them."""

    def __init__(
        self,
        workers: Workers,
        record: Callable[[Record], None],
        phase: str,
        num_steps: int,
        class_names: tuple[str, ...],
    ) -> None:
        self.workers, self.record, self.phase, self.num_steps = workers, record, phase, num_steps
        self.class_names = class_names
        self.metrics: dict[str, float] = {}
        self.last_told, self.rate = 0.0, 0.0
        self._open()

    def _open(self) -> None:
        self.sums = torch.zeros(len(SUMS), dtype=torch.float64, device=self.workers.device)
        self.began, self.waited, self.steps, self.images = time.perf_counter(), 0.0, 0, 0

    def add(self, sums: Tensor, step: int, num_images: int, waited: float) -> None:
        """Count a step; now and then say how far the run is."""
        self.sums += sums
        self.steps += 1
        self.images += num_images * self.workers.world_size
        self.waited += waited
        if time.perf_counter() - self.last_told > SECONDS_BETWEEN_PROGRESS:
            self.tell(step, {})

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What is done meanwhile does not count as training time."""
        began = time.perf_counter()
        yield
        self.began += time.perf_counter() - began

    def close(self, step: int, thresholds: dict[str, Tensor]) -> None:
        """Sum over the workers, tell, and begin anew. Reading the sums waits for the device: the times are real."""
        self.metrics = mean_metrics(self.workers.all_reduce_sum(self.sums))
        seconds = time.perf_counter() - self.began
        self.metrics["throughput/images_per_second"] = self.images / seconds
        self.metrics["time/step"] = seconds / self.steps
        self.metrics["time/data_wait"] = self.waited / self.steps
        by_class = {
            f"threshold/{name}/{class_name}": value
            for name, values in thresholds.items()
            for class_name, value in zip(self.class_names, values.tolist(), strict=True)
        }
        self.tell(step, self.metrics | by_class)
        self._open()

    def tell(self, step: int, metrics: dict[str, float], bad: tuple[BadImage, ...] = ()) -> None:
        if self.workers.rank == 0:
            seconds = max(time.perf_counter() - self.began, 1e-9)
            if self.steps:
                self.rate = self.images / seconds
            self.record(Record(self.phase, step, self.num_steps, self.rate, metrics, bad))
            self.last_told = time.perf_counter()


class _Unreadable:
    """Images of a streamed pool that cannot be read: counted over all workers and told; too many stop the run."""

    def __init__(
        self,
        config: Config,
        pool: ImageSet | PoolStream | None,
        others: tuple[BadImage, ...],
        folder: Storage,
        workers: Workers,
        window: _Window,
    ) -> None:
        """
        Args:
            others: of the run's unreadable images those that are not of the pool.
            folder: of the run, whose list has those that an earlier start has found.
        """
        self.stream = pool if isinstance(pool, PoolStream) else None
        self.limit, self.workers, self.window = config.data.max_bad_fraction, workers, window
        #: Sample id -> reason; at most data.max_bad_fraction of the pool, or the run has stopped.
        self.known: dict[str, str] = {}
        if self.stream is not None:
            # Of one worker: the list may grow while they read it, and all have to stop in the same step.
            self.known = workers.gather({} if workers.rank else read_bad(folder))[0]
            for image in others:
                self.known.pop(image.id, None)

    def check(self, step: int) -> None:
        """`ValueError`, on every worker, where they are more than data.max_bad_fraction of the pool."""
        if self.stream is None:
            return
        found = [image for images in self.workers.gather(self.stream.take_bad()) for image in images]
        new = {image.id: image.reason for image in found if image.id not in self.known}
        self.known |= new
        if new:
            bad = tuple(BadImage(*item) for item in new.items())
            self.window.tell(step, {"data/unreadable": float(len(self.known))}, bad)
        if len(self.known) > self.limit * self.stream.pool_size:
            listed = ", ".join(f"{name} ({reason})" for name, reason in islice((new or self.known).items(), 3))
            raise ValueError(
                f"data.max_bad_fraction={self.limit}: {len(self.known)} of {self.stream.pool_size} images of the pool "
                f"cannot be read, as {listed}; bad_images.csv has those found so far; repair or remove them, or raise "
                "the limit"
            )
