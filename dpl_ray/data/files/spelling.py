"""Names of files in Unicode's two forms."""

from __future__ import annotations

import posixpath
from unicodedata import normalize

import pyarrow as pa
from pyarrow import fs


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
