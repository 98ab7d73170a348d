"""`dpl-ray quickstart`."""

from __future__ import annotations

from rich.console import Console

from dpl_ray.commands.command import Command, print_results
from dpl_ray.page.console import program, show
from dpl_ray.quickstart.config import QuickstartConfig, load_quickstart


def job(given: tuple[QuickstartConfig, list[str]], console: Console) -> None:
    """One quick start, where its results are, and what comes next."""
    from dpl_ray.quickstart.job import quickstart

    options, overrides = given
    result = quickstart(options.folder, options.budget, overrides=overrides, console=console)
    run = result.run
    places = {"checkpoint": run.checkpoint, "report": run.report, "model": run.model}
    places["predictions"] = result.predictions
    print_results(console, places | {"settings": result.config}, run.run_id, run.tracking_uri)
    show(console, "\nnext:")
    for command in result.next_commands:
        _, name, arguments = command.split(" ", 2)
        show(console, f"  {program(name)} {arguments}")


COMMAND = Command(
    "quickstart",
    job,
    "Train on a folder of images within a budget of time: layout, size, network and steps are found.",
    "photos budget=10min",
    compose=load_quickstart,
    own=QuickstartConfig,
)
