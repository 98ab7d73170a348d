"""`dpl-ray tune`."""

from __future__ import annotations

import shlex

from rich.console import Console

from dpl_ray.commands.command import Command, command_line, print_results
from dpl_ray.config.schema import Config
from dpl_ray.page.console import show
from dpl_ray.studies.tuning.config import GROUPS, SearchConfig, load_search


def job(loaded: tuple[Config, SearchConfig], console: Console) -> None:
    """A search, its table and its paths."""
    from dpl_ray.studies.tuning.job import SearchFailedError, describe_failed, search

    config, options = loaded
    command = command_line("tune")
    result = search(config, options, console=console, command=command)
    places: dict[str, str | None] = {
        "best": result.best,
        "trials": result.csv,
        "table": result.table,
        "report": result.report,
    }
    print_results(console, places, result.run_id, result.tracking_uri)
    show(console, f"train it: {shlex.join(['dpl-ray', 'train', f'config={result.best}'])}")
    if result.failed:
        raise SearchFailedError(describe_failed(result.failed))


COMMAND = Command(
    "tune",
    job,
    "Search for the best values of fields of the configuration.",
    "data=digits tune=asha",
    compose=load_search,
    own=SearchConfig,
    own_groups=GROUPS,
)
