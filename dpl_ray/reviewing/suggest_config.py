"""The fields of `dpl-ray suggest`, and the command line that sets them."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from dpl_ray.config.overrides import load_section
from dpl_ray.config.section import Section


class SuggestConfig(Section):
    """All fields of `dpl-ray suggest`."""

    labels: str = Field("", description="folder or s3:// that dpl-ray label has written; required")
    budget: int = Field(100, ge=1, le=1000, description="images to suggest")
    seed: int = Field(0, ge=0, description="of the draw of candidates")
    output: str | None = Field(None, description="folder of page and table; null: LABELS-suggestions beside labels")
    checkpoint: str | None = Field(None, description="where the checkpoint lies now that made the labels; null: there")
    pool: str | None = Field(
        None,
        description="address that the pool's images are read by, as s3://...?endpoint_override=...; null: as labelled",
    )


def load_suggesting(overrides: Sequence[str] = (), start: SuggestConfig | None = None) -> SuggestConfig:
    """The configuration that `dpl-ray suggest OVERRIDES` runs with, or what the overrides make of `start`.

    Raises:
        ValueError: naming the field, the value and what would be right.
    """
    instead = {"data.labels": "labels", "data.unlabeled": "pool", "train.seed": "seed", "num": "budget"}
    return load_section(SuggestConfig, overrides, {"labels": "/path/to/labels"}, start, instead)
