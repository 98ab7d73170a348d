"""Pages that are made of the code when the site is built: commands, public names of dpl_ray, and the changes.

The order of the other pages is that of the links in docs/index.md.
"""

from __future__ import annotations

import inspect
import re
import sys
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from importlib.metadata import PackageMetadata, PackageNotFoundError, metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from mkdocs.config.defaults import MkDocsConfig  # noqa: E402
from mkdocs.structure.files import File, Files  # noqa: E402

import dpl_ray  # noqa: E402
from dpl_ray.commands.cli import commands  # noqa: E402
from dpl_ray.commands.command import Command  # noqa: E402
from dpl_ray.commands.help import EXIT_STATUS, Row, help_blocks, usage  # noqa: E402
from dpl_ray.config.describe import describe_fields  # noqa: E402
from dpl_ray.config.section import Section  # noqa: E402

BETWEEN_PARTS = re.compile(r"(?<=[._|,/])(?=[A-Za-z])|(?<==)")
NAMES = [name for name in dpl_ray.__all__ if not name.startswith("_")]


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """What stands where."""
    config.nav = [
        {"Home": "index.md"},
        *sections_of((Path(config.docs_dir) / "index.md").read_text()),
        {"Commands": [{name: f"commands/{name}.md"} for name in commands()]},
        {"Python": [{name: f"python/{name}.md"} for name in sorted(NAMES, key=_functions_first)]},
        {"Security": [{"Security": "security.md"}, {"Licences": "licences.md"}]},
        {"Changes": "changes.md"},
    ]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """The pages that are made."""
    made = {f"commands/{name}.md": "\n".join(command_page(name, command)) for name, command in commands().items()}
    made |= {f"python/{name}.md": "\n".join(name_page(name)) for name in NAMES}
    made["changes.md"] = (ROOT / "CHANGELOG.md").read_text()
    made["licences.md"] = "\n".join(licences_page())
    made["security.md"] = (ROOT / "SECURITY.md").read_text().replace("](docs/", "](")
    for path, text in made.items():
        files.append(File.generated(config, path, content=text))
    return files


def licences_page() -> Iterator[str]:
    """Markdown of the packages of constraints.txt that are installed, with the licence that each says it has."""
    yield "# Licences\n\nWhat this package is tested with, and the licences that the packages say they have.\n"
    yield from ("| package | version | licence |", "|---|---|---|")
    for name, version in re.findall(r"^([\w.-]+)==(\S+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE):
        with suppress(PackageNotFoundError):
            yield f"| {name} | {version} | {licence(metadata(name))} |"


def licence(package: PackageMetadata) -> str:
    """An SPDX expression, else what older packages have in its place."""
    classes = [
        each.rpartition(" :: ")[2] for each in package.get_all("Classifier", []) if each.startswith("License ::")
    ]
    found = package.get("License-Expression") or ", ".join(classes) or (package.get("License") or "").partition("\n")[0]
    return found if found not in ("", "UNKNOWN") else "says none in its metadata"


def on_page_content(html: str, **_: Any) -> str:
    """Long names in tables may go on in the next line between their parts, as in data.pool.mode=auto."""

    def breakable(cell: re.Match[str]) -> str:
        return re.sub(
            r"<code>([^<]+)</code>", lambda code: f"<code>{BETWEEN_PARTS.sub('<wbr>', code[1])}</code>", cell[0]
        )

    return re.sub(r"<td.*?</td>", breakable, html, flags=re.DOTALL)


def sections_of(index: str) -> list[dict[str, Any]]:
    """Heading -> title -> page, of every heading with links to pages below it."""
    parts = re.split(r"^## (.+)$", index, flags=re.MULTILINE)
    found = {
        heading: [{title: page} for title, page in re.findall(r"\[([^\]]+)\]\(([\w/]+\.md)\)", text)]
        for heading, text in zip(parts[1::2], parts[2::2], strict=True)
    }
    return [{heading: pages} for heading, pages in found.items() if pages]


def command_page(name: str, command: Command) -> Iterator[str]:
    """Markdown of what `dpl-ray NAME --help` shows."""
    program = f"dpl-ray {name}"
    yield f"# {name}\n\n{command.summary}\n\n```\n{usage(command, program)}\n```\n"
    example = textwrap.wrap(f"{program} {command.example}", 76, break_long_words=False, break_on_hyphens=False)
    yield "For example:\n\n```\n" + " \\\n    ".join(example) + "\n```\n"
    yield f"{EXIT_STATUS}\n"
    for heading, rows in help_blocks(command).items():
        name, _, meaning = heading.partition(": ")
        yield f"\n## {name}\n\n{_escaped(meaning[:1].upper() + meaning[1:])}\n"
        yield from fields_table(rows)


def fields_table(rows: Sequence[Row]) -> Iterator[str]:
    if not rows:
        yield "No parameters."
    elif any(kind for _, kind, _, _ in rows):
        cells = [(_code(row[0]), _code(row[2]), f"{_escaped(row[3])} ({_code(row[1])})") for row in rows]
        yield from table(("field", "default", "meaning (type)"), cells)
    else:
        yield from table(("option", "meaning"), [(_code(f"{row[0]}={row[2]}"), _escaped(row[3])) for row in rows])


def name_page(name: str) -> Iterator[str]:
    """Markdown of a public function or class."""
    found = getattr(dpl_ray, name)
    yield f"::: dpl_ray.{name}\n"
    if inspect.isclass(found) and issubclass(found, Section):
        yield "    options: {members: false, show_signature: false}\n"
        yield from fields_table(describe_fields(found))
    elif attributes := attributes_of(found):
        yield "    options: {members: false, show_signature: false}\n"
        yield from table(("attribute", "type", "meaning"), attributes)


def attributes_of(found: Any) -> list[tuple[str, str, str]]:
    """(name, type, comment) of the attributes of a dataclass."""
    if not hasattr(found, "__dataclass_fields__"):
        return []
    lines = re.findall(r"^    (\w+): ([^#=\n]+?)(?: = [^#\n]+?)?(?:  # (.*))?$", inspect.getsource(found), re.MULTILINE)
    return [(_code(name), _code(kind), _escaped(meaning)) for name, kind, meaning in lines]


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> Iterator[str]:
    head = list(head)
    yield from (f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows))


def _functions_first(name: str) -> tuple[bool, str]:
    return inspect.isclass(getattr(dpl_ray, name)), name


def _code(text: str) -> str:
    return f"`{text}`" if text else ""


def _escaped(text: str) -> str:
    return re.sub(r"([|*_<\[\]])", r"\\\1", text)
