"""The fields of `dpl-ray embed`, and the command line that sets them."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from dpl_ray.config.overrides import JobConfig
from dpl_ray.config.schema import ModelConfig, ViewsConfig
from dpl_ray.labeling.config import LabelScaleConfig


class EmbedConfig(JobConfig):
    """All fields of `dpl-ray embed`."""

    required: ClassVar = {"pool": "/path/to/images", "output": "/path/to/features"}

    pool: str | tuple[str, ...] = Field(
        "",
        description="images: folder, glob, image or parquet files, a CSV of path,label, s3:// too, or a list of "
        "them; required",
    )
    output: str = Field("", description="folder or s3:// for the features; one begun before goes on; required")
    model: ModelConfig = Field(
        ModelConfig(name="timm"), description="network and its weights; model=timm is short for model.name=timm"
    )
    checkpoint: str | None = Field(None, description="run or checkpoint whose backbone is taken in place of model")
    labelled: bool = Field(
        False,
        description="store labels: the subfolders of a folder are the classes, or the folders of a list; "
        "parquet files have label_column, a CSV has label",
    )
    views: int = Field(0, ge=0, le=64, description="weak views stored of each image, and as many strong ones")
    seed: int = Field(0, ge=0, description="seed of the views")
    image_size: int | None = Field(
        None, ge=4, le=1024, description="side in pixels that images are resized to; null: as the weights were trained"
    )
    channels: Literal[1, 3] = Field(3, description="1: grey, 3: RGB")
    fit: Literal["crop", "pad", "squash"] = Field("crop", description="other shapes than square, as data.fit")
    interpolation: Literal["area", "bilinear", "bicubic"] | None = Field(
        None, description="how images are resized; null: as the weights were trained"
    )
    augment: ViewsConfig = Field(ViewsConfig(), description="how the views are made, as data.views")
    image_column: str = Field("image", description="parquet column of encoded bytes or {bytes, path}")
    label_column: str = Field("label", description="parquet column of labels, where labelled=true")
    allow_outside: bool = Field(False, description="as data.allow_outside of a training")
    allowed_hosts: tuple[str, ...] = Field((), description="as data.allowed_hosts of a training")
    batch_size: int = Field(128, ge=1, description="images of a batch, which a CPU takes in smaller parts")
    rows_per_part: int = Field(8192, ge=1, description="most rows of an output file; a kill loses those in progress")
    max_bad_fraction: float = Field(
        0.01,
        ge=0,
        le=1,
        description="a larger share of unreadable images stops the job; 1 is allowed, unless it is 0",
    )
    scale: LabelScaleConfig = Field(LabelScaleConfig(), description="workers")

    def check(self) -> None:
        if self.checkpoint is not None:
            return
        if self.model.name not in ("timm", "torchvision"):
            raise ValueError(
                f"model={self.model.name}: there are no pretrained weights of it; give model=timm, model=torchvision, "
                "or checkpoint=runs/NAME"
            )
        if self.model.weights is None:
            raise ValueError(
                "model.weights is missing: features of random weights say nothing; give model.weights=pretrained, a "
                "file, or checkpoint=runs/NAME"
            )
