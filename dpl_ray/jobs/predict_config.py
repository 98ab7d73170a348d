"""The fields of `dpl-ray predict` and `dpl-ray export`, and the command lines that set them."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field, field_validator

from dpl_ray.config.overrides import JobConfig
from dpl_ray.config.schema import Temperature


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
    output: str | None = Field(None, description="CSV file of the predictions; null: they are shown and not kept")
    image_column: str | None = Field(None, description="parquet column of the images; null: the one of training")
    batch_size: int = Field(256, ge=1, description="images that pass through the model at once")
    temperature: Temperature = 1.0

    @field_validator("output")
    @classmethod
    def _is_csv(cls, output: str | None) -> str | None:
        return output if output is None else _ending(output, ".csv")


class ExportConfig(JobConfig):
    """All fields of `dpl-ray export`."""

    required: ClassVar = {"checkpoint": "runs/NAME", "output": "model.onnx"}

    checkpoint: str = Field("", description="folder step-N, or of a run (its newest checkpoint); required")
    output: str = Field("", description="file of the model, whose name ends in .onnx; required")
    temperature: Temperature = 1.0

    @field_validator("output")
    @classmethod
    def _is_onnx(cls, output: str) -> str:
        return output and _ending(output, ".onnx")


def _ending(output: str, extension: str) -> str:
    if not output.lower().endswith(extension):
        raise ValueError(f"must end in {extension}")
    return output
