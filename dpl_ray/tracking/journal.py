"""What MLflow has of a run, and what it is still to be told: two small files in the folder of the run.

tracking.json           server, run id, ids of children and models, how far MLflow has the history, and entries
                        (dpl_ray/tracking/sender.py says which) that it does not have
tracking-refused.jsonl  entries that MLflow does not take, with its answer

The metrics of a training and of the children of a study are no entries: they are read from history.jsonl when they are
sent.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

from dpl_ray.store.records import read_json, read_lines, to_lines, write_json
from dpl_ray.store.storage import Storage

Entry = dict[str, Any]
STATE_FILE, REFUSED_FILE = "tracking.json", "tracking-refused.jsonl"
OLDER_FILES = ("tracking-sending.jsonl", "tracking-unsent.jsonl")  # where older versions kept entries, metrics too


@dataclass
class State:
    """What tracking.json has."""

    uri: str | None = None
    run_id: str | None = None
    models: dict[str, str] = field(default_factory=dict)  # uuid of an exported model -> its id there
    registered: str | None = None  # models:/NAME/VERSION
    children: dict[str, str] = field(default_factory=dict)  # name -> run id of those that are there whole
    policy: str | None = None  # of a training: the metrics of its other phase, the baseline, begin with baseline/
    told_until: int = 0  # time (ms) of the last row of the history that is there
    is_open: bool = False  # whether a command that records has not come to its end, or was killed
    unsent: list[Entry] = field(default_factory=list)  # in order


class Journal(State):
    """The tracking files in a folder, of the command that has locked it (dpl_ray/store/lock.py)."""

    def __init__(self, folder: Storage, prefix: str = "") -> None:
        """
        Args:
            folder: of the run; files that entries name are relative to it.
            prefix: of the file names, as `_ledger/`, where the folder itself is to hold nothing else.
        """
        self.folder, self.place = folder, folder / prefix.rstrip("/") if prefix else folder
        self.num_refused = 0  # by this process
        self.is_left = False  # to a later command: what this process still does is not written
        self._file, self.refused = self.place / STATE_FILE, self.place / REFUSED_FILE
        self.load()

    def load(self) -> None:
        """Read what is known."""
        self._older = [file for name in OLDER_FILES if (file := self.place / name).exists()]
        self.is_there = self._file.exists() or bool(self._older)
        vars(self).update(vars(read_json(self._file, State) or State()))
        for file in self._older:
            self.unsent += read_lines(file)

    def forget(self, uri: str) -> None:
        """There is nothing at this server yet."""
        self.uri, self.run_id, self.registered, self.models, self.children = uri, None, None, {}, {}
        self.told_until = 0

    def save(self) -> None:
        """Write what is known."""
        if self.is_left:
            return
        write_json(self._file, {each.name: getattr(self, each.name) for each in fields(State)})
        while self._older:
            self._older.pop().remove()

    @property
    def has_unsent(self) -> bool:
        return self.is_open or bool(self.unsent)

    def refuse(self, entries: list[Entry], answer: str) -> None:
        """Set aside what MLflow does not take."""
        self.refused.append(to_lines([{"answer": answer, **entry} for entry in entries]))
        self.num_refused += len(entries)
