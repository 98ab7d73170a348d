"""From the command line to a job and its exit status; mistakes are answered in one line."""

from __future__ import annotations

import gc
import shlex
import signal
import sys
import warnings
from importlib import import_module
from importlib.metadata import version
from types import FrameType

from rich.console import Console

from dpl_ray.commands.command import Command
from dpl_ray.commands.help import print_commands, print_help
from dpl_ray.config.section import short, suggest
from dpl_ray.page.console import program, show

WRONG_USE, FAILED, INTERRUPTED, TERMINATED = 2, 1, 130, 143
NAMES = (
    "quickstart", "check", "train", "predict", "evaluate", "label", "review", "suggest", "export-labels",
    "import-labels", "compare", "tune", "self-train", "embed", "explain", "export", "sync-tracking",
)  # fmt: skip


def commands() -> dict[str, Command]:
    """Name -> command."""
    return {name: load_command(name) for name in NAMES}


def load_command(name: str) -> Command:
    """The command of this name."""
    command: Command = import_module(f"dpl_ray.commands.{name.replace('-', '_')}").COMMAND
    return command


def main(name: str | None = None) -> None:
    """Entry point; without a name, the first argument says the command.

    SIGTERM, by which clusters end jobs, does what Ctrl-C does just then.
    """
    received = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        received.append(number)
        handler = signal.getsignal(signal.SIGINT)
        (handler if callable(handler) else signal.default_int_handler)(number, frame)

    signal.signal(signal.SIGTERM, interrupt)
    if name is None:
        name = _chosen(sys.argv.pop(1) if len(sys.argv) > 1 else "--help")
    # Python looks for garbage all the time while libraries are loaded, a quarter of it, and once more at the end.
    gc.set_threshold(10_000, 10, 10)
    status = run(load_command(name), sys.argv[1:])
    gc.freeze()
    sys.exit(TERMINATED if received and status == INTERRUPTED else status)


def _chosen(word: str) -> str:
    """The command that the word names; ends the process where it names none."""
    if word in NAMES:
        return word
    if word in ("-h", "--help"):
        print_commands(Console(), commands())
        sys.exit(0)
    if word == "--version":
        show(Console(), f"dpl-ray {version('dpl_ray')}")
        sys.exit(0)
    known = f"; known: {', '.join(NAMES)}{suggest(word, NAMES)}"
    show(Console(stderr=True), f"error: {word}: there is no such command{known}")
    sys.exit(WRONG_USE)


def run(command: Command, arguments: list[str]) -> int:
    """Run a command; returns the exit status.

    0: done; 2: a mistake in field, file or value; 1: the job failed; 130: interrupted (143 by SIGTERM: `main`).
    """
    console, errors = Console(), Console(stderr=True)
    if {"-h", "--help"} & set(arguments):
        print_help(console, command, program(command.name))
        return 0
    warnings.showwarning = lambda message, *_args, **_kwargs: show(errors, f"warning: {_one_line(message)}")
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    warnings.filterwarnings("ignore", category=FutureWarning)
    try:
        command.run(arguments, console)
    except ValueError as error:
        show(errors, f"error: {_one_line(error)}")
        return WRONG_USE
    except (ArithmeticError, RuntimeError, OSError) as error:
        said = f"failed: {type(error).__name__}: {_one_line(error)}"
        show(errors, said + (f"; {_again(command, arguments, error)}" if hasattr(error, "run_name") else ""))
        return FAILED
    except KeyboardInterrupt as error:
        said = ": ".join(filter(None, ["interrupted", str(error)]))
        show(errors, f"{said}; {_again(command, arguments, error)}")
        return INTERRUPTED
    return 0


def _again(command: Command, arguments: list[str], error: BaseException) -> str:
    """How the job is gone on with: a run that was given no name under the one that it got."""
    name = getattr(error, "run_name", None)
    again = shlex.join([*arguments, *([f"run.name={name}"] if name else [])])
    return f"{'go on' if command.goes_on else 'begin anew'} with: {program(command.name)} {again}".rstrip()


def _one_line(error: object) -> str:
    return short(" ".join(str(error).split("\n")))
