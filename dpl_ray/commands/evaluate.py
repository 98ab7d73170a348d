"""`dpl-ray evaluate`."""

from __future__ import annotations

from rich.console import Console

from dpl_ray.commands.command import Command, print_results
from dpl_ray.jobs.evaluate_config import EvaluateConfig


def job(config: EvaluateConfig, console: Console) -> None:
    """The scores of one model on one place of images, and their paths."""
    from dpl_ray.jobs.evaluate import evaluate

    result = evaluate(config, console=console)
    places: dict[str, str | None] = {
        "page": result.page,
        "scores": result.scores,
        "predictions": result.predictions,
    }
    print_results(console, places, None, None)


COMMAND = Command(
    "evaluate",
    job,
    "Measure a trained model on labelled images.",
    "checkpoint=runs/NAME data=photos/labelled",
    only=EvaluateConfig,
    goes_on=False,
)
