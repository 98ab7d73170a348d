"""What the labelling of a pool is made of: its fields, and the command line that sets them."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from dpl_ray.config.overrides import load_section
from dpl_ray.config.schema import ScaleConfig, TrackingConfig
from dpl_ray.config.section import Section


class LabelScaleConfig(Section):
    """Where the pool is labelled, and with how many copies of the model."""

    num_workers: int | None = Field(
        None,
        ge=0,
        le=4096,
        description="actors with the model; null: as many as the cluster carries; 0: in this process, without Ray",
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


class LabelConfig(Section):
    """All fields of `dpl-ray label`."""

    checkpoint: str = Field("", description="folder step-N, or of a run (its newest checkpoint); required")
    pool: str | tuple[str, ...] = Field(
        "", description="images to label: folder, glob, image or parquet files, s3:// too, or a list of them; required"
    )
    output: str = Field("", description="folder or s3:// for the labels; one begun before goes on; required")
    image_column: str | None = Field(
        None, description="parquet column of encoded bytes or {bytes, path}; null: the one of training"
    )
    batch_size: int = Field(256, ge=1, description="images that pass through the model at once")
    rows_per_part: int = Field(8192, ge=1, description="most rows of an output file; a kill loses those in progress")
    max_bad_fraction: float | None = Field(
        None, ge=0, le=1, description="a larger share of unreadable images stops the job; null: the one of training"
    )
    force: bool = Field(False, description="label also with a model that is no better than guessing, or has collapsed")
    scale: LabelScaleConfig = Field(LabelScaleConfig(), description="workers")
    run: LabelRunConfig = Field(LabelRunConfig(), description="place of MLflow's store")
    tracking: TrackingConfig = Field(TrackingConfig(), description="MLflow")

    @property
    def pools(self) -> tuple[str, ...]:
        """The places of the pool."""
        return (self.pool,) if isinstance(self.pool, str) else self.pool


REQUIRED = {"checkpoint": "runs/NAME", "pool": "/path/to/images", "output": "/path/to/labels"}
#: Field of a training -> what it is called here.
INSTEAD = {"data.unlabeled": "pool", "data.train": "pool", "data.image_column": "image_column", "run.name": "output"}


def load_labeling(overrides: Sequence[str] = (), start: LabelConfig | None = None) -> LabelConfig:
    """The configuration that `dpl-ray label OVERRIDES` runs with, or what the overrides make of `start`.

    Raises:
        ValueError: naming the field, the value and what would be right.
    """
    return load_section(LabelConfig, overrides, REQUIRED, start, INSTEAD)
