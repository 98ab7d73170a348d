"""The user's files, on any file system of pyarrow: finding them, telling what they may be, reading one.

Whether a file is an image is told by its content, when it is read. What listing leaves out is counted: names that begin
with `.` or `_` (cameras' `_MG_1.JPG` stay), and extensions of other kinds of files, as .txt or .mp4.
"""

from __future__ import annotations

import mimetypes
import os
import posixpath
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from operator import itemgetter
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pyarrow import fs

from dpl_ray.config.section import shown, suggest
from dpl_ray.data import lance
from dpl_ray.data.decode import DecodeError, has_image_header
from dpl_ray.data.globs import WILDCARD, Glob, is_glob, parse_glob
from dpl_ray.data.shards import LANCE_EXTENSIONS, TAR_EXTENSIONS, by_extension, extension_of, extensions_of
from dpl_ray.data.spelling import Spelling
from dpl_ray.store.file_systems import one_line, open_uri
from dpl_ray.store.paths import expand_path, expand_variables
from dpl_ray.store.storage import Storage

#: What Pillow calls the formats that are decoded. A file that is called so and is no image is broken.
IMAGE_EXTENSIONS = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".bmp", ".dib", ".gif", ".ico", ".webp", ".tif", ".tiff",
    ".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k", ".jpc", ".jpf", ".jpx", ".j2c", ".avif", ".avifs",
)  # fmt: skip
#: Reason of a file that is no image and is not called one: counted apart from those that cannot be read.
FOREIGN = "neither an image nor called one"
MAX_UNNAMED_BYTES = 64 * 2**20  # a larger file that is not called an image is not read: it may be an archive
_ANYTHING = "application/octet-stream"
_NAMELESS, _BROKEN_LINK = "without extension", "broken link"
_ARCHIVE = "an archive is not read; unpack it, and give the folder"
_ARRAYS = "arrays are not read from files; load them, and train with dpl_ray.fit_arrays"
#: Extension -> what to do with such a file.
_ADVICE = dict.fromkeys((".zip", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar"), _ARCHIVE)
_ADVICE |= dict.fromkeys(LANCE_EXTENSIONS, "give the path of one Lance data set, as pool.lance")
_ADVICE |= dict.fromkeys((".npz", ".npy", ".mat", ".h5", ".hdf5", ".pt", ".pkl"), _ARRAYS)
_MAX_KINDS = 8  # that a line names
_TYPES = mimetypes.MimeTypes()  # Python's own table, the same on every machine
_INFOS_AT_A_TIME = 4096  # that become rows of an array
_indexes: ContextVar[str | None] = ContextVar("indexes", default=None)
_Folder = tuple[str, frozenset[str]]  # path, and where the folders above it really are


@dataclass(frozen=True)
class Location:
    """A place that the user named in a field of the configuration, or the first one of a list of them."""

    field: str  # data.train
    given: str  # as the user wrote it
    filesystem: fs.FileSystem
    path: str  # in the file system
    scheme: str  # s3:// and so on, "" for local files
    listed: tuple[Location, ...] = ()  # every place of the list, in the same file system
    indexes: str | None = None  # folder that keeps the indexes of its tars (data/tar.py); None: they are not kept
    reach: Any = None  # a Reach (data/reach.py): where its files may lead

    def error(self, message: str) -> ValueError:
        return ValueError(f"{self.field}={self.given}: {message}")

    def name(self, path: str) -> str:
        """The path as the user would write it."""
        return self.scheme + path

    def names(self) -> str | list[str]:
        """The place as the user would write it, or those of the list."""
        return [place.name(place.path) for place in self.listed] or self.name(self.path)

    def contains(self, path: str) -> bool:
        """Whether the path lies below the place, or below one of the list."""
        return any(path.startswith(place.path.rstrip("/") + "/") for place in self.listed or [self])

    def root_of(self, file: str) -> str:
        """The folder that the user named to have this file: of a glob, the last one before its first wildcard."""
        if self.listed:
            return next(place for place in self.listed if would_list(place, file)).root_of(file)
        if self.contains(file):
            return self.path
        return posixpath.dirname(self.path if file == self.path else WILDCARD.split(self.path, maxsplit=1)[0])


@dataclass(frozen=True)
class Listing:
    """Files in the order of their paths: shards, and what may be images."""

    paths: pa.LargeStringArray  # (F,)
    sizes: NDArray[np.int64]  # (F,) bytes
    left_out: Counter[str] = field(default_factory=Counter)  # files by extension, folders by name

    def keep(self, wanted: NDArray[np.bool_]) -> Listing:
        """The files where `wanted` (F,) is true; the others are left out."""
        if wanted.all():
            return self
        found = pc.value_counts(extensions_of(self.paths.filter(pa.array(~wanted)))).to_pylist()
        left_out = self.left_out + Counter({item["values"] or _NAMELESS: item["counts"] for item in found})
        return Listing(self.paths.filter(pa.array(wanted)), self.sizes[wanted], left_out)


@contextmanager
def indexes_in(folder: str) -> Iterator[None]:
    """Of places that are opened within, the indexes of their tars are kept below this folder of a run or an output."""
    token = None
    try:
        with suppress(ValueError):  # who writes the run or the output says what is wrong with its folder
            token = _indexes.set(folder if "://" in folder else str(Storage(folder)))
        yield
    finally:
        if token:
            _indexes.reset(token)


def open_location(field: str, given: str | Sequence[str]) -> Location:
    """Find the file system of a path or URI, or of a list of them. Local paths become absolute, without ~ and $NAME."""
    if not isinstance(given, str):
        return _open_list(field, given)
    if not given.strip():
        raise ValueError(f"{field}={given!r}: is empty; give a path, or null for none")
    whole = f"{field}={given}"
    if "://" not in given or given.startswith("file://"):
        local = expand_path(unquote(given[len("file://") :]) if given.startswith("file://") else given, whole)
        path = posixpath.normpath(Path(local).absolute())
        filesystem = fs.LocalFileSystem()
        return Location(
            field,
            given,
            filesystem,
            path if Path(path).exists() else Spelling(filesystem)(path),
            "",
            indexes=_indexes.get(),
        )
    expanded = expand_variables(given, whole)
    try:
        filesystem, path = open_uri(expanded)
    except ImportError as error:
        raise ValueError(f"{whole}: {error}") from None
    except (pa.ArrowException, OSError) as error:
        raise ValueError(
            f"{whole}: the file system does not answer ({one_line(error)}); "
            "it takes a local path, s3://bucket/path or gs://bucket/path, credentials and a network"
        ) from None
    return Location(
        field, given, filesystem, path.rstrip("/"), expanded.partition("://")[0] + "://", indexes=_indexes.get()
    )


def _open_list(field: str, given: Sequence[str]) -> Location:
    """The places of a list, as one location."""
    whole = shown(given)
    if not given:
        raise ValueError(f"{field}={whole}: is empty; give a path, or null for none")
    places = tuple(open_location(field, each) for each in given)
    first = places[0]
    for other in places:
        if not other.filesystem.equals(first.filesystem):
            raise ValueError(
                f"{field}={whole}: {first.given} and {other.given} lie on different file systems; copy one beside the "
                "other"
            )
    return replace(first, given=whole, listed=places) if len(places) > 1 else first


def list_files(location: Location) -> Listing:
    """The files that a folder holds (recursively), a glob matches, or the one file, whatever it is called.

    A glob knows *, ?, [...] and **; a folder that it matches gives the files below. A folder is listed once, however
    many links lead to it, and links to the folders above are not followed. Of a list of places, a file that several
    have is there once.
    """
    if location.listed:
        return _merged(location, {place.path: list_files(place) for place in location.listed})
    info = _file_info(location, location.path)
    if info.type == fs.FileType.File:
        if advice := _ADVICE.get(extension_of(info.path)):
            raise location.error(advice)
        return Listing(pa.array([info.path], pa.large_string()), np.array([info.size], np.int64))
    if info.type == fs.FileType.Directory and extension_of(info.path) in LANCE_EXTENSIONS:
        if not lance.is_installed():
            raise location.error(lance.NOT_INSTALLED)
        inside = location.filesystem.get_file_info(fs.FileSelector(info.path, recursive=True))
        size = sum(each.size or 0 for each in inside)
        return Listing(pa.array([info.path], pa.large_string()), np.array([size], np.int64))
    base, pattern = location.path, None
    if info.type != fs.FileType.Directory:
        if not is_glob(location.path):
            windows = "; the folders of a path are separated by /" if "\\" in location.path else ""
            raise location.error(f"there is no such file or folder{windows or _near_path(location)}")
        base, pattern = location.root_of(""), _glob(location)
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
    listing = listing.keep(by_extension(listing.paths, lambda extension: not _is_foreign(extension)))
    if not len(listing.paths):
        if listing.left_out:
            advice = next(filter(None, map(_ADVICE.get, listing.left_out)), "copy images there, or name another folder")
            raise location.error(f"no image and no parquet file in it ({as_text(listing.left_out)} left out); {advice}")
        raise location.error(
            "no file matches; ** stands for folders at any depth, as photos/**/*.jpg"
            if pattern
            else "the folder is empty; copy images there, or name another folder"
        )
    if pattern and (missing := pattern.missing(listing.paths.to_pylist() if pattern.parts else [])):
        raise location.error(f"{location.name(missing)} is missing; * stands for those that are there")
    return listing


def _merged(location: Location, listings: Mapping[str, Listing]) -> Listing:
    """One listing of several places, by their paths."""
    paths = pa.concat_arrays([listing.paths for listing in listings.values()])
    order = pc.array_sort_indices(paths)
    paths, sizes = paths.take(order), np.concatenate([listing.sizes for listing in listings.values()])[order.to_numpy()]
    keys = paths if location.scheme else _real_paths(paths)
    rows = pa.table({"key": keys, "row": np.arange(len(keys))}).group_by("key").aggregate([("row", "min")])
    first = np.sort(rows.column("row_min").to_numpy())
    apart = (listing.left_out for path, listing in listings.items() if not location.contains(path))
    return Listing(paths.take(pa.array(first)), sizes[first], sum(apart, Counter()))


def _real_paths(paths: pa.LargeStringArray) -> pa.LargeStringArray:
    """(F,) the local files, in the folders that their folders really are."""
    folders = pc.replace_substring_regex(paths, r"[^/]*$", "").dictionary_encode()
    real = pa.array(map(os.path.realpath, folders.dictionary.to_pylist()), pa.large_string()).take(folders.indices)
    names = pc.replace_substring_regex(paths, "(?s)^.*/", "")
    return pc.binary_join_element_wise(real, names, pa.scalar("/", pa.large_string()))


def _walk(location: Location, base: str, pattern: Glob | None, left_out: Counter[str]) -> Iterator[list[fs.FileInfo]]:
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
        if is_local:
            left_out.update(_broken_links(folder, pattern))
        selector = fs.FileSelector(folder, recursive=not is_local, allow_not_found=True)
        infos = location.filesystem.get_file_info(selector)
        while infos:
            found = []
            for info in infos[-_INFOS_AT_A_TIME:]:
                matches = pattern is None or pattern.matches(info.path)
                kind = passed_over(info.path[begin:], info.type == fs.FileType.Directory)
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


def _broken_links(folder: str, pattern: Glob | None) -> Iterator[str]:
    """What each link in a local folder that leads nowhere is counted as: file systems of pyarrow do not list them."""
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            leads_nowhere = entry.name[0] != "." and entry.is_symlink() and not Path(entry.path).exists()
            if leads_nowhere and (pattern is None or pattern.matches(entry.path)):
                yield _BROKEN_LINK


def passed_over(name: str, is_folder: bool) -> str | None:
    """As what a file or folder of this name below the root is left out; "" where it is not counted either."""
    *folders, last = name.split("/")
    if last.startswith(".") or any(part.startswith((".", "_")) for part in folders):
        return ""
    if not last.startswith("_") or (not is_folder and is_image(last)):
        return None
    return f"{last}/" if is_folder else kind_of(last)


def would_list(location: Location, path: str) -> bool:
    """Whether a file at this path in the same file system would be one of `list_files`."""
    if location.listed:
        return any(would_list(place, path) for place in location.listed)
    if path == location.path or location.contains(path):
        return True
    return is_glob(location.path) and _glob(location).matches(path)


def _file_info(location: Location, path: str) -> fs.FileInfo:
    try:
        return location.filesystem.get_file_info(path)
    except (pa.ArrowException, OSError) as error:
        advice = "; check credentials, region and network" if location.scheme else ""
        raise location.error(f"cannot be read ({one_line(error)}){advice}") from None


def _glob(location: Location) -> Glob:
    try:
        return parse_glob(location.path)
    except ValueError as error:
        raise location.error(f"is neither a path nor a glob ({error})") from None


def _near_path(location: Location) -> str:
    """A hint at the sibling that may be meant, or at the folder above that is missing too."""
    path = Path(location.path)
    if location.scheme:
        return ""
    if not path.parent.is_dir():
        return f" (nor a folder {path.parent})"
    return suggest(path.name, [sibling.name for sibling in path.parent.iterdir()])


def is_image(path: str) -> bool:
    """Whether the file is called an image, by its extension."""
    return extension_of(path) in IMAGE_EXTENSIONS


def are_images(paths: pa.LargeStringArray) -> NDArray[np.bool_]:
    """(F,) `is_image` of each."""
    return by_extension(paths, is_image)


def _is_foreign(extension: str) -> bool:
    """Whether it is known to be that of something else than images."""
    kind, encoding = _TYPES.guess_type(f"x{extension}")
    if extension in (*TAR_EXTENSIONS, *LANCE_EXTENSIONS):
        return extension in LANCE_EXTENSIONS
    return encoding is not None or (kind not in (None, _ANYTHING) and not kind.startswith("image/"))


def kind_of(path: str) -> str:
    """As what a file that is no image is counted."""
    return extension_of(path) or _NAMELESS


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
