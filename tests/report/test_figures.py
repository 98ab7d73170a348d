"""What the figures of a report draw: bars, lines, marks and names, of data whose every number is another one."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from dpl_ray.data.dataset import ImageSet
from dpl_ray.page.html import Section
from dpl_ray.report.accuracy import NUM_BINS, calibration_section, confusion_section
from dpl_ray.report.curves import History, pseudo_section, thresholds_section, training_section
from dpl_ray.report.pool import NUM_BINS as NUM_POOL_BINS
from dpl_ray.report.pool import PoolSample, pool_section
from dpl_ray.report.verdict import wilson_interval
from dpl_ray.training.evaluation import classification_metrics
from dpl_ray.training.predictions import Predictions
from tests.builders import tiny_splits
from tests.figures import bars, legend, lines, points
from tests.page.test_html import Outline
from tests.report.test_report import finished, page_of_run, page_of_section
from tests.studies.test_tuning_page import rows


def text_of(anchor: str, section: Section) -> str:
    return Outline(page_of_section(anchor, section).html).text


def images(targets: list[int]) -> ImageSet:
    number = len(targets)
    return ImageSet(np.zeros((number, 1, 4, 4), np.uint8), np.array(targets), np.arange(number).astype(str))


def calibration(confidence: list[float], right: list[bool], baseline_ece: float | None = None) -> Section:
    labels = np.where(right, 0, 1)
    found = Predictions(labels, np.array(confidence, np.float32))
    return calibration_section(images([0] * len(right)), found, 0.123, baseline_ece)


def test_the_reliability_diagram_has_the_accuracy_of_every_bin(figures: list[Figure]) -> None:
    section = calibration([0.3] * 4 + [0.9] * 3, [True, False, False, False, True, True, False], 0.045)
    above, below = figures[0].axes
    (accuracy, _), (numbers,) = above.containers, below.containers
    assert bars(accuracy, 1 / NUM_BINS) == {4: points(0, 25), 13: points(0, 200 / 3)}
    assert bars(numbers, 1 / NUM_BINS) == {4: points(0, 4), 13: points(0, 3)}
    (whiskers,) = above.collections
    drawn = [segment[:, 1] for segment in whiskers.get_segments()]
    assert drawn == [points(*(100 * np.array(wilson_interval(1, 4)))), points(*(100 * np.array(wilson_interval(2, 3))))]
    diagonal = above.get_lines()[-1]
    assert (list(diagonal.get_xdata()), list(diagonal.get_ydata())) == ([0, 1], [0, 100])
    assert (above.get_ylabel(), below.get_ylabel()) == ("accuracy (%)", "images")
    assert below.get_xlabel() == "confidence of the last teacher"
    assert rows(page_of_section("calibration", section), "The bins of the diagram") == [
        ["0.27 to 0.33", "4", "30.0 %", "25.0 %"],
        ["0.87 to 0.93", "3", "90.0 %", "66.7 %"],
    ]
    text = text_of("calibration", section)
    assert (
        "right on 42.9 % of the 7 test images and says 55.7 % on average, so that it is overconfident by 12.9" in text
    )
    assert "is 12.3 %; of the supervised baseline 4.5 %." in text


def test_a_model_that_says_too_little_is_underconfident(figures: list[Figure]) -> None:
    assert "says 60.0 % on average, so that it is underconfident by 40.0" in text_of(
        "calibration", calibration([0.6, 0.6], [True] * 2)
    )
    assert len(figures) == 1


@pytest.mark.parametrize("bound", range(2, NUM_BINS + 1))
def test_the_bins_are_those_of_the_error_below_it(figures: list[Figure], bound: int) -> None:
    """One image at the bound is wrong, one a little below is right: apart, they have a larger error than together."""
    confidence = np.array([bound / NUM_BINS, bound / NUM_BINS - 0.01], np.float32)
    probs = torch.from_numpy(
        np.concatenate([confidence[:, None], (1 - confidence[:, None]) / 20 * np.ones(20)], axis=1)
    )
    ece = classification_metrics(probs.float(), torch.tensor([1, 0]))["eval/ece"]
    apart = (confidence[0] + 1 - confidence[1]) / 2
    together = abs(0.5 - confidence.mean())
    calibration(confidence.tolist(), [False, True])
    numbers = bars(figures[0].axes[1].containers[0], 1 / NUM_BINS)
    assert ece == pytest.approx(apart if len(numbers) == 2 else together, abs=1e-5)
    assert sum(height for _, height in numbers.values()) == 2


def test_the_rows_of_the_confusion_matrix_are_the_true_classes(figures: list[Figure]) -> None:
    targets = [0] * 4 + [1] * 5 + [2]
    labels = [0, 1, 1, 1, 1, 1, 1, 1, 2, 0]
    found = Predictions(np.array(labels), np.full(10, 0.5, np.float32))
    before = Predictions(np.array(targets), np.full(10, 0.5, np.float32))
    section = confusion_section(images(targets), found, before, ["ant", "bee", "cat"])
    (axes,) = figures[0].axes
    shares = [[0.25, 0.75, 0], [0, 0.8, 0.2], [1, 0, 0]]
    np.testing.assert_allclose(axes.images[0].get_array(), shares)
    cells = {tuple(reversed(text.get_position())): text.get_text() for text in axes.texts}
    assert cells == {(0, 0): "1", (0, 1): "3", (1, 1): "4", (1, 2): "1", (2, 0): "1"}
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("said to be", "true class")
    for labels_of_ticks in (axes.get_xticklabels(), axes.get_yticklabels()):
        assert [label.get_text() for label in labels_of_ticks] == ["ant", "bee", "cat"]
    page = page_of_section("confusions", section)
    assert rows(page, "The most frequent confusions") == [
        ["ant", "bee", "3 of 4", "75 %"],
        ["bee", "cat", "1 of 5", "20 %"],
        ["cat", "ant", "1 of 1", "100 %"],
    ]
    assert rows(page, "Recall of the classes") == [
        ["ant", "4", "25.0 % [4.6, 69.9]", "100.0 %", "-75.0"],
        ["bee", "5", "80.0 % [37.6, 96.4]", "100.0 %", "-20.0"],
        ["cat", "1", "0.0 % [0.0, 79.3]", "100.0 %", "-100.0"],
    ]


def test_neighbours_of_many_classes_share_a_row_of_the_matrix(figures: list[Figure]) -> None:
    targets = [0, 1, 9_999, 9_999, 5_000]
    found = Predictions(np.array([1, 0, 5_000, 5_000, 5_000]), np.full(5, 0.5, np.float32))
    section = confusion_section(images(targets), found, None, [f"class{index}" for index in range(10_000)])
    (drawn,) = figures[0].axes[0].images
    shares = drawn.get_array()
    assert shares.shape == (500, 500)
    assert {(int(row), int(column)) for row, column in np.argwhere(shares)} == {(0, 0), (499, 250), (250, 250)}
    assert drawn.get_extent() == [-0.5, 9_999.5, 9_999.5, -0.5], "ticks are classes"
    assert section.confusions.rows == [
        ["class9999", "class5000", "2 of 2", "100 %"],
        ["class0", "class1", "1 of 1", "100 %"],
        ["class1", "class0", "1 of 1", "100 %"],
    ]


WIDTH = math.log(10) / NUM_POOL_BINS  # of a bin of entropy


def pool_sample() -> PoolSample:
    """Images in bins 0, 5, 10 and 20 of the entropy, whose pseudo-label is 0."""
    #        bin, number, confidence, weight, right
    groups = [(0, 6, 0.99, 1.0, 5), (10, 5, 0.97, 0.9, 4), (10, 7, 0.6, 0.5, 1)]
    groups += [(20, 4, 0.3, 0.5, 4), (20, 4, 0.3, 0.25, 2), (5, 4, 0.6, 0.25, 4)]
    columns: dict[str, list[float]] = {"entropy": [], "confidence": [], "weights": [], "targets": []}
    for place, number, confidence, weight, right in groups:
        columns["entropy"] += [(place + 0.5) * WIDTH] * number
        columns["confidence"] += [confidence] * number
        columns["weights"] += [weight] * number
        columns["targets"] += [0] * right + [1] * (number - right)
    arrays = {name: np.array(values, np.float32) for name, values in columns.items()}
    targets = arrays.pop("targets").astype(np.int64)
    return PoolSample(pool_size=300, num_classes=10, labels=np.zeros_like(targets), targets=targets, **arrays)


def test_the_histogram_is_split_into_what_fixmatch_takes_and_what_the_policy_adds(figures: list[Figure]) -> None:
    section = pool_section(pool_sample(), "dpl")
    above, below = figures[0].axes
    fixmatch, added, left_out = (bars(container, WIDTH) for container in above.containers)
    assert fixmatch == {0: points(0, 6), 10: points(0, 5)}
    assert added == {5: points(0, 1), 10: points(5, 3.5), 20: points(0, 3)}
    assert left_out == {5: points(1, 3), 10: points(8.5, 3.5), 20: points(3, 5)}
    assert legend(above) == ["FixMatch takes these", "dpl takes in addition", "left out"]
    assert above.get_ylabel() == "images (by weight)"
    assert lines(below) == {
        "FixMatch's": points((0.5 * WIDTH, 500 / 6), (10.5 * WIDTH, 80)),
        "dpl's in addition": points((10.5 * WIDTH, 100 / 7), (20.5 * WIDTH, 100 * 2.5 / 3)),
    }, "weighted, and not of the four images of bin 5"
    assert below.get_xlim() == pytest.approx((0, math.log(10)))
    assert below.get_xlabel() == "entropy (nats; 2.30 is that of 10 equal probabilities)"
    assert below.get_ylabel() == "precision (%)"
    assert not above.texts, "no bar is cut"
    counted = rows(page_of_section("exploration", section), "What is counted of the sample, by confidence")
    assert [[value.partition(" [")[0] for value in row] for row in counted] == [
        ["images", "11", "19", "30"],
        ["FixMatch counts", "11", "0", "11"],
        ["their precision", "81.8 %", "\N{EN DASH}", "81.8 %"],
        ["dpl counts", "10", "8", "18"],  # 10.5, 7.5 and 18
        ["their precision", "81.9 %", "53.3 %", "70.0 %"],
    ]


def test_a_bar_that_hides_the_others_is_cut_and_says_so(figures: list[Figure]) -> None:
    sample = pool_sample()
    high = np.append(sample.entropy, np.full(88, 0.5 * WIDTH, np.float32))
    longer = {
        name: np.resize(getattr(sample, name), len(high)) for name in ("confidence", "weights", "labels", "targets")
    }
    pool_section(dataclasses.replace(sample, entropy=high, **longer), "dpl")
    above, _ = figures[0].axes
    assert above.get_ylim() == pytest.approx((0, 1.6 * 12))
    assert [text.get_text() for text in above.texts] == [" cut: 94"]


def history(phase: str, **metrics: list[float]) -> History:
    """With records at steps 10, 20, ...; `_` of a name is / of its first."""
    keys = [name.replace("_", "/", 1) for name in metrics]
    steps = [dict(zip(keys, row, strict=True)) for row in zip(*metrics.values(), strict=True)]
    records = [{"phase": phase, "step": 10 * number, "metrics": found} for number, found in enumerate(steps, 1)]
    return History([*records, {"phase": "other", "step": 10, "metrics": {"train/loss_labeled": 99.0}}], phase)


def test_a_history_may_keep_some_points_spread_over_all_steps() -> None:
    rows = [{"phase": "dpl", "step": step, "metrics": {"loss": 2.0 * step}} for step in range(1, 1001)]
    kept = History(rows, "dpl", 16).points("loss")
    assert 8 <= len(kept) < 16
    assert kept == [(step, 2.0 * step) for step in range(1, 1001, kept[1][0] - 1)]
    assert History(rows[:15], "dpl", 16).points("loss") == History(rows[:15], "dpl").points("loss")


MAIN = {"curve_accuracy": [0.5, 0.6], "train_loss_labeled": [2.0, 1.0], "train_loss_unlabeled": [3.0, 4.0]}
BASELINE = {"curve_accuracy": [0.3, 0.4], "train_loss_labeled": [0.5, 0.25]}
VALIDATION = [0.7, 0.8]


def training(main: dict[str, list[float]], baseline: dict[str, list[float]] | None, num_test: int = 50) -> Section:
    before = None if baseline is None else history("supervised", **baseline)
    numbers = {"num_curve_images": min(20, num_test), "num_test": num_test, "num_validation": 7}
    return training_section(history("dpl", **main), before, **numbers)


def test_the_curves_are_those_of_both_trainings(figures: list[Figure]) -> None:
    text = text_of("training", training(MAIN, BASELINE))
    (accuracy,), (loss,) = (figure.axes for figure in figures)
    assert lines(accuracy) == {
        "dpl, test": points((10, 50), (20, 60)),
        "supervised, test": points((10, 30), (20, 40)),
    }
    assert lines(loss) == {
        "labelled, dpl": points((10, 2), (20, 1)),
        "labelled, supervised": points((10, 0.5), (20, 0.25)),
        "unlabelled, dpl": points((10, 3), (20, 4)),
    }
    for axes, name in ((accuracy, "accuracy (%)"), (loss, "loss (nats)")):
        assert (axes.get_xlabel(), axes.get_ylabel()) == ("training step", name)
        assert sorted(legend(axes)) == sorted(lines(axes))
        assert len({line.get_linestyle() for line in axes.get_lines()}) == len(lines(axes)), "without colours too"
    assert loss.get_yscale() == "log"
    assert "a fixed part (20 images) of the test split of 50, by which nothing is chosen." in text
    assert "Validation" not in text


def test_the_caption_tells_of_the_curves_that_are_drawn(figures: list[Figure]) -> None:
    both = text_of("training", training(MAIN | {"validation_accuracy": VALIDATION}, None, num_test=20))
    assert lines(figures[0].axes[0]) == {
        "dpl, test": points((10, 50), (20, 60)),
        "dpl, validation": points((10, 70), (20, 80)),
    }
    assert (
        "Test: the whole test split of 20, by which nothing is chosen. Validation: 7 labelled images that are" in both
    )
    figures.clear()
    losses = {"train_loss_labeled": [2.0, 1.0]}
    only = text_of("training", training(losses | {"validation_accuracy": VALIDATION}, None, num_test=0))
    assert list(lines(figures[0].axes[0])) == ["dpl, validation"]
    assert "Last teacher at that step. Validation: 7 labelled images" in only
    assert "test split" not in only
    assert "There is no curve of accuracy" in text_of("training", training(losses, None, num_test=0))


def test_coverage_and_precision_are_drawn_with_their_high_entropy_part(figures: list[Figure]) -> None:
    values = {"coverage": [0.9, 0.8], "high_entropy_share": [0.7, 0.6]}
    values |= {"precision": [0.5, 0.4], "high_entropy_precision": [0.3, 0.2]}
    pseudo_section(history("dpl", **{f"pseudo_{name}": value for name, value in values.items()}))
    (coverage,), (precision,) = (figure.axes for figure in figures)
    assert lines(coverage) == {
        "coverage (mean weight)": points((10, 90), (20, 80)),
        "of it below confidence 0.95": points((10, 70), (20, 60)),
    }
    assert lines(precision) == {
        "all": points((10, 50), (20, 40)),
        "confidence below 0.95": points((10, 30), (20, 20)),
    }
    assert (coverage.get_ylabel(), precision.get_ylabel()) == ("share (%)", "precision (%)")


def test_every_class_has_its_thresholds_and_the_band_between_them(figures: list[Figure]) -> None:
    told = {"over/a": [0.5, 0.9], "under/a": [0.2, 0.3], "over/b": [0.6, 0.8], "under/b": [0.1, 0.4]}
    main = history("dpl", **{f"threshold_{name}": values for name, values in told.items()})
    section = thresholds_section(main, ["a", "b"], {"over": [0.9, 0.8], "under": [0.3, 0.4]})
    for figure, name in zip(figures, "ab", strict=True):
        (axes,) = figure.axes
        over, under = told[f"over/{name}"], told[f"under/{name}"]
        assert lines(axes) == {
            "over-confident": points((10, over[0]), (20, over[1])),
            "under-confident": points((10, under[0]), (20, under[1])),
        }
        assert [line.get_linestyle() for line in axes.get_lines()] == ["-", "--"], "as the text says"
        (band,) = axes.collections
        corners = {(round(x), round(y, 6)) for x, y in band.get_paths()[0].vertices}
        assert corners == {(10, over[0]), (20, over[1]), (10, under[0]), (20, under[1])}
        assert (axes.get_xlabel(), axes.get_ylabel()) == ("training step", "confidence")
        assert axes.get_ylim() == (0, 1.02)
    assert rows(page_of_section("thresholds", section), "Thresholds at the last step .confidence.") == [
        ["a", "0.900", "0.300", "0.600"],
        ["b", "0.800", "0.400", "0.400"],
    ]


def test_the_page_of_a_run_hands_its_own_numbers_to_the_figures(figures: list[Figure], tmp_path: Path) -> None:
    splits = tiny_splits()
    config, folder, outcomes = finished(tmp_path, splits)
    page_of_run(config, splits, folder, outcomes)
    accuracy = lines(figures[0].axes[0])
    assert set(accuracy) == {"dpl, test", "supervised, test"}
    for outcome in outcomes:
        name = "supervised" if outcome.phase == "supervised" else "dpl"
        assert accuracy[f"{name}, test"][-1] == pytest.approx((6, 100 * outcome.metrics["eval/accuracy"]))
    (matrix,) = (figure.axes[0].images[0].get_array() for figure in figures if figure.axes[0].images)
    assert outcomes[-1].test is not None
    for target, row in enumerate(matrix):
        mine = outcomes[-1].test.labels[splits.test.targets == target]
        np.testing.assert_allclose(row, np.bincount(mine, minlength=3) / len(mine))
    (numbers,) = (figure.axes[1].containers[0] for figure in figures if figure.axes[-1].get_ylabel() == "images")
    assert sum(bar.get_height() for bar in numbers) == len(splits.test)
