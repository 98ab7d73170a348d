"""The fields of `dpl-ray explain`, and the command line that sets them."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from dpl_ray.config.overrides import JobConfig


class ExplainConfig(JobConfig):
    """All fields of `dpl-ray explain`."""

    required: ClassVar = {"checkpoint": "runs/NAME", "sample": "image.png"}

    checkpoint: str = Field("", description="folder step-N, or of a run (its newest checkpoint); required")
    sample: str = Field(
        "", description="an image file, file.parquet:row, or the index of an image in the pool of the run; required"
    )
    image_column: str | None = Field(None, description="parquet column of the images; null: the one of training")
    output: str | None = Field(
        None, description="file of the page; null: explanation-SAMPLE.html in the folder that holds the checkpoint"
    )
