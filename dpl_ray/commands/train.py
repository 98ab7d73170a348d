"""`dpl-ray train`."""

from __future__ import annotations

from rich.console import Console

from dpl_ray.commands.command import Command, print_results
from dpl_ray.config.schema import Config


def job(config: Config, console: Console) -> None:
    """One training run, its table and its paths."""
    from dpl_ray.jobs.fit import fit

    result = fit(config, console=console)
    places = {"checkpoint": result.checkpoint, "report": result.report, "model": result.model}
    places["registered"] = result.registered
    print_results(console, places, result.run_id, result.tracking_uri)


COMMAND = Command(
    "train",
    job,
    "Train a classifier on a few labelled and many unlabelled images.",
    "data=image_folder data.train=photos/labelled data.unlabeled=photos/rest data.image_size=64",
)
