"""What a report says of the test split: calibration, confusions, and the images that the model is most wrong about.

Legend: N images, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpl_ray.config.schema import DataConfig
from dpl_ray.data.dataset import ImageSet
from dpl_ray.data.features.pictures import read_pictures
from dpl_ray.page.html import MISSING, Section, Table
from dpl_ray.page.pictures import encode_png
from dpl_ray.page.plots import cut, draw
from dpl_ray.report.verdict import wilson_interval
from dpl_ray.training.predictions import NUM_BINS, Predictions, confidence_bins

NUM_PICTURES = 12  # of each sheet
MAX_NAMED = 20  # classes of a confusion matrix with names and counts in it
MAX_CONFUSIONS = 10
MAX_ROWS = 20
MAX_DRAWN = 500  # rows and columns of the matrix; of more classes, neighbours share one


def calibration_section(test: ImageSet, found: Predictions, ece: float, baseline_ece: float | None) -> Section:
    """The reliability diagram."""
    right = found.labels == test.targets
    drawing = draw(lambda *axes: _reliability(axes, found.confidence, right), width=4.4, height=4.0, heights=(3, 1))
    return Section(
        title="Calibration",
        drawings={"reliability-diagram": drawing},
        num_test=len(test),
        accuracy=float(right.mean()),
        confidence=float(found.confidence.mean()),
        num_bins=NUM_BINS,
        ece=ece,
        baseline_ece=baseline_ece,
        bins=_bins(found.confidence, right),
    )


def _bins(confidence: NDArray, right: NDArray[np.bool_]) -> Table:
    places = confidence_bins(confidence)
    rows = []
    for place in np.unique(places):
        mine = places == place
        name = f"{place / NUM_BINS:.2f} to {(place + 1) / NUM_BINS:.2f}"
        said, true = 100 * confidence[mine].mean(), 100 * right[mine].mean()
        rows.append([name, f"{mine.sum():,}", f"{said:.1f} %", f"{true:.1f} %"])
    return Table("The bins of the diagram", ["confidence", "images", "mean confidence", "accuracy"], rows)


def _reliability(axes: Any, confidence: NDArray, right: NDArray[np.bool_]) -> None:
    above, below = axes
    edges = np.linspace(0, 1, NUM_BINS + 1)
    places = confidence_bins(confidence)
    numbers = np.bincount(places, minlength=NUM_BINS)
    hits = np.bincount(places, right, NUM_BINS)
    filled = numbers > 0
    centres = ((edges[:-1] + edges[1:]) / 2)[filled]
    shares = hits[filled] / numbers[filled]
    bounds = np.array([wilson_interval(hit, n) for hit, n in zip(hits[filled], numbers[filled], strict=True)])
    above.bar(centres, 100 * shares, 1 / NUM_BINS, color="0.8", edgecolor="0.1", linewidth=0.7)
    errors = 100 * np.abs(bounds.T - shares)
    above.errorbar(centres, 100 * shares, errors, fmt="none", ecolor="0.1", elinewidth=1, capsize=2.5)
    above.plot([0, 1], [0, 100], "--", color="0", linewidth=1)
    above.set_ylim(0, 103)
    above.set_ylabel("accuracy (%)")
    below.bar(centres, numbers[filled], 1 / NUM_BINS, color="0.45", edgecolor="0.1", linewidth=0.7)
    below.set_ylabel("images")
    below.set_xlabel("confidence of the last teacher")
    below.set_xlim(0, 1)


def confusion_section(
    test: ImageSet, found: Predictions, baseline: Predictions | None, class_names: Sequence[str]
) -> Section:
    """The confusion matrix, its largest entries, and the recall of every class."""
    num_classes = len(class_names)
    drawing = draw(lambda axes: _matrix(axes, test.targets, found.labels, class_names), width=4.6, height=4.6 * 0.95)
    numbers = np.bincount(test.targets, minlength=num_classes)
    is_wrong = found.labels != test.targets
    # The pairs that there are: a matrix of 10,000 classes would take 800 MB.
    pairs = test.targets[is_wrong] * num_classes + found.labels[is_wrong]
    places, counts = np.unique(pairs, return_counts=True)
    rows = []
    for place in np.argsort(-counts, kind="stable")[:MAX_CONFUSIONS]:
        target, label = divmod(int(places[place]), num_classes)
        count, number = counts[place], numbers[target]
        rows.append(
            [class_names[target], class_names[label], f"{count:,} of {number:,}", f"{100 * count / number:.0f} %"]
        )
    columns = ["true class", "said to be", "images", "share"]
    return Section(
        title="Confusions",
        drawings={"confusion-matrix": drawing},
        num_test=len(test),
        num_classes=num_classes,
        is_named=num_classes <= MAX_NAMED,
        is_long=num_classes > MAX_ROWS,
        confusions=Table("The most frequent confusions", columns, rows, 2) if rows else None,
        recall=_recall(test, found, baseline, class_names),
    )


def _recall(test: ImageSet, found: Predictions, baseline: Predictions | None, class_names: Sequence[str]) -> Table:
    rows = []
    numbered = len(class_names) > MAX_NAMED  # as in the matrix
    numbers, *hits = (
        np.bincount(targets, minlength=len(class_names)).tolist()
        for targets in (
            test.targets,
            *(test.targets[each.labels == test.targets] for each in (found, baseline) if each),
        )
    )
    for place, (name, number) in enumerate(zip(class_names, numbers, strict=True)):
        name = f"{place}: {name}" if numbered else name
        if not number:
            rows.append([name, "0", MISSING] + [MISSING, MISSING] * (baseline is not None))
            continue
        recall, *before = (100 * right[place] / number for right in hits)
        low, high = wilson_interval(hits[0][place], number)
        row = [name, f"{number:,}", f"{recall:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"]
        rows.append(row + [text for share in before for text in (f"{share:.1f} %", f"{recall - share:+.1f}")])
    columns = ["class", "test images", "recall [95 %]", *(["supervised", "difference"] if baseline is not None else [])]
    return Table("Recall of the classes", columns, rows)


def _matrix(axes: Any, targets: NDArray[np.int64], labels: NDArray[np.int64], class_names: Sequence[str]) -> None:
    width = -(-len(class_names) // MAX_DRAWN)  # classes of a row
    side = -(-len(class_names) // width)
    matrix = np.bincount(targets // width * side + labels // width, minlength=side**2).reshape(side, side)
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    extent = (-0.5, side * width - 0.5, side * width - 0.5, -0.5)
    axes.imshow(shares, cmap="gray_r", vmin=0, vmax=1, interpolation="nearest", extent=extent)
    axes.grid(False)
    axes.spines[:].set_visible(True)
    axes.set_xlabel("said to be")
    axes.set_ylabel("true class")
    if len(class_names) > MAX_NAMED:
        return
    names = [cut(name, 14) for name in class_names]
    turned = any(len(name) > 2 for name in names)
    axes.set_xticks(range(len(names)), names, rotation=90 if turned else 0, fontsize=8.5)
    axes.set_yticks(range(len(names)), names, fontsize=8.5)
    size = 8.5 if len(names) <= 12 else 6
    for (target, label), number in np.ndenumerate(matrix):
        if number:
            shade = "white" if shares[target, label] > 0.5 else "black"
            axes.text(label, target, f"{number}", ha="center", va="center", color=shade, fontsize=size)


def pictures_section(
    test: ImageSet, found: Predictions, class_names: Sequence[str], data: DataConfig
) -> Section | None:
    """The most confident wrong images and the least confident right ones.

    None where there are features of images that cannot be read any more.
    """
    right = found.labels == test.targets
    sheets = []
    for title, mask, sign in (
        ("Most confident, and wrong", ~right, -1),
        ("Least confident, and right", right, 1),
    ):
        rows = np.flatnonzero(mask)
        rows = rows[np.argsort(sign * found.confidence[rows], kind="stable")][:NUM_PICTURES]
        pictures = read_pictures(test, rows, data)
        if pictures is None:
            return None
        samples = [
            _sample(picture, test, found, int(row), class_names) for picture, row in zip(pictures, rows, strict=True)
        ]
        sheets.append((f"{title}: {len(rows)} of {int(mask.sum()):,} images", samples))
    return Section(title="Images to look at", sheets=sheets)


def _sample(
    picture: NDArray[np.uint8], test: ImageSet, found: Predictions, row: int, class_names: Sequence[str]
) -> tuple[bytes, str, str]:
    """The image as PNG, what is said of it, and its id."""
    said, true = class_names[found.labels[row]], class_names[test.targets[row]]
    confidence = f"{100 * found.confidence[row]:.1f} %"
    text = f"{said}, {confidence}" if said == true else f"said {said}, {confidence}; is {true}"
    return encode_png(picture), text, str(test.ids[row])
