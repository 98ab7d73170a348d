"""The health of a run: every check on recorded runs (benchmarks/health.py), its bounds, and what is done with it."""

from __future__ import annotations

import dataclasses
import html
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from dpl_ray.report.health import (
    AT_CHANCE,
    COLLAPSED,
    FALLING,
    KINDS,
    TOO_SHORT,
    Measured,
    chance_finding,
    find_health,
    health_lines,
    study_line,
)
from dpl_ray.report.usable import known_health, refuse_useless
from dpl_ray.store.records import to_lines
from dpl_ray.store.storage import Storage
from dpl_ray.studies.comparison.page import make_page as make_comparison_page
from dpl_ray.studies.comparison.table import make_rows
from dpl_ray.studies.tuning.page import make_page as make_search_page
from dpl_ray.studies.tuning.space import parse_space
from dpl_ray.studies.tuning.table import chance_line
from dpl_ray.studies.tuning.trials import TrialResult
from tests.jobs.test_fit import run
from tests.labeling.jobs import label, make_checkpoint, write_images
from tests.recorded import __file__ as recorded
from tests.studies.test_comparison_table import cell

FILES = sorted(Path(recorded).parent.glob("health/*.json"))
CASES = {path.stem: json.loads(path.read_text()) for path in FILES}
WELL = [name for name, case in CASES.items() if case["kind"] is None]


def names(measured: Measured) -> list[str]:
    return [found.name for found in find_health(measured)]


def recorded_run(name: str) -> Measured:
    return TypeAdapter(Measured).validate_python(CASES[name]["measured"])


@pytest.mark.parametrize("name", WELL)
def test_nothing_is_found_of_a_run_that_is_well(name: str) -> None:
    assert names(recorded_run(name)) == []


@pytest.mark.parametrize("name", [name for name in CASES if name not in WELL])
def test_what_is_wrong_with_a_run_is_found(name: str) -> None:
    found = {finding.name: finding for finding in find_health(recorded_run(name))}
    assert CASES[name]["kind"] in found
    (line,) = health_lines([found[CASES[name]["kind"]]])
    assert re.search(r"\d", line), "what was measured"
    assert line[0].isupper()
    assert re.search(r"train longer|dpl-ray check|policy|optim\.|data\.", line.partition("; ")[2]), "what to do"


def test_there_are_ten_runs_that_are_well_and_one_of_every_kind_that_is_not() -> None:
    assert len(WELL) >= 10
    assert {case["kind"] for case in CASES.values()} == {None, *KINDS}


def measured(**changes: Any) -> Measured:
    """Of a run of which nothing is wrong."""
    fields: dict[str, Any] = {"policy": "dpl", "num_steps": 500, "learning_rate": 0.03, "labels": [10, 10, 10]}
    fields |= {"passes": 50.0, "class_names": ["ant", "bee", "cat"], "split": "test", "accuracy": 0.9}
    return Measured(**fields | {"targets": [50, 50, 50], "hits": [45, 45, 45], "said": [50, 50, 50]} | changes)


def test_guessing_is_told_by_an_interval_and_not_by_a_bare_comparison() -> None:
    assert names(measured()) == []
    assert names(measured(accuracy=0.36, hits=[18, 18, 18])) == [AT_CHANCE], "above a third, but not by more than noise"
    assert names(measured(accuracy=0.36, targets=[5000] * 3, hits=[1800] * 3)) == [], "as much, of more images"


@given(st.integers(0, 200), st.integers(1, 200), st.integers(2, 20), st.integers(1, 50))
def test_more_right_images_never_make_it_guessing(hits: int, number: int, num_classes: int, tries: int) -> None:
    hits = min(hits, number)
    finding = [chance_finding(n / number, number, 1 / num_classes, num_classes, "x", tries) for n in (hits, number)]
    assert finding[0] or not finding[1]
    assert chance_finding(1 / num_classes, number, 1 / num_classes, num_classes, "x", tries)
    single = chance_finding(hits / number, number, 1 / num_classes, num_classes, "x")
    assert not single or finding[0], "the best of more trainings has to be better"


def test_who_names_the_largest_class_alone_is_guessing_and_who_knows_the_small_one_is_not() -> None:
    largest = measured(targets=[180, 10, 10], said=[200, 0, 0], hits=[180, 0, 0], accuracy=0.9, labels=[18, 1, 1])
    assert names(largest) == [AT_CHANCE, COLLAPSED]
    useful = measured(targets=[180, 10, 10], said=[150, 25, 25], hits=[148, 9, 9], accuracy=0.83, labels=[18, 1, 1])
    assert names(useful) == []


@pytest.mark.parametrize(
    ("pool", "labels", "is_collapsed"),
    [
        ([600, 200, 200], [10, 10, 10], False),
        ([800, 100, 100], [10, 10, 10], True),
        ([800, 100, 100], [70, 10, 20], False),  # as the labels say
        ([8, 1, 1], [10, 10, 10], False),  # so few that it may be chance
        ([100, 800, 100], [70, 10, 20], True),
    ],
)
def test_collapse_is_told_against_the_labels(pool: list[int], labels: list[int], is_collapsed: bool) -> None:
    found = find_health(measured(pool=pool, labels=labels))
    assert [finding.name for finding in found] == [COLLAPSED] * is_collapsed
    if is_collapsed:
        assert f'"{["ant", "bee"][pool[1] > pool[0]]}", which has' in found[0].sentence


def test_a_loss_that_is_as_good_as_zero_may_fall_on() -> None:
    loss = [(step, 1 / step) for step in range(1, 21)]
    assert names(measured(loss=loss)) == [FALLING]
    assert names(measured(loss=[(step, value / 10) for step, value in loss])) == []


def test_few_steps_are_told_with_how_many_there_should_be() -> None:
    (found,) = find_health(measured(num_steps=60))
    assert (found.name, found.measured, found.bound) == (TOO_SHORT, 60, 100)
    assert found.key == "health/too_short"
    assert names(measured(passes=1.0)) == [TOO_SHORT]


def test_a_run_ends_with_what_is_wrong_and_no_pool_is_labelled_by_it(tmp_path: Path) -> None:
    given = ("train.baseline=false", "optim.learning_rate=1")
    result, output = run(tmp_path, *given)
    assert result.health[0].blocks, "after four large steps"
    assert TOO_SHORT in [found.name for found in result.health]
    page = re.sub(r"\s+", " ", html.unescape(Path(result.report).read_text()))
    for found, line in zip(result.health, health_lines(result.health), strict=False):
        assert line in output
        assert f"<strong>{found.sentence}.</strong> What to do: {found.next_step}." in page
    assert re.search(r"4/4 steps .* test \d+\.\d %  loss", output), "the newest score is on the progress line"
    again, output = run(tmp_path, *given)
    assert again.health == result.health, "run.json has kept it"
    assert health_lines(result.health)[0] in output

    write_images(tmp_path / "pool", range(6))
    for checkpoint in (str(tmp_path / "tiny"), result.checkpoint):
        with pytest.raises(ValueError, match=r"^checkpoint=\S+: (no better than|collapsed: ).*; force=true goes on"):
            label(checkpoint, tmp_path / "pool", tmp_path / "labels")
    assert not (tmp_path / "labels").exists()
    assert label(result.checkpoint, tmp_path / "pool", tmp_path / "labels", force=True).num_rows == 6


def on_the_way(folder: Path, *scores: tuple[int, float], num_test: int = 100) -> Storage:
    """A checkpoint of step 1, in the folder of a run that has not ended, with points of its curve."""
    place = Storage(make_checkpoint(folder))
    (folder / "run.json").write_text(json.dumps({"result": None, "held_out": {"test": [num_test, 34]}}))
    rows = [{"phase": "dpl", "step": step, "metrics": {"curve/accuracy": score}} for step, score in scores]
    (folder / "history.jsonl").write_bytes(to_lines(rows))
    return place


def test_a_checkpoint_on_the_way_is_told_by_its_newest_score(tmp_path: Path) -> None:
    assert known_health(on_the_way(tmp_path / "good", (1, 0.9), (2, 0.3))) == ()
    found = known_health(on_the_way(tmp_path / "bad", (0, 0.9), (1, 0.3)))
    assert found is not None
    assert [finding.name for finding in found] == [AT_CHANCE]
    with pytest.raises(ValueError, match=r"^checkpoint=x: no better than guessing: 30\.0 %"):
        refuse_useless("checkpoint=x", found, force=False)
    refuse_useless("checkpoint=x", found, force=True)
    assert known_health(on_the_way(tmp_path / "none")) is None
    assert known_health(Storage(make_checkpoint(tmp_path / "alone"))) is None


def test_a_study_says_that_not_even_its_best_is_better_than_guessing() -> None:
    facts = {"data.num_test": "100", "data.num_classes": "10", "data.largest_test_share": "0.3"}
    assert study_line([0.1, 0.8], facts, "test") is None
    line = study_line([0.1, 0.35], facts, "test")
    assert line is not None
    assert line.startswith("Nothing that was trained is better than guessing, not even the best: 35.0 % [95 %: ")
    assert study_line([0.1], {}, "test") is None, "an older version did not keep how many images there are"
    one, many = (study_line([0.25] * tries, facts | {"data.largest_test_share": "0.17"}, "test") for tries in (1, 100))
    assert one is None
    assert many is not None, "the best of a hundred may be so by chance"


def test_a_comparison_and_a_search_say_it_on_their_pages() -> None:
    split = {"data.num_classes": "10", "data.num_test": "100", "data.num_validation": "100"}
    cells = [dataclasses.replace(cell("dpl", seed, 0.1, (0.1, 0.12)), facts=split) for seed in (0, 1)]
    made = make_comparison_page("first", cells, make_rows(cells, "dpl"), "dpl", {}, {}, "x")
    assert "Nothing that was trained is better than guessing" in made.html
    trials = [TrialResult(n, {"train.mu": n + 1}, "finished", [(1, 0.12)], facts=split) for n in range(2)]
    found = make_search_page("first", trials, parse_space({"train.mu": {"choice": [1, 2]}}), "best.yaml", "x", {}, {})
    assert "Nothing that was trained is better than guessing" in found.html
    assert chance_line([dataclasses.replace(trials[0], reports=[(1, 0.9)]), *trials]) is None
