"""A check in full: everything that can be told of the data and the run before the training begins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from rich.console import Console

from dpl_ray.checking.checked import run_checks
from dpl_ray.checking.console import described_time, show_checked
from dpl_ray.checking.findings import Finding
from dpl_ray.checking.page import headline, make_page
from dpl_ray.checking.timing import Timing
from dpl_ray.config.compose import load_config
from dpl_ray.config.given import read_given
from dpl_ray.config.schema import Config
from dpl_ray.data.formats.rows import shards_told
from dpl_ray.page.console import Progress, open_console
from dpl_ray.page.result import Result
from dpl_ray.store.outputs import open_output
from dpl_ray.store.storage import Storage


@dataclass(frozen=True, repr=False)
class CheckResult(Result):
    """The result of `check`."""

    findings: tuple[Finding, ...]  # errors first, then warnings, then notes
    timing: Timing | None  # None where a training could not take a step
    page: str | None

    @property
    def errors(self) -> tuple[Finding, ...]:
        """At which a training would stop."""
        return tuple(finding for finding in self.findings if finding.level == "error")

    def _facts(self) -> dict[str, str | None]:
        return {
            "found": headline(self.findings),
            "training": described_time(self.timing.seconds) if self.timing else None,
            "page": self.page,
        }


def check(
    config: Config | Sequence[str] = (),
    *,
    console: Console | bool | None = None,
    output: str | PathLike[str] | None = "check.html",
    **keywords: Any,
) -> CheckResult:
    """Check the data and measure the training that a configuration describes, without training it.

    All data are read; of a streamed pool a sample.

    Args:
        config: a configuration, or overrides as on the command line.
        console: where tables and findings are shown, as in `fit`.
        output: file of the page; None writes none.
        keywords: further overrides, as in `fit`.

    Raises:
        ValueError: a field, path, column or label is wrong, so that there is nothing to check.
    """
    config, console = read_given(config, keywords, load_config), open_console(console)
    place = None if output is None else _place(fspath(output))
    with Progress(console, "shards looked at") as listing, shards_told(listing.update):
        checked = run_checks(config)
    show_checked(checked, console)
    if place is not None:
        make_page(checked).write(place)
    return CheckResult(checked.findings, checked.timing, str(place) if place else None)


def _place(output: str) -> Storage:
    """Where the page is to be; `ValueError` where it cannot be written."""
    place = open_output(output, "file")
    if place.is_local and Path(place.path).is_dir():
        raise ValueError(f"output={output}: is a folder; give a file in it, as output={output.rstrip('/')}/check.html")
    if not place.name.endswith(".html"):
        raise ValueError(f"output={output}: must end in .html, so that a browser shows it")
    return place
