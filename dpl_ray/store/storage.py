"""Folders and files of a run, on a local disk or in a bucket, through pyarrow's file systems."""

from __future__ import annotations

import copy
import errno
import io
import os
import posixpath
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from pyarrow import fs

from dpl_ray.store import disk
from dpl_ray.store.file_systems import check_file, open_file, open_uri, split_options
from dpl_ray.store.paths import expand_path, expand_variables

LINES_AT_ONCE = 2**18  # bytes of a file that are read at once for its lines


class Storage:
    """A path on a file system: `Storage("runs") / "a" / "b.json"`. Local paths become absolute, without ~ and $NAME."""

    #: File in a bucket without which nothing is written here any more (dpl_ray/store/lock.py); children have it too.
    lease: Storage | None = None

    def __init__(self, path: str) -> None:
        """
        Raises:
            ValueError: pyarrow knows no file system for the URI, or an environment variable in it is not set.
            OSError: the file system does not answer.
        """
        if "://" not in path:
            self.filesystem, self.path = fs.LocalFileSystem(), posixpath.normpath(Path(expand_path(path)).absolute())
        else:
            path = expand_variables(path, path)
            try:
                self.filesystem, self.path = open_uri(path)
            except (ValueError, NotImplementedError) as error:
                raise ValueError(f"{path}: no file system for this address ({error})") from None
        self.is_local = isinstance(self.filesystem, fs.LocalFileSystem)
        self.scheme = "" if self.is_local else path.partition("://")[0] + "://"
        self.options = "" if self.is_local else split_options(path)[1]  # as ?region=...&endpoint_override=...

    def __truediv__(self, name: str) -> Storage:
        child = copy.copy(self)
        child.path = posixpath.join(self.path, name)
        return child

    def __str__(self) -> str:
        """The path or URI that makes this storage again."""
        return self.scheme + self.path + self.options

    @property
    def name(self) -> str:
        return posixpath.basename(self.path)

    @property
    def parent(self) -> Storage:
        """The folder that holds this one or this file."""
        folder = copy.copy(self)
        folder.path = posixpath.dirname(self.path)
        return folder

    def exists(self) -> bool:
        return self.filesystem.get_file_info(self.path).type != fs.FileType.NotFound

    def size(self) -> int:
        """Bytes of this file."""
        return self.filesystem.get_file_info(self.path).size

    def changed(self) -> int:
        """When this file was written, in ns."""
        return self.filesystem.get_file_info(self.path).mtime_ns or 0

    def list(self) -> list[str]:
        """Names in this folder; none where there is no folder."""
        selector = fs.FileSelector(self.path, allow_not_found=True)
        try:
            return [info.base_name for info in self.filesystem.get_file_info(selector)]
        except NotADirectoryError:
            return []

    def files(self) -> Iterator[tuple[str, int]]:
        """Name and bytes of each file in this folder, in no order; none where there is no folder.

        Those of a disk are not held: a file of many costs no memory. A bucket answers with all at once.
        """
        if not self.is_local:
            for info in self.filesystem.get_file_info(fs.FileSelector(self.path, allow_not_found=True)):
                if info.type == fs.FileType.File:
                    yield info.base_name, info.size
        elif Path(self.path).is_dir():
            with os.scandir(self.path) as entries:
                for entry in entries:
                    with suppress(FileNotFoundError):  # it went meanwhile
                        if entry.is_file():
                            yield entry.name, entry.stat().st_size

    def read(self) -> bytes:
        check_file(self.filesystem, self.path)
        with self.filesystem.open_input_stream(self.path, compression=None) as stream:
            return stream.read()

    def read_from(self, start: int) -> bytes:
        """The bytes of this file from `start` on; none where there is no file."""
        try:
            with open_file(self.filesystem, self.path) as file:
                file.seek(start)
                return file.read()
        except FileNotFoundError:
            return b""

    def lines(self, start: int = 0) -> Iterator[bytes]:
        """The lines of this file from byte `start` on, one at a time, with their ends; none where there is no file."""
        with suppress(FileNotFoundError), open_file(self.filesystem, self.path) as file:
            file.seek(start)
            yield from io.BufferedReader(file, LINES_AT_ONCE)

    def write(self, data: bytes) -> None:
        """Write a whole file, making its folders. Readers see the old file or the new one, whoever else writes it, and
        wherever the process or the machine stops.

        Raises:
            ValueError: another command has taken the folder over.
        """
        self._check_lease()
        if self.is_local:
            disk.replace(Path(self.path), data)
            return
        self.filesystem.create_dir(posixpath.dirname(self.path), recursive=True)
        with self.filesystem.open_output_stream(self.path, compression=None) as stream:
            stream.write(data)

    def append(self, data: bytes) -> None:
        """Write all of it at the end of a file, new or old, or nothing. In a bucket the file is read and written anew.

        On a disk it outlives the process at once, and the machine from the next `sync` on.
        """
        if self.is_local:
            disk.append(Path(self.path), data)
        else:
            self.write((self.read() if self.exists() else b"") + data)

    def sync(self) -> None:
        """What was appended to this file outlives the machine."""
        if self.is_local:
            disk.sync(Path(self.path))

    def make(self) -> bool:
        """Make this folder; false where it is there already. In a bucket, where there are no folders, it only looks."""
        if not self.is_local:
            return not self.list()
        try:
            Path(self.path).mkdir(parents=True)
        except FileExistsError:
            return False
        return True

    def check_writable(self) -> None:
        """`OSError` unless files can be written below; nothing is left behind."""
        if not self.is_local:
            probe = self / ".probe"
            probe.write(b"")
            self.filesystem.delete_file(probe.path)
            return
        folder = Path(self.path)
        nearest = next(path for path in (folder, *folder.parents) if path.exists())
        if not nearest.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(nearest))
        try:
            # Permissions alone do not tell: root has all of them in /proc, where nothing can be made.
            with tempfile.TemporaryFile(dir=nearest):
                pass
        except OSError as error:
            number = error.errno or errno.EACCES
            raise OSError(number, os.strerror(number), str(nearest)) from None

    def remove(self) -> None:
        """Remove this file, if it is there; `ValueError` where another command has taken the folder over."""
        self._check_lease()
        if self.is_local:
            disk.remove(Path(self.path))
        elif self.exists():
            self.filesystem.delete_file(self.path)

    def delete(self) -> None:
        """Remove a folder with all it holds, its manifest first, so that what is half removed does not look whole."""
        (self / "manifest.json").remove()
        self.filesystem.delete_dir(self.path)

    def _check_lease(self) -> None:
        if self.lease is not None and not self.lease.exists():
            raise ValueError(f"{self}: is left as it is, since another command has taken its folder over")
