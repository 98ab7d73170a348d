"""The field of `dpl-ray check` beside those of a training run, and the command line that sets them."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from dpl_ray.config.compose import load_config
from dpl_ray.config.overrides import refuse_near_miss
from dpl_ray.config.schema import Config
from dpl_ray.config.section import Section, validated


class CheckConfig(Section):
    """The fields of a check beside those of `Config`."""

    output: str = Field("check.html", min_length=1, description="file of the page, local or in a bucket")


def load_checking(overrides: Sequence[str] = (), start: Config | None = None) -> tuple[Config, CheckConfig]:
    """The configurations that `dpl-ray check OVERRIDES` runs with, or what the overrides make of `start`.

    Raises:
        ValueError: naming the field, the value and what would be right.
    """
    own = dict(text.split("=", 1) for text in overrides if text.startswith("output="))
    rest = [text for text in overrides if not text.startswith("output=")]
    for text in rest:
        refuse_near_miss(text, CheckConfig.model_fields)
    return load_config(rest, start), validated(CheckConfig, own)
