"""Folders and files of a run, on a local disk or in a bucket, through pyarrow's file systems."""

from __future__ import annotations

import copy
import posixpath
from pathlib import Path

from pyarrow import fs


class Storage:
    """A path on a file system: `Storage("runs") / "a" / "b.json"`. Local paths are made absolute."""

    def __init__(self, path: str) -> None:
        """
        Raises:
            ValueError: pyarrow knows no file system for the URI.
        """
        if "://" not in path:
            path = str(Path(path).expanduser().absolute())
        try:
            self.filesystem, self.path = fs.FileSystem.from_uri(path)
        except (ValueError, OSError, NotImplementedError) as error:
            raise ValueError(f"{path}: no file system for this address ({error})") from None
        self.is_local = isinstance(self.filesystem, fs.LocalFileSystem)
        self.scheme = "" if self.is_local else path.partition("://")[0] + "://"
        _, mark, options = path.partition("?")  # as ?region=...&endpoint_override=...
        self.options = "" if self.is_local else mark + options

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

    def exists(self) -> bool:
        return self.filesystem.get_file_info(self.path).type != fs.FileType.NotFound

    def list(self) -> list[str]:
        """Names in this folder; none where there is no such folder."""
        selector = fs.FileSelector(self.path, allow_not_found=True)
        return [info.base_name for info in self.filesystem.get_file_info(selector)]

    def read(self) -> bytes:
        with self.filesystem.open_input_stream(self.path) as stream:
            return stream.read()

    def write(self, data: bytes) -> None:
        """Write a whole file, making its folders. On a local disk readers see the old file or the new one."""
        self.filesystem.create_dir(posixpath.dirname(self.path), recursive=True)
        temporary = f"{self.path}.part" if self.is_local else self.path
        with self.filesystem.open_output_stream(temporary) as stream:
            stream.write(data)
        if self.is_local:
            self.filesystem.move(temporary, self.path)

    def delete(self) -> None:
        """Remove a folder with all it holds, its manifest first, so that what is half removed does not look whole."""
        manifest = self / "manifest.json"
        if manifest.exists():
            self.filesystem.delete_file(manifest.path)
        self.filesystem.delete_dir(self.path)
