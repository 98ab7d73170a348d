"""Recording a run in MLflow, off the training path: a thread of the driver sends what it is told.

A tracking server that is down, or goes down, costs one warning and never the run; what it was not sent is kept in the
run's folder for `dpl-ray sync-tracking`.
"""

from __future__ import annotations

import contextlib
import queue
import shlex
import threading
import time
import warnings
from collections.abc import Iterator
from typing import Any

from rich.console import Console

from dpl_ray.config.schema import Config, RegistryConfig
from dpl_ray.page.console import show
from dpl_ray.tracking.journal import Entry, Journal
from dpl_ray.tracking.sender import Sender
from dpl_ray.tracking.server import default_uri, first_line, shown_uri

SECONDS_TO_FINISH = 60.0  # without an answer
SECONDS_TO_RETRY = 60.0  # after a failure, until the server is asked again


class Tracker:
    """What the driver tells of a run. This one records nothing, so that nobody has to ask whether there is one."""

    is_recording = False
    failed = False  # whether part of the run has, though it comes to its end
    run_id: str | None = None  # of MLflow; None until the server has answered

    def needs_child(self, name: str) -> bool:  # noqa: ARG002
        """Whether `log_child` has something to send: false where the run is there whole, or nothing is recorded."""
        return False

    def begin(self) -> None:
        """Send from now on, where the tracker waits for this: MLflow's import takes seconds of the processor."""

    def log(self, metrics: dict[str, float], step: int) -> None:
        """Metrics that no history.jsonl has."""
        self._put("metrics", values=metrics, step=step)

    def log_history(self) -> None:
        """The history.jsonl of a training has more rows."""
        self._put("history")

    def log_tag(self, key: str, value: str) -> None:
        """Text that may change."""
        self._put("tag", key=key, value=value)

    def log_file(self, file: str) -> None:
        """A file, named relative to the run's folder; of a page its drawings too, and thresholds.json as a table."""
        self._put("file", file=file)

    def log_model(self, folder: str, step: int, registry: RegistryConfig) -> None:
        """A model in MLflow's format (`export_model`), registered where the registry has a name."""
        told = {"name": registry.name, "alias": registry.alias} if registry.name else None
        self._put("model", folder=folder, step=step, registry=told)

    def log_child(self, name: str, *, params: dict[str, str], tags: dict[str, str], folder: str) -> None:
        """A finished training below this one, unless it is there; the history.jsonl in its folder has its metrics."""
        self._put("child", name=name, params=params, tags=tags, folder=folder)

    def finish(self, status: str, console: Console) -> None:
        """Send what is left and end the run; what is not answered within a minute is kept, and the console says so.

        Args:
            status: FINISHED, FAILED or KILLED.
        """

    def _put(self, kind: str, **entry: Any) -> None:
        pass


class MlflowTracker(Tracker):
    """One MLflow run. Every call returns at once; a thread of its own does the work."""

    is_recording = True

    def __init__(self, journal: Journal, uri: str, start: Entry, *, waits: bool = False) -> None:
        """
        Args:
            journal: knows the run where it goes on.
            start: of the entry with which it begins.
            waits: sends nothing before `begin`.
        """
        self._journal, self._uri = journal, uri
        self._queue: queue.SimpleQueue[Entry | None] = queue.SimpleQueue()
        self._sender: Sender | None = None
        self._failure: str | None = None  # why nothing is sent just now
        self._failed_at = 0.0
        self._problem: str | None = None  # what there is to warn of
        self._is_warned = False
        self._begun = threading.Event()
        if not waits:
            self._begun.set()
        start = {**start, "kind": "start", "uri": shown_uri(uri), "time": _now()}
        # The run goes on, whatever was said at its last end.
        journal.unsent = [start, *(entry for entry in journal.unsent if entry["kind"] not in ("start", "finish"))]
        journal.is_open = True
        self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)
        self._thread.start()

    @property
    def run_id(self) -> str | None:  # type: ignore[override]
        return self._journal.run_id if self._knows_server else None

    @property
    def _knows_server(self) -> bool:
        return self._journal.uri == shown_uri(self._uri)

    def needs_child(self, name: str) -> bool:
        return not self._knows_server or name not in self._journal.children

    def begin(self) -> None:
        self._begun.set()

    def log_history(self) -> None:
        if self._queue.empty():  # else the history is sent with what waits there
            super().log_history()

    def finish(self, status: str, console: Console) -> None:
        self._put("finish", status=status)
        self.begin()
        progress, since = self._progress(), time.monotonic()
        while self._thread.is_alive() and time.monotonic() - since < SECONDS_TO_FINISH:
            self._thread.join(0.1)
            if (now := self._progress()) != progress:
                progress, since = now, time.monotonic()
        if self._thread.is_alive():
            self._fail(f"no answer within {SECONDS_TO_FINISH:.0f} s")
            # What the thread may yet send is kept too: sent twice, it is there once.
            self._keep(_drain(self._queue))
            self._journal.is_left = True
            self._queue.put(None)
        self._warn()
        if self._failure:
            show(console, f"MLflow does not have all of it yet: {self._how_to_send()}")

    def _progress(self) -> tuple[int, int]:
        return len(self._journal.unsent) + self._queue.qsize(), self._sender.num_calls if self._sender else 0

    def _put(self, kind: str, **entry: Any) -> None:
        self._queue.put({"kind": kind, "time": _now()} | entry)
        self._warn()

    def _warn(self) -> None:
        if not self._problem or self._is_warned:
            return
        self._is_warned = True
        kept = f"what is not sent is kept for {self._how_to_send()}"
        refused = f"what it does not take is in {self._journal.refused}"
        what = refused if self._journal.num_refused else kept
        # Where warnings are errors: this is none for the run.
        with contextlib.suppress(UserWarning):
            warnings.warn(
                f"MLflow at {shown_uri(self._uri)}: {self._problem}; the run goes on, and {what}", stacklevel=3
            )

    def _how_to_send(self) -> str:
        return f"dpl-ray sync-tracking run={shlex.quote(str(self._journal.folder))}"

    def _work(self) -> None:
        self._begun.wait()
        self._send([])
        while (first := self._queue.get()) is not None:
            entries = [first, *_drain(self._queue)]
            self._send([entry for entry in entries if entry["kind"] != "history"])
            if entries[-1]["kind"] == "finish":
                return

    def _send(self, entries: list[Entry]) -> None:
        """Send these and what is left from before; what cannot be sent stays in the journal."""
        # At the end in any case: what has failed since may have recovered, and would show a run that goes on for ever.
        is_last = any(entry["kind"] == "finish" for entry in entries)
        is_due = self._failure is None or is_last or time.monotonic() - self._failed_at > SECONDS_TO_RETRY
        self._keep(entries)
        if not is_due:
            return
        self._failure = None
        try:
            self._sender = self._sender or Sender(self._uri, self._journal)
            self._sender.send()
        except Exception as error:  # whatever a client, a server or a driver raises: the run must go on
            self._fail(first_line(error))
        if self._journal.num_refused:
            self._problem = self._problem or "it refuses some entries"
        self._keep([])

    def _fail(self, reason: str) -> None:
        self._failure, self._failed_at = reason, time.monotonic()
        self._problem = self._problem or reason

    def _keep(self, entries: list[Entry]) -> None:
        self._journal.unsent += entries
        try:
            self._journal.save()
        except Exception as error:  # a full disk, a bucket that does not answer
            number = len(self._journal.unsent)
            self._fail(f"{number} entries are lost if they are not sent: they cannot be kept ({first_line(error)})")


@contextlib.contextmanager
def recording(tracker: Tracker, console: Console) -> Iterator[None]:
    """What the tracker is told of ends with this block: killed where it is interrupted, failed where it fails."""
    status = "FAILED"
    try:
        yield
        status = "FAILED" if tracker.failed else "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        tracker.finish(status, console)


def start_tracker(
    config: Config,
    uri: str | None,
    journal: Journal,
    *,
    name: str,
    params: dict[str, str],
    tags: dict[str, str],
    waits: bool = False,
) -> Tracker:
    """The MLflow run of a folder, new or the one that its journal knows; what records nothing where `uri` is None.

    Args:
        name: of the run.
        waits: it sends nothing before `begin`.
    """
    if uri is None:
        return Tracker()
    # A server says where its files go; a database does not, and MLflow would take the working directory.
    place = config.run.storage_path
    is_server = uri.startswith(("http://", "https://", "databricks"))
    is_bucket = "://" in place and not place.startswith("file://")
    start = {
        "experiment": config.tracking.experiment,
        "artifact_location": None if is_server or is_bucket else default_uri(place)[1],
        "run_name": name,
        "params": params,
        "tags": tags | {"dpl_ray.folder": str(journal.folder)},
    }
    return MlflowTracker(journal, uri, start, waits=waits)


def _drain(entries: queue.SimpleQueue[Entry | None]) -> list[Entry]:
    found = []
    while not entries.empty():
        if (entry := entries.get()) is not None:
            found.append(entry)
    return found


def _now() -> int:
    """Milliseconds since 1970, as MLflow counts them."""
    return int(time.time() * 1000)
