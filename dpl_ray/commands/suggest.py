"""`dpl-ray suggest`."""

from __future__ import annotations

from rich.console import Console

from dpl_ray.commands.command import Command, print_results
from dpl_ray.reviewing.suggest_config import SuggestConfig


def job(config: SuggestConfig, console: Console) -> None:
    """The images that are worth labelling next, and their paths."""
    from dpl_ray.reviewing.suggest import suggest

    result = suggest(config, console=console)
    print_results(console, {"page": result.page, "table": result.table}, None, None)


COMMAND = Command(
    "suggest",
    job,
    "Choose the images of a labelled pool whose true labels would teach most.",
    "labels=labels budget=100",
    only=SuggestConfig,
    goes_on=False,
)
