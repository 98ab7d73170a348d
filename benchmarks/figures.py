"""What a benchmark measured: printed as a table and, with --save, kept in docs/results/bench for the documents."""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import shlex
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from dpl_ray.page.markdown import markdown_row
from dpl_ray.runs.provenance import CHANGES, git_commit, hardware

PACKAGES = ("torch", "torchvision", "pillow", "ray", "mlflow")
FOLDER = Path(__file__).parent.parent / "docs" / "results" / "bench"


@dataclass(frozen=True)
class Figure:
    """A measured number and how much it varies."""

    value: float
    unit: str = ""
    low: float | None = None
    high: float | None = None
    deviation: float | None = None  # standard deviation, where `value` is a mean
    at_most: float | None = None  # bounds on `value`
    at_least: float | None = None

    def __str__(self) -> str:
        text = shown(self.value) + (f" ± {shown(self.deviation)}" if self.deviation is not None else "")
        text += f" {self.unit}" if self.unit else ""
        if self.low is not None and self.high is not None:
            text += f" ({shown(self.low)} to {shown(self.high)})"
        bounds = ("at most", self.at_most, 1), ("at least", self.at_least, -1)
        for words, bound, sign in bounds:
            if bound is not None:
                missed = sign * self.value > sign * bound
                text += f"; bound: {words} {shown(bound)}" + (", **missed**" if missed else "")
        return text


Figures = dict[str, dict[str, Figure]]
"""Row -> column -> figure."""


def shown(number: float) -> str:
    """Three significant digits; whole numbers from 100 on."""
    if isinstance(number, int) or abs(number) >= 100:
        return f"{number:,.0f}"
    return f"{number:.1f}" if abs(number) >= 10 else f"{number:.2f}" if abs(number) >= 1 else f"{number:.3g}"


def median(values: Sequence[float], unit: str = "", **bounds: float | None) -> Figure:
    """The median of repeated measurements, with the lowest and the highest."""
    return Figure(statistics.median(values), unit, min(values), max(values), **bounds)


def quartiles(values: Sequence[float], unit: str = "", **bounds: float) -> Figure:
    """The median of repeated measurements, with the lower and the upper quartile."""
    low, middle, high = statistics.quantiles(values, n=4)
    return Figure(middle, unit, low, high, **bounds)


def mean_deviation(values: Sequence[float], unit: str = "") -> Figure:
    """The mean over seeds, with the standard deviation where there are two or more."""
    return Figure(statistics.fmean(values), unit, deviation=statistics.stdev(values) if len(values) > 1 else None)


@dataclass(frozen=True)
class Measurement:
    """Figures, and what they were measured with."""

    command: str
    figures: Figures
    commit: str
    date: str  # ISO
    hardware: str
    versions: str  # "Python 3.11.7, torch 2.14.1, ..."
    note: str = ""  # a sentence on how they were measured

    @classmethod
    def load(cls, name: str, folder: Path = FOLDER) -> Measurement:
        tree: dict[str, Any] = json.loads((folder / f"{name}.json").read_text())
        rows = tree.pop("figures")
        figures = {row: {column: Figure(**cell) for column, cell in cells.items()} for row, cells in rows.items()}
        return cls(**tree, figures=figures)

    def save(self, name: str, folder: Path = FOLDER) -> None:
        tree = dataclasses.asdict(self)
        for cells in tree["figures"].values():
            for column, cell in cells.items():
                cells[column] = {key: value for key, value in cell.items() if value not in (None, "")}
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.json").write_text(json.dumps(tree, indent=1, ensure_ascii=False) + "\n")

    def to_markdown(self) -> str:
        """A table with a row for each key of `figures`, and a line that says what they were measured with."""
        columns = list(dict.fromkeys(column for cells in self.figures.values() for column in cells))
        lines = [markdown_row(["", *columns]), markdown_row(["---"] * (len(columns) + 1))]
        for row, cells in self.figures.items():
            lines.append(markdown_row([row, *(str(cells.get(column, "")) for column in columns)]))
        return "\n".join([*lines, "", self.source()])

    def source(self) -> str:
        text = f"`{self.command}`: {self.hardware}; {self.versions}; commit {self.commit}, {self.date}."
        return f"{text} {self.note}".strip()


def add_save(parser: argparse.ArgumentParser, name: str) -> None:
    parser.add_argument(
        "--save",
        nargs="?",
        const=name,
        type=of_a_commit,
        metavar="NAME",
        help=f"write docs/results/bench/NAME.json (default {name}); of code that is committed",
    )


def of_a_commit(name: str) -> str:
    """`name`; argparse's error, before anything is measured, where no commit has the code that runs."""
    if git_commit().endswith(CHANGES):
        raise argparse.ArgumentTypeError(f"the code has changes of {git_commit()}: commit them, then measure")
    return name


def report(benchmark: str, figures: Figures, save: str | None) -> None:
    """Print the figures and, where `save` names a file, keep them."""
    versions = {"Python": platform.python_version()} | {package: version(package) for package in PACKAGES}
    measurement = Measurement(
        command=command_line(benchmark, sys.argv[1:]),
        figures=figures,
        commit=git_commit(),
        date=datetime.now(UTC).date().isoformat(),
        hardware=hardware(),
        versions=", ".join(map(" ".join, versions.items())),
    )
    print(measurement.to_markdown(), flush=True)
    if save:
        measurement.save(save)


def command_line(benchmark: str, arguments: Sequence[str]) -> str:
    """The command as another user would type it: without --save, and with the last two parts of each path."""
    kept: list[str] = []
    skips = False
    for argument in arguments:
        is_name = skips and not argument.startswith("-")
        skips = argument == "--save"
        if not (skips or is_name or argument.startswith("--save=")):
            kept.append("/".join(argument.split("/")[-2:]))
    return shlex.join(["python", "-m", f"benchmarks.{benchmark}", *kept])
