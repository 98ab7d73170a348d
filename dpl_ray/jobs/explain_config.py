"""The fields of `dpl-ray explain`, and the command line that sets them."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from dpl_ray.config.overrides import load_section
from dpl_ray.config.section import Section


class ExplainConfig(Section):
    """All fields of `dpl-ray explain`."""

    checkpoint: str = Field("", description="folder step-N, or of a run (its newest checkpoint); required")
    sample: str = Field(
        "", description="an image file, file.parquet:row, or the index of an image in the pool of the run; required"
    )
    image_column: str | None = Field(None, description="parquet column of the images; null: the one of training")
    output: str | None = Field(
        None, description="file of the page; null: explanation-SAMPLE.html in the folder that holds the checkpoint"
    )


def load_explaining(overrides: Sequence[str] = ()) -> ExplainConfig:
    """The configuration that `dpl-ray explain OVERRIDES` runs with.

    Raises:
        ValueError: naming the field, the value and what would be right.
    """
    return load_section(ExplainConfig, overrides, {"checkpoint": "runs/NAME", "sample": "image.png"})
