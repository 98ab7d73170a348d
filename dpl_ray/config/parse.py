"""From a nested dict to a checked `Config`, and back to YAML; conditions on more than one field are here."""

from __future__ import annotations

import math
import os
import re
import typing
from typing import Any

import yaml

from dpl_ray.config.policies import PolicyConfig
from dpl_ray.config.schema import BESIDE_RUNS, FILE_FORMS, STORAGE_SCHEMES, Config, OperationName
from dpl_ray.config.section import shown, suggest, validated


def parse_config(tree: dict[str, Any], *, in_cells: bool = False) -> Config:
    """Validate a nested dict; the first mistake is a `ValueError` naming field, value and what would be right.

    Args:
        in_cells: whether it is a comparison's: each cell trains in one process, so that any scale.num_workers but 0
            means 1, and a batch need not divide by it.
    """
    config = validated(Config, tree)
    if in_cells and config.scale.num_workers != 0:
        config = config.changed(scale={"num_workers": 1})
    _check_across(config)
    return config


def parse_policy(parameters: dict[str, Any]) -> PolicyConfig:
    """Validate a policy's name and parameters; the first mistake is a `ValueError` as of `parse_config`."""
    return validated(Config, {"policy": parameters}).policy


def _check_across(config: Config) -> None:
    """Conditions on more than one field."""
    if config.model.name == "wide_resnet" and (config.model.depth < 10 or (config.model.depth - 4) % 6):
        raise ValueError(f"model.depth={config.model.depth}: must be 6 n + 4 with n >= 1, as 10, 16, 22 or 28")
    (fewest, most), size = config.scale.worker_range, config.train.batch_size
    if size % (step := math.lcm(fewest, most) or 1):
        lower = size // step * step
        near = " or ".join(str(n) for n in (lower, lower + step) if n)
        num_cpus = os.cpu_count() or 1
        room = int(num_cpus / config.scale.cpus_per_worker)
        raise ValueError(
            f"train.batch_size={size}: the global batch must divide by {'both ends of ' * (fewest < most)}"
            f"scale.num_workers={shown(config.scale.num_workers)}; {near} would, or other workers"
            + (f" (without a cluster, the {num_cpus} CPUs here carry {room} at most)" if fewest > room else "")
        )
    if config.model.name in ("wide_resnet", "head") and config.model.weights is not None:
        raise ValueError(
            f"model.weights={config.model.weights}: there are none for model={config.model.name}; model=timm and "
            "model=torchvision have networks with weights"
        )
    frozen = f"model.train={config.model.train}" if config.model.train != "all" else ""
    if config.model.adapter is not None:
        if frozen:
            raise ValueError(f"{frozen}: beside adapters the whole backbone is frozen; leave out one of the two")
        frozen = f"model.adapter={config.model.adapter}"
    if frozen and config.model.weights is None:
        raise ValueError(
            f"{frozen}: what is frozen would stay as random as it begins; give model.weights (model=timm or "
            "model=torchvision), or train all"
        )
    if config.optim.num_warmup_steps >= config.train.num_steps:
        raise ValueError(
            f"optim.num_warmup_steps={config.optim.num_warmup_steps}: must be below "
            f"train.num_steps={config.train.num_steps}"
        )
    views = config.data.views
    if views.num_operations and len(set(views.exclude)) == len(typing.get_args(OperationName)):
        raise ValueError("data.views.exclude: leaves no operation; data.views.num_operations=0 takes none")
    if config.train.evaluate_every is not None and not config.data.validation_fraction:
        raise ValueError(
            f"train.evaluate_every={config.train.evaluate_every}: there is no validation split to evaluate on; set its "
            "share, as data.validation_fraction=0.1"
        )
    if getattr(config.policy, "shares", None) is not None and not getattr(config.policy, "alignment", True):
        raise ValueError("policy.shares: the alignment aims at them, and policy.alignment=false leaves it out")
    registry = config.registry
    if registry.name and not config.tracking.enabled:
        raise ValueError(
            f"registry.name={registry.name}: the registry is MLflow's, and tracking.enabled=false records nothing there"
        )
    if registry.alias == "latest" or re.fullmatch(r"v\d+", registry.alias):
        raise ValueError(f"registry.alias={registry.alias}: MLflow keeps latest, v1, v2, ... for itself; take another")
    if config.run.name in BESIDE_RUNS:
        raise ValueError(f"run.name={config.run.name}: something else of this name lies beside the runs; take another")
    scheme, separator, _ = config.run.storage_path.partition("://")
    if separator and scheme not in STORAGE_SCHEMES:
        raise ValueError(
            f"run.storage_path={config.run.storage_path}: there is no storage {scheme}://; it takes a local path, "
            f"{', '.join(f'{known}://' for known in STORAGE_SCHEMES)}{suggest(scheme, STORAGE_SCHEMES)}"
        )
    if (config.data.name == "features") != (config.model.name == "head"):
        raise ValueError(
            f"model={config.model.name}: data={config.data.name} "
            + (
                "has no images, but what a backbone said of them; it takes model=head"
                if config.data.name == "features"
                else "has images, which take a network; model=head takes data=features"
            )
        )
    own = config.data.name in (*FILE_FORMS, "features")
    if config.data.pool.mode == "stream" and not own:
        raise ValueError(
            f"data.pool.mode=stream: data={config.data.name} is in memory; your own files, data=image_folder, "
            "data=parquet, data=webdataset or data=features, can be streamed"
        )
    pool = config.data.pool
    if pool.cleaned and pool.foreign is None:
        raise ValueError("data.pool.cleaned=true: there is nothing to clean; set data.pool.foreign, as 0.5")
    for name in ("imbalance", "foreign"):
        if config.data.labels is not None and getattr(pool, name) is not None:
            raise ValueError(
                f"data.pool.{name}={getattr(pool, name):g}: makes a benchmark of true labels, and data.labels has "
                "pseudo-labels; leave out one of them"
            )
    for field in ("train", "unlabeled", "test", "labels"):
        if not own and getattr(config.data, field) is not None:
            raise ValueError(
                f"data.{field}={shown(getattr(config.data, field))}: data={config.data.name} brings its own images; "
                "your own files take data=image_folder, data=parquet or data=webdataset"
            )
    if own and config.data.train is None and (config.data.labels is None or config.data.name == "features"):
        forms = {
            "image_folder": "a folder with a subfolder per class, or a CSV of path,label",
            "parquet": "parquet files",
            "webdataset": "tars",
            "features": "a folder that dpl-ray embed labelled=true wrote",
        }
        raise ValueError(
            f"data.train is missing: data={config.data.name} needs the labelled images, as {forms[config.data.name]}"
        )
    if config.data.train is None and config.data.labels and config.data.num_labels_per_class is not None:
        raise ValueError(
            f"data.num_labels_per_class={config.data.num_labels_per_class}: without data.train there are pseudo-labels "
            "alone; data.labels_per_class takes the most confident of each class"
        )


def to_yaml(config: Config) -> str:
    """The resolved configuration as YAML; `parse_config(from_yaml(text))` gives it back."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
