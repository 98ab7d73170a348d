"""What MLflow knows of a run, and what it is still to be told: small files in the folder of the run.

tracking.json           server, run id, ids of children and models, and up to when it has the metrics
tracking-unsent.jsonl   entries that could not be sent, one a line, in order (dpl_ray/tracking/sender.py says which)
tracking-sending.jsonl  those that are being sent later, while the file above may grow
tracking-refused.jsonl  entries that MLflow does not take, with its answer
"""

from __future__ import annotations

import json
from typing import Any

from dpl_ray.store.records import from_lines, to_lines
from dpl_ray.store.storage import Storage

Entry = dict[str, Any]
STATE_FILE, UNSENT_FILE, SENDING_FILE = "tracking.json", "tracking-unsent.jsonl", "tracking-sending.jsonl"
REFUSED_FILE = "tracking-refused.jsonl"


class Journal:
    """The tracking files in a folder, of the command that has locked it (dpl_ray/store/lock.py)."""

    def __init__(self, folder: Storage, prefix: str = "") -> None:
        """
        Args:
            folder: of the run; files that entries name are relative to it.
            prefix: of the file names, as `_ledger/`, where the folder itself is to hold nothing else.
        """
        self.folder, self.place = folder, folder / prefix.rstrip("/") if prefix else folder
        self.num_refused = 0  # by this process
        self._has_kept = False
        self._state, self._unsent, self._sending, self.refused = (
            folder / (prefix + name) for name in (STATE_FILE, UNSENT_FILE, SENDING_FILE, REFUSED_FILE)
        )
        found: dict[str, Any] = json.loads(self._state.read()) if self._state.exists() else {}
        self.uri: str | None = found.get("uri")
        self.run_id: str | None = found.get("run_id")
        self.models: dict[str, str] = found.get("models", {})  # uuid of an exported model -> its id there
        self.registered: str | None = found.get("registered")  # models:/NAME/VERSION
        self.children: dict[str, str] = found.get("children", {})  # name -> run id of those that are there whole
        self.told_until: int = found.get("told_until", 0)  # time (ms) of the last metrics that are there

    def forget(self, uri: str) -> None:
        """There is nothing at this server yet."""
        self.uri, self.run_id, self.registered, self.models, self.children = uri, None, None, {}, {}
        self.told_until = 0

    def save(self) -> None:
        """Write what is known."""
        names = ("uri", "run_id", "registered", "models", "children", "told_until")
        self._state.write(json.dumps({name: getattr(self, name) for name in names}, indent=1).encode())

    @property
    def is_there(self) -> bool:
        return self._state.exists() or self.has_unsent

    @property
    def has_unsent(self) -> bool:
        return self._unsent.exists() or self._sending.exists()

    def keep(self, entries: list[Entry]) -> None:
        """Write down what was not sent."""
        if entries:
            # A process that was killed may have left half a line at the end.
            begin = b"" if self._has_kept or not self._unsent.exists() else b"\n"
            self._unsent.append(begin + to_lines(entries))
            self._has_kept = True

    def refuse(self, entries: list[Entry], answer: str) -> None:
        """Set aside what MLflow does not take."""
        self.refused.append(to_lines([{"answer": answer, **entry} for entry in entries]))
        self.num_refused += len(entries)

    def take(self) -> list[Entry]:
        """What is to be sent next; `put_back` says what is left of it, and then there may be more to take."""
        if not self._sending.exists():
            if not self._unsent.exists():
                return []
            self._unsent.rename(self._sending)
        return from_lines(self._sending.read())

    def put_back(self, entries: list[Entry]) -> None:
        """What was taken and not sent."""
        if entries:
            self._sending.write(to_lines(entries))
        else:
            self._sending.remove()
