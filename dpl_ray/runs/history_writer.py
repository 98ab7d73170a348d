"""The records of a training, added to the folder of its run by the process that trains: none is lost on a way."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from typing import TYPE_CHECKING, Any

from dpl_ray.data.dataset import BadImage
from dpl_ray.data.splits.bad_images import read_bad, write_bad
from dpl_ray.store.history import HISTORY_FILE, history_rows
from dpl_ray.store.records import to_lines
from dpl_ray.store.storage import Storage

if TYPE_CHECKING:
    from dpl_ray.training.records import Record

SECONDS_BETWEEN_WRITES = 10.0  # in a bucket, where nothing can be added to a file


class HistoryWriter:
    """Adds rows to history.jsonl, one process at a time; what cannot be written just now is kept until `save`."""

    def __init__(self, folder: Storage) -> None:
        """
        Args:
            folder: of the run; it is looked at with the first record.
        """
        self.folder, self._file, self._is_open = folder, folder / HISTORY_FILE, False
        self._written = b""  # in a bucket: the whole file
        self._rows, self._bad = b"", list[BadImage]()  # that are to be written
        self._time, self._written_at = 0, time.monotonic()

    def _open(self) -> None:
        """Go on after what is there, without half a line, which would stand before the next row."""
        found = self._file.read_from(0)
        whole, end, last = found.rpartition(b"\n")
        whole += end + (last + b"\n" if any(history_rows([last])) else b"")
        if whole != found:
            self._file.write(whole)
        self._time = max((row.get("time", 0) for row in history_rows(whole.split(b"\n"))), default=0)
        self._written = b"" if self.folder.is_local else whole
        self._is_open = True

    def add(self, record: Record) -> dict[str, Any]:
        """Keep metrics, and images that cannot be read; returns the row as it is kept."""
        if not self._is_open:
            self._open()
        # Never earlier than the row before, whatever happens to the clock: what is there is known by its time.
        self._time = max(int(time.time() * 1000), self._time)
        row = dataclasses.asdict(record) | {"time": self._time}
        del row["bad"]
        self._rows += to_lines([row])
        self._bad += record.bad
        if self.folder.is_local or time.monotonic() - self._written_at > SECONDS_BETWEEN_WRITES:
            with contextlib.suppress(OSError):  # `save` tries it again
                self._write()
        return row

    def _write(self) -> None:
        if self._bad:
            write_bad(self.folder, read_bad(self.folder) | {image.id: image.reason for image in self._bad})
            self._bad = []
        if self._rows and self.folder.is_local:
            self._file.append(self._rows)
        elif self._rows:
            self._file.write(self._written + self._rows)
            self._written += self._rows
        self._rows, self._written_at = b"", time.monotonic()

    def save(self) -> int:
        """Write what is left, so that it outlives the machine: before a checkpoint of its step is written.

        Returns:
            Bytes of the file, as far as this process has written it; 0: it has written nothing.

        Raises:
            OSError: it cannot be written.
        """
        self._write()
        if not self._is_open:
            return 0
        self._file.sync()
        return self._file.size()
