"""What a command is, and what its job shows at the end."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console

import dpl_ray
from dpl_ray.config.compose import load_config
from dpl_ray.config.overrides import JobConfig
from dpl_ray.config.section import Section
from dpl_ray.page.console import program, show


@dataclass(frozen=True)
class Command:
    """A job, and what its command line takes."""

    name: str
    #: What runs what was loaded, and shows what comes out; or the name of the function of `dpl_ray` that takes it.
    job: Callable[[Any, Console], None] | str
    summary: str  # what it does, in a sentence
    example: str  # arguments of a run that makes sense
    compose: Callable[[Sequence[str]], Any] = load_config  # arguments -> what the job takes, of `Config` and `own`
    own: type[Section] | None = None  # fields of the job besides those of `Config`
    own_groups: Sequence[str] = ()  # groups of conf/ that are the job's alone
    only: type[JobConfig] | None = None  # fields of the job, where it has none of `Config`
    goes_on: bool = True  # after an interruption, with what is there
    #: Of a function of `dpl_ray`: label -> field of its result, a place that is shown at the end.
    shows: Mapping[str, str] = field(default_factory=dict)

    def load(self, arguments: Sequence[str]) -> Any:
        """What the job takes, of the arguments; `ValueError` names the field that is wrong."""
        return self.only.load(arguments) if self.only else self.compose(arguments)

    def run(self, arguments: Sequence[str], console: Console) -> None:
        """Run the job to its end."""
        given = self.load(arguments)
        if not isinstance(self.job, str):
            self.job(given, console)
            return
        result = getattr(dpl_ray, self.job)(given, console=console)
        places = {label: getattr(result, name) for label, name in self.shows.items()}
        print_results(console, places, getattr(result, "run_id", None), getattr(result, "tracking_uri", None))


def command_line(name: str) -> str:
    """The command with its arguments, to be run again."""
    return f"{program(name)} {shlex.join(sys.argv[1:])}".rstrip()


def print_results(
    console: Console, places: dict[str, str | None], run_id: str | None, tracking_uri: str | None
) -> None:
    """Where the results of a job are; what there is none of is left out."""
    from dpl_ray.tracking.server import shown_uri

    tracking_uri = shown_uri(tracking_uri or "")
    for label, value in (places | {"MLflow run": run_id}).items():
        if value:
            show(console, f"{label:<11} {value}")
    if run_id:
        is_server = tracking_uri.startswith(("http://", "https://"))
        where = tracking_uri if is_server else f"mlflow ui --backend-store-uri {tracking_uri}"
        show(console, f"look at it: {where}")
