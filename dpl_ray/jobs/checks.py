"""What is refused of any job that trains, before it begins: a folder or a device that does not fit."""

from __future__ import annotations

from dpl_ray.cluster.connect import check_shared
from dpl_ray.config.schema import Config

#: Field of `train` that is a choice on a GPU alone -> what a CPU does without it.
OF_A_GPU = {
    "compile": "on a CPU nothing is compiled: leave it false",
    "deterministic": "on a CPU a run gives the same weights, bit for bit, without it",
}


def check_places(config: Config) -> None:
    """Refuse a folder that the workers would not share, and what is a choice on a GPU alone."""
    for field, without in OF_A_GPU.items():
        if getattr(config.train, field) and not config.scale.use_gpu:
            raise ValueError(f"train.{field}=true: is for a GPU (scale.use_gpu=true); {without}")
    if config.scale.num_workers != 0:
        check_shared(config.scale, "run.storage_path", config.run.storage_path)
