"""The user's own files, on any file system of pyarrow, as encoded images with labels.

A folder, a glob or a CSV becomes `Records` here, parquet files in `parquet.py`; images without labels are listed by
`pool_files.py`. Everything that can be told
without decoding an image is checked: paths, columns, label types.
"""

from __future__ import annotations

import csv
import io
import posixpath
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import compress
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pyarrow import fs

from dpl_ray.config.schema import suggest
from dpl_ray.data.decode import Payload
from dpl_ray.store.file_systems import one_line, open_uri

IMAGE_EXTENSIONS = (
    ".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".jp2", ".avif",
)  # fmt: skip
PARQUET_EXTENSIONS = (".parquet", ".pq")
_INFOS_AT_A_TIME = 4096  # that become rows of an array
Label = int | str | None
"""As the files have it: class index, class name, or None where there is none (also for -1)."""


@dataclass(frozen=True)
class Location:
    """A place that the user named in a field of the configuration."""

    field: str  # data.train
    given: str  # as the user wrote it
    filesystem: fs.FileSystem
    path: str  # in the file system
    scheme: str  # s3:// and so on, "" for local files

    def error(self, message: str) -> ValueError:
        return ValueError(f"{self.field}={self.given}: {message}")

    def name(self, path: str) -> str:
        """The path as the user would write it."""
        return self.scheme + path


@dataclass(frozen=True)
class Records:
    """Encoded images, in order. Nothing is read before `read` is called."""

    location: Location
    ids: list[str]
    labels: list[Label]
    read: Callable[[], Iterator[Payload]]
    class_names: tuple[str, ...] | None = None  # where the files carry them

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


def open_location(field: str, given: str) -> Location:
    """Find the file system of a path or URI. Local paths become absolute."""
    if not given.strip():
        raise ValueError(f"{field}={given!r}: is empty; give a path, or null for none")
    if "://" not in given or given.startswith("file://"):
        local = Path(unquote(given[len("file://") :]) if given.startswith("file://") else given).expanduser()
        return Location(field, given, fs.LocalFileSystem(), posixpath.normpath(local.absolute()), "")
    try:
        filesystem, path = open_uri(given)
    except (pa.ArrowException, OSError, ImportError) as error:
        raise ValueError(
            f"{field}={given}: the file system does not answer ({one_line(error)}); "
            "it takes a local path, s3://bucket/path or gs://bucket/path, credentials and a network"
        ) from None
    return Location(field, given, filesystem, path.rstrip("/"), given.partition("://")[0] + "://")


def list_files(location: Location) -> list[str]:
    """The paths of `find_files`."""
    paths: list[str] = find_files(location)[0].to_pylist()
    return paths


def find_files(location: Location) -> tuple[pa.LargeStringArray, NDArray[np.int64]]:
    """(F,) paths and (F,) bytes of the files that a folder holds (recursively), a glob matches, or of the one file.

    They are sorted by path; hidden ones are left out. A glob knows *, ?, [...] and **; a folder that it matches gives
    the files below.
    """
    info = _file_info(location, location.path)
    if info.type == fs.FileType.File:
        return pa.array([info.path], pa.large_string()), np.array([info.size], np.int64)
    base, pattern = location.path, None
    if info.type != fs.FileType.Directory:
        if not re.search(r"[*?[]", location.path):
            raise location.error(f"there is no such file or folder{_near_path(location)}")
        base = posixpath.dirname(re.split(r"[*?[]", location.path, maxsplit=1)[0])
        pattern = _glob_pattern(location)
        if _file_info(location, base).type != fs.FileType.Directory:
            raise location.error(f"no file matches; the folder {location.name(base)} does not exist")
    paths, sizes = [pa.array([], pa.large_string())], [np.empty(0, np.int64)]
    try:
        for infos in _infos_below(location, base):
            found = [info for info in infos if pattern is None or pattern.fullmatch(info.path)]
            paths.append(pa.array([info.path for info in found], pa.large_string()))
            sizes.append(np.array([info.size for info in found], np.int64))
    except UnicodeDecodeError as error:
        raise location.error(f"cannot be listed: a name in it is not UTF-8 ({error.object!r}); rename it") from None
    except (pa.ArrowException, OSError) as error:
        raise location.error(f"cannot be listed ({one_line(error)})") from None
    whole = pa.concat_arrays(paths)
    del paths
    if not len(whole):
        raise location.error("no file matches" if pattern else "the folder is empty")
    order = pc.array_sort_indices(whole)
    return whole.take(order), np.concatenate(sizes)[order.to_numpy()]


def _infos_below(location: Location, base: str) -> Iterator[list[fs.FileInfo]]:
    """The files below a folder, some at a time, in no order; hidden ones are left out.

    What the file system gives takes some 250 bytes a file: of a local folder and of each below it in turn; of a bucket,
    where every folder would be a request, all at once.
    """
    below = len(base.rstrip("/")) + 1
    waiting = [base]
    while waiting:
        selector = fs.FileSelector(waiting.pop(), recursive=bool(location.scheme), allow_not_found=True)
        infos = location.filesystem.get_file_info(selector)
        while infos:
            some = [info for info in infos[-_INFOS_AT_A_TIME:] if not _is_hidden(info.path[below:])]
            del infos[-_INFOS_AT_A_TIME:]
            if not location.scheme:
                waiting += [info.path for info in some if info.type == fs.FileType.Directory]
            yield [info for info in some if info.type == fs.FileType.File]


def _is_hidden(path: str) -> bool:
    return any(part.startswith(".") for part in path.split("/"))


def would_list(location: Location, path: str) -> bool:
    """Whether a file at this path in the same file system would be one of `find_files`."""
    if path.startswith(location.path.rstrip("/") + "/"):
        return True
    return bool(re.search(r"[*?[]", location.path) and _glob_pattern(location).fullmatch(path))


def _file_info(location: Location, path: str) -> fs.FileInfo:
    try:
        return location.filesystem.get_file_info(path)
    except (pa.ArrowException, OSError) as error:
        advice = "; check credentials, region and network" if location.scheme else ""
        raise location.error(f"cannot be read ({one_line(error)}){advice}") from None


def _glob_pattern(location: Location) -> re.Pattern[str]:
    """Matches what the glob matches, and all that lies below."""
    tokens = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    parts = re.split(r"(\*\*/|\*\*|\*|\?|\[!?[^]/]+\])", location.path)
    regex = "".join(
        tokens.get(part) or (part.replace("[!", "[^") if index % 2 else re.escape(part))
        for index, part in enumerate(parts)
    )
    try:
        return re.compile(regex + "(?:/.*)?")
    except re.error as error:
        raise location.error(f"is neither a path nor a glob ({error})") from None


def _near_path(location: Location) -> str:
    """A hint at the sibling that may be meant, or at the folder above that is missing too."""
    path = Path(location.path)
    if location.scheme:
        return ""
    if not path.parent.is_dir():
        return f" (nor a folder {path.parent})"
    return suggest(path.name, [sibling.name for sibling in path.parent.iterdir()])


def is_parquet(path: str) -> bool:
    """By its extension."""
    return path.lower().endswith(PARQUET_EXTENSIONS)


def is_image(path: str) -> bool:
    """By its extension."""
    return path.lower().endswith(IMAGE_EXTENSIONS)


def are_parquet(paths: pa.LargeStringArray) -> NDArray[np.bool_]:
    """(F,) `is_parquet` of each."""
    return _end_in(paths, PARQUET_EXTENSIONS)


def are_images(paths: pa.LargeStringArray) -> NDArray[np.bool_]:
    """(F,) `is_image` of each."""
    return _end_in(paths, IMAGE_EXTENSIONS)


def _end_in(paths: pa.LargeStringArray, extensions: tuple[str, ...]) -> NDArray[np.bool_]:
    pattern = f"(?:{'|'.join(map(re.escape, extensions))})$"
    found: NDArray[np.bool_] = pc.match_substring_regex(paths, pattern, ignore_case=True).to_numpy(zero_copy_only=False)
    return found


def read_folder(location: Location, paths: list[str]) -> Records:
    """Image files; the label is the subfolder (of a folder) or the parent folder (of a glob)."""
    images = [path for path in paths if is_image(path)]
    if not images:
        raise no_image(location, paths)
    class_names: tuple[str, ...] | None = None
    below = len(location.path.rstrip("/")) + 1
    is_folder = all(path.startswith(location.path.rstrip("/") + "/") for path in paths)
    labels: list[Label]
    if is_folder:
        # Every subfolder is a class, also one without an image: that is a mistake to answer, not to pass over.
        class_names = tuple(sorted(_subfolders(location)))
        if not class_names:
            raise location.error(
                f"{len(images)} images lie in it, but no subfolder per class; make one for each class, or give a "
                "CSV of path,label (images without labels belong to data.unlabeled)"
            )
        images = [path for path in images if "/" in path[below:]]
        labels = [path[below:].split("/", 1)[0] for path in images]
    else:
        labels = [posixpath.basename(posixpath.dirname(path)) for path in images]
    return Records(
        location, [location.name(path) for path in images], labels, partial(_readers, location, images), class_names
    )


def no_image(location: Location, paths: list[str]) -> ValueError:
    """None of the files is called as images are."""
    found = ", ".join(sorted({posixpath.splitext(path)[1] or posixpath.basename(path) for path in paths})[:8])
    return location.error(f"no image among {len(paths)} files ({found}); images end in {', '.join(IMAGE_EXTENSIONS)}")


def _subfolders(location: Location) -> list[str]:
    infos = location.filesystem.get_file_info(fs.FileSelector(location.path))
    return [info.base_name for info in infos if info.type == fs.FileType.Directory and info.base_name[0] != "."]


def _readers(location: Location, paths: list[str]) -> Iterator[Payload]:
    for path in paths:
        yield partial(read_file, location.filesystem, path)


def read_file(filesystem: fs.FileSystem, path: str) -> bytes:
    """A file's bytes; `OSError` where it cannot be read."""
    try:
        with filesystem.open_input_file(path) as file:
            content: bytes = file.read()
    except pa.ArrowException as error:
        raise OSError(str(error)) from error
    return content


def read_csv(location: Location) -> Records:
    """A CSV with the columns path and label; paths are relative to its folder, or absolute, or URIs."""
    images: dict[str, tuple[Label, Payload]] = {}
    for number, (path, label) in enumerate(_csv_rows(location), start=1):
        if not path:
            raise location.error(f"row {number} has no path")
        sample_id, reader = _csv_image(location, path)
        if sample_id in images:
            raise location.error(f"row {number} names {sample_id} again; one row an image")
        images[sample_id] = (as_label(label), reader)
    if not images:
        raise location.error("no row below the header")
    return Records(
        location,
        ids=list(images),
        labels=[label for label, _ in images.values()],
        read=lambda: (reader for _, reader in images.values()),
        class_names=read_class_names(location, location.path),
    )


def _csv_rows(location: Location) -> list[tuple[str, str]]:
    """(path, label) of each row."""
    try:
        text = read_file(location.filesystem, location.path).decode("utf-8-sig")
        rows = list(csv.reader(io.StringIO(text, newline="")))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise location.error(f"cannot be read as CSV in UTF-8 ({one_line(error)})") from None
    header = [name.strip() for name in rows[0]] if rows else []
    for column in ("path", "label"):
        if column not in header:
            raise location.error(
                f"the header is {','.join(header) or 'missing'}; it needs the columns path and label"
                f"{suggest(column, header)}"
            )
    at = header.index("path"), header.index("label")
    # A row that ends before the label has none.
    padded = [row + [""] * (len(header) - len(row)) for row in rows[1:] if row]
    return [(row[at[0]].strip(), row[at[1]].strip()) for row in padded]


def _csv_image(location: Location, path: str) -> tuple[str, Payload]:
    if "://" in path:
        other = open_location(location.field, path)
        return other.name(other.path), partial(read_file, other.filesystem, other.path)
    full = posixpath.normpath(posixpath.join(posixpath.dirname(location.path), path))
    return location.name(full), partial(read_file, location.filesystem, full)


def as_label(value: Label) -> Label:
    """The label, or None for those that mean unlabelled."""
    return None if value in ("", "-1", -1) else value


def read_class_names(location: Location, beside: str) -> tuple[str, ...] | None:
    """The lines of class_names.txt in the folder of a file, if there is one."""
    path = posixpath.join(posixpath.dirname(beside), "class_names.txt")
    try:
        text = read_file(location.filesystem, path).decode("utf-8-sig")
    except OSError:
        return None
    except UnicodeDecodeError:
        raise location.error(f"{location.name(path)} beside it is not UTF-8 text") from None
    return tuple(line.strip() for line in text.splitlines() if line.strip())
