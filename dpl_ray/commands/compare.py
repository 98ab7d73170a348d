"""`dpl-ray compare`."""

from __future__ import annotations

from rich.console import Console

from dpl_ray.commands.command import Command, command_line, print_results
from dpl_ray.config.schema import Config
from dpl_ray.studies.comparison.config import CompareConfig, load_comparison


def job(loaded: tuple[Config, CompareConfig], console: Console) -> None:
    """A comparison, its tables and its paths."""
    from dpl_ray.studies.comparison.job import CellsFailedError, compare, describe_failed

    config, options = loaded
    command = command_line("compare")
    result = compare(config, options, console=console, command=command)
    places: dict[str, str | None] = {"cells": result.csv, "table": result.table, "report": result.report}
    print_results(console, places, result.run_id, result.tracking_uri)
    if result.failed:
        raise CellsFailedError(describe_failed(result.failed))


COMMAND = Command(
    "compare",
    job,
    "Compare policies over labelled subsets and repeats, in pairs.",
    "'policies=[supervised,fixmatch,dpl]' subsets=3 data=digits",
    compose=load_comparison,
    own=CompareConfig,
)
