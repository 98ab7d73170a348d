"""What the answers to a draw say of the labels: errors with intervals, by class, and what was confused.

Legend: M cells of the labels (dpl_ray/reviewing/labels.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dpl_ray.page.html import MISSING, Page, Section, Table, render_page
from dpl_ray.reviewing.answers import UNKNOWN
from dpl_ray.reviewing.draw import Draw
from dpl_ray.reviewing.estimate import Error, Sample, Share, estimate_error

COLUMNS = ("", "labels", "answered", "wrong", "share of wrong", "after correction")
CONFUSION_COLUMNS = ("proposed", "is", "images", "of all labels")


@dataclass(frozen=True)
class Confusion:
    """How often the answer is another class than the label."""

    proposed: str
    answer: str
    number: int  # images
    share: float  # of all labels, estimated


@dataclass(frozen=True)
class Findings:
    """Of a draw with its answers."""

    confidence: float
    num_unknown: int  # images that nobody could tell: they count as wrong
    whole: Error  # of all labels
    parts: dict[str, Error | None]  # of the selected ones, and of the others
    classes: dict[str, Error | None]  # by pseudo-label; None where none was answered
    confusions: tuple[Confusion, ...]  # the most first


def judge(draw: Draw, answers: Sequence[int], confidence: float) -> Findings:
    """
    Args:
        answers: class index or UNKNOWN of the first images of the draw.
    """
    items = draw.items[: len(answers)]
    labels, said = np.array([item.label for item in items]), np.array(answers)
    cells, sizes = np.array([item.cell for item in items]), np.array(draw.cells)
    wrong, corrected = said != labels, (said != labels) & (said != UNKNOWN)
    sample = Sample(int(sizes.sum()), len(items), draw.num_strata == 1)
    places, width = np.arange(len(sizes)), len(sizes) // 2
    classes = places % width // (width // len(draw.class_names))

    def error(of_cells: NDArray[np.bool_]) -> Error | None:
        """Of the labels of these cells (M,)."""
        mine = of_cells[cells]
        counts = (int(each.sum()) for each in (mine, wrong & mine, corrected & mine))
        return estimate_error(sample, int(sizes[of_cells].sum()), *counts, confidence=confidence)

    whole = error(places >= 0)
    assert whole is not None, "there are answers"
    parts = {"selected": error(places < width), "rejected": error(places >= width)}
    by_class = {name: error(classes == index) for index, name in enumerate(draw.class_names)}
    pairs = Counter(zip(labels[corrected].tolist(), said[corrected].tolist(), strict=True))
    confusions = tuple(
        Confusion(draw.class_names[label], draw.class_names[answer], number, number / len(items))
        for (label, answer), number in pairs.most_common()
    )
    return Findings(confidence, int((said == UNKNOWN).sum()), whole, parts, by_class, confusions)


def told(share: Share) -> str:
    """A share with its interval."""
    return f"{100 * share.estimate:.1f} % [{100 * share.low:.1f}, {100 * share.high:.1f}]"


def rows(findings: Findings) -> list[list[str]]:
    """Of all labels, of the selected and the other ones, and of each class: the cells of COLUMNS."""
    number = findings.whole.num_images
    errors: dict[str, Error | None] = {"all": findings.whole}
    errors |= {name: error for name, error in findings.parts.items() if error and error.num_images < number}
    return [_row(name, error) for name, error in (errors | findings.classes).items()]


def _row(name: str, error: Error | None) -> list[str]:
    if error is None:
        return [name, *[MISSING] * (len(COLUMNS) - 1)]
    counts = [f"{number:,}" for number in (error.num_images, error.num_answered, error.num_wrong)]
    return [name, *counts, told(error.before), told(error.after)]


def confusion_rows(findings: Findings) -> list[list[str]]:
    """The cells of CONFUSION_COLUMNS."""
    return [
        [each.proposed, each.answer, f"{each.number:,}", f"{100 * each.share:.1f} %"] for each in findings.confusions
    ]


def make_page(findings: Findings, title: str, command: str) -> Page:
    """Banner and tables."""
    level = f"{100 * findings.confidence:g} %"
    sections = {
        "error": Section(
            title="How many labels are wrong",
            findings=findings,
            level=level,
            told=told(findings.whole.before),
            after=told(findings.whole.after),
            table=Table(f"Share of wrong labels, with its interval of {level}", COLUMNS, rows(findings)),
        ),
        "confusions": Section(
            title="What was confused",
            table=Table("Labels and answers", CONFUSION_COLUMNS, confusion_rows(findings), num_text_columns=2),
            command=command,
        ),
    }
    subtitle = f"{findings.whole.num_answered:,} answers of a person to labels of {findings.whole.num_images:,} images"
    return render_page("reviewing/errors.html", title, subtitle, sections)
