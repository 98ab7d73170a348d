"""`dpl-ray import-labels`."""

from __future__ import annotations

from rich.console import Console

from dpl_ray.commands.command import Command, print_results
from dpl_ray.exchange.config import ImportLabelsConfig


def job(config: ImportLabelsConfig, console: Console) -> None:
    """The annotations of one file or folder as a CSV."""
    from dpl_ray.exchange.importing import import_labels

    result = import_labels(config, console=console)
    print_results(console, {"answers": result.output}, None, None)


COMMAND = Command(
    "import-labels",
    job,
    "Read what people have annotated in another tool, as a CSV of labelled images.",
    "annotations=project-1.json output=answers.csv",
    only=ImportLabelsConfig,
    goes_on=False,
)
