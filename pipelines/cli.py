"""What the commands share: help made of the configuration, and mistakes answered in one line."""

from __future__ import annotations

import signal
import sys
import textwrap
import warnings
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

from rich.console import Console
from rich.text import Text

from dpl_ray.config.compose import default_options, describe_policies, list_groups, load_config, option_values
from dpl_ray.config.describe import describe_fields
from dpl_ray.config.schema import Config, Section

WRONG_USE, FAILED, INTERRUPTED, TERMINATED = 2, 1, 130, 143
LEAST_COLUMNS = 100  # of a terminal that shows a field and its meaning side by side


def run(
    job: Callable[[Any, Console], None],
    arguments: list[str],
    summary: str,
    *,
    load: Callable[[Sequence[str]], Any] = load_config,
    own: type[Section] | None = None,
    own_groups: Sequence[str] = (),
    only: type[Section] | None = None,
) -> int:
    """Run a job on what `load` makes of the arguments; returns the exit status.

    Args:
        own: fields of the job besides those of `Config`, for --help.
        own_groups: groups of conf/ that are the job's alone, for --help.
        only: fields of the job, where it has none of `Config`.

    0: done; 2: a mistake in field, file or value; 1: the job failed; 130: interrupted (143 by SIGTERM: `main_guard`).
    """
    console, errors = Console(), Console(stderr=True, soft_wrap=True, highlight=False, markup=False)
    if {"-h", "--help"} & set(arguments):
        if only:
            print_fields(console, summary, _program(job), only)
        else:
            print_help(console, summary, _program(job), own, own_groups)
        return 0
    warnings.showwarning = lambda message, *_args, **_kwargs: errors.print(f"warning: {_one_line(message)}")
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    warnings.filterwarnings("ignore", category=FutureWarning)
    try:
        job(load(arguments), console)
    except ValueError as error:
        errors.print(f"error: {_one_line(error)}")
        return WRONG_USE
    except (ArithmeticError, RuntimeError, OSError) as error:
        errors.print(f"failed: {type(error).__name__}: {_one_line(error)}")
        return FAILED
    except KeyboardInterrupt:
        goes_on = "goes on" if only else "with the same run.name goes on from the last checkpoint"
        errors.print(f"interrupted; the same command {goes_on}")
        return INTERRUPTED
    return 0


def print_help(
    console: Console,
    summary: str,
    program: str = "pipelines.train",
    own: type[Section] | None = None,
    own_groups: Sequence[str] = (),
) -> None:
    """Groups with their options, then every field with default, meaning and type."""
    options = list_groups()
    blocks: dict[str, list[tuple[str, str]]] = {}
    if own:
        blocks["Fields of this command"] = [
            (f"{field}={default}", f"{meaning} ({kind})") for field, kind, default, meaning in describe_fields(own)
        ]
    for group in own_groups:
        blocks[f"Group of this command: {group}"] = [
            (f"{group}={option}", meaning) for option, meaning in list_groups([group])[group].items()
        ]
    blocks |= {
        "Groups: what is chosen whole, and what an option sets": [
            (f"{group}={option}", meaning + _sets(group, option))
            for group, choices in options.items()
            for option, meaning in choices.items()
        ]
    }
    blocks["Instead of the groups"] = [
        ("config=FILE", "a whole configuration, as config.yaml of a run or best.yaml of a search")
    ]
    for field, kind, default, meaning in describe_fields():
        section = field.partition(".")[0]
        title = f"{section}: {Config.model_fields[section].description}"
        blocks.setdefault(title, []).append((f"{field}={default}", f"{meaning} ({kind})"))
    for policy, parameters in describe_policies().items():
        title = f"policy={policy}: {options['policy'].get(policy, '')}"
        blocks[title] = [(f"{field}={default}", f"{meaning} ({kind})") for field, kind, default, meaning in parameters]
    _print_blocks(console, summary, f"{program} [group=option ...] [field=value ...]", blocks)


def print_fields(console: Console, summary: str, program: str, only: type[Section]) -> None:
    """Every field of a job that has none of `Config`, with default, meaning and type."""
    blocks: dict[str, list[tuple[str, str]]] = {}
    for field, kind, default, meaning in describe_fields(only):
        section = field.rpartition(".")[0]
        title = f"{section}: {only.model_fields[section].description}" if section else "Fields"
        blocks.setdefault(title, []).append((f"{field}={default}", f"{meaning} ({kind})"))
    _print_blocks(console, summary, f"{program} field=value ...", blocks)


def _print_blocks(console: Console, summary: str, usage: str, blocks: dict[str, list[tuple[str, str]]]) -> None:
    print_text(console, summary.partition(": `")[0].rstrip(".") + ".")
    print_text(console, f"\nUsage: python -m {usage}")
    print_text(console, "\nEvery field is shown with its default, as field=default.")
    for title, rows in blocks.items():
        print_text(console, f"\n{title}", style="bold")
        _print_rows(console, rows or [("(no parameters)", "")])
    print_text(
        console,
        "\nExit status: 0 done, 1 the run failed, 2 a mistake in a field or file, 130 interrupted, 143 by SIGTERM.",
    )


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
    from dpl_ray.tracking.sender import shown_uri

    tracking_uri = shown_uri(tracking_uri or "")
    for label, value in (places | {"MLflow run": run_id}).items():
        if value:
            console.print(f"{label:<11} {value}", highlight=False, markup=False, soft_wrap=True)
    if run_id:
        is_server = tracking_uri.startswith(("http://", "https://"))
        where = tracking_uri if is_server else f"mlflow ui --backend-store-uri {tracking_uri}"
        console.print(f"look at it: {where}", highlight=False, markup=False, soft_wrap=True)


def _one_line(error: object) -> str:
    return " ".join(str(error).split("\n"))


def main_guard(
    job: Callable[[Any, Console], None],
    summary: str,
    *,
    load: Callable[[Sequence[str]], Any] = load_config,
    own: type[Section] | None = None,
    own_groups: Sequence[str] = (),
    only: type[Section] | None = None,
) -> None:
    """Entry point of a module run with -m. SIGTERM, by which clusters end jobs, does what Ctrl-C does just then."""
    received = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        received.append(number)
        handler = signal.getsignal(signal.SIGINT)
        (handler if callable(handler) else signal.default_int_handler)(signal.SIGINT, frame)

    signal.signal(signal.SIGTERM, interrupt)
    status = run(job, sys.argv[1:], summary, load=load, own=own, own_groups=own_groups, only=only)
    sys.exit(TERMINATED if received and status == INTERRUPTED else status)
