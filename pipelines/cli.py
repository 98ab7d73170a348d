"""What the commands share: help made of the configuration, and mistakes answered in one line."""

from __future__ import annotations

import pkgutil
import signal
import sys
import textwrap
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console
from rich.text import Text

from dpl_ray.config.compose import load_config
from dpl_ray.config.describe import default_options, describe_fields, describe_policies, list_groups, option_values
from dpl_ray.config.schema import Config
from dpl_ray.config.section import Section
from dpl_ray.page.console import show

WRONG_USE, FAILED, INTERRUPTED, TERMINATED = 2, 1, 130, 143
EXIT_STATUS = "Exit status: 0 done, 1 the run failed, 2 a mistake in a field or file, 130 interrupted, 143 by SIGTERM."
FOLDER = str(Path(__file__).parent)
LEAST_COLUMNS = 100  # of a terminal that shows a field and its meaning side by side
#: (field, type, default, meaning) as `describe_fields` has it; for an option of a group, (group, "", option, meaning).
Row = tuple[str, str, str, str]


@dataclass(frozen=True)
class Command:
    """A job, and what its command line takes."""

    job: Callable[[Any, Console], None]
    summary: str  # what it does, in a sentence
    example: str  # arguments of a run that makes sense
    load: Callable[[Sequence[str]], Any] = load_config  # arguments -> what the job takes
    own: type[Section] | None = None  # fields of the job besides those of `Config`
    own_groups: Sequence[str] = ()  # groups of conf/ that are the job's alone
    only: type[Section] | None = None  # fields of the job, where it has none of `Config`


def commands() -> dict[str, Command]:
    """Name -> command, of the modules beside this one."""
    modules = {found.name: import_module(f"pipelines.{found.name}") for found in pkgutil.iter_modules([FOLDER])}
    return {name: module.COMMAND for name, module in modules.items() if hasattr(module, "COMMAND")}


def run(command: Command, arguments: list[str]) -> int:
    """Run a command; returns the exit status.

    0: done; 2: a mistake in field, file or value; 1: the job failed; 130: interrupted (143 by SIGTERM: `main_guard`).
    """
    console, errors = Console(), Console(stderr=True)
    if {"-h", "--help"} & set(arguments):
        print_help(console, command)
        return 0
    warnings.showwarning = lambda message, *_args, **_kwargs: show(errors, f"warning: {_one_line(message)}")
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    warnings.filterwarnings("ignore", category=FutureWarning)
    try:
        command.job(command.load(arguments), console)
    except ValueError as error:
        show(errors, f"error: {_one_line(error)}")
        return WRONG_USE
    except (ArithmeticError, RuntimeError, OSError) as error:
        show(errors, f"failed: {type(error).__name__}: {_one_line(error)}")
        return FAILED
    except KeyboardInterrupt:
        goes_on = "goes on" if command.only else "with the same run.name goes on from the last checkpoint"
        show(errors, f"interrupted; the same command {goes_on}")
        return INTERRUPTED
    return 0


def print_help(console: Console, command: Command) -> None:
    """Groups with their options, then every field with default, meaning and type."""
    program = f"python -m {_program(command.job)}"
    print_text(console, command.summary)
    print_text(console, f"\nUsage: {usage(command, program)}")
    print_text(console, f"\nExample: {program} {command.example}")
    print_text(console, "\nEvery field is shown with its default, as field=default.")
    for heading, rows in help_blocks(command).items():
        print_text(console, f"\n{heading}", style="bold")
        pairs = [
            (f"{field}={default}", f"{meaning} ({kind})" if kind else meaning) for field, kind, default, meaning in rows
        ]
        _print_rows(console, pairs or [("(no parameters)", "")])
    print_text(console, f"\n{EXIT_STATUS}")


def usage(command: Command, program: str) -> str:
    return f"{program} field=value ..." if command.only else f"{program} [group=option ...] [field=value ...]"


def help_blocks(command: Command) -> dict[str, list[Row]]:
    """Heading -> rows, of all that the command line takes."""
    if command.only:
        return _sections("Fields", command.only)
    options = list_groups()
    blocks: dict[str, list[Row]] = {}
    if command.own:
        blocks["Fields of this command"] = describe_fields(command.own)
    for group in command.own_groups:
        blocks[f"Group {group}: of this command alone"] = [
            (group, "", option, meaning) for option, meaning in list_groups([group])[group].items()
        ]
    blocks["Groups: what is chosen whole, and what an option sets"] = [
        (group, "", option, meaning + _sets(group, option))
        for group, choices in options.items()
        for option, meaning in choices.items()
    ]
    blocks["Instead of the groups"] = [
        ("config", "", "FILE", "a whole configuration, as config.yaml of a run or best.yaml of a search")
    ]
    blocks |= _sections("", Config)
    for policy, parameters in describe_policies().items():
        blocks[f"policy={policy}: {options['policy'].get(policy, '')}"] = parameters
    return blocks


def _sections(heading: str, model: type[Section]) -> dict[str, list[Row]]:
    """Heading -> rows, by the first part of a field's name; those without a section are below `heading`."""
    blocks: dict[str, list[Row]] = {}
    for row in describe_fields(model):
        section, dot, _ = row[0].partition(".")
        title = f"{section}: {model.model_fields[section].description}" if dot else heading
        blocks.setdefault(title, []).append(row)
    return blocks


def print_text(console: Console, text: str, *, style: str = "") -> None:
    """Text as it is: brackets are no markup, and a pipe gets whole lines."""
    console.print(Text(text, style=style), soft_wrap=not console.is_terminal)


def _print_rows(console: Console, rows: list[tuple[str, str]]) -> None:
    """Two columns; on a narrow terminal the meaning stands below. What is piped is not wrapped, so grep finds it."""
    left = max(len(name) for name, _ in rows) + 4
    beside = not console.is_terminal or console.width >= LEAST_COLUMNS
    for name, meaning in rows:
        if beside:
            indent, first = " " * left, f"  {name}".ljust(left)
        else:
            indent, first = " " * 6, " " * 6
            print_text(console, f"  {name}")
        if console.is_terminal:
            wrap = textwrap.TextWrapper(console.width - 1, initial_indent=first, subsequent_indent=indent)
            wrap.break_long_words = wrap.break_on_hyphens = False
            meaning = wrap.fill(meaning)
        else:
            meaning = first + meaning
        print_text(console, meaning.rstrip() if meaning.strip() else "")


def _sets(group: str, option: str) -> str:
    """What choosing the option sets besides its name, and whether it is chosen without being named."""
    values = option_values(group, option)
    default = " The default." if default_options()[group] == option else ""
    return default + f" Sets {', '.join(f'{field}={value}' for field, value in values.items())}." if values else default


def _program(job: Callable[[Any, Console], None]) -> str:
    """The module that was run with -m."""
    spec = getattr(sys.modules.get(job.__module__), "__spec__", None)
    return spec.name if spec else job.__module__


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


def _one_line(error: object) -> str:
    return " ".join(str(error).split("\n"))


def main_guard(command: Command) -> None:
    """Entry point of a module run with -m. SIGTERM, by which clusters end jobs, does what Ctrl-C does just then."""
    received = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        received.append(number)
        handler = signal.getsignal(signal.SIGINT)
        (handler if callable(handler) else signal.default_int_handler)(signal.SIGINT, frame)

    signal.signal(signal.SIGTERM, interrupt)
    status = run(command, sys.argv[1:])
    sys.exit(TERMINATED if received and status == INTERRUPTED else status)
