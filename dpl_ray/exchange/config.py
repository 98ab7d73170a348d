"""The fields of `dpl-ray export-labels` and `dpl-ray import-labels`, and the command lines that set them."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, get_args

from pydantic import Field

from dpl_ray.config.overrides import JobConfig
from dpl_ray.config.section import ends_in

Format = Literal["csv", "label_studio", "coco", "fiftyone", "image_folder"]


class ExportLabelsConfig(JobConfig):
    """All fields of `dpl-ray export-labels`."""

    required: ClassVar = {"labels": "labels", "output": "exported"}

    labels: str = Field("", description="folder that dpl-ray label has written; required")
    format: Format = Field("csv", description=", ".join(get_args(Format)))
    output: str = Field("", description="new folder, or an empty one; required")
    selected_only: bool = Field(True, description="leave out the labels that are not selected")
    draw: str | None = Field(
        None, description="folder of a review or of suggestions, whose images alone are exported, in their order"
    )
    copies: bool = Field(
        False, description="write the images into the output too; false: it has links (image_folder) or paths to them"
    )
    document_root: str = Field(
        "/", description="label_studio: LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT of the server, above all images"
    )
    pool: str | None = Field(
        None,
        description="address that the pool's images are read by, as s3://...?endpoint_override=...; null: as labelled",
    )


class ImportLabelsConfig(JobConfig):
    """All fields of `dpl-ray import-labels`."""

    required: ClassVar = {"annotations": "project-1.json", "output": "answers.csv"}

    annotations: str = Field(
        "",
        description="JSON that Label Studio or a tool of COCO's form has exported, FiftyOne's labels.json, or a folder "
        "with a subfolder per class; required",
    )
    output: Annotated[str, ends_in(".csv")] = Field(
        "", description="new CSV of path,label, as data.train and `review` take it; required"
    )
    root: str | None = Field(
        None, description="folder that relative paths of images start from; null: the one of the annotations"
    )
