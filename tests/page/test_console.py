"""What the console is shown: text as it is, and how far something is, on terminals of any width and in log files."""

from __future__ import annotations

import csv
import io
import re

import pytest
from rich.console import Console

from dpl_ray.page.console import SECONDS_BETWEEN_LINES, Progress, console_table, open_console, show
from dpl_ray.page.markdown import markdown
from dpl_ray.studies.comparison.table import to_csv
from tests.studies.test_comparison_table import cell


class Clock:
    """A time that only the test moves."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def shown_by(console: Console) -> str:
    """What a console has written, without control sequences."""
    assert isinstance(console.file, io.StringIO)
    return re.sub(r"\x1b\[[?\d;]*[a-zA-Z]", "", console.file.getvalue())


def console(width: int = 120, *, is_terminal: bool = False, clock: Clock | None = None) -> Console:
    get_time = clock or Clock()
    return Console(file=io.StringIO(), width=width, force_terminal=is_terminal, color_system=None, get_time=get_time)


def test_a_log_file_has_whole_lines_with_speed_and_time_left_since_the_first_update() -> None:
    clock = Clock()
    made = console(40, clock=clock)
    with Progress(made, "images", shows_speed=True) as progress:
        for clock.now, done in ((100.0, 6_000), (102.0, 6_010), (110.0, 6_040), (120.0, 20_000)):
            progress.update(done, 20_000, "some of them are unreadable")
    assert shown_by(made).splitlines() == [
        " 6,000/20,000 images  -:--:-- left  some of them are unreadable",
        " 6,040/20,000 images  0:58:10 left  4 images/s  some of them are unreadable",
        "20,000/20,000 images  0:00:00 left  700 images/s  some of them are unreadable",
    ], "at 102 seconds it is too soon for another line"
    assert clock.now - 110 > SECONDS_BETWEEN_LINES
    assert "\x1b" not in made.file.getvalue()  # type: ignore[attr-defined]


def test_the_last_line_of_a_log_file_is_the_whole_even_when_it_is_soon() -> None:
    made = console()
    with Progress(made, "steps") as progress:
        for step in range(1, 101):
            progress.update(step, 100, "1,000 images/s")
        progress.update(100, 100, "1,000 images/s  loss 0.500", name="")
        progress.update(100, 100, "1,000 images/s  loss 0.500", name="")
    assert shown_by(made).splitlines() == [
        "100/100 steps  0:00:00 left  1,000 images/s",
        "100/100 steps  0:00:00 left  1,000 images/s  loss 0.500",
    ]


@pytest.mark.parametrize("width", [40, 80, 120, 200])
def test_a_terminal_of_any_width_shows_steps_and_time_left(width: int) -> None:
    made = console(width, is_terminal=True)
    with Progress(made, "steps") as progress:
        progress.update(1, 600, "4,155 images/s  loss 1.192  coverage 1.00  precision 0.41", name="supervised")
        progress.update(600, 600, "4,155 images/s  loss 1.192  coverage 1.00  precision 0.41", name="dpl")
        show(made, "a line beside it")
    last = [line.rstrip() for line in shown_by(made).splitlines()]
    assert "a line beside it" in last
    assert max(map(len, last)) <= width
    (supervised,) = {line for line in last if "supervised" in line and "1/600" in line}
    assert "supervised    1/600 steps  -:--:-- left"[: width - 1] in supervised
    (dpl,) = {line for line in last if "dpl  600/600 steps  0:00:00 left" in line}
    assert ("━" in dpl) == (width >= 120)
    assert ("precision 0.41" in supervised) == (width >= 120)


def test_a_quiet_console_shows_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    for is_terminal in (False, True):
        made = Console(quiet=True, force_terminal=is_terminal)
        with Progress(made, "steps") as progress:
            progress.update(1, 1)
        show(made, "text")
    assert capfd.readouterr() == ("", "")


def test_a_table_sets_text_left_and_numbers_right() -> None:
    made = console()
    made.print(console_table("Title", ["class", "number"], [("ant", "1"), ("bee", "10")]))
    assert [line.strip() for line in shown_by(made).splitlines()] == [
        "Title",
        "┏━━━━━━━┳━━━━━━━━┓",
        "┃ class ┃ number ┃",
        "┡━━━━━━━╇━━━━━━━━┩",
        "│ ant   │      1 │",
        "│ bee   │     10 │",
        "└───────┴────────┘",
    ]


def test_what_a_console_may_be() -> None:
    given = console()
    assert open_console(given) is given
    assert (open_console(True).quiet, open_console(None).quiet, open_console(False).quiet) == (False, True, True)


@pytest.mark.parametrize("has_widgets", [True, False])
def test_a_bar_moves_in_a_notebook_that_has_widgets(monkeypatch: pytest.MonkeyPatch, has_widgets: bool) -> None:
    monkeypatch.setattr("dpl_ray.page.console.find_spec", lambda _: has_widgets or None)
    assert Progress(Console(force_jupyter=True), "steps")._bars.disable == (not has_widgets)
    assert Progress(Console(force_jupyter=False, file=io.StringIO()), "steps")._bars.disable
    assert Progress(Console(force_jupyter=True, quiet=True), "steps")._bars.disable


EVIL = "\x1b]0;owned\x07\x1b[2J\x9b31m\rno error\x00\u202egpj.exe\u2066[red]:cat:"
SPELLED = r"\x1b]0;owned\x07\x1b[2J\x9b31m\x0dno error\x00\u202egpj.exe\u2066[red]:cat:"


@pytest.mark.parametrize("is_terminal", [True, False])
def test_no_terminal_obeys_text_of_data(is_terminal: bool) -> None:
    made = console(300, is_terminal=is_terminal)
    show(made, EVIL)
    made.print(console_table(EVIL, [EVIL], [[EVIL]]))
    with Progress(made, "steps") as progress:
        progress.update(1, 1, EVIL)
    assert isinstance(made.file, io.StringIO)
    written = made.file.getvalue()
    own = re.sub(r"\x1b\[[?\d;]*[a-zA-Z]", "", written)  # of rich's own progress line
    assert own.count(SPELLED) == 5 if not is_terminal else own.count(SPELLED) >= 5
    assert not set("\x1b\x07\x9b\x00\u202e\u2066") & set(own)
    assert SPELLED.replace("[", "").replace("\\", "") in markdown(EVIL).replace("[", "").replace("\\", "")


def test_a_table_of_a_comparison_has_no_formula() -> None:
    rows = list(csv.reader(io.StringIO(to_csv([cell("=1+1", 0, 0.5), cell("fixmatch", 0, 0.5)], "fixmatch"))))
    assert [row[0] for row in rows] == ["policy", "'=1+1", "fixmatch"]
