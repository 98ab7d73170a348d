"""`dpl-ray evaluate`."""

from __future__ import annotations

from dpl_ray.commands.command import Command
from dpl_ray.jobs.evaluate_config import EvaluateConfig

COMMAND = Command(
    "evaluate",
    "evaluate",
    "Measure a trained model on labelled images.",
    "checkpoint=runs/NAME data=photos/labelled",
    only=EvaluateConfig,
    goes_on=False,
    shows={"page": "page", "scores": "scores", "predictions": "predictions"},
)
