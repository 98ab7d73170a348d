"""Follows a tutorial as its reader does: block by block, in order, in one folder.

The language of a block says what is done with it:

- `python` is executed, in a fresh namespace, as its reader may have left Python meanwhile;
- `bash` is done line by line: `python -m pipelines.X` runs in this process, with `SMALL` in place of what would take
  minutes. `SHELL` says what becomes of the other lines; a line that is not there is an error;
- `yaml` is written to the file that its first line names, as `# FILE`;
- `text` is what the block above prints;
- `console` has mistakes: a command after `$`, run as it is written, and the one line that answers it, with status 2.

In what is printed `...` stands for anything, and where lines break is not compared.
"""

from __future__ import annotations

import contextlib
import doctest
import io
import os
import re
import shlex
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest import mock

import click

from dpl_ray.commands import cli
from tests.documents import ROOT, Document, Piece

FOLDER = ROOT / "docs" / "tutorials"
COMMANDS = cli.commands()
IN_PROCESS = "scale.num_workers=0"
#: Command -> what is changed in it, so that it takes seconds; all else is as it is written.
SMALL = {
    "train": ("train.num_steps=2", IN_PROCESS),
    "check": (),
    "predict": (),
    "explain": (),
    "embed": ("image_size=16", "views=1", IN_PROCESS),
    "label": (IN_PROCESS, "force=true"),  # of a model that two steps have trained
    "review": (),
    "compare": ("train.num_steps=2", IN_PROCESS),
    "tune": ("train.num_steps=2", IN_PROCESS),
    # With fewer steps, nothing is selected and there is no round 1.
    "self_train": ("train.num_steps=40", IN_PROCESS, "force=true"),
}
#: A training with one of these records nothing: torch.export takes seconds to trace a network of a library for MLflow.
PRETRAINED = {"data=features", "model=timm"}


@dataclass
class Reader:
    """Somebody who follows a tutorial in a folder, which is the working directory of the process."""

    environment: dict[str, str] = field(default_factory=lambda: os.environ | {"PWD": str(Path.cwd())})  # of the shell

    def follow(self, page: Document) -> None:
        """Do all blocks in order; `AssertionError` with the place of the first one that does not do what it says."""
        output = ""
        for block in page.blocks:
            place = f"{page.path.name}:{block.line}"
            if block.language == "text":
                compare(place, output, block.text)
                continue
            with printed() as printing:
                if block.language == "python":
                    exec(compile(block.text, place, "exec"), {"__name__": "__main__"})
                elif block.language == "bash":
                    for line in shell_lines(block):
                        self._do(f"{place}: {line}", line, printing)
                elif block.language == "console":
                    for mistake in re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]:
                        command, said = mistake.split("\n", 1)
                        self._err(place, command, said, printing)
                elif block.language == "yaml":
                    Path(block.text.split()[1]).write_text(block.text)
                else:
                    raise AssertionError(f"{place}: no test knows what a block of {block.language!r} is")
            output = printing.getvalue()

    def words(self, line: str) -> list[str]:
        """A shell line as the program gets it."""
        words = shlex.split(line, comments=True)
        return [re.sub(r"\$(\w+)", lambda found: self.environment[found[1]], word) for word in words]

    def _do(self, place: str, line: str, printing: io.StringIO) -> None:
        if line.startswith("python -m pipelines."):
            assert run(self.words(line)) == 0, f"{place}\n{printing.getvalue()}"
            return
        known = [do for start, do in SHELL.items() if f"{line} ".startswith(f"{start} ")]
        assert len(known) == 1, f"{place}: no test knows what to do with it; SHELL of tests/tutorials.py says it"
        try:
            known[0](self, line)
        except Exception as error:
            raise AssertionError(f"{place}: {error!r}") from error

    def _err(self, place: str, line: str, answer: str, printing: io.StringIO) -> None:
        before = len(printing.getvalue())
        status = run(self.words(line), small=False)
        compare(f"{place}: {line}", printing.getvalue()[before:], re.sub(r"^#.*", "", answer, flags=re.MULTILINE))
        assert status == cli.WRONG_USE, f"{place}: {line} ends with status {status}, and is a mistake"


def run(words: Sequence[str], *, small: bool = True) -> int:
    """The exit status of `python -m pipelines.X ARGUMENTS`, in this process."""
    python, option, module, *arguments = words
    name = module.removeprefix("pipelines.").replace("_", "-")
    assert (python, option) == ("python", "-m"), words
    if small:
        untracked = ("tracking.enabled=false",) if name == "train" and PRETRAINED & set(arguments) else ()
        arguments = with_overrides(arguments, (*SMALL[name.replace("-", "_")], *untracked))
    called = mock.patch.object(sys.modules["__main__"], "__spec__", find_spec(module))  # as by python -m
    with called, mock.patch.object(sys, "argv", [module, *arguments]), warnings.catch_warnings():
        return cli.run(COMMANDS[name], arguments)


def with_overrides(arguments: Sequence[str], overrides: Sequence[str]) -> list[str]:
    """Arguments with these in the place of those of the same fields."""
    fields = {text.partition("=")[0] for text in overrides}
    return [*(text for text in arguments if text.partition("=")[0] not in fields), *overrides]


def compare(place: str, output: str, expected: str) -> None:
    """`AssertionError` unless this was printed."""
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    same = doctest.OutputChecker().check_output(expected, output, flags)
    assert same, f"{place} prints\n{output}\nand the page says\n{expected}"


def run_line(reader: Reader, line: str) -> None:
    """Run by bash."""
    done = subprocess.run(["bash", "-c", line], env=reader.environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    print(done.stdout, end="")


def set_variables(reader: Reader, line: str) -> None:
    """Run by bash, whose variables the lines below have."""
    command = ["bash", "-c", f"{line} && env -0"]
    done = subprocess.run(command, env=reader.environment, capture_output=True, text=True, check=True)
    reader.environment = dict(entry.split("=", 1) for entry in done.stdout.split("\0") if "=" in entry)


def parse_line(reader: Reader, line: str) -> dict[str, Any]:
    """Not run: the program's own parser reads its options, and they are returned."""
    program, *words = reader.words(line)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what the programs' own modules are made of
        if program == "ray":
            from ray.scripts.scripts import cli as parser
        else:
            from mlflow.cli import cli as parser
    while isinstance(parser, click.Group):
        _, parser, words = parser.resolve_command(click.Context(parser), words)
    return parser.make_context(parser.name, words).params


def run_job(reader: Reader, line: str) -> None:
    """Its options are parsed, and what it submits is run here; cluster/test_jobs.py submits it to a cluster."""
    assert run(parse_line(reader, line)["entrypoint"]) == 0


#: What a line begins with -> what becomes of it.
SHELL: dict[str, Callable[[Reader, str], Any]] = {
    "ls": run_line,
    "export": set_variables,
    "mlflow ui": parse_line,
    "ray start": parse_line,
    "ray stop": parse_line,
    "ray job submit": run_job,
}


def tutorials() -> list[Document]:
    """The tutorials, by name."""
    return [Document(path, path.read_text()) for path in sorted(FOLDER.glob("*.md"))]


def shell_lines(block: Piece) -> list[str]:
    """The lines of a block for a shell; one that ends with a backslash goes on in the next."""
    whole = block.text.replace("\\\n", " ").splitlines()
    return [line.strip() for line in whole if line.strip() and not line.lstrip().startswith("#")]


def only_line(page: Document, start: str) -> str:
    """The one shell line of a page that begins so."""
    bash = [block for block in page.blocks if block.language == "bash"]
    found = [line for block in bash for line in shell_lines(block) if line.startswith(start)]
    assert len(found) == 1, (start, found)
    return found[0]


@contextlib.contextmanager
def printed() -> Iterator[io.StringIO]:
    """What is printed meanwhile, errors too."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        yield output
