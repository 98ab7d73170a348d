"""What held-out labels certify: the numbers, and how often it is false when the labels are drawn again and again."""

from __future__ import annotations

import json
import math
import re
from dataclasses import asdict, replace

import numpy as np
import pytest

from benchmarks.certificate import WORLDS, repeat
from dpl_ray.labeling.certificate import (
    Certificate,
    Scored,
    certify,
    choose_thresholds,
    compare_shares,
    labels_needed,
    least_labels,
    make_certificate,
    num_passed,
    upper_bound,
)
from dpl_ray.labeling.certificate_page import draw_warnings
from dpl_ray.labeling.parts import Counts

MAX_ERROR, CONFIDENCE = 0.05, 0.95
NUM_TIMES = 2000


@pytest.mark.parametrize("name", ["calibrated", "overconfident", "most confident ones wrong"])
def test_the_true_error_passes_the_bound_no_more_often_than_is_said(name: str) -> None:
    found = repeat(WORLDS[name], 300, MAX_ERROR, CONFIDENCE, NUM_TIMES)
    assert (found.error > MAX_ERROR).mean() <= 1 - CONFIDENCE
    assert (found.coverage > 0).mean() > {"calibrated": 0.5, "overconfident": 0.02}.get(name, -1), "it is no use"


def test_labels_of_other_classes_break_the_bound_and_are_noticed() -> None:
    found = repeat(WORLDS["pool of other classes"], 300, MAX_ERROR, CONFIDENCE, NUM_TIMES)
    assert (found.error > MAX_ERROR).mean() > 2 * (1 - CONFIDENCE), "the docs say that it fails"
    assert found.warned.mean() > 0.95
    assert repeat(WORLDS["calibrated"], 300, MAX_ERROR, CONFIDENCE, 100).warned.mean() < 0.05


def test_every_class_by_itself_is_certified_at_its_share_of_the_level() -> None:
    found = repeat(WORLDS["calibrated"], 2000, 0.1, 0.8, 300, by_class=True)
    assert (found.error > 0.1).mean() <= 0.2, "the largest error of the classes"
    assert found.coverage.mean() > 0.3


@pytest.mark.parametrize(("max_error", "confidence", "number"), [(0.05, 0.95, 59), (0.02, 0.95, 149), (0.1, 0.9, 22)])
def test_the_least_number_of_labels(max_error: float, confidence: float, number: int) -> None:
    assert least_labels(max_error, confidence) == number
    assert upper_bound(0, number, confidence) <= max_error < upper_bound(0, number - 1, confidence)
    sample = np.linspace(0, 1, 100, dtype=np.float32)
    assert len(choose_thresholds(sample, number - 1, max_error, confidence)) == 0
    assert choose_thresholds(sample, number, max_error, confidence).tolist() == [0], "all of them are needed"


def test_a_threshold_passes_where_the_exact_bound_is_within_what_is_allowed() -> None:
    for number in (59, 93, 124, 200, 1000):
        for wrong in range(12):
            passes = num_passed(np.array([number]), np.array([wrong]), MAX_ERROR, CONFIDENCE) == 1
            assert passes == (upper_bound(wrong, number, CONFIDENCE) <= MAX_ERROR), (wrong, number)


def test_testing_ends_at_the_first_threshold_that_fails() -> None:
    selected, wrong = np.array([[100, 200, 300], [100, 200, 300]]), np.array([[0, 100, 0], [0, 0, 300]])
    assert num_passed(selected, wrong, MAX_ERROR, CONFIDENCE).tolist() == [1, 2]


def test_thresholds_fall_and_do_not_know_the_held_out_labels() -> None:
    sample = np.random.default_rng(0).beta(8, 1, 2000).astype(np.float32)
    for number in (60, 200, 1000, 10_000):
        found = choose_thresholds(sample, number, MAX_ERROR, CONFIDENCE)
        assert (np.diff(found) < 0).all()
        assert found[-1] == 0
        assert (sample >= found[0]).mean() * number >= least_labels(MAX_ERROR, CONFIDENCE)
        assert set(found[:-1].tolist()) <= set(sample.tolist())


def scored(num_labels: int, num_wrong: int, label: int = 0) -> Scored:
    """Labels of one confidence."""
    targets = np.full(num_labels, label)
    targets[:num_wrong] = -1
    return Scored(np.full(num_labels, label), np.full(num_labels, 0.9, np.float32), targets)


@pytest.mark.parametrize(
    ("held_out", "needed"),
    [
        (
            scored(40, 0),
            "^19 more held-out labels are needed: 59 without a wrong one certify 5 %.*, and there are 40$",
        ),
        (
            scored(59, 1),
            r"^some 94 more held-out labels are needed: 1 of the 59 most confident .* is wrong, and 153",
        ),
        (scored(100, 30), "^a better model or a larger max_error is needed: 30 of the 100 most confident .* are wrong"),
    ],
)
def test_what_is_needed_where_nothing_is_certified(held_out: Scored, needed: str) -> None:
    found = certify(held_out, np.full(10, 0.9, np.float32), MAX_ERROR, CONFIDENCE)
    assert found.threshold is None
    assert re.search(needed, str(found.needed)), found.needed


def test_more_labels_help_where_the_most_confident_ones_are_right() -> None:
    """Few labels have to select all at once, which the wrong ones at the end forbid; more of them do not."""
    targets = np.zeros(60, np.int64)
    targets[53:] = 1
    held_out = Scored(np.zeros(60, np.int64), np.linspace(1, 0.5, 60, dtype=np.float32), targets)
    found = certify(held_out, np.linspace(0.5, 1, 500, dtype=np.float32), MAX_ERROR, CONFIDENCE)
    assert str(found.needed).startswith("some 7 more held-out labels are needed: 0 of the 53 most confident")


def test_as_many_labels_as_are_needed_do_certify() -> None:
    number = labels_needed(2, 100, MAX_ERROR, CONFIDENCE)
    assert number is not None
    assert upper_bound(math.ceil(0.02 * number), number, CONFIDENCE) <= MAX_ERROR
    assert labels_needed(5, 100, MAX_ERROR, CONFIDENCE) is None, "as many are wrong as are allowed"


def test_a_class_without_enough_labels_selects_nothing_beside_one_that_has_them() -> None:
    both = [scored(200, 0), scored(30, 0, label=1)]
    held_out = Scored(*(np.concatenate([getattr(part, name) for part in both]) for name in asdict(both[0])))
    made = make_certificate(held_out, held_out, 2, MAX_ERROR, CONFIDENCE, by_class=True, source="audit")
    assert made.thresholds.tolist() == [0, math.inf]
    assert made.certifies
    assert "72 without a wrong one certify 5 % at a confidence of 97.5 %" in str(made.found[1].needed), "Bonferroni"
    assert made.held_out == (200, 30)
    assert made.p_value == 1
    again = Certificate.from_json(json.loads(json.dumps(asdict(made))))
    assert again == made


def test_labels_that_are_all_those_of_an_unsure_model_are_doubted() -> None:
    sure = replace(scored(200, 0), confidence=np.full(200, 0.999, np.float32))
    warned = []
    for held_out in (sure, scored(200, 1), scored(200, 0)):
        made = make_certificate(held_out, held_out, 2, MAX_ERROR, CONFIDENCE, by_class=False, source="audit")
        counts = Counts(selected=[200, 0], rejected=[0, 0])
        warned.append([line.partition(",")[0] for line in draw_warnings(made, counts)])
    assert warned == [[], [], ["not one of 200 held-out labels is wrong"]]


def test_shares_of_classes_are_compared() -> None:
    assert compare_shares([30, 30, 0], [3000, 3000, 0]) == (0, 1)
    distance, p_value = compare_shares([50, 10], [1000, 1000])
    assert distance == pytest.approx(1 / 3)
    assert p_value < 1e-6
    assert compare_shares([5, 0], [7, 0]) == (0, 1), "there is one class"
