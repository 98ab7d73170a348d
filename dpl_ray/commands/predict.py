"""`dpl-ray predict`."""

from __future__ import annotations

from rich.console import Console

from dpl_ray.commands.command import Command
from dpl_ray.jobs.predict_config import PredictConfig


def job(config: PredictConfig, console: Console) -> None:
    """The predictions of one path."""
    from dpl_ray.jobs.predict import predict_files

    predict_files(config, console)


COMMAND = Command(
    "predict",
    job,
    "Predict the classes of photos with a trained model.",
    "checkpoint=runs/NAME images=photos output=predictions.csv",
    only=PredictConfig,
    goes_on=False,
)
