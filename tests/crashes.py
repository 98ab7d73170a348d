"""A disk on which the process, or the machine, stops after any operation of dpl_ray/store/disk.py.

The operations that a piece of work does with files are recorded: every open that makes a file, write, truncation,
fsync, rename, removal and new folder. `states` then tells what may be on the disk after each of them:

- the process stops: all that it did is there;
- the machine stops: of a file, only what was there at its last fsync, or half of what was written since (torn); of the
  names in a folder, those of now, or those at the folder's last fsync. All four combinations.

So what relies on an fsync that is not there, or on the order of two writes without one, is found.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest


@dataclass
class Inode:
    """A file whatever it is called."""

    data: bytes = b""
    synced: bytes = b""

    def read(self, mode: str) -> bytes:
        if mode == "all":
            return self.data
        if mode == "lost":
            return self.synced
        kept = len(self.synced) if self.data.startswith(self.synced) else 0
        return self.data[: kept + (len(self.data) - kept) // 2]


@dataclass
class Disk:
    """What is below a folder; `None` stands for a folder in it."""

    root: Path
    names: dict[Path, Inode | None] = field(default_factory=dict)
    synced: dict[Path, Inode | None] = field(default_factory=dict)  # names as the last fsync of each folder left them

    def sync(self, path: Path) -> None:
        inode = self.names.get(path)
        if inode is not None:
            inode.synced = inode.data
            return
        self.synced = {name: found for name, found in self.synced.items() if name.parent != path}
        self.synced |= {name: found for name, found in self.names.items() if name.parent == path}

    def tree(self, names: str, data: str) -> dict[Path, bytes | None]:
        found = self.names if names == "all" else self.synced
        tree: dict[Path, bytes | None] = {}
        for path, inode in sorted(found.items()):
            if path == self.root or path.parent in tree:
                tree[path] = None if inode is None else inode.read(data)
        return tree


@dataclass
class Recorder:
    """Records what is done to files below `root`."""

    root: Path
    operations: list[tuple[Any, ...]] = field(default_factory=list)
    files: dict[int, Path] = field(default_factory=dict)  # descriptor -> path

    def start(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("open", "write", "fsync", "ftruncate", "close", "replace", "mkdir", "unlink"):
            monkeypatch.setattr(os, name, self._recorded(name, getattr(os, name)))

    def note(self) -> None:
        """The work has promised something."""
        self.operations.append(("note", None))

    def _recorded(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def recorded(first: Any, *more: Any, **options: Any) -> Any:
            path = self.files.get(first) if isinstance(first, int) else Path(os.fspath(first))
            is_ours = (path is not None and self.root in path.parents) or path == self.root
            is_new = is_ours and name == "open" and not path.exists()  # type: ignore[union-attr]
            found = call(first, *more, **options)
            if not is_ours:
                return found
            if name == "open":
                self.files[found] = path  # type: ignore[assignment]
                if is_new:
                    self.operations.append(("create", path))
            elif name == "close":
                del self.files[first]
            elif name == "write":
                self.operations.append((name, path, bytes(more[0][:found])))
            elif name == "replace":
                self.operations.append((name, path, Path(more[0])))
            else:
                self.operations.append((name, path, *more[:1]))
            return found

        return recorded


def states(
    before: dict[Path, bytes | None], operations: list[tuple[Any, ...]]
) -> Iterator[tuple[str, int, dict[Path, bytes | None]]]:
    """When, how many notes were made until then (`Recorder.note`), and what may be on the disk; every state once.

    Args:
        before: what is there at first, for good; the first is the folder that has the others.
    """
    disk, seen = Disk(next(iter(before))), set[Any]()
    disk.names = {path: None if data is None else Inode(data, data) for path, data in before.items()}
    disk.synced = dict(disk.names)
    num_notes = 0
    for number, (name, path, *more) in enumerate([("start", None), *operations]):
        match name:
            case "create":
                disk.names[path] = Inode()
            case "mkdir":
                disk.names[path] = None
            case "write":
                disk.names[path].data += more[0]  # type: ignore[union-attr]
            case "ftruncate":
                inode = disk.names[path]
                assert inode is not None
                inode.data = inode.data[: more[0]]
            case "replace":
                disk.names[more[0]] = disk.names.pop(path)
            case "unlink":
                del disk.names[path]
            case "fsync":
                disk.sync(path)
            case "note":
                num_notes += 1
        for names in ("all", "synced"):
            for data in ("all", "lost", "torn"):
                tree = disk.tree(names, data)
                if (key := (num_notes, *tree.items())) not in seen:
                    seen.add(key)
                    yield (
                        f"after {number} operations, the last {name} {path}; names: {names}, data: {data}",
                        num_notes,
                        tree,
                    )


def read_tree(root: Path) -> dict[Path, bytes | None]:
    """What is at and below a folder."""
    found: dict[Path, bytes | None] = {root: None}
    return found | {path: path.read_bytes() if path.is_file() else None for path in sorted(root.rglob("*"))}


def write_tree(tree: dict[Path, bytes | None], root: Path, place: Path) -> None:
    """The same below another folder, which must not be there."""
    for path, data in tree.items():
        target = place / path.relative_to(root)
        if data is None:
            target.mkdir(parents=True)
        else:
            target.write_bytes(data)
