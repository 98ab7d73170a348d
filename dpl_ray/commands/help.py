"""What --help shows, made of the configuration."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping

from rich.console import Console
from rich.text import Text

from dpl_ray.commands.command import Command
from dpl_ray.config.describe import default_options, describe_fields, describe_policies, list_groups, option_values
from dpl_ray.config.schema import Config
from dpl_ray.config.section import Section

EXIT_STATUS = "Exit status: 0 done, 1 the run failed, 2 a mistake in a field or file, 130 interrupted, 143 by SIGTERM."
LEAST_COLUMNS = 100  # of a terminal that shows a field and its meaning side by side
#: (field, type, default, meaning) as `describe_fields` has it; for an option of a group, (group, "", option, meaning).
Row = tuple[str, str, str, str]


def print_commands(console: Console, commands: Mapping[str, Command]) -> None:
    """Every command with its sentence."""
    print_text(console, "Semi-supervised image classification on Ray.")
    print_text(console, "\nUsage: dpl-ray COMMAND [group=option ...] [field=value ...]\n")
    _print_rows(console, [(name, command.summary) for name, command in commands.items()])
    print_text(console, "\ndpl-ray COMMAND --help lists what the command takes.")


def print_help(console: Console, command: Command, program: str) -> None:
    """Groups with their options, then every field with default, meaning and type."""
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
