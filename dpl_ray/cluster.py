"""Ray: is there room, and getting connected quietly."""

from __future__ import annotations

import logging
import os
from typing import Any

from dpl_ray.config import ScaleConfig

#: Set before Ray is imported; what the user has set stays.
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


def cluster_address(scale: ScaleConfig) -> str | None:
    """Where to connect; None where a cluster is started on this machine."""
    return scale.address or os.environ.get("RAY_ADDRESS")


def check_resources(scale: ScaleConfig) -> None:
    """Refuse what this machine cannot give; a cluster is asked once it is connected (`check_cluster`).

    Raises:
        ValueError: naming the field, what is asked for and what there is.
    """
    if scale.num_workers == 0 or cluster_address(scale) is not None:
        return
    _check(scale, float(os.cpu_count() or 1), _count_gpus() if scale.use_gpu else 0, "this machine")


def check_cluster(scale: ScaleConfig) -> None:
    """The same for the cluster that is connected."""
    import ray

    resources = ray.cluster_resources()
    _check(scale, resources.get("CPU", 0.0), int(resources.get("GPU", 0)), "the cluster")


def _check(scale: ScaleConfig, num_cpus: float, num_gpus: int, where: str) -> None:
    needed = scale.num_workers * scale.cpus_per_worker
    if needed > num_cpus:
        raise ValueError(
            f"scale.num_workers={scale.num_workers} with scale.cpus_per_worker={scale.cpus_per_worker:g} needs "
            f"{needed:g} CPUs, {where} has {num_cpus:g}; at most {int(num_cpus / scale.cpus_per_worker)} workers fit"
        )
    if scale.use_gpu and scale.num_workers > num_gpus:
        raise ValueError(
            f"scale.use_gpu=true with scale.num_workers={scale.num_workers} needs {scale.num_workers} GPUs, "
            f"{where} has {num_gpus}; scale.use_gpu=false trains on CPUs"
        )


def _count_gpus() -> int:
    import torch

    return torch.cuda.device_count()


def connect(scale: ScaleConfig) -> bool:
    """Connect to the cluster, or start one on this machine; true where this call did so.

    Raises:
        ValueError: there is no cluster at the address, or it has not got what the workers need.
    """
    for key, value in ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    import ray

    started = not ray.is_initialized()
    if started:
        address = cluster_address(scale)
        # Train asks the dashboard for the state of placement groups and complains every second without one.
        local: dict[str, Any] = {"include_dashboard": True, "dashboard_port": 0, "num_cpus": os.cpu_count()}
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **({} if address else local))
        except (ConnectionError, RuntimeError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ValueError(
                f"scale.address={address}: no Ray cluster answers there ({reason}); start one with "
                "`ray start --head`, or leave scale.address and RAY_ADDRESS empty to start one here"
            ) from None
    try:
        check_cluster(scale)
    except ValueError:
        if started:
            ray.shutdown()
        raise
    return started
