"""The fields of `dpl-ray predict` and `dpl-ray export`, and the command lines that set them."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from dpl_ray.config.overrides import JobConfig
from dpl_ray.config.schema import Temperature
from dpl_ray.config.section import ends_in


class PredictConfig(JobConfig):
    """All fields of `dpl-ray predict`."""

    required: ClassVar = {"checkpoint": "runs/NAME", "images": "photos"}
    instead: ClassVar = {"pool": "images", "sample": "images"}

    checkpoint: str = Field("", description="folder step-N, or of a run (its newest checkpoint); required")
    images: str | tuple[str, ...] = Field(
        "",
        description="a photo, a folder, a glob or parquet files, s3:// too, or a list of them; or features that "
        "dpl-ray embed wrote; required",
    )
    output: Annotated[str | None, ends_in(".csv")] = Field(
        None, min_length=1, description="CSV file of the predictions; null: they are shown and not kept"
    )
    image_column: str | None = Field(None, description="parquet column of the images; null: the one of training")
    batch_size: int = Field(256, ge=1, description="images of a batch, which a CPU takes in smaller parts")
    temperature: Temperature = 1.0


class ExportConfig(JobConfig):
    """All fields of `dpl-ray export`."""

    required: ClassVar = {"checkpoint": "runs/NAME", "output": "model.onnx"}

    checkpoint: str = Field("", description="folder step-N, or of a run (its newest checkpoint); required")
    output: Annotated[str, ends_in(".onnx")] = Field(
        "", description="file of the model, whose name ends in .onnx; required"
    )
    temperature: Temperature = 1.0
