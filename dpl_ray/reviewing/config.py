"""The fields of `dpl-ray review`, and the command line that sets them."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from dpl_ray.config.overrides import JobConfig


class ReviewConfig(JobConfig):
    """All fields of `dpl-ray review`."""

    required: ClassVar = {"labels": "/path/to/labels"}
    instead: ClassVar = {
        "data.labels": "labels",
        "data.unlabeled": "pool",
        "data.image_column": "image_column",
        "train.seed": "seed",
    }

    labels: str = Field("", description="folder or s3:// that dpl-ray label has written; required")
    num: int = Field(200, ge=10, le=5000, description="images to draw")
    seed: int = Field(0, ge=0, description="of the draw")
    output: str | None = Field(None, description="folder of the page and its draw; null: LABELS-review beside labels")
    answers: str | None = Field(
        None,
        description="answers.csv that the page has saved: what it says of the labels; null: draw, and write a page",
    )
    confidence: float = Field(0.95, gt=0, lt=1, description="answers: of the intervals")
    pool: str | None = Field(
        None,
        description="address that the pool's images are read by, as s3://...?endpoint_override=...; null: as labelled",
    )
    image_column: str | None = Field(None, description="parquet column of the images; null: as labelled")
