"""What a training tells: news as it goes on, and what it comes to."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from torch import Tensor

from dpl_ray.data.dataset import BadImage
from dpl_ray.training.distributed import Workers
from dpl_ray.training.metrics import mean_metrics
from dpl_ray.training.predictions import Predictions

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


class Window:
    """The steps since the last record: their sums, their times, and the news of them."""

    def __init__(
        self,
        workers: Workers,
        record: Callable[[Record], None],
        phase: str,
        num_steps: int,
        class_names: tuple[str, ...],
        sums: Tensor,
    ) -> None:
        """
        Args:
            sums: (len(SUMS),), those of this worker's steps since the last record, as a checkpoint may have them.
        """
        self.workers, self.record, self.phase, self.num_steps = workers, record, phase, num_steps
        self.class_names, self.sums = class_names, sums
        self.metrics: dict[str, float] = {}
        self.last_told, self.rate = 0.0, 0.0
        self.paused_at: float | None = None
        self._open()

    def _open(self) -> None:
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
        self.paused_at = time.perf_counter()
        yield
        self.began += time.perf_counter() - self.paused_at
        self.paused_at = None

    def _seconds(self) -> float:
        """Since the last record, pauses left out."""
        return max((self.paused_at or time.perf_counter()) - self.began, 1e-9)

    def close(self, step: int, thresholds: dict[str, Tensor]) -> None:
        """Sum over the workers, tell, and begin anew. Reading the sums waits for the device: the times are real."""
        self.metrics = mean_metrics(self.workers.all_reduce_sum(self.sums))
        seconds = self._seconds()
        self.metrics["throughput/images_per_second"] = self.images / seconds
        self.metrics["time/step"] = seconds / self.steps
        self.metrics["time/data_wait"] = self.waited / self.steps
        by_class = {
            f"threshold/{name}/{class_name}": value
            for name, values in thresholds.items()
            for class_name, value in zip(self.class_names, values.tolist(), strict=True)
        }
        self.tell(step, self.metrics | by_class)
        self.sums.zero_()
        self._open()

    def tell(self, step: int, metrics: dict[str, float], bad: tuple[BadImage, ...] = ()) -> None:
        if self.workers.rank == 0:
            if self.steps:
                self.rate = self.images / self._seconds()
            self.record(Record(self.phase, step, self.num_steps, self.rate, metrics, bad))
            self.last_told = time.perf_counter()
