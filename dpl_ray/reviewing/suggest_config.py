"""The fields of `dpl-ray suggest`, and the command line that sets them."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from dpl_ray.config.overrides import JobConfig


class SuggestConfig(JobConfig):
    """All fields of `dpl-ray suggest`."""

    required: ClassVar = {"labels": "/path/to/labels"}
    instead: ClassVar = {"data.labels": "labels", "data.unlabeled": "pool", "train.seed": "seed", "num": "budget"}

    labels: str = Field("", description="folder or s3:// that dpl-ray label has written; required")
    budget: int = Field(100, ge=1, le=1000, description="images to suggest")
    seed: int = Field(0, ge=0, description="of the draw of candidates")
    output: str | None = Field(None, description="folder of page and table; null: LABELS-suggestions beside labels")
    checkpoint: str | None = Field(None, description="where the checkpoint lies now that made the labels; null: there")
    pool: str | None = Field(
        None,
        description="address that the pool's images are read by, as s3://...?endpoint_override=...; null: as labelled",
    )
