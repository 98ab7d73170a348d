"""What README.md and docs/ hold: commands, code, links and names in backquotes, each with its line."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).parent.parent
SHELL = ("", "bash", "console", "sh", "shell")
COMMAND = re.compile(r"(\S*/)?(python[\d.]* -m |dpl-ray\b|ray |make\b)")
SETS_VARIABLES = re.compile(r"(export )?[A-Za-z_]\w*=")
ASSIGNMENT = re.compile(r"([A-Za-z_]\w*)=(.*)", re.DOTALL)
ENDS_A_COMMAND = re.compile(r"[;&|<>]+")


@dataclass(frozen=True)
class Piece:
    """Something in a document."""

    line: int
    text: str
    language: str = ""  # of a block of code


@dataclass(frozen=True)
class ShellCommand:
    """A command line, as the shell hands it over."""

    line: int
    words: tuple[str, ...]
    in_text: bool  # `python -m pipelines.train` within a sentence, which may be no more than a mention


@dataclass(frozen=True)
class Document:
    """A Markdown file."""

    path: Path
    text: str

    @property
    def name(self) -> str:
        """Its path in the project."""
        return str(self.path.relative_to(ROOT)) if self.path.is_relative_to(ROOT) else self.path.name

    @cached_property
    def tokens(self) -> list[Token]:
        return MarkdownIt("commonmark").enable("table").parse(self.text)

    @cached_property
    def blocks(self) -> list[Piece]:
        """Blocks of code, fenced or indented."""
        return [
            Piece(_line(token) + (token.type == "fence"), token.content, token.info.partition(" ")[0])
            for token in self.tokens
            if token.type in ("fence", "code_block")
        ]

    @cached_property
    def inline(self) -> list[tuple[int, list[Token]]]:
        """(line, tokens) of every paragraph, heading, item and cell of a table."""
        return [(_line(token), token.children or []) for token in self.tokens if token.type == "inline"]

    @cached_property
    def spans(self) -> list[Piece]:
        """`Code` in text."""
        return [
            Piece(line, child.content)
            for line, children in self.inline
            for child in children
            if child.type == "code_inline"
        ]

    @cached_property
    def links(self) -> list[Piece]:
        """Targets of links and images."""
        attributes = {"link_open": "href", "image": "src"}
        return [
            Piece(line, str(child.attrs[attributes[child.type]]))
            for line, children in self.inline
            for child in children
            if child.type in attributes
        ]

    @cached_property
    def anchors(self) -> set[str]:
        """Fragments of this page that a link may name, as the site and GitHub make them of headings."""
        headings = [
            "".join(child.content for child in self.tokens[at + 1].children or [])
            for at, token in enumerate(self.tokens)
            if token.type == "heading_open"
        ]
        return {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in headings}

    @cached_property
    def files(self) -> dict[str, str]:
        """Name -> content of the blocks that open with a comment that names a file, as `# mine.yaml`."""
        named = ((re.match(r"# ([\w./-]+\.\w+)\b", block.text), block.text) for block in self.blocks)
        return {found[1]: text for found, text in named if found}

    @cached_property
    def paragraphs(self) -> list[Piece]:
        """Text of every paragraph, heading, item and cell, with `code` in backquotes."""
        return [Piece(line, _text(children)) for line, children in self.inline]

    @cached_property
    def tables(self) -> list[list[list[str]]]:
        """Rows of cells of every table, the head first."""
        found: list[list[list[str]]] = []
        in_table = False
        for token in self.tokens:
            if token.type in ("table_open", "table_close"):
                in_table = token.type == "table_open"
                found += [[]] * in_table
            elif token.type == "tr_open":
                found[-1] = [*found[-1], []]
            elif token.type == "inline" and in_table:
                found[-1][-1].append(_text(token.children or []))
        return found

    @cached_property
    def commands(self) -> list[ShellCommand]:
        """Command lines in blocks and in text; variables that the document sets are put in."""
        return list(self._commands())

    def _commands(self) -> Iterator[ShellCommand]:
        variables: dict[str, str] = {}
        for block in self.blocks:
            if block.language in SHELL:
                for line, text in _logical_lines(block):
                    for words in _split(_substitute(text, variables)):
                        while words and (found := ASSIGNMENT.fullmatch(words[0])):
                            variables[found[1]] = found[2]
                            words = words[1:]
                        if words and words[0] != "export":
                            yield ShellCommand(line, tuple(words), in_text=False)
        for span in self.spans:
            if COMMAND.match(span.text):
                optional = re.sub(r"\[(--[^\]]+)\]", r"\1", span.text)  # as in `command [--option 3]`
                for words in _split(_substitute(optional, variables)):
                    yield ShellCommand(span.line, tuple(words), in_text=True)


def documents() -> list[Document]:
    paths = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return [Document(path, path.read_text()) for path in paths]


def _text(children: list[Token]) -> str:
    return "".join(f"`{part.content}`" if part.type == "code_inline" else part.content or " " for part in children)


def _line(token: Token) -> int:
    return token.map[0] + 1 if token.map else 0


def _logical_lines(block: Piece) -> Iterator[tuple[int, str]]:
    """Lines that begin a command or set a variable, with those that they go on in."""
    # A mistake, shown for its answer, is no command line: test_docs_tutorials.py demands the answer.
    commands = re.sub(r"^\$ .*(?=\nerror: )", "", block.text, flags=re.MULTILINE)
    lines = iter(enumerate(commands.splitlines(), start=block.line))
    for number, line in lines:
        text = line.strip().removeprefix("$ ")
        if not (COMMAND.match(text) or SETS_VARIABLES.match(text)):
            continue
        while text.endswith("\\") or _has_open_quote(text):
            _, more = next(lines, (0, ""))
            text = text.removesuffix("\\") + ("" if text.endswith("\\") else "\n") + more
            if not more:
                break
        yield number, text


def _has_open_quote(text: str) -> bool:
    try:
        shlex.split(text, comments=True)
    except ValueError:
        return True
    return False


def _substitute(text: str, variables: dict[str, str]) -> str:
    """Variables outside single quotes; one that the document does not set stands for itself."""

    def value(found: re.Match[str]) -> str:
        return variables.get(found[1], found[1]) if found[1] else found[0]

    return re.sub(r"'[^']*'|\$\{?(\w+)\}?", value, text)


def _split(text: str) -> list[list[str]]:
    """Words of every command of a line; an unquoted parenthesis is a word of its own, as in no valid command."""
    lexer = shlex.shlex(text, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    try:
        words = list(lexer)
    except ValueError as error:
        return [["unreadable", f"{text}: {error}"]]
    commands: list[list[str]] = [[]]
    for word in words:
        if ENDS_A_COMMAND.fullmatch(word):
            commands.append([])
        else:
            commands[-1].append(word)
    return [command for command in commands if command]
