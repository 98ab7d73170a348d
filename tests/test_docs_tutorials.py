"""docs/tutorials: every block does what the page says; and what follows the pages notices a block that does not."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.documents import Document
from tests.tutorials import Reader, only_line, shell_lines, tutorials


@pytest.fixture
def reader(tmp_path: Path, mlflow_template: Path, monkeypatch: pytest.MonkeyPatch) -> Reader:
    """In an empty folder, but for an MLflow database without a run: to make one takes seconds."""
    (tmp_path / "runs").mkdir()
    shutil.copy(mlflow_template, tmp_path / "runs" / "mlflow.db")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    return Reader()


@pytest.mark.parametrize("page", tutorials(), ids=lambda page: page.path.stem)
def test_every_block_of_a_tutorial_does_what_it_says(page: Document, reader: Reader) -> None:
    reader.follow(page)


def test_all_tutorials_write_the_same_images() -> None:
    assert len({page.blocks[0].text for page in tutorials()}) == 1


def small_page(language: str, *text: str) -> Document:
    return Document(Path("page.md"), "\n".join(["# A page", "", f"```{language}", *text, "```", ""]))


@pytest.mark.parametrize(
    ("language", "text", "message"),
    [
        ("bash", "python -m pipelines.train train.num_stepz=4", "(?s)page.md:4: .*there is no field train.num_stepz"),
        ("bash", "ray start --heat", "page.md:4: ray start --heat: NoSuchOption"),
        ("bash", "ray jump", "page.md:4: ray jump: no test knows what to do with it"),
        ("bash", "ls photos", "page.md:4: ls photos: .*No such file"),
        ("console", "$ python -m pipelines.train train.nun_steps=4\nerror: no", "page.md:4: .*\n(.*\n)*error: no"),
        ("console", "$ python -m pipelines.train --help\n...", "ends with status 0, and is a mistake"),
        ("python", "print(1)\n```\n\n```text\n2", "page.md:8 prints\n1\n\nand the page says\n2"),
        ("sh", "ls", "page.md:4: no test knows what a block of 'sh' is"),
    ],
)
def test_what_a_page_says_wrongly_is_found(language: str, text: str, message: str, reader: Reader) -> None:
    with pytest.raises(AssertionError, match=message):
        reader.follow(small_page(language, text))


def test_what_is_right_passes(reader: Reader) -> None:
    reader.follow(small_page("python", "print('one\\ntwo 3.14')", "```", "", "```text", "one two ..."))


def test_a_line_is_read_as_a_shell_does(reader: Reader) -> None:
    page = small_page("bash", "# comment", "export PLACE=/a", "", "ls $PLACE/x 'b c' \\", "    d  # comment")
    reader.environment["PLACE"] = "/a"
    lines = shell_lines(page.blocks[0])
    assert [reader.words(line) for line in lines] == [["export", "PLACE=/a"], ["ls", "/a/x", "b c", "d"]]
    assert only_line(page, "ls ") == lines[1]
