"""Where in a folder the labelled, the unlabelled and the test images are.

Told by names, as `train/`, `unlabelled/`, `test.csv`, and by what a folder holds. Nothing is decoded.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from dpl_ray.data.files.kinds import is_image
from dpl_ray.data.files.shards import is_parquet
from dpl_ray.data.labeled.records import is_table
from dpl_ray.data.labels import some

#: First word of a name, in small letters -> what lies there.
ROLES: Mapping[str, str] = {
    **dict.fromkeys(("train", "training", "labelled", "labeled", "labels", "annotated", "annotations"), "train"),
    **dict.fromkeys(("test", "testing", "evaluation", "eval", "validation", "valid", "val", "holdout"), "test"),
    **dict.fromkeys(
        ("unlabelled", "unlabeled", "unsupervised", "unsorted", "unknown", "pool", "rest", "remaining", "raw"),
        "unlabeled",
    ),
}
Places = str | tuple[str, ...]
ACCEPTED = (
    "a folder for each class, images without a class loose or in unlabelled/; or train/, unlabelled/ and test/; "
    "or a CSV of path,label beside the images; or train*.parquet, unlabelled*.parquet and test*.parquet"
)


@dataclass(frozen=True)
class Layout:
    """What a folder holds, as values of fields of the section `data`."""

    name: str  # data.name: image_folder or parquet
    fields: dict[str, Places] = field(default_factory=dict)  # train, unlabeled, test -> path or glob, or several
    reasons: dict[str, str] = field(default_factory=dict)  # the same -> why, for the user
    classes: tuple[Path, ...] = ()  # folders that are the classes, where data.train must name them one by one
    has_unlabelled_rows: bool = False  # rows of data.train without a label are the pool

    @property
    def has_pool(self) -> bool:
        return "unlabeled" in self.fields or self.has_unlabelled_rows


def find_layout(folder: Path) -> Layout:
    """The layout of a local folder.

    Raises:
        ValueError: it is none, or no labels are found in it.
    """
    if not folder.is_dir():
        raise ValueError(f"folder={folder}: there is no such folder; give the folder that your images lie in")
    entries = sorted(path for path in folder.iterdir() if path.name[0] not in "._")
    if parquet := [path for path in entries if is_parquet(path.name)]:
        return _of_parquet(folder, parquet)
    if not (found := _of_files(folder, entries)).fields.get("train"):
        held = some([f"{path.name}/" if path.is_dir() else path.name for path in entries]) or "nothing"
        raise ValueError(f"folder={folder}: no labels are found; it takes {ACCEPTED} (it holds {held})")
    return found


def role_of(path: Path) -> str | None:
    """What the name says that a file or folder holds: train, unlabeled, test; None where it does not say."""
    return ROLES.get(re.split(r"[^a-z]", path.stem.casefold(), maxsplit=1)[0])


def _of_parquet(folder: Path, files: list[Path]) -> Layout:
    """Parquet files, by their names; without any name that says train, all that no name says something of."""
    globs: dict[str, Places] = {}
    reasons: dict[str, str] = {}
    for role in ("train", "unlabeled", "test"):
        named = [path for path in files if (role_of(path) or "train") == role]
        if named:
            globs[role], reasons[role] = _glob(folder, named, files), "named so"
    if "train" not in globs:
        raise ValueError(f"folder={folder}: none of its parquet files is called train*.parquet; it takes {ACCEPTED}")
    return Layout("parquet", globs, reasons)


def _glob(folder: Path, named: list[Path], files: list[Path]) -> str:
    """One path or glob of some of the files."""
    if len(named) == 1:
        return str(named[0])
    if len(named) == len(files):
        return str(folder / "*.parquet")
    word = re.split(r"[^A-Za-z]", named[0].stem, maxsplit=1)[0]
    return str(folder / f"{word}*")


def _of_files(folder: Path, entries: list[Path]) -> Layout:
    fields: dict[str, Places] = {}
    reasons: dict[str, str] = {}
    for path in entries:
        if is_table(path.name):  # a table without a role has the labels
            _put(fields, reasons, "test" if role_of(path) == "test" else "train", path, "a table of path,label")
    folders = [path for path in entries if path.is_dir()]
    named = [path for path in folders if role_of(path)]
    classes = [path for path in folders if not role_of(path) and _has_images(path)]
    for path in named:
        role = role_of(path) or ""
        if role == "unlabeled":
            _put(fields, reasons, role, path, "named so")
        elif any(_has_images(inner) for inner in _subfolders(path)):
            _put(fields, reasons, role, path, "a folder for each class in it")
        elif _has_images(path) and role == "test":
            _put(fields, reasons, "unlabeled", path, "images without classes")
    chosen: tuple[Path, ...] = ()
    loose = sorted({path.suffix for path in entries if path.is_file() and is_image(path.name)})
    if "train" not in fields and len(classes) == 1 and any(_has_images(inner) for inner in _subfolders(classes[0])):
        if not fields and not loose:
            return find_layout(classes[0])  # it is all that there is
        _put(fields, reasons, "train", classes[0], "a folder for each class in it")
    if "train" not in fields and classes:
        _put(fields, reasons, "train", folder, f"its folders are the classes: {some([path.name for path in classes])}")
        chosen = tuple(classes) if named else ()
    if "train" in fields and "unlabeled" not in fields:
        if has_table(fields["train"]):
            _put(fields, reasons, "unlabeled", folder, "every image that the table gives no label")
        elif loose:
            globs = tuple(str(folder / f"*{suffix}") for suffix in loose)
            _put(fields, reasons, "unlabeled", globs if len(globs) > 1 else globs[0], "the loose images")
    return Layout("image_folder", fields, reasons, chosen)


def _put(fields: dict[str, Places], reasons: dict[str, str], role: str, path: Path | Places, why: str) -> None:
    """The first that is found stays: a table before a folder, test before val."""
    if role not in fields:
        fields[role], reasons[role] = str(path) if isinstance(path, Path) else path, why


def has_table(train: Places) -> bool:
    """Whether the labels are in a table."""
    return isinstance(train, str) and is_table(train)


def _subfolders(folder: Path) -> Iterable[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and path.name[0] not in "._")


def _has_images(folder: Path) -> bool:
    """Whether a file in it, or in a folder below, is called an image."""
    return any(is_image(path.name) for path in folder.rglob("*"))
