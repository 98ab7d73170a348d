"""The fields of `dpl-ray predict` and `dpl-ray export`, and the command lines that set them."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field, field_validator

from dpl_ray.config.overrides import load_section
from dpl_ray.config.section import Section


class PredictConfig(Section):
    """All fields of `dpl-ray predict`."""

    checkpoint: str = Field("", description="folder step-N, or of a run (its newest checkpoint); required")
    images: str | tuple[str, ...] = Field(
        "",
        description="a photo, a folder, a glob or parquet files, s3:// too, or a list of them; or features that "
        "dpl-ray embed wrote; required",
    )
    output: str | None = Field(None, description="CSV file of the predictions; null: they are shown and not kept")
    image_column: str | None = Field(None, description="parquet column of the images; null: the one of training")
    batch_size: int = Field(256, ge=1, description="images that pass through the model at once")

    @field_validator("output")
    @classmethod
    def _is_csv(cls, output: str | None) -> str | None:
        return output if output is None else _ending(output, ".csv")


class ExportConfig(Section):
    """All fields of `dpl-ray export`."""

    checkpoint: str = Field("", description="folder step-N, or of a run (its newest checkpoint); required")
    output: str = Field("", description="file of the model, whose name ends in .onnx; required")

    @field_validator("output")
    @classmethod
    def _is_onnx(cls, output: str) -> str:
        return output and _ending(output, ".onnx")


def _ending(output: str, extension: str) -> str:
    if not output.lower().endswith(extension):
        raise ValueError(f"must end in {extension}")
    return output


def load_predicting(overrides: Sequence[str] = ()) -> PredictConfig:
    """The configuration that `dpl-ray predict OVERRIDES` runs with.

    Raises:
        ValueError: naming the field, the value and what would be right.
    """
    required, instead = {"checkpoint": "runs/NAME", "images": "photos"}, {"pool": "images", "sample": "images"}
    return load_section(PredictConfig, overrides, required, instead=instead)


def load_exporting(overrides: Sequence[str] = ()) -> ExportConfig:
    """The configuration that `dpl-ray export OVERRIDES` runs with.

    Raises:
        ValueError: naming the field, the value and what would be right.
    """
    return load_section(ExportConfig, overrides, {"checkpoint": "runs/NAME", "output": "model.onnx"})
