"""`dpl-ray export-labels`."""

from __future__ import annotations

from rich.console import Console

from dpl_ray.commands.command import Command, print_results
from dpl_ray.exchange.config import ExportLabelsConfig


def job(config: ExportLabelsConfig, console: Console) -> None:
    """The labels of one pool for another tool."""
    from dpl_ray.exchange.exporting import export_labels

    result = export_labels(config, console=console)
    print_results(console, {result.format: result.file}, None, None)


COMMAND = Command(
    "export-labels",
    job,
    "Write the labels of a pool for Label Studio, FiftyOne, tools of COCO's form, as class folders or as CSV.",
    "labels=labels format=label_studio output=exported",
    only=ExportLabelsConfig,
    goes_on=False,
)
