"""What people have annotated in another tool, as a CSV of path,label that trainings and reviews take."""

from __future__ import annotations

import json
import os
import posixpath
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyarrow.fs import FileSelector, FileType, LocalFileSystem
from rich.console import Console

from dpl_ray.config.given import read_given
from dpl_ray.data.files.kinds import read_file
from dpl_ray.data.files.listing import list_files
from dpl_ray.data.files.location import Location, open_location
from dpl_ray.data.files.shards import split_id
from dpl_ray.data.files.spelling import Spelling
from dpl_ray.data.labeled.records import is_table
from dpl_ray.data.labels import clean_name
from dpl_ray.exchange.config import ImportLabelsConfig
from dpl_ray.exchange.formats import Row, from_coco, from_fiftyone, from_label_studio
from dpl_ray.page.console import open_console, show
from dpl_ray.page.result import Result
from dpl_ray.store.file_systems import one_line
from dpl_ray.store.records import csv_text
from dpl_ray.store.storage import Storage


@dataclass(frozen=True, repr=False)
class ImportLabelsResult(Result):
    """The result of `import_labels`."""

    output: str
    num_labels: int  # images with a class
    num_unknown: int  # images that a person could not tell: without a label in the CSV
    num_open: int  # images that nobody has looked at: not in the CSV
    num_by_model: int  # labels that still have the confidence of a model, and in the CSV, too: nothing for an audit

    def _facts(self) -> dict[str, str | None]:
        return {
            "labels": f"{self.num_labels:,}",
            "cannot tell": f"{self.num_unknown:,}",
            "not annotated": f"{self.num_open:,}",
            "with the confidence of a model": f"{self.num_by_model:,}" if self.num_by_model else None,
            "output": self.output,
        }


def import_labels(
    config: ImportLabelsConfig | Sequence[str] = (), *, console: Console | bool | None = None, **keywords: Any
) -> ImportLabelsResult:
    """Read the annotations of another tool, and write them as a CSV of path,label.

    Args:
        config: a configuration, or overrides as on the command line.
        console: where the numbers are shown, as in `fit`.
        keywords: fields, as `annotations="project-1.json", output="answers.csv"`.

    Raises:
        ValueError: a field or the annotations do not fit, an image has two classes, or none has one.
    """
    config, console = read_given(config, keywords, ImportLabelsConfig.load, ImportLabelsConfig), open_console(console)
    location, output = open_location("annotations", config.annotations), Storage(config.output)
    if output.exists():
        raise ValueError(f"output={config.output}: is there already; give a new file, nothing is overwritten")
    rows, folder = _read(location)
    root = folder if config.root is None else open_location("root", config.root).path
    answers: dict[str, str] = {}
    scores: dict[str, float] = {}
    spelled = Spelling(LocalFileSystem())
    num_open = 0
    for image, label, score in rows:
        if label is None:
            num_open += 1
            continue
        path = image if "://" in image else posixpath.join(root, image)
        if not (path.isascii() or "://" in path or os.path.exists(path)):  # noqa: PTH110
            path = spelled(path)
        if answers.setdefault(path, label) != label:
            raise location.error(f"{path} is there twice, as {answers[path] or '(none)'} and {label or '(none)'}")
        if score is not None:
            scores[path] = score
    num_labels = sum(map(bool, answers.values()))
    if not num_labels:
        raise location.error(f"no image has a class yet ({len(answers) + num_open:,} are there)")
    _check_there(location, list(answers))
    table: list[tuple[Any, ...]] = [("path", "label"), *answers.items()]
    if scores:
        table = [("path", "label", "confidence"), *((*each, scores.get(each[0], "")) for each in answers.items())]
    output.write(csv_text(table).encode(errors="surrogateescape"))
    result = ImportLabelsResult(str(output), num_labels, len(answers) - num_labels, num_open, len(scores))
    show(console, ", ".join(f"{value} {name}" for name, value in result._told()[:-1]))
    if scores:
        show(console, "these are labels to train on; an audit or a review takes those of a person alone")
    return result


def _read(location: Location) -> tuple[list[Row], str]:
    """The rows, whatever has written them, and the folder that relative paths start from.

    Raises:
        ValueError: nothing that is known has written them.
    """
    path = location.path
    if location.filesystem.get_file_info(path).type == FileType.Directory:
        if not location.filesystem.get_file_info(f"{path}/labels.json").is_file:
            return _class_folders(location), path
        path = f"{path}/labels.json"
    else:
        list_files(location)  # has its own words for what is not there
    if is_table(path):
        raise location.error("is a table already, which data.train and `review answers=` take as it is")
    folder = posixpath.dirname(path)
    try:
        tree = json.loads(read_file(location.filesystem, path))
        if isinstance(tree, list):
            return _checked(from_label_studio(tree)), "/"
        if "annotations" in tree:
            return _checked(from_coco(tree)), folder
        return _checked(from_fiftyone(tree, _fiftyone_paths(location, folder, tree["labels"]))), folder
    except (
        *(OSError, LookupError, TypeError, AttributeError, RecursionError),
        *(json.JSONDecodeError, UnicodeError),
    ) as error:
        raise location.error(
            f"is nothing that Label Studio, FiftyOne or a tool of COCO's form has written ({type(error).__name__}: "
            f"{one_line(error)})"
        ) from None
    except ValueError as error:
        raise location.error(str(error)) from None


def _checked(rows: Iterable[Row]) -> list[Row]:
    """`TypeError` or `UnicodeEncodeError` unless images are paths and classes are names."""
    made = [(image, label if label is None else clean_name(label), score) for image, label, score in rows]
    if odd := next((image for image, *_ in made if not isinstance(image, str)), None):
        raise TypeError(f"{odd!r} is no path")
    for image, label, _ in made:  # JSON has signs that no file can have
        os.fsencode(image + (label or ""))
    return made


def _fiftyone_paths(location: Location, folder: str, labels: Collection[str]) -> dict[str, str]:
    """Name of an image in labels.json -> its path, by data.json or by the files of data/.

    Raises:
        ValueError: an image has no file.
    """
    if location.filesystem.get_file_info(f"{folder}/data.json").is_file:
        paths: dict[str, str] = json.loads(read_file(location.filesystem, f"{folder}/data.json"))
    else:
        below = FileSelector(f"{folder}/data", allow_not_found=True, recursive=True)
        files = [info.path for info in location.filesystem.get_file_info(below) if info.is_file]
        paths = {posixpath.splitext(file.removeprefix(f"{folder}/data/"))[0]: location.name(file) for file in files}
    if gone := next((name for name in labels if name not in paths), None):
        raise ValueError(f"neither data.json nor the folder data beside it has the image {gone}")
    return paths


def _class_folders(location: Location) -> list[Row]:
    """A link counts as the image that it leads to, so that it is known as one of the pool."""
    rows: list[Row] = []
    for file in list_files(location).paths.to_pylist():
        name = posixpath.relpath(posixpath.dirname(file), location.path)
        if name == ".":
            raise location.error(f"{posixpath.basename(file)} lies in no subfolder, which would say its class")
        is_link = not location.scheme and Path(file).is_symlink()
        rows.append((str(Path(file).readlink()) if is_link else location.name(file), clean_name(name), None))
    return rows


def _check_there(location: Location, paths: Sequence[str]) -> None:
    files = [split_id(path)[0] for path in paths if "://" not in path]
    gone = [file for file in files if not os.path.exists(file)]  # noqa: PTH110  # which knows no name that is too long
    if gone:
        raise location.error(
            f"{len(gone):,} of its {len(paths):,} images are not there, as {gone[0]}; give the folder that their "
            "paths start from, as root=photos"
        )
