"""Folders that are called as the parts of a data set are, and not as classes."""

from __future__ import annotations

import shlex
from collections.abc import Collection

from dpl_ray.data.files.location import Location

#: Field -> names of the folder of its images, in small letters.
PARTS = {
    "data.train": ("labelled", "labeled", "train", "training"),
    "data.unlabeled": ("unlabelled", "unlabeled", "pool", "rest"),
    "data.test": ("test", "testing"),
    "data.validation_fraction": ("val", "valid", "validation"),
}


def find_parts(names: Collection[str]) -> dict[str, str]:
    """Field -> the first of these folders that is called as its images are."""
    parts = {field: [name for name in sorted(names) if name.lower() in known] for field, known in PARTS.items()}
    return {field: found[0] for field, found in parts.items() if found}


def check_layout(location: Location, subfolders: Collection[str]) -> None:
    """`ValueError` where the subfolders are parts of a data set: all of them, or folders of two parts or more."""
    parts = find_parts(subfolders)
    if len(parts) < 2 and set(parts.values()) != set(subfolders):
        return
    folder = location.given.rstrip("/")
    fields = [f"{field}={folder}/{name}" for field, name in parts.items() if field != "data.validation_fraction"]
    raise location.error(
        f"its subfolders {', '.join(parts.values())} are called as parts of a data set, not as classes; give "
        f"{shlex.join(fields) or 'the folder that holds a subfolder per class'} (or list them in data.class_names, if "
        "they are classes)"
    )
