"""What a label is: a class index, a class name, or none; and the class index that it means.

Legend: N labels.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from unicodedata import normalize

import numpy as np
from numpy.typing import NDArray

from dpl_ray.data.dataset import UNLABELED

Label = int | str | None
"""As the files have it: class index, class name, or None where there is none (also for -1)."""

#: What a text label is where there is nothing: those texts that pandas reads as NaN.
NOTHING = (
    "", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>", "N/A", "NA",
    "NULL", "NaN", "None", "n/a", "nan", "null",
)  # fmt: skip


def clean_name(name: str) -> str:
    """A class name as one text, however it was typed: in Unicode's form NFC, without blanks around it."""
    return normalize("NFC", name).strip()


def as_label(value: Label | float, class_names: Collection[str] = ()) -> Label:
    """The label that a file means: a whole float is the integer that it is, as `1.0`; -1, NaN and so on are none.

    Args:
        class_names: those that are listed somewhere; such a text is no other thing than a name.
    """
    if isinstance(value, float):
        value = int(value) if value.is_integer() else None
    if not isinstance(value, str):
        return None if value == -1 else value
    text = clean_name(value)
    if text in class_names:
        return text
    whole = re.fullmatch(r"([+-]?\d+)\.0*", text)
    text = whole[1] if whole else text
    return None if text in NOTHING or text == "-1" else text


def some(names: Sequence[str]) -> str:
    """The first of these names, for a message."""
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")


def is_integer(label: Label) -> bool:
    return isinstance(label, int) or (label is not None and re.fullmatch(r"[+-]?\d{1,18}", label) is not None)


def label_indices(labels: Sequence[Label], class_names: tuple[str, ...]) -> NDArray[np.int64]:
    """(N,) class index of each label, UNLABELED for None and for what is no class."""
    indices = {name: index for index, name in enumerate(class_names)}
    targets = np.full(len(labels), UNLABELED, np.int64)
    # Where the classes are called by numbers of their own (1, 2, 3), a number is a name, and not an index as well.
    numbers_are_names = all(map(is_integer, class_names)) and class_names != tuple(map(str, range(len(class_names))))
    for position, label in enumerate(labels):
        index = indices.get(label) if isinstance(label, str) else None
        if index is None and is_integer(label) and not (numbers_are_names and isinstance(label, str)):
            index = int(label)  # type: ignore[arg-type]
        if index is not None and 0 <= index < len(class_names):
            targets[position] = index
    return targets


def in_order_of(labels: Sequence[Label], names: tuple[str, ...], class_names: tuple[str, ...]) -> list[Label]:
    """The labels with the indices of `names` as those of `class_names`, by their names; names stay as they are.

    An index of no name, or of a name that is not in `class_names`, becomes None.
    """
    place = {name: index for index, name in enumerate(class_names)}
    moved = [place.get(name) for name in names]
    own = set(names)
    return [
        label if label in own or not is_integer(label) else moved[target] if target >= 0 else None
        for label, target in zip(labels, label_indices(labels, names).tolist(), strict=True)
    ]
