"""What is refused of any job that trains, before it begins: a folder that does not fit."""

from __future__ import annotations

from dpl_ray.cluster.connect import check_shared
from dpl_ray.config.schema import Config


def check_storage(config: Config) -> None:
    """Refuse a folder that the workers would not share."""
    if config.scale.num_workers != 0:
        check_shared(config.scale, "run.storage_path", config.run.storage_path)
