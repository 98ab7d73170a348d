"""The page of a search: its sections, and what they say of searches of every kind."""

from __future__ import annotations

import io
import math
import re
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from dpl_ray.page.html import Page
from dpl_ray.studies.tuning import table
from dpl_ray.studies.tuning.console import search_table
from dpl_ray.studies.tuning.figure import best_so_far
from dpl_ray.studies.tuning.page import expected_best, make_page
from dpl_ray.studies.tuning.space import Space, draw_values, parse_space
from dpl_ray.studies.tuning.table import MAX_ROWS
from dpl_ray.studies.tuning.trials import TrialResult, recorded_seconds
from tests.page.test_html import Outline, anchors

pytestmark = pytest.mark.rendered
SECTIONS = ["result", "trials", "fields", "progress", "endings", "search"]
ALL_FORMS = parse_space(
    {
        "optim": {"learning_rate": {"loguniform": [0.005, 0.2]}},
        "train": {"lambda_u": {"uniform": [0.25, 2]}, "mu": {"randint": [3, 9]}},
        "policy": {"cut": {"choice": ["confidence", "own", None, True, 1]}},
    }
)
LONG_SPACE = parse_space(
    {
        **{f"policy.a_parameter_with_quite_a_long_name_number_{n}": {"uniform": [0, 1]} for n in range(8)},
        "model.name": {"choice": [f"a_network_of_which_the_name_is_long_{n}" for n in range(5)]},
        "policy.cut": {"choice": list(range(40))},
        "policy.epsilon": {"loguniform": [1e-8, 10]},
        "train.mu": {"randint": [1, 1000]},
    }
)
FACTS = {"data.num_validation": "20"}


def trial(number: int, accuracies: list[float], space: Space = ALL_FORMS, **fields: Any) -> TrialResult:
    """One that has reported at steps 10, 20, ..."""
    reports = [(10 * place, accuracy) for place, accuracy in enumerate(accuracies, 1)]
    defaults = {"state": "finished", "reports": reports, "seconds": 2.0, "facts": FACTS}
    return TrialResult(number, draw_values(space, 0, number), **defaults | fields)


def page(trials: list[TrialResult], space: Space = ALL_FORMS, failed: dict[str, str] | None = None) -> Page:
    ranked = sorted(trials, key=lambda result: result.rank, reverse=True)
    described = {"command": "tune <x>", "data": "digits"}
    return make_page("first", ranked, space, "/runs/a b/best.yaml", "drawn at random", described, failed or {})


def page_of_a_search() -> Page:
    """Trials that ended in every way."""
    trials = [trial(number, [0.3, 0.5, 0.6 + number / 20]) for number in range(4)]
    trials += [trial(4, [0.1], state="stopped", facts={}), trial(5, [], state="diverged", cause="loss <nan>")]
    return page(trials, failed={"trial-0006": "OSError: no space left", "trial-0007": "its process died"})


def test_the_table_on_a_narrow_terminal_breaks_no_value_in_two() -> None:
    fields = ("policy.ema_decay", "train.ema_decay", "optim.learning_rate")  # two end alike: whole names
    space = parse_space({field: {"loguniform": [1e-8, 1]} for field in fields})
    trials = [trial(number, [0.5], space) for number in range(3)]
    output = io.StringIO()
    Console(file=output, width=80).print(search_table(trials, space))
    for row in table.rows(trials, space):
        for value in row[len(table.COLUMNS) :]:
            assert re.search(rf"\b{value}\b", output.getvalue())


def test_the_page_has_every_section_and_its_numbers() -> None:
    built = page_of_a_search()
    text = built.html
    found = Outline(text)
    assert anchors(built) == SECTIONS
    assert set(SECTIONS) <= set(found.ids)
    assert text.count("data:image/svg+xml") == len(ALL_FORMS) + 3
    for words in (
        "8 trials over 4 fields, drawn at random; chosen by the teacher's accuracy on 20 held-out labelled images",
        "Trial 3 is the best of 5 that have an accuracy: 75.0 % of 20 held-out labelled images",
        "One image is worth 5 points.",
        "Of the 3 other trials that were trained to their end 3 lie in it.",
        "were all of them truly at 67.5 %, the median of those trained to their end",
        "This one is 7.5 above it.",
        "dpl-ray train 'config=/runs/a b/best.yaml'",
        "trial 0 (60.0 %), 1 (65.0 %), 2 (70.0 %), 3 (75.0 %).",
        "The 2 after it brought nothing better.",
        "trial 5, diverged loss <nan> trial 6, failed OSError: no space left trial 7, failed its process died",
        "tune <x>",
    ):
        assert words in found.text, words
    assert "http://" not in text
    assert "https://" not in text


def rows(built: Page, caption: str) -> list[list[str]]:
    """The cells of the table of this caption, below its head."""
    (body,) = re.findall(rf'<p class="caption">{caption}</p>.*?<tbody>(.*?)</tbody>', built.html, re.DOTALL)
    cells = [re.findall(r"<t[hd].*?>(.*?)</t[hd]>", row) for row in re.findall(r"<tr>(.*?)</tr>", body, re.DOTALL)]
    return [[Outline(f"<p>{cell}</p>").text for cell in row] for row in cells]


def test_how_the_trials_ended_is_counted() -> None:
    counted = {state: numbers for state, _, *numbers in rows(page_of_a_search(), "By state")}
    assert counted == {
        "finished": ["4", "8.0"],
        "stopped": ["1", "2.0"],
        "diverged": ["1", "2.0"],
        "failed": ["2", "\u2013"],
        "all": ["8", "12.0"],
    }


def test_a_single_trial_was_not_chosen_among_others() -> None:
    built = page([trial(0, [0.5])])
    found = Outline(built.html)
    assert anchors(built) == SECTIONS
    assert "1 trial over 4 fields" in found.text
    assert "Trial 0 alone has an accuracy: 50.0 % of 20" in found.text
    assert "interval (Wilson) of 29.9 to 70.1 %" in found.text
    assert "optimistic" not in found.text
    assert "brought nothing" not in found.text


def test_all_failed_but_one() -> None:
    failed = {f"trial-{number:04d}": "OSError: " + "no space left " * 20 for number in range(1, 6)}
    found = Outline(page([trial(0, [0.5, 0.6])], failed=failed).html)
    assert "6 trials over 4 fields" in found.text
    assert "Trial 0 alone has an accuracy" in found.text
    assert found.text.count("OSError") == 5


def test_one_that_was_chosen_among_stopped_ones_is_optimistic_too() -> None:
    found = Outline(page([trial(0, [0.5, 0.6]), trial(1, [0.4], state="stopped", facts={})]).html)
    assert "Trial 0 is the best of 2: 60.0 %" in found.text
    assert "the best of 2, chosen by the same images, and so optimistic." in found.text


def test_without_a_trial_trained_to_its_end_it_says_so() -> None:
    found = Outline(page([trial(0, [0.5], state="stopped", facts={}), trial(1, [], state="diverged")]).html)
    assert "No trial was trained to its end: this one was stopped at step 10." in found.text


@pytest.mark.parametrize("space", [parse_space({"train.mu": {"choice": [3]}}), LONG_SPACE])
def test_one_field_and_twelve_with_long_names_and_values(space: Space) -> None:
    built = page([trial(number, [0.5, 0.6], space) for number in range(3)], space)
    text = built.html
    assert text.count("data:image/svg+xml") == len(space) + 3
    found = Outline(text)
    for field, domain in space.items():
        assert field in found.text
        assert str(domain) in found.text, "whole, whatever the panels have room for"


def test_of_many_trials_the_best_are_listed_and_all_are_drawn() -> None:
    built = page([trial(number, [0.5, 0.5 + number / 1000]) for number in range(300)])
    assert len(rows(built, "The best first")) == MAX_ROWS
    assert f"The {MAX_ROWS} best of 300" in Outline(built.html).text
    assert len(built.html) < 2_000_000


def test_the_best_so_far_is_the_one_that_the_search_would_have_chosen() -> None:
    trials = [
        trial(0, [], state="diverged"),
        trial(1, [0.9], state="stopped"),
        trial(2, [0.5, 0.5]),
        trial(3, [0.6, 0.5]),
        trial(4, [0.4, 0.4]),
        trial(5, [0.1, 0.8]),
    ]
    assert [best.number for best in best_so_far(trials[::-1])] == [1, 2, 3, 3, 5]


def test_chance_alone_lifts_the_best_of_many() -> None:
    assert expected_best(0.7, 20, 1) == pytest.approx(0.7, abs=0.01)
    # The highest of two fair coins: 1 of 4 times it is 0.
    assert expected_best(0.5, 1, 2) == pytest.approx(0.75, abs=0.03)
    normal = 0.5 + 1.5388 * math.sqrt(0.25 / 400)  # the mean of the largest of 10 normal deviates is 1.5388
    assert expected_best(0.5, 400, 10) == pytest.approx(normal, abs=0.003)
    lifts = [expected_best(0.7, 20, number) for number in (1, 2, 5, 20)]
    assert lifts == sorted(lifts)
    assert np.diff([expected_best(0.7, number, 10) for number in (10, 100, 1000)]).max() < 0, "more images, less luck"


def test_the_time_of_a_trial_that_was_stopped_is_that_of_its_last_evaluation() -> None:
    history: list[dict[str, Any]] = [
        {"step": 10, "metrics": {"train/loss_labeled": 1.0}},
        {"step": 20, "metrics": {"validation/accuracy": 0.5, "time/training": 1.5}},
        {"step": 40, "metrics": {"validation/accuracy": 0.5, "time/training": 3.25}},
    ]
    assert recorded_seconds(history) == 3.25
    assert recorded_seconds(history[:1]) == 0
