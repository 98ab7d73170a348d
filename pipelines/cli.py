"""What the commands share: help made of the configuration, and mistakes answered in one line."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable

from rich.console import Console
from rich.table import Table

from dpl_ray.compose import describe_policies, list_groups, load_config
from dpl_ray.config import Config, describe_fields

WRONG_USE, FAILED, INTERRUPTED = 2, 1, 130


def run(job: Callable[[Config, Console], None], arguments: list[str], summary: str) -> int:
    """Run a job on the configuration that the arguments compose; returns the exit status.

    0: done; 2: a mistake in field, file or value; 1: the job failed; 130: interrupted.
    """
    console, errors = Console(), Console(stderr=True, soft_wrap=True, highlight=False, markup=False)
    if {"-h", "--help"} & set(arguments):
        print_help(console, summary)
        return 0
    warnings.showwarning = lambda message, *_args, **_kwargs: errors.print(f"warning: {message}")
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    warnings.filterwarnings("ignore", category=FutureWarning)
    try:
        job(load_config(arguments), console)
    except ValueError as error:
        errors.print(f"error: {error}")
        return WRONG_USE
    except (ArithmeticError, RuntimeError, OSError) as error:
        errors.print(f"failed: {type(error).__name__}: {error}")
        return FAILED
    except KeyboardInterrupt:
        errors.print("interrupted; the same command with the same run.name goes on from the last checkpoint")
        return INTERRUPTED
    return 0


def print_help(console: Console, summary: str) -> None:
    """Groups with their options, then every field with type, default and meaning."""
    console.print(summary, markup=False)
    console.print("\nUsage: python -m pipelines.train [group=option ...] [field=value ...]", markup=False)
    groups = Table("group=option", "what it is", title="Groups", title_justify="left", box=None, padding=(0, 2, 0, 0))
    for group, options in list_groups().items():
        for option, meaning in options.items():
            groups.add_row(f"{group}={option}", meaning)
    console.print(groups)
    fields = Table(
        "field", "type", "default", "meaning", title="\nFields", title_justify="left", box=None, padding=(0, 2, 0, 0)
    )
    for row in describe_fields():
        fields.add_row(*(text.replace("[", r"\[") for text in row))
    for name, rows in describe_policies().items():
        for field, kind, default, meaning in rows:
            fields.add_row(field, kind, default, f"policy={name}: {meaning}")
    console.print(fields)
    console.print("\nA data set's file in conf/data may set other defaults: its recipe.", markup=False)


def main_guard(job: Callable[[Config, Console], None], summary: str) -> None:
    """Entry point of a module run with -m."""
    sys.exit(run(job, sys.argv[1:], summary))
