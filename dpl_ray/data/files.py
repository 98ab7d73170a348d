"""The user's files, on any file system of pyarrow: finding them, telling what they may be, reading one.

Whether a file is an image is told by its content, when it is read. What listing leaves out is counted: names that begin
with `.` or `_` (cameras' `_MG_1.JPG` stay), and extensions of other kinds of files, as .txt or .mp4.
"""

from __future__ import annotations

import mimetypes
import os
import posixpath
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path
from unicodedata import normalize
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pyarrow import fs

from dpl_ray.config.section import suggest
from dpl_ray.data.decode import DecodeError, has_image_header
from dpl_ray.store.file_systems import one_line, open_uri

#: What Pillow calls the formats that are decoded. A file that is called so and is no image is broken.
IMAGE_EXTENSIONS = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".bmp", ".dib", ".gif", ".ico", ".webp", ".tif", ".tiff",
    ".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k", ".jpc", ".jpf", ".jpx", ".j2c", ".avif", ".avifs",
)  # fmt: skip
PARQUET_EXTENSIONS = (".parquet", ".pq")
#: Reason of a file that is no image and is not called one: counted apart from those that cannot be read.
FOREIGN = "neither an image nor called one"
MAX_UNNAMED_BYTES = 64 * 2**20  # a larger file that is not called an image is not read: it may be an archive
_WILDCARD = r"[*?[]"
_ANYTHING = "application/octet-stream"
_NAMELESS = "without extension"
_MAX_KINDS = 8  # that a line names
_TYPES = mimetypes.MimeTypes()  # Python's own table, the same on every machine
_INFOS_AT_A_TIME = 4096  # that become rows of an array
_Folder = tuple[str, frozenset[str]]  # path, and where the folders above it really are


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

    def root_of(self, file: str) -> str:
        """The folder that the user named to have this file: of a glob, the last one before its first wildcard."""
        if file.startswith(self.path.rstrip("/") + "/"):
            return self.path
        return posixpath.dirname(self.path if file == self.path else re.split(_WILDCARD, self.path, maxsplit=1)[0])


@dataclass(frozen=True)
class Listing:
    """Files in the order of their paths: parquet files, and what may be images."""

    paths: pa.LargeStringArray  # (F,)
    sizes: NDArray[np.int64]  # (F,) bytes
    left_out: Counter[str] = field(default_factory=Counter)  # files by extension, folders by name

    def keep(self, wanted: NDArray[np.bool_]) -> Listing:
        """The files where `wanted` (F,) is true; the others are left out."""
        if wanted.all():
            return self
        found = pc.value_counts(_extensions(self.paths.filter(pa.array(~wanted)))).to_pylist()
        left_out = self.left_out + Counter({item["values"] or _NAMELESS: item["counts"] for item in found})
        return Listing(self.paths.filter(pa.array(wanted)), self.sizes[wanted], left_out)


def open_location(field: str, given: str) -> Location:
    """Find the file system of a path or URI. Local paths become absolute."""
    if not given.strip():
        raise ValueError(f"{field}={given!r}: is empty; give a path, or null for none")
    if "://" not in given or given.startswith("file://"):
        local = Path(unquote(given[len("file://") :]) if given.startswith("file://") else given).expanduser()
        path = posixpath.normpath(local.absolute())
        filesystem = fs.LocalFileSystem()
        return Location(field, given, filesystem, path if Path(path).exists() else Spelling(filesystem)(path), "")
    try:
        filesystem, path = open_uri(given)
    except (pa.ArrowException, OSError, ImportError) as error:
        raise ValueError(
            f"{field}={given}: the file system does not answer ({one_line(error)}); "
            "it takes a local path, s3://bucket/path or gs://bucket/path, credentials and a network"
        ) from None
    return Location(field, given, filesystem, path.rstrip("/"), given.partition("://")[0] + "://")


class Spelling:
    """A path -> the same as the file system spells it: é is one character (NFC) or two (NFD), and there two names."""

    def __init__(self, filesystem: fs.FileSystem) -> None:
        self._filesystem = filesystem
        self._names: dict[str, dict[str, str]] = {}  # folder -> NFC -> name, of names that are not ASCII

    def __call__(self, path: str) -> str:
        if path.isascii():
            return path
        folder, name = posixpath.split(path)
        folder = self(folder)
        names = self._names[folder] if folder in self._names else self._list(folder)
        return posixpath.join(folder, names.get(name) or names.get(normalize("NFC", name)) or name)

    def _list(self, folder: str) -> dict[str, str]:
        try:
            infos = self._filesystem.get_file_info(fs.FileSelector(folder, allow_not_found=True))
        except (pa.ArrowException, OSError):
            infos = []
        names = [info.base_name for info in infos if not info.base_name.isascii()]
        self._names[folder] = {normalize("NFC", name): name for name in names} | {name: name for name in names}
        return self._names[folder]


def list_files(location: Location) -> Listing:
    """The files that a folder holds (recursively), a glob matches, or the one file, whatever it is called.

    A glob knows *, ?, [...] and **; a folder that it matches gives the files below. A folder is listed once, however
    many links lead to it, and links to the folders above are not followed.
    """
    info = _file_info(location, location.path)
    if info.type == fs.FileType.File:
        return Listing(pa.array([info.path], pa.large_string()), np.array([info.size], np.int64))
    base, pattern = location.path, None
    if info.type != fs.FileType.Directory:
        if not _is_glob(location.path):
            raise location.error(f"there is no such file or folder{_near_path(location)}")
        base, pattern = location.root_of(""), _glob_pattern(location)
        if _file_info(location, base).type != fs.FileType.Directory:
            raise location.error(f"no file matches; the folder {location.name(base)} does not exist")
    paths, sizes, left_out = [pa.array([], pa.large_string())], [np.empty(0, np.int64)], Counter[str]()
    try:
        for found in _walk(location, base, pattern, left_out):
            paths.append(pa.array([info.path for info in found], pa.large_string()))
            sizes.append(np.array([info.size for info in found], np.int64))
    except UnicodeDecodeError as error:
        raise location.error(f"cannot be listed: a name in it is not UTF-8 ({error.object!r}); rename it") from None
    except (pa.ArrowException, OSError) as error:
        raise location.error(f"cannot be listed ({one_line(error)})") from None
    whole = pa.concat_arrays(paths)
    del paths
    order = pc.array_sort_indices(whole)
    listing = Listing(whole.take(order), np.concatenate(sizes)[order.to_numpy()], left_out)
    del whole
    listing = listing.keep(_by_extension(listing.paths, lambda extension: not _is_foreign(extension)))
    if not len(listing.paths):
        if listing.left_out:
            raise location.error(f"no image and no parquet file in it ({as_text(listing.left_out)} left out)")
        raise location.error("no file matches" if pattern else "the folder is empty")
    return listing


def _walk(
    location: Location, base: str, pattern: re.Pattern[str] | None, left_out: Counter[str]
) -> Iterator[list[fs.FileInfo]]:
    """The files below a folder, some at a time, in no order; what is left out by its name is counted.

    What the file system gives takes some 250 bytes a file: of a local folder and of each below it in turn; of a bucket,
    where every folder would be a request, all at once. Links wait until all that is no link is listed.
    """
    is_local, begin = not location.scheme, len(base.rstrip("/")) + 1
    waiting, links = [(base, frozenset(map(str, Path(os.path.realpath(base)).parents)))], list[_Folder]()
    listed = set()
    while waiting or links:
        if not waiting:
            links.sort(key=itemgetter(0), reverse=True)
            waiting.append(links.pop())
        folder, folders_above = waiting.pop()
        place = os.path.realpath(folder) if is_local else folder
        if place in folders_above or place in listed:
            continue
        selector = fs.FileSelector(folder, recursive=not is_local, allow_not_found=True)
        infos = location.filesystem.get_file_info(selector)
        while infos:
            found = []
            for info in infos[-_INFOS_AT_A_TIME:]:
                matches = pattern is None or pattern.fullmatch(normalize("NFC", info.path))
                kind = _passed_over(info.path[begin:], info.type == fs.FileType.Directory)
                if kind is not None:
                    left_out.update([kind] if kind and matches else [])
                elif info.type == fs.FileType.Directory and is_local:
                    later = links if Path(info.path).is_symlink() else waiting
                    later.append((info.path, folders_above | {place}))
                elif info.type == fs.FileType.File and matches:
                    found.append(info)
            del infos[-_INFOS_AT_A_TIME:]
            if found:
                listed.add(place)
                yield found


def _passed_over(name: str, is_folder: bool) -> str | None:
    """As what a file or folder of this name below the root is left out; "" where it is not counted either."""
    *folders, last = name.split("/")
    if last.startswith(".") or any(part.startswith((".", "_")) for part in folders):
        return ""
    if not last.startswith("_") or (not is_folder and is_image(last)):
        return None
    return f"{last}/" if is_folder else kind_of(last)


def would_list(location: Location, path: str) -> bool:
    """Whether a file at this path in the same file system would be one of `list_files`."""
    if path.startswith(location.path.rstrip("/") + "/"):
        return True
    return bool(_is_glob(location.path) and _glob_pattern(location).fullmatch(normalize("NFC", path)))


def _file_info(location: Location, path: str) -> fs.FileInfo:
    try:
        return location.filesystem.get_file_info(path)
    except (pa.ArrowException, OSError) as error:
        advice = "; check credentials, region and network" if location.scheme else ""
        raise location.error(f"cannot be read ({one_line(error)}){advice}") from None


def _is_glob(path: str) -> bool:
    return re.search(_WILDCARD, path) is not None


def _glob_pattern(location: Location) -> re.Pattern[str]:
    """Matches what the glob matches, and all that lies below; of paths in NFC."""
    tokens = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    parts = re.split(r"(\*\*/|\*\*|\*|\?|\[!?[^]/]+\])", normalize("NFC", location.path))
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
    return _extension(path) in PARQUET_EXTENSIONS


def is_image(path: str) -> bool:
    """Whether the file is called an image, by its extension."""
    return _extension(path) in IMAGE_EXTENSIONS


def are_images(paths: pa.LargeStringArray) -> NDArray[np.bool_]:
    """(F,) `is_image` of each."""
    return _by_extension(paths, is_image)


def are_parquet(paths: pa.LargeStringArray) -> NDArray[np.bool_]:
    """(F,) `is_parquet` of each."""
    return _by_extension(paths, is_parquet)


def _extension(path: str) -> str:
    return re.search(r"(\.[^./]*)?\Z", path)[0].lower()  # type: ignore[index]


def _by_extension(paths: pa.LargeStringArray, holds: Callable[[str], bool]) -> NDArray[np.bool_]:
    """(F,) what holds of a file by its extension: asked once for each, not for each file."""
    found = _extensions(paths).dictionary_encode()
    return np.array([holds(extension) for extension in found.dictionary.to_pylist()], bool)[found.indices.to_numpy()]


def _extensions(paths: pa.LargeStringArray) -> pa.LargeStringArray:
    """(F,) `_extension` of each."""
    return pc.utf8_lower(pc.struct_field(pc.extract_regex(paths, r"(?P<extension>\.[^./]*)$"), 0).fill_null(""))


def _is_foreign(extension: str) -> bool:
    """Whether it is known to be that of something else than images."""
    kind, encoding = _TYPES.guess_type(f"x{extension}")
    return encoding is not None or (kind not in (None, _ANYTHING) and not kind.startswith("image/"))


def kind_of(path: str) -> str:
    """As what a file that is no image is counted."""
    return _extension(path) or _NAMELESS


def as_text(left_out: Mapping[str, int]) -> str:
    """As `3 .txt, 1 .mp4`, the most first."""
    most = sorted(left_out.items(), key=lambda item: (-item[1], item[0]))
    more = [f"{len(most) - _MAX_KINDS} other kinds"] if len(most) > _MAX_KINDS else []
    return ", ".join([f"{count:,} {kind}" for kind, count in most[:_MAX_KINDS]] + more)


def read_file(filesystem: fs.FileSystem, path: str) -> bytes:
    """A file's bytes; `OSError` where it cannot be read."""
    try:
        with filesystem.open_input_file(path) as file:
            content: bytes = file.read()
    except pa.ArrowException as error:
        raise OSError(str(error)) from error
    return content


def read_image_file(filesystem: fs.FileSystem, path: str) -> bytes:
    """The bytes of what may be an image.

    Raises:
        DecodeError: it is not called an image, and is none.
        OSError: it cannot be read.
    """
    named = is_image(path)
    if not named and (filesystem.get_file_info(path).size or 0) > MAX_UNNAMED_BYTES:
        raise DecodeError(FOREIGN)
    content = read_file(filesystem, path)
    if not named and not has_image_header(content):
        raise DecodeError(FOREIGN)
    return content
