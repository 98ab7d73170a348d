"""The files below a folder, in the order of their paths, without an object for each: a pool may have 10⁷ of them."""

from __future__ import annotations

import errno
import os
import stat
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import lru_cache
from operator import itemgetter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pyarrow import fs

from dpl_ray.data.files.globs import Glob
from dpl_ray.data.files.kinds import NAMELESS, is_foreign, passed_over
from dpl_ray.data.files.location import Location
from dpl_ray.data.files.shards import extension_of
from dpl_ray.store.ahead import map_ahead

AT_A_TIME = 65_536  # files that are objects
FOLDERS_APART = 4096  # of a bucket, each of which is a request of its own
_REQUESTS = 16  # at once
_BROKEN_LINK = "broken link"
_TEXT = pa.large_string()
_is_foreign = lru_cache(is_foreign)  # by extension


class Files:
    """Paths and bytes of files, which grow in place: all of them are held once, also while they come in."""

    def __init__(self) -> None:
        self._text, self._lengths, self._sizes = bytearray(), bytearray(), bytearray()

    def add(self, paths: pa.LargeStringArray, sizes: NDArray[np.int64]) -> None:
        _, offsets, text = paths.buffers()
        ends = np.frombuffer(offsets, np.int64)[paths.offset :][: len(paths) + 1]
        if text is not None:
            self._text += memoryview(text)[ends[0] : ends[-1]]
        self._lengths += np.diff(ends).astype(np.int32).tobytes()
        self._sizes += sizes.tobytes()

    def arrays(self) -> tuple[pa.LargeStringArray, NDArray[np.int64]]:
        """Paths (F,) and sizes (F,), of these bytes: no more can be added."""
        lengths = np.frombuffer(self._lengths, np.int32)
        offsets = np.zeros(len(lengths) + 1, np.int64)
        np.cumsum(lengths, out=offsets[1:])
        self._lengths = bytearray()
        paths = pa.LargeStringArray.from_buffers(len(lengths), pa.py_buffer(offsets), pa.py_buffer(self._text))
        return paths, np.frombuffer(self._sizes, np.int64)


class Walk:
    """What is listed of the files below a folder. What is left out by its name is counted."""

    def __init__(self, location: Location, base: str, pattern: Glob | None) -> None:
        self.left_out: Counter[str] = Counter()
        self._filesystem, self._pattern, self._begin = location.filesystem, pattern, len(base.rstrip("/")) + 1
        self._files = Files()
        self._links: list[tuple[str, frozenset[str]]] = []  # path, and where the folders above it really are
        self._listed: set[str] = set()
        # Every request of another file system than pyarrow's own is many.
        self._apart = 0 if isinstance(location.filesystem, fs.PyFileSystem) else FOLDERS_APART
        self._is_sorted = True
        if location.scheme:
            self._in_bucket(base, self._ask(base, recursive=False))
        else:
            self._on_disk(base, frozenset(map(str, Path(os.path.realpath(base)).parents)))
        while self._links:  # when all that is no link is listed
            self._is_sorted = False
            self._links.sort(key=itemgetter(0), reverse=True)
            self._on_disk(*self._links.pop())

    def arrays(self) -> tuple[pa.LargeStringArray, NDArray[np.int64]]:
        """Paths (F,), sorted, and sizes (F,)."""
        paths, sizes = self._files.arrays()
        if self._is_sorted:
            return paths, sizes
        order = pc.array_sort_indices(paths)
        return paths.take(order), sizes[order.to_numpy()]

    def _on_disk(self, folder: str, above: frozenset[str]) -> None:
        """A folder and all below. None is listed twice, however many links lead to it, nor within itself."""
        place = os.path.realpath(folder)
        if place in above or place in self._listed:
            return
        files, folders, has_files = _Names(), list[str](), False
        for entry in _scan(folder):
            is_folder, size = _look_at(entry)
            is_link = entry.is_symlink()
            if is_folder and self._wants(entry.path, is_folder=True):
                if is_link:
                    self._links.append((entry.path, above | {place}))
                else:
                    folders.append(entry.name)
            elif size is not None and self._wants(entry.path, is_folder=False):
                has_files = True
                self._take(files, entry.path, entry.name, size)
            elif is_link and not Path(entry.path).exists() and entry.name[0] != "." and self._matches(entry.path):
                self.left_out[_BROKEN_LINK] += 1
        if has_files:
            self._listed.add(place)
        self._add(folder, files, folders, lambda name: self._on_disk(f"{folder}/{name}", above | {place}))

    def _in_bucket(self, folder: str, infos: list[fs.FileInfo]) -> None:
        """A folder and all below, of which each is asked for by itself where they are few enough.

        Args:
            infos: of what lies in it, some 340 bytes each.
        """
        num_folders = sum(info.type == fs.FileType.Directory for info in infos)
        is_whole = num_folders > self._apart
        if is_whole:
            infos = self._ask(folder, recursive=True)
        else:
            self._apart -= num_folders
        files, folders, begin = _Names(), list[str](), len(folder) + 1
        while infos:
            info = infos.pop()
            is_folder = info.type == fs.FileType.Directory
            if not self._wants(info.path, is_folder=is_folder):
                continue
            if is_folder and not is_whole:
                folders.append(info.path[begin:])
            elif info.type == fs.FileType.File:
                self._take(files, info.path, info.path[begin:], info.size)
        folders.sort(key=lambda name: name + "/")
        contents = map_ahead(lambda name: self._ask(f"{folder}/{name}", recursive=False), folders, _REQUESTS, _REQUESTS)
        self._add(folder, files, folders, lambda name: self._in_bucket(f"{folder}/{name}", next(contents)))

    def _ask(self, folder: str, *, recursive: bool) -> list[fs.FileInfo]:
        found: list[fs.FileInfo] = self._filesystem.get_file_info(
            fs.FileSelector(folder, recursive=recursive, allow_not_found=True)
        )
        return found

    def _matches(self, path: str) -> bool:
        return self._pattern is None or self._pattern.matches(path)

    def _wants(self, path: str, *, is_folder: bool) -> bool:
        kind = passed_over(path[self._begin :], is_folder)
        if kind:
            self.left_out.update([kind] if self._matches(path) else [])
        return kind is None and (is_folder or self._matches(path))

    def _take(self, files: _Names, path: str, name: str, size: int) -> None:
        """A file, unless it is called as none that is an image or a shard."""
        if _is_foreign(extension := extension_of(path)):
            self.left_out[extension or NAMELESS] += 1
        else:
            files.add(name, size)

    def _add(self, folder: str, files: _Names, folders: list[str], visit: Callable[[str], None]) -> None:
        """The files in a folder and, where their paths belong, those of the folders in it."""
        names, sizes = files.arrays()
        order = pc.array_sort_indices(names)
        above, slash = pa.scalar(folder.rstrip("/"), _TEXT), pa.scalar("/", _TEXT)
        place = 0
        for name in [*sorted(folders, key=lambda name: name + "/"), None]:
            stop = len(order)
            if name is not None:
                stop = bisect_left(order, name + "/", place, key=lambda number: names[number.as_py()].as_py())
            for start in range(place, stop, AT_A_TIME):
                some = order[start : min(stop, start + AT_A_TIME)]
                paths = pc.binary_join_element_wise(above, names.take(some), slash)
                self._files.add(paths, sizes[some.to_numpy()])
            place = stop
            if name is not None:
                visit(name)


class _Names:
    """Names of the files in a folder, few of which are objects at a time."""

    def __init__(self) -> None:
        self._files, self._names, self._sizes = Files(), list[str](), list[int]()

    def add(self, name: str, size: int) -> None:
        self._names.append(name)
        self._sizes.append(size)
        if len(self._names) == AT_A_TIME:
            self._flush()

    def _flush(self) -> None:
        self._files.add(pa.array(self._names, _TEXT), np.array(self._sizes, np.int64))
        self._names, self._sizes = [], []

    def arrays(self) -> tuple[pa.LargeStringArray, NDArray[np.int64]]:
        self._flush()
        return self._files.arrays()


def _scan(folder: str) -> Iterator[os.DirEntry[str]]:
    with suppress(FileNotFoundError), os.scandir(folder) as entries:
        yield from entries


def _look_at(entry: os.DirEntry[str]) -> tuple[bool, int | None]:
    """Whether it is a folder, and the bytes of a file; of what leads nowhere, or is neither, (False, None)."""
    try:
        status = entry.stat()
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return False, None
        raise
    return stat.S_ISDIR(status.st_mode), status.st_size if stat.S_ISREG(status.st_mode) else None
