"""What the labelling of a pool is made of: its fields, and the command line that sets them."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from dpl_ray.config.overrides import JobConfig
from dpl_ray.config.schema import ScaleConfig, Temperature, TrackingConfig
from dpl_ray.config.section import Section

SMALL_POOL = 5000  # images


class LabelScaleConfig(Section):
    """Where the pool is labelled, and with how many copies of the model."""

    num_workers: int | None = Field(
        None,
        ge=0,
        le=4096,
        description="actors with the model; 0: in this process, without Ray; null: as many as the cluster carries, on "
        f"this machine alone 0 for up to {SMALL_POOL:,} images",
    )
    cpus_per_worker: float = Field(
        0.75, gt=0, description="CPUs that an actor reserves, rounded its threads; the other CPUs read and decode"
    )
    use_gpu: bool = Field(False, description="give each actor a GPU")
    address: str | None = Field(
        None, description="Ray cluster: auto, ray://host:port; null: RAY_ADDRESS, else start one here"
    )

    def with_workers(self, num_workers: int) -> ScaleConfig:
        """The same as the checks of resources read it."""
        return ScaleConfig(
            num_workers=num_workers,
            cpus_per_worker=self.cpus_per_worker,
            use_gpu=self.use_gpu,
            address=self.address,
        )


class LabelRunConfig(Section):
    """Where MLflow's default store is."""

    storage_path: str = Field("runs", min_length=1, description="folder of runs, in which MLflow's default store lies")


class LabelConfig(JobConfig):
    """All fields of `dpl-ray label`."""

    required: ClassVar = {"checkpoint": "runs/NAME", "pool": "/path/to/images", "output": "/path/to/labels"}
    instead: ClassVar = {
        "data.unlabeled": "pool",
        "data.train": "pool",
        "data.image_column": "image_column",
        "run.name": "output",
    }

    checkpoint: str = Field("", description="folder step-N, or of a run (its newest checkpoint); required")
    pool: str | tuple[str, ...] = Field(
        "",
        description="images to label: folder, glob, image or parquet files, s3:// too, or a list of them; or features "
        "that dpl-ray embed wrote; required",
    )
    output: str = Field("", description="folder or s3:// for the labels; one begun before goes on; required")
    image_column: str | None = Field(
        None, description="parquet column of encoded bytes or {bytes, path}; null: the one of training"
    )
    batch_size: int = Field(256, ge=1, description="images of a batch, which a CPU takes in smaller parts")
    rows_per_part: int = Field(8192, ge=1, description="most rows of an output file; a kill loses those in progress")
    max_bad_fraction: float | None = Field(
        None, ge=0, le=1, description="a larger share of unreadable images stops the job; null: the one of training"
    )
    temperature: Temperature = 1.0
    max_error: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="select as much as held-out labels certify to have at most this share of wrong labels; null: what "
        "the policy would train on",
    )
    confidence: float = Field(
        0.95, gt=0, lt=1, description="max_error: probability with which it holds, over the draw of the held-out labels"
    )
    by_class: bool = Field(
        False, description="max_error: a threshold for each class, whose labels are certified by themselves"
    )
    audit: str | None = Field(
        None,
        description="max_error: CSV of path,label of images of the pool that a person has labelled; null: the images "
        "that the run has held out (data.validation_fraction)",
    )
    force: bool = Field(False, description="label also with a model that is no better than guessing, or has collapsed")
    scale: LabelScaleConfig = Field(LabelScaleConfig(), description="workers")
    run: LabelRunConfig = Field(LabelRunConfig(), description="place of MLflow's store")
    tracking: TrackingConfig = Field(TrackingConfig(), description="MLflow")

    @property
    def pools(self) -> tuple[str, ...]:
        """The places of the pool."""
        return (self.pool,) if isinstance(self.pool, str) else self.pool

    def check(self) -> None:
        if self.audit is not None and self.max_error is None:
            raise ValueError(f"audit={self.audit}: it certifies an error; say which, as max_error=0.02")
