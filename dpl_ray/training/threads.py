"""The threads of a training in this process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from dpl_ray.config.schema import ScaleConfig

SECONDS_TO_LOOK = 0.5  # at what the cores do


@contextmanager
def threads_of(scale: ScaleConfig) -> Iterator[None]:
    """What torch computes in this block has the threads of the training, if this process trains."""
    import torch

    before = torch.get_num_threads()
    if scale.num_workers == 0 and scale.threads_per_worker:
        torch.set_num_threads(scale.threads_per_worker)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def free_cores() -> int:
    """Cores that this process may use and that no program uses now, rounded; at least 1.

    It may use those of its affinity and of its container's limit, and no more than torch would take by itself.
    """
    import psutil
    import torch
    from joblib import cpu_count

    most: int = min(cpu_count(), torch.get_num_threads())
    if most == 1:
        return 1
    idle = sum(1 - busy / 100 for busy in psutil.cpu_percent(SECONDS_TO_LOOK, percpu=True))
    return max(1, min(most, round(idle)))
