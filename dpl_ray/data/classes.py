"""Class names, and from the labels in the files to class indices."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from dpl_ray.config.schema import DataConfig, suggest
from dpl_ray.data.dataset import UNLABELED
from dpl_ray.data.files import Label, Records


def find_class_names(data: DataConfig, train: Records) -> tuple[str, ...]:
    """Names from the configuration, else from the files, else from the labels themselves."""
    present = {label for label in train.labels if label is not None}
    if not present:
        why = (
            "data.label_column=null reads none"
            if data.name == "parquet" and data.label_column is None
            else "all are null or -1"
        )
        raise train.location.error(f"none of its {len(train.ids)} images has a label ({why})")
    whole = f"{train.location.field}={train.location.given}"
    if data.class_names is not None:
        names, origin = data.class_names, "data.class_names"
    elif train.class_names is not None:
        names, origin = train.class_names, f"the class names of {whole}"
    elif all(_is_integer(label) for label in present):
        names, origin = _index_names(train, max(int(label) for label in present)), whole
    else:
        names, origin = tuple(sorted(map(str, present))), whole
    check_class_names(names, origin)
    if data.class_names is not None and train.class_names is not None and len(names) != len(train.class_names):
        raise ValueError(
            f"data.class_names={','.join(names)}: {len(names)} names, "
            f"but {whole} has {len(train.class_names)} classes ({_some(train.class_names)})"
        )
    return names


def _index_names(train: Records, highest: int) -> tuple[str, ...]:
    """The class indices as names. A column of other numbers, as of ids, must not become a million classes."""
    if highest >= len(train.ids):
        raise train.location.error(
            f"label {highest} among {len(train.ids)} images; labels are class indices from 0 to C - 1, or names"
        )
    return tuple(str(index) for index in range(max(0, highest) + 1))


def check_class_names(names: tuple[str, ...] | None, origin: str) -> None:
    """`ValueError` unless there are two names or more, all different; `origin` is where they are from."""
    if names is None:
        return
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{origin}: {_some(twice)} is there more than once; every class needs a name of its own")
    if len(names) < 2:
        raise ValueError(f"{origin}: {_some(names) or 'no class'} is not enough; there must be at least 2 classes")


def _is_integer(label: Label) -> bool:
    return isinstance(label, int) or (label is not None and re.fullmatch(r"[+-]?\d+", label) is not None)


def find_targets(records: Records, class_names: tuple[str, ...]) -> NDArray[np.int64]:
    """Class index of each record, UNLABELED where it has no label; a label outside the classes is an error."""
    targets = label_indices(records.labels, class_names)
    for position in np.flatnonzero(targets == UNLABELED).tolist():
        if (label := records.labels[position]) is not None:
            raise records.location.error(_outside(label, records.ids[position], class_names))
    return targets


def label_indices(labels: Sequence[Label], class_names: tuple[str, ...]) -> NDArray[np.int64]:
    """(N,) class index of each label, UNLABELED for None and for what is no class."""
    indices = {name: index for index, name in enumerate(class_names)}
    targets = np.full(len(labels), UNLABELED, np.int64)
    # Where the classes are called by numbers of their own (1, 2, 3), a number is a name, and not an index as well.
    numbers_are_names = all(map(_is_integer, class_names)) and class_names != tuple(map(str, range(len(class_names))))
    for position, label in enumerate(labels):
        index = indices.get(label) if isinstance(label, str) else None
        if index is None and _is_integer(label) and not (numbers_are_names and isinstance(label, str)):
            index = int(label)  # type: ignore[arg-type]
        if index is not None and 0 <= index < len(class_names):
            targets[position] = index
    return targets


def _outside(label: Label, sample_id: str, class_names: tuple[str, ...]) -> str:
    if _is_integer(label):
        return (
            f"label {label} of {sample_id} is outside the {len(class_names)} classes 0 to {len(class_names) - 1}; "
            "-1 or an empty label mean unlabelled"
        )
    return (
        f"label {label} of {sample_id} is not one of the classes {_some(class_names)}{suggest(str(label), class_names)}"
    )


def find_test_targets(test: Records, class_names: tuple[str, ...], data: DataConfig) -> NDArray[np.int64]:
    """Class index of each test image; `ValueError` where one has none, or the order of the names is another."""
    # Indices mean something only with the order of the names: another order would shift every label.
    reordered = data.class_names is None and test.class_names not in (None, class_names)
    if reordered and test.class_names and any(map(_is_integer, test.labels)):
        raise test.location.error(
            f"its class names are {_some(test.class_names)}, but those of data.train are {_some(class_names)}; "
            "set data.class_names if the indices agree"
        )
    targets = find_targets(test, class_names)
    if without := int((targets == UNLABELED).sum()):
        raise test.location.error(f"{without} of its {len(targets)} images have no label, which testing needs")
    return targets


def _some(names: tuple[str, ...] | list[str]) -> str:
    return ", ".join(islice(names, 8)) + (", ..." if len(names) > 8 else "")
