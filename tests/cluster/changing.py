"""A training that stands still at one step until it has lost a worker, and at another one until it has it back.

Beside the test file, because Ray's workers import it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from dpl_ray.cluster import workers
from dpl_ray.jobs import phases
from dpl_ray.store.storage import Storage
from tests.cluster.nodes import enter
from tests.processes import SECONDS

LOST_AT, BACK_AT = 10, 18


def hold(env: dict[str, str]) -> None:
    """Hold the training of this process, a client of the cluster with this environment; for `Command`."""
    enter(env)
    workers.SECONDS_TO_GROW, workers.SECONDS_UNTOLD = 1.0, 5.0
    phases.train_on_worker = held


def held(config: Any, folder: Storage, splits: Any, tell: Callable[[Any], None], stop: Any) -> Any:
    from ray.train import get_context

    num_workers = get_context().get_world_size()

    def wait(record: Any) -> None:
        tell(record)
        if (record.step, num_workers) in ((LOST_AT, 2), (BACK_AT, 1)):
            (folder / f"at-{record.step}").write(b"")
            time.sleep(SECONDS)
            raise AssertionError(f"{num_workers} workers were not ended")

    return phases.train_on_worker(config, folder, splits, wait, stop)
