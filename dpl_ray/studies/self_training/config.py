"""What self-training is made of besides a training run's configuration: rounds, and when they end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import Field

from dpl_ray.config.compose import load_config
from dpl_ray.config.overrides import as_yaml, refuse_near_miss
from dpl_ray.config.schema import FILE_FORMS, Config
from dpl_ray.config.section import Section, validated
from dpl_ray.runs.folder import FREE_FIELDS, FREE_SECTIONS, study_name
from dpl_ray.runs.provenance import describe_config


class SelfTrainConfig(Section):
    """The fields of self-training beside those of `Config`; on the command line without a section: `rounds=5`."""

    rounds: int = Field(
        3,
        ge=1,
        description="largest number of rounds after round 0; each trains on the pseudo-labels of the round before",
    )
    min_change: float = Field(
        0.01, ge=0, le=1, description="stop when a smaller share of the pool's pseudo-labels changed in a round"
    )
    checkpoint: str | None = Field(
        None, description="model of round 0: folder step-N, or of a run; null: round 0 trains one"
    )
    force: bool = Field(False, description="go on also from a model that is no better than guessing, or has collapsed")


def load_self_training(overrides: Sequence[str] = (), start: Config | None = None) -> tuple[Config, SelfTrainConfig]:
    """The configurations that `dpl-ray self-train OVERRIDES` runs with, or what the overrides make of `start`.

    Raises:
        ValueError: naming the field, the value and what would be right.
    """
    own = [text for text in overrides if "=" in text and text.partition("=")[0] in SelfTrainConfig.model_fields]
    rest = [text for text in overrides if text not in own]
    for text in rest:
        refuse_near_miss(text, SelfTrainConfig.model_fields)
    values = {key: _value(key, text) for key, _, text in (text.partition("=") for text in own)}
    options = validated(SelfTrainConfig, values)
    config = load_config(rest, start)
    check_self_training(config)
    return config, options


def check_self_training(config: Config) -> None:
    """Refuse data that have no pool to be labelled, or labels that the rounds are to make."""
    data = config.data
    if data.name not in (*FILE_FORMS, "features"):
        raise ValueError(
            f"data={data.name}: self-training labels a pool of files; it takes data=parquet, data=webdataset, "
            "data=image_folder or data=features with data.train and data.unlabeled"
        )
    if data.labels is not None:
        raise ValueError(f"data.labels={data.labels}: every round makes its own; leave it null")
    if data.unlabeled is None:
        raise ValueError(
            "data.unlabeled is missing: self-training needs the pool that is labelled, a folder, glob or parquet files"
        )


def self_training_tree(config: Config, options: SelfTrainConfig) -> dict[str, Any]:
    """What may not change when self-training goes on, besides where and how."""
    return config.model_dump(mode="json") | {"checkpoint": options.checkpoint}


def self_training_name(config: Config, options: SelfTrainConfig) -> str:
    """run.name, or a name that the same command has again and another configuration has not, so that it resumes."""
    fixed = {
        field: value
        for field, value in describe_config(config).items()
        if field not in FREE_FIELDS and field.partition(".")[0] not in FREE_SECTIONS
    }
    return study_name(config, "self-train", fixed | {"checkpoint": options.checkpoint})


def _value(key: str, text: str) -> Any:
    if key == "checkpoint":
        return None if text in ("", "null") else text
    return as_yaml(text)
