"""Places that the user named, on any file system of pyarrow."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
from pyarrow import fs

from dpl_ray.config.section import short, shown
from dpl_ray.data.files.globs import WILDCARD, Glob, is_glob, parse_glob
from dpl_ray.data.files.spelling import Spelling
from dpl_ray.store.file_systems import one_line, open_uri
from dpl_ray.store.paths import expand_path, expand_variables
from dpl_ray.store.storage import Storage

_indexes: ContextVar[str | None] = ContextVar("indexes", default=None)


@dataclass(frozen=True)
class Location:
    """A place that the user named in a field of the configuration, or the first one of a list of them."""

    field: str  # data.train
    given: str  # as the user wrote it
    filesystem: fs.FileSystem
    path: str  # in the file system
    scheme: str  # s3:// and so on, "" for local files
    listed: tuple[Location, ...] = ()  # every place of the list, in the same file system
    indexes: str | None = None  # folder that keeps the indexes of its tars (formats/tar.py); None: none
    reach: Any = None  # a Reach (data/files/reach.py): where its files may lead

    def error(self, message: str) -> ValueError:
        """A mistake there, in one line of a length that can be read: what is wrong may be a whole file."""
        return ValueError(short(" ".join(f"{self.field}={self.given}: {message}".split("\n"))))

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


def would_list(location: Location, path: str) -> bool:
    """Whether a file at this path in the same file system would be one of `list_files`."""
    if location.listed:
        return any(would_list(place, path) for place in location.listed)
    if path == location.path or location.contains(path):
        return True
    return is_glob(location.path) and glob_of(location).matches(path)


def glob_of(location: Location) -> Glob:
    try:
        return parse_glob(location.path)
    except ValueError as error:
        raise location.error(f"is neither a path nor a glob ({error})") from None
