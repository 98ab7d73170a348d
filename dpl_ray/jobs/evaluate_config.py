"""The fields of `dpl-ray evaluate`, and the command line that sets them."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from dpl_ray.config.overrides import JobConfig


class EvaluateConfig(JobConfig):
    """All fields of `dpl-ray evaluate`."""

    required: ClassVar = {"checkpoint": "runs/NAME", "data": "photos/labelled"}
    instead: ClassVar = {"data.test": "data", "data.train": "data"} | {
        f"data.{name}": name
        for name in ("image_column", "label_column", "allow_overlap", "allow_outside", "allowed_hosts")
    }

    checkpoint: str = Field("", description="folder step-N, or of a run (its newest checkpoint); required")
    data: str = Field(
        "",
        description="labelled images: folder with a subfolder per class, CSV of path,label, parquet, folder of "
        "features, s3:// too; or a standard data set, as digits, of which the test split is taken; required",
    )
    output: str | None = Field(
        None, description="folder of page and tables; null: evaluation-DATA in the folder that holds the checkpoint"
    )
    image_column: str | None = Field(None, description="parquet column of the images; null: the one of training")
    label_column: str | None = Field(None, description="parquet column of the labels; null: the one of training")
    allow_overlap: bool = Field(
        False, description="evaluate although the model was trained on some of these images: the scores are too good"
    )
    allow_outside: bool = Field(False, description="as data.allow_outside of a training")
    allowed_hosts: tuple[str, ...] = Field((), description="as data.allowed_hosts of a training")
    batch_size: int = Field(256, ge=1, description="images of a batch, which a CPU takes in smaller parts")
