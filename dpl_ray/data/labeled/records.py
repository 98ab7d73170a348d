"""The images of data.train and data.test with their labels: a folder, a glob, a CSV, parquet files or tars.

Everything that can be told without decoding an image is checked: paths, columns, label types, the order of class names.
"""

from __future__ import annotations

import codecs
import csv
import io
import posixpath
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import compress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pyarrow import fs

from dpl_ray.config.schema import DataConfig
from dpl_ray.config.section import suggest
from dpl_ray.data.files.kinds import are_images, read_file
from dpl_ray.data.files.listing import Listing, list_files
from dpl_ray.data.files.location import Location, open_location
from dpl_ray.data.files.reach import OutOfReachError, Reach, follow
from dpl_ray.data.files.shards import are_parquet, are_shards, are_tars, is_tar, split_id
from dpl_ray.data.files.spelling import Spelling
from dpl_ray.data.formats import tar
from dpl_ray.data.formats.parquet import read_labels
from dpl_ray.data.formats.rows import PoolFiles, Row, ShardRows, each_shard, pool_of, rows_of_tar
from dpl_ray.data.formats.samples import read_samples
from dpl_ray.data.images.decode import Payload
from dpl_ray.data.labeled.layout import check_layout
from dpl_ray.data.labels import Label, as_label, clean_name, in_order_of, some
from dpl_ray.store.file_systems import one_line
from dpl_ray.store.records import from_cell


@dataclass(frozen=True)
class Records:
    """Encoded images, in order. Nothing is read before `read` is called."""

    location: Location
    ids: list[str]
    labels: list[Label]
    read: Callable[[], Iterator[Payload]]
    class_names: tuple[str, ...] | None = None  # where the files have them; indices among the labels are of these
    are_listed: bool = True  # the class names, in metadata or a file: not those of folders
    files: PoolFiles | None = None  # that `read` reads; None: those that a CSV names
    left_out: Counter[str] = field(default_factory=Counter)

    def rows(self, targets: NDArray[np.int64] | None = None) -> Iterator[Row]:
        """Id, image and label of each, or the class index of `targets` (N,) in place of its label."""
        labels = self.labels if targets is None else targets.tolist()
        return zip(self.ids, self.read(), labels, strict=True)

    def without(self, excluded: set[str]) -> Records:
        """The records whose ids are not among these."""
        if excluded.isdisjoint(self.ids):
            return self
        keep = [sample_id not in excluded for sample_id in self.ids]
        return replace(
            self,
            ids=list(compress(self.ids, keep)),
            labels=list(compress(self.labels, keep)),
            read=lambda: compress(self.read(), keep),
        )


def list_records(data: DataConfig, field: str, given: str, class_names: tuple[str, ...] | None = None) -> Records:
    """List what data.train or data.test names, by what is found there.

    Args:
        class_names: of which integer labels are to be the indices, for data.test; None: of those of the files.

    Raises:
        ValueError: something else is there than data.name says, or labels are missing, odd or at odds.
    """
    location = replace(open_location(field, given), reach=Reach.of(data))
    listing = list_files(location)
    form = form_of(listing)
    if data.name == "image_folder" and form != "image_folder":
        kind = "parquet files, which data=parquet" if form == "parquet" else "tars, which data=webdataset"
        raise location.error(f"holds {kind} reads")
    if data.name != "image_folder":
        is_one, found = (are_parquet, "parquet file (.parquet, .pq)") if data.name == "parquet" else (are_tars, "tar")
        if not is_one(listing.paths).any():
            raise location.error(f"holds no {found}; image files take data=image_folder")
        return _read_shards(location, listing.keep(is_one(listing.paths)), data, class_names)
    if listing.paths.to_pylist() == [location.path]:
        if is_table(location.path):
            return _read_csv(location, data, class_names)
        raise location.error("is one file; it takes a folder with a subfolder per class, or a CSV of path,label")
    return _read_folder(location, listing.keep(~are_shards(listing.paths)), data)


def form_of(listing: Listing) -> str:
    """The data.name that reads these files as labelled images."""
    if are_images(listing.paths).any() or not are_shards(listing.paths).any():
        return "image_folder"
    return "parquet" if are_parquet(listing.paths).any() else "webdataset"


def _read_folder(location: Location, listing: Listing, data: DataConfig) -> Records:
    """Image files; the label is the subfolder (of a folder) or the parent folder (of a glob), or as data.classes_by."""
    paths: list[str] = listing.paths.to_pylist()
    below = len(location.path.rstrip("/")) + 1
    class_names: tuple[str, ...] | None = None
    if location.contains(paths[0]):
        subfolders = _subfolders(location)
        if not subfolders:
            raise location.error(
                f"{len(paths)} images lie in it, but no subfolder per class; make one for each class, or give a "
                "CSV of path,label (images without labels belong to data.unlabeled)"
            )
        if data.class_names is None:
            check_layout(location, subfolders)
        listing = listing.keep(np.array(["/" in path[below:] for path in paths]))
        labels = [_class_of(path[below:], data.classes_by) for path in listing.paths.to_pylist()]
        # Every subfolder is a class, also one without an image: that is a mistake to answer, not to pass over.
        named = subfolders if data.classes_by == "folder" else labels
        class_names = tuple(sorted({clean_name(name) for name in named}))
        if location.field == "data.train" and data.classes_by == "folder":
            _hint_at_nested(location, [path[below:] for path in listing.paths.to_pylist()], len(class_names))
    elif data.classes_by == "path":
        labels = [_class_of(posixpath.relpath(path, location.root_of(path)), "path") for path in paths]
    else:
        labels = [_class_of(path, "leaf") for path in paths]
    files = pool_of(location, listing)
    return Records(
        location,
        [location.name(path) for path in listing.paths.to_pylist()],
        [clean_name(label) for label in labels],
        partial(_payloads, files),
        class_names,
        are_listed=False,
        files=files,
        left_out=listing.left_out,
    )


def _class_of(path: str, classes_by: str) -> str:
    """The class of an image at this path, of which the first folder is the first that may be one."""
    folders = path.split("/")[:-1]
    return "/".join({"folder": folders[:1], "leaf": folders[-1:], "path": folders}[classes_by])


def _hint_at_nested(location: Location, paths: list[str], num_classes: int) -> None:
    """Warn of images in folders below those of the classes, of these paths below the location; an error if it is one.

    Raises:
        ValueError: all of them are of one class.
    """
    nested = [path for path in paths if path.count("/") > 1]
    if not nested:
        return
    folder, leaf, whole = (_class_of(nested[0], by) for by in ("folder", "leaf", "path"))
    hint = location.error(
        f"{len(nested)} images lie in folders below those of the classes, as {nested[0]}, and are of the class "
        f"{folder}; data.classes_by=leaf makes that {leaf}, data.classes_by=path {whole}"
    )
    if num_classes == 1:
        raise hint
    warnings.warn(str(hint), stacklevel=2)


def _subfolders(location: Location) -> list[str]:
    infos = location.filesystem.get_file_info(fs.FileSelector(location.path))
    return [
        info.base_name
        for info in infos
        if info.type == fs.FileType.Directory
        and info.base_name[0] not in "._"
        and (location.scheme or not _leads_up(Path(info.path)))
    ]


def _leads_up(folder: Path) -> bool:
    """Whether it is a link to a folder above."""
    return folder.is_symlink() and folder.resolve() in folder.parent.resolve().joinpath("x").parents


def _payloads(files: PoolFiles) -> Iterator[Payload]:
    return (payload for _, payload, _ in files.read_all())


def _read_shards(
    location: Location, listing: Listing, data: DataConfig, class_names: tuple[str, ...] | None
) -> Records:
    """Shards of images and labels; those without names of their classes take class_names.txt beside them."""
    paths: list[str] = listing.paths.to_pylist()
    beside = _read_class_names(location, paths[0])
    known = {*(beside or ()), *(data.class_names or ())}
    origin = "data.train"  # of class_names
    ids: list[str] = []
    labels: list[Label] = []
    shard_rows: list[ShardRows] = []
    named_by: dict[tuple[str, ...] | None, str] = {}  # the names of the indices -> the first file that has them

    def look(path: str) -> tuple[list[int], list[str], list[Label], tuple[str, ...] | None, Counter[str]]:
        if is_tar(path):
            members, found, left_out = tar.read_labels(location, path, data.label_column, known)
            return rows_of_tar(len(members)), members, found, beside, left_out
        groups, found, names = read_labels(
            location, path, image_column=data.image_column, label_column=data.label_column, class_names=known
        )
        return groups, list(map(str, range(len(found)))), found, names or beside, Counter()

    for path, (groups, members, found, names, left_out) in zip(paths, each_shard(look, paths), strict=True):
        file = location.name(path)
        if names or any(isinstance(label, int) for label in found):
            named_by.setdefault(names, file)
        new_ids = [f"{file}:{member}" for member in members]
        if names:
            if class_names is None:
                class_names = _listed(data, names)
                origin = "data.class_names" if class_names == data.class_names else file
            found = _in_order(location, new_ids, found, names, class_names, (file, origin))
        shard_rows.append(ShardRows(groups, left_out=left_out))
        ids += new_ids
        labels += found
    if None in named_by and len(named_by) > 2:
        first, second = [file for names, file in named_by.items() if names][:2]
        raise location.error(
            f"{first} and {second} have their classes in another order, and {named_by[None]} does not say what its "
            "class indices mean; write names into all of them, or labels that are names"
        )
    columns = data.image_column, data.label_column
    files = pool_of(location, listing, *columns, class_names=class_names, shard_rows=shard_rows)
    return Records(location, ids, labels, partial(_payloads, files), class_names, files=files, left_out=files.left_out)


def _listed(data: DataConfig, names: tuple[str, ...]) -> tuple[str, ...]:
    """data.class_names where these names are among them, in whatever order; else it gives them other names."""
    listed = data.class_names
    return listed if listed is not None and set(names) <= set(listed) else names


def _in_order(
    location: Location,
    ids: list[str],
    labels: list[Label],
    names: tuple[str, ...],
    class_names: tuple[str, ...],
    origins: tuple[str, str],
) -> list[Label]:
    """Labels whose indices are of `names` with those of `class_names`; `origins` are where these two are from."""
    if names == class_names:
        return labels
    if not set(names) <= set(class_names):
        raise location.error(
            f"the classes of {origins[0]} are {some(names)}, but those of {origins[1]} are {some(class_names)}; name "
            "them alike, or list all in data.class_names"
        )
    moved = in_order_of(labels, names, class_names)
    for sample_id, label, index in zip(ids, labels, moved, strict=True):
        if index is None and label is not None:
            raise location.error(f"label {label} of {sample_id} is outside the {len(names)} classes {some(names)}")
    return moved


def is_table(path: str) -> bool:
    """Whether the file is called a table of paths and labels, by its extension."""
    return path.lower().endswith((".csv", ".tsv"))


def _read_csv(location: Location, data: DataConfig, class_names: tuple[str, ...] | None) -> Records:
    """A CSV with the columns path and label; paths are relative to its folder, absolute, or addresses, within reach.

    `file.parquet:12` is row 12 of a parquet file, `file.tar:7.jpg` a member of a tar.
    """
    names = _read_class_names(location, location.path)
    known = {*(names or ()), *(data.class_names or ())}
    spelled = Spelling(location.filesystem)
    images: dict[str, Label] = {}
    places: dict[str, Location] = {}  # of the files
    for number, (path, label) in enumerate(csv_rows(location), start=1):
        if not path:
            raise location.error(f"row {number} has no path")
        file, row = split_id(_with_slashes(location, path, number))
        try:
            place = follow(location, location.path, file, spelled)
        except OutOfReachError as error:
            raise location.error(f"row {number} names {path}: {error}") from None
        name = place.name(place.path)
        sample_id = name if row is None else f"{name}:{row}"
        if sample_id in images:
            raise location.error(f"row {number} names {sample_id} again; one row an image")
        images[sample_id], places[name] = as_label(label, known), place
    if not images:
        raise location.error("no row below the header; write one for each image, as ant/1.jpg,ant")
    ids, labels = list(images), list(images.values())
    if names:
        class_names = class_names or _listed(data, names)
        labels = _in_order(location, ids, labels, names, class_names, (location.name(location.path), "data.train"))
    read = partial(read_samples, ids, data.image_column, places.__getitem__)
    return Records(location, ids, labels, read, names and class_names)


def csv_rows(location: Location) -> list[tuple[str, str]]:
    """(path, label) of each row of a CSV."""
    header, rows = _csv_table(location)
    for column in ("path", "label"):
        if column not in header:
            raise location.error(
                f"the header is {','.join(header) or 'missing'}; it needs the columns path and label"
                f"{suggest(column, header)}"
            )
    at = header.index("path"), header.index("label")
    return [(row[at[0]].strip(), row[at[1]]) for row in rows]


def csv_column(location: Location, name: str) -> list[str] | None:
    """Another column of a CSV that `list_records` reads, in the order of its records; None where it has no such one."""
    header, rows = _csv_table(location)
    return [row[header.index(name)] for row in rows] if name in header else None


def check_of_a_person(location: Location) -> None:
    """`ValueError` where a CSV has a model's confidence beside labels: predictions, or an unchanged export."""
    found = csv_column(location, "confidence") or []
    if number := sum(map(bool, found)):
        raise location.error(
            f"{number:,} of its {len(found):,} rows are labels of a model, with its confidence; a person's are "
            "needed (see `review`). Where a person has looked at every image, remove the column confidence"
        )


def _csv_table(location: Location) -> tuple[list[str], list[list[str]]]:
    """The header, and the rows that are not empty, as long as it: a row that ends before has nothing there."""
    try:
        content = read_file(location.filesystem, location.path)
        text = content.decode(_encoding(content))
        # Spreadsheets write what their language has for a comma.
        delimiter = max(",;\t", key=text.partition("\n")[0].count)
        table = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
        rows = [[from_cell(cell) for cell in row] for row in table]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise location.error(f"cannot be read as CSV in UTF-8 ({one_line(error)}); save it as CSV in UTF-8") from None
    header = [name.strip() for name in rows[0]] if rows else []
    return header, [row + [""] * (len(header) - len(row)) for row in rows[1:] if row]


def _encoding(content: bytes) -> str:
    """UTF-8, or UTF-16 as its mark says, or without one as the zero bytes of its Latin header do."""
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    return {b"\0": "utf-16-be"}.get(content[:1]) or {b"\0": "utf-16-le"}.get(content[1:2], "utf-8-sig")


def _with_slashes(location: Location, path: str, number: int) -> str:
    """The path with / in place of the backslashes of Windows, unless a file has this very name."""
    if "\\" in path:
        beside = posixpath.join(posixpath.dirname(location.path), path)
        if location.filesystem.get_file_info(beside).type == fs.FileType.NotFound:
            path = path.replace("\\", "/")
    if re.match(r"[A-Za-z]:/|//", path):
        raise location.error(
            f"row {number} names {path}, a path of Windows; write paths relative to the folder of the CSV, as "
            f"{'/'.join(path.split('/')[-2:])}"
        )
    return path


def _read_class_names(location: Location, beside: str) -> tuple[str, ...] | None:
    """The lines of class_names.txt in the folder of a file, if there is one."""
    path = posixpath.join(posixpath.dirname(beside), "class_names.txt")
    try:
        text = read_file(location.filesystem, path).decode("utf-8-sig")
    except OSError:
        return None
    except UnicodeDecodeError:
        raise location.error(f"{location.name(path)} beside it is not UTF-8 text") from None
    return tuple(filter(None, map(clean_name, text.splitlines()))) or None
