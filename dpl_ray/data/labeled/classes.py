"""Class names, and from the labels in the files to class indices."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray

from dpl_ray.config.schema import DataConfig
from dpl_ray.config.section import suggest
from dpl_ray.data.dataset import UNLABELED
from dpl_ray.data.labeled.records import Records
from dpl_ray.data.labels import Label, is_integer, label_indices, some


def find_class_names(data: DataConfig, train: Records) -> tuple[str, ...]:
    """Names from the configuration, else from the files, else from the labels themselves."""
    present = {label for label in train.labels if label is not None}
    if not present:
        why = (
            "data.label_column=null reads none"
            if data.name != "image_folder" and data.label_column is None
            else "all are null or -1"
        )
        raise train.location.error(f"none of its {len(train.ids)} images has a label ({why})")
    whole = f"{train.location.field}={train.location.given}"
    if data.class_names is not None:
        names, origin = data.class_names, "data.class_names"
    elif train.class_names is not None:
        names, origin = train.class_names, f"the class names of {whole}"
    elif all(is_integer(label) for label in present):
        names, origin = _index_names(train, present), whole
    else:
        _check_kinds(train)
        names, origin = tuple(sorted(map(str, present))), whole
    check_class_names(names, origin)
    if data.class_names is None and not (train.class_names and train.are_listed):
        _check_case(train, names)
    if data.class_names is not None and train.class_names is not None and len(names) != len(train.class_names):
        raise ValueError(
            f"data.class_names={','.join(names)}: {len(names)} names, "
            f"but {whole} has {len(train.class_names)} classes ({some(train.class_names)})"
        )
    return names


def _check_kinds(train: Records) -> None:
    """`ValueError` where some files have class indices and others names: nobody knows which belong together."""
    places = {type(label): sample_id for sample_id, label in zip(train.ids, train.labels, strict=True)}
    if int in places and str in places:
        raise train.location.error(
            f"the labels are integers in some files and names in others, as of {places[int]} and {places[str]}; list "
            "the names in the order of the integers in data.class_names"
        )


def _check_case(train: Records, names: tuple[str, ...]) -> None:
    """`ValueError` where two names that nobody has listed differ in their case alone."""
    found: dict[str, str] = {}
    for name in names:
        if (other := found.setdefault(name.lower(), name)) != name:
            places = dict(zip(reversed(train.labels), reversed(train.ids), strict=True))
            raise train.location.error(
                f"the classes {other} (as of {places.get(other)}) and {name} (as of {places.get(name)}) differ in "
                "their case alone; give them one name, or list both in data.class_names"
            )


def _index_names(train: Records, present: Collection[Label]) -> tuple[str, ...]:
    """The class indices as names. A column of other numbers, as of ids, must not become a million classes."""
    found = sorted({int(label) for label in present if label is not None})
    if found[-1] >= len(train.ids):
        raise train.location.error(
            f"label {found[-1]} among {len(train.ids)} images; labels are class indices from 0 to C - 1, or names"
        )
    if found[0] > 0:
        listed = f"data.class_names=[{','.join(map(str, found))}] takes them as names"
        are_texts = all(isinstance(label, str) for label in present)
        raise train.location.error(
            f"its labels are {some(list(map(str, found)))}, but class indices begin with 0; "
            + (listed if are_texts else f"write 0 to {len(found) - 1}, or the labels as texts, of which {listed}")
        )
    return tuple(str(index) for index in range(max(0, found[-1]) + 1))


def check_class_names(names: tuple[str, ...], origin: str) -> None:
    """`ValueError` unless there are two names or more, all different; `origin` is where they are from."""
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{origin}: {some(twice)} is there more than once; every class needs a name of its own")
    if len(names) < 2:
        raise ValueError(
            f"{origin}: {some(names) or 'no class'} is not enough; there must be at least 2 classes: add labelled "
            "images of another"
        )


def find_targets(records: Records, class_names: tuple[str, ...], *, every: bool = False) -> NDArray[np.int64]:
    """Class index of each record, UNLABELED where it has no label.

    Raises:
        ValueError: a label is outside the classes, or there is none though every image is to have one.
    """
    targets = label_indices(records.labels, class_names)
    for position in np.flatnonzero(targets == UNLABELED).tolist():
        if (label := records.labels[position]) is not None:
            raise records.location.error(_outside(label, records.ids[position], class_names))
    if every and (without := int((targets == UNLABELED).sum())):
        raise records.location.error(f"{without} of its {len(targets)} images have no label, which testing needs")
    return targets


def _outside(label: Label, sample_id: str, class_names: tuple[str, ...]) -> str:
    if is_integer(label):
        return (
            f"label {label} of {sample_id} is outside the {len(class_names)} classes 0 to {len(class_names) - 1}; "
            "-1 or an empty label mean unlabelled"
        )
    return (
        f"label {label} of {sample_id} is not one of the classes {some(class_names)}{suggest(str(label), class_names)}"
    )
