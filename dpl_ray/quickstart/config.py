"""The fields of `dpl-ray quickstart`, and the command line that sets them."""

from __future__ import annotations

import re
from collections.abc import Sequence

from pydantic import Field, field_validator

from dpl_ray.config.compose import load_config
from dpl_ray.config.overrides import as_yaml
from dpl_ray.config.section import Section, suggest, validated

_UNITS = {"s": 1, "sec": 1, "min": 60, "m": 60, "h": 3600}


class QuickstartConfig(Section):
    """All fields of `dpl-ray quickstart` that are none of a training's."""

    folder: str = Field("", description="folder of your images, on this machine; may stand without its name; required")
    budget: str = Field("10min", description="time for all of it, as 90s, 10min or 2h")

    @field_validator("budget")
    @classmethod
    def _check_budget(cls, value: str) -> str:
        seconds_of(value)
        return value


def seconds_of(budget: str) -> float:
    """Of a time with its unit; `ValueError` where it is none, or none to train in."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]+)", budget.strip().lower())
    if not found or found[2] not in _UNITS:
        raise ValueError("must be a number and a unit")
    seconds = float(found[1]) * _UNITS[found[2]]
    if seconds < 30:
        raise ValueError("must be at least 30s: below that nothing is trained")
    return seconds


def load_quickstart(overrides: Sequence[str] = ()) -> tuple[QuickstartConfig, list[str]]:
    """The fields of this command, and the overrides that are left for the training.

    Raises:
        ValueError: naming the field, the value and what would be right.
    """
    values: dict[str, object] = {}
    rest = []
    for index, text in enumerate(overrides):
        key, equals, value = text.partition("=")
        if index == 0 and not equals:
            values["folder"] = text
        elif key in QuickstartConfig.model_fields:
            values[key] = value if key == "folder" else as_yaml(value)
        else:
            if near := suggest(key, QuickstartConfig.model_fields) if equals and "." not in key else "":
                raise ValueError(f"{text}: there is no field {key}{near}")
            rest.append(text)
    config = validated(QuickstartConfig, values)
    if not config.folder:
        raise ValueError("folder is missing: give the folder of your images, as photos")
    for text in rest:
        if text.startswith(("data.train=", "data.unlabeled=", "data.test=", "data=", "train.num_steps=", "config=")):
            raise ValueError(f"{text}: quickstart finds that itself; give all fields yourself to dpl-ray train")
    load_config(["data=image_folder", "data.train=photos", *rest])  # mistakes are answered before anything is looked at
    return config, rest
