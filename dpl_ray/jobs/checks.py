"""What is refused of any job that trains, before it begins: a network and a folder that do not fit."""

from __future__ import annotations

from dpl_ray.cluster.connect import check_shared
from dpl_ray.config.schema import Config
from dpl_ray.data.dataset import Splits


def check_names(config: Config) -> None:
    """Refuse a name or weights that torchvision does not have; torch is loaded only to look there."""
    if config.model.name == "torchvision":
        from dpl_ray.models import check_names

        check_names(config.model)


def check_storage(config: Config) -> None:
    """Refuse a folder that the workers would not share."""
    if config.scale.num_workers:
        check_shared(config.scale, "run.storage_path", config.run.storage_path)


def check_network(config: Config, splits: Splits) -> None:
    """Refuse a network that does not take these images."""
    from dpl_ray.models import check_model

    channels, height, width = splits.labeled.images.shape[1:]
    check_model(config, channels, (height, width), len(splits.class_names))
