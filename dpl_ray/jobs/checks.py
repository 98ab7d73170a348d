"""What is refused of any job that trains, before it begins: a folder or a device that does not fit."""

from __future__ import annotations

from dpl_ray.cluster.connect import check_shared
from dpl_ray.config.schema import Config


def check_places(config: Config) -> None:
    """Refuse a folder that the workers would not share, and algorithms that are a choice on a GPU alone."""
    if config.train.deterministic and not config.scale.use_gpu:
        raise ValueError(
            "train.deterministic=true: is for a GPU (scale.use_gpu=true); on a CPU a run gives the same weights, bit "
            "for bit, without it"
        )
    if config.scale.num_workers != 0:
        check_shared(config.scale, "run.storage_path", config.run.storage_path)
