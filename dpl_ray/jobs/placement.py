"""Where a training runs, where scale.num_workers is null, and with how many threads: chosen once, kept with the run.

Workers and threads decide in which order numbers are summed, and so the last bits of the weights. A run that goes on
therefore takes what its config.yaml has.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from dpl_ray.cluster.connect import cluster_address, nodes_for, room
from dpl_ray.config.schema import Config, ScaleConfig
from dpl_ray.data.dataset import ImageSet, Splits
from dpl_ray.training.threads import free_cores

NUM_WORKERS = 2  # on CPUs, where a job is not small
SMALL = 5e13  # floating-point operations of a training; up to so many a job is small


def place(config: Config, splits: Splits, saved: Mapping[str, Any]) -> tuple[Config, str]:
    """The configuration with its workers and threads, and a line that says why there are so many workers.

    Args:
        saved: the section `scale` of the run's config.yaml; empty where the run is new.

    Returns:
        The line is empty where scale.num_workers was given.
    """
    scale, before, why = config.scale, saved.get("num_workers"), ""
    before = tuple(before) if isinstance(before, list) else before
    if scale.num_workers is None:
        number, why = (before, "as before") if before is not None else _choose_workers(config, splits)
        scale = scale.changed(num_workers=number)
    if scale.threads_per_worker is None:
        threads = saved.get("threads_per_worker") if before == scale.num_workers else None
        scale = scale.changed(threads_per_worker=threads or _choose_threads(scale))
    threads = scale.threads_per_worker
    here = f" with {threads} thread{'s' * (threads != 1)}" if not scale.num_workers else ""
    return config.changed(scale=scale), f"scale=auto: {place_name(scale)}{here}, {why}" if why else ""


def place_name(scale: ScaleConfig) -> str:
    """Where a training runs, for messages."""
    fewest, most = scale.worker_range
    number = str(most) if fewest == most else f"{fewest} to {most}"
    return f"{number} Ray Train worker{'s' * (most != 1)}" if most else "this process"


def _choose_workers(config: Config, splits: Splits) -> tuple[int, str]:
    """How many, 0 for this process, and why."""
    scale = config.scale
    places = room(nodes_for(scale)[0], scale.cpus_per_worker, float(scale.use_gpu))
    most = places if scale.use_gpu else min(NUM_WORKERS, places, os.cpu_count() or 1)
    number = max(number for number in range(1, max(1, most) + 1) if config.train.batch_size % number == 0)
    if cluster_address(scale):
        return number, "as there is a cluster"
    if not isinstance(splits.unlabeled, ImageSet):
        return number, "as Ray Data reads the pool meanwhile"
    if number == 1:
        return 0, "as there is work for one worker alone"
    if scale.use_gpu:
        return number, "one for each GPU"
    operations = count_operations(config, splits)
    is_small = operations <= SMALL
    return (
        0 if is_small else number,
        f"as the job is {'small' if is_small else 'large'} ({operations:.1e} operations; small is up to {SMALL:.0e})",
    )


def count_operations(config: Config, splits: Splits) -> float:
    """Floating-point operations of the networks in all steps, if every strong view counts."""
    from dpl_ray.models import count_forward_operations

    channels, *size = splits.labeled.images.shape[1:]
    forward = count_forward_operations(config.model, channels, size, len(splits.class_names))
    return float(config.train.num_steps * passes_per_step(config) * forward)


def passes_per_step(config: Config) -> int:
    """Passes of one image through the network in a step of all phases; one with gradient is three."""
    train, is_supervised = config.train, config.policy.name == "supervised"
    labeled = 3 * train.batch_size * (1 + (train.baseline and not is_supervised))
    return labeled + (0 if is_supervised else (1 + 3) * train.mu * train.batch_size)


def _choose_threads(scale: ScaleConfig) -> int | None:
    """Of each worker; null: each node's cores are shared out among its workers."""
    if not scale.num_workers:
        return free_cores()
    return None if cluster_address(scale) else max(1, (os.cpu_count() or 1) // scale.worker_range[1])
