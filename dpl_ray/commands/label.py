"""`dpl-ray label`."""

from __future__ import annotations

from rich.console import Console

from dpl_ray.commands.command import Command, print_results
from dpl_ray.labeling.config import LabelConfig


def job(config: LabelConfig, console: Console) -> None:
    """One labelling, its table and its paths."""
    from dpl_ray.labeling.job import label_pool

    result = label_pool(config, console=console)
    places: dict[str, str | None] = {
        "labels": result.output,
        "summary": result.summary,
        "figure": result.figure,
        "unreadable": result.bad,
        "certificate": result.page,
    }
    print_results(console, places, result.run_id, result.tracking_uri)


COMMAND = Command(
    "label",
    job,
    "Label a pool of images with a trained model, every image once.",
    "checkpoint=runs/NAME pool=/path/to/images output=/path/to/labels",
    only=LabelConfig,
)
