"""What a run will take, from a few real steps of it on this machine."""

from __future__ import annotations

import resource
import statistics
import time
from dataclasses import dataclass

import torch

from dpl_ray.algorithm.policies import POLICIES
from dpl_ray.config.policies import FixMatchConfig, SupervisedConfig
from dpl_ray.config.schema import Config
from dpl_ray.data.batches.feed import BatchFeed
from dpl_ray.data.dataset import ImageSet, Splits
from dpl_ray.training.distributed import Workers
from dpl_ray.training.metrics import SUMS
from dpl_ray.training.state import build_state
from dpl_ray.training.step import train_step
from dpl_ray.training.threads import free_cores, threads_of

NUM_STEPS = 5
MAX_SECONDS = 10.0  # of the steps of a policy: a slow one is measured by fewer
MOST_COUNT = 0.9  # share of the pool's images in the steps: with fewer, later steps take longer


@dataclass(frozen=True)
class Timing:
    """The time of a step, and what follows from it for the whole run."""

    seconds_per_step: float  # median, of the global batch in this process
    seconds_per_baseline_step: float | None  # of the supervised baseline, where the run trains it
    num_steps: int  # of the run
    num_measured: int
    device: str
    num_threads: int
    peak_bytes: int  # most memory of this process so far; on a GPU, of the tensors there

    @property
    def place(self) -> str:
        """Where it was measured, in words."""
        return f"{self.device}, {self.num_threads} thread{'' if self.num_threads == 1 else 's'}"

    @property
    def seconds(self) -> float:
        """Of all steps; evaluations and checkpoints come on top."""
        return self.num_steps * (self.seconds_per_step + (self.seconds_per_baseline_step or 0.0))


def measure_steps(config: Config, splits: Splits, *, num_steps: int = NUM_STEPS) -> Timing:
    """Train so many steps and throw the result away.

    They have the threads of a training in this process: scale.threads_per_worker, or those that are free now. Where a
    policy leaves out most of the pool at first, as FixMatch does, the step is that in which all of it counts.

    Args:
        splits: with the pool in memory, or a sample of it.
    """
    num_threads = config.scale.threads_per_worker or free_cores()
    with threads_of(config.scale.changed(num_workers=0, threads_per_worker=num_threads)):
        return _timing(config, splits, num_steps, num_threads)


def _timing(config: Config, splits: Splits, num_steps: int, num_threads: int) -> Timing:
    seconds, counting = _measure(config, splits, num_steps)
    if counting < MOST_COUNT and POLICIES[config.policy.name].uses_unlabeled:
        all_counting, _ = _measure(config.changed(policy=FixMatchConfig(threshold=0.0)), splits, num_steps)
        seconds = max(seconds, all_counting, key=statistics.median)
    baseline = None
    if config.train.baseline and config.policy.name != "supervised":
        baseline, _ = _measure(config.changed(policy=SupervisedConfig()), splits, num_steps)
    device = _device(config)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device)
    return Timing(
        seconds_per_step=statistics.median(seconds),
        seconds_per_baseline_step=statistics.median(baseline) if baseline else None,
        num_steps=config.train.num_steps,
        num_measured=len(seconds),
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        num_threads=num_threads,
        peak_bytes=peak,
    )


def _device(config: Config) -> torch.device:
    return torch.device("cuda" if config.scale.use_gpu else "cpu")


def _measure(config: Config, splits: Splits, num_steps: int) -> tuple[list[float], float]:
    """Seconds of each step, and the share of the pool's images that counted (1 where none is used)."""
    workers = Workers(device=_device(config))
    pool = splits.unlabeled if POLICIES[config.policy.name].uses_unlabeled else None
    assert pool is None or isinstance(pool, ImageSet), "a sample of a pool that is streamed"
    channels, num_classes = splits.labeled.images.shape[1], len(splits.class_names)
    seconds: list[float] = []
    total = torch.zeros(len(SUMS), dtype=torch.float64)
    with torch.random.fork_rng(devices=[workers.device] if workers.device.type == "cuda" else []):
        state = build_state(config, channels, num_classes, workers, pool_size=len(pool or ()))
        feed = BatchFeed(config, splits.labeled, pool, 0, 1)
        for step in range(1 + num_steps):  # the first one, which allocates and compiles, is not counted
            began = time.perf_counter()
            sums = train_step(state, feed(step).to(workers.device), config, workers)
            total += sums.cpu()  # waits for a GPU
            if step:
                seconds.append(time.perf_counter() - began)
            if sum(seconds) > MAX_SECONDS:
                break
    counted = dict(zip(SUMS, total.tolist(), strict=True))
    share = counted["strong_views"] / counted["unlabeled"] if counted["unlabeled"] else 1.0
    return seconds, share
