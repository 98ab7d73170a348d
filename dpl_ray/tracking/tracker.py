"""Recording a run in MLflow, off the training path: a thread of the driver sends what it is told, in batches.

A tracking server that is down, or goes down, costs one warning and never the run; what it was not sent is kept in the
run's folder for `python -m pipelines.sync_tracking`.
"""

from __future__ import annotations

import os
import queue
import sys
import threading
import time
import warnings
from typing import Any

from rich.console import Console

from dpl_ray.config import Config, RegistryConfig, suggest
from dpl_ray.history import Point
from dpl_ray.storage import Storage
from dpl_ray.tracking.journal import Entry, Journal
from dpl_ray.tracking.sender import Sender

SCHEMES = ("http", "https", "sqlite", "postgresql", "mysql", "mssql")  # of servers and databases
SECONDS_TO_FINISH = 60.0  # without an answer


class Tracker:
    """What the driver tells of a run. This one records nothing, so that nobody has to ask whether there is one."""

    is_recording = False

    @property
    def run_id(self) -> str | None:
        """Of MLflow; None until the server has answered."""
        return None

    def has_child(self, name: str) -> bool:  # noqa: ARG002
        """Whether there is no need to tell of this child: it is there whole, or nothing is recorded."""
        return True

    def log(self, metrics: dict[str, float], step: int) -> None:
        """Metrics of a step."""

    def log_tag(self, key: str, value: str) -> None:
        """Text that may change."""

    def log_file(self, file: str) -> None:
        """A file, named relative to the run's folder, as those below."""

    def log_page(self, file: str) -> None:
        """An HTML page of `dpl_ray.html`, and its drawings."""

    def log_table(self, file: str) -> None:
        """A table as `dpl_ray.history.threshold_table` writes it."""

    def log_model(self, folder: str, step: int, registry: RegistryConfig) -> None:
        """A model in MLflow's format (`export_model`), registered where the registry has a name."""

    def log_child(self, name: str, *, params: dict[str, str], tags: dict[str, str], history: list[Point]) -> None:
        """A finished run below this one, unless it is there."""

    def finish(self, status: str, console: Console) -> None:
        """Send what is left and end the run; what is not answered within a minute is kept, and the console says so.

        Args:
            status: FINISHED or FAILED, which an interrupt makes KILLED.
        """


class MlflowTracker(Tracker):
    """One MLflow run. Every call returns at once; a thread of its own does the work."""

    is_recording = True

    def __init__(
        self,
        journal: Journal,
        *,
        uri: str,
        experiment: str,
        artifact_location: str | None,
        run_name: str,
        params: dict[str, str],
        tags: dict[str, str],
    ) -> None:
        """
        Args:
            journal: knows the run where it goes on.
            artifact_location: where a new experiment keeps its files; None leaves that to the server.
        """
        self._journal, self._uri = journal, uri
        self._queue: queue.SimpleQueue[Entry | None] = queue.SimpleQueue()
        self._in_hand: list[Entry] = []  # taken from the queue, neither sent nor kept
        self._failure: str | None = None
        self._is_warned = False
        self._put(
            "start",
            uri=uri,
            experiment=experiment,
            artifact_location=artifact_location,
            run_name=run_name,
            params=params,
            tags=tags,
            time=_now(),
        )
        self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)
        self._thread.start()

    @property
    def run_id(self) -> str | None:
        return self._journal.run_id if self._journal.uri == self._uri else None

    def has_child(self, name: str) -> bool:
        return self._journal.uri == self._uri and name in self._journal.children

    def log(self, metrics: dict[str, float], step: int) -> None:
        self._put("metrics", values=metrics, step=step, time=_now())

    def log_tag(self, key: str, value: str) -> None:
        self._put("tag", key=key, value=value)

    def log_file(self, file: str) -> None:
        self._put("file", file=file)

    def log_page(self, file: str) -> None:
        self._put("page", file=file)

    def log_table(self, file: str) -> None:
        self._put("table", file=file)

    def log_model(self, folder: str, step: int, registry: RegistryConfig) -> None:
        told = {"name": registry.name, "alias": registry.alias} if registry.name else None
        self._put("model", folder=folder, step=step, registry=told)

    def log_child(self, name: str, *, params: dict[str, str], tags: dict[str, str], history: list[Point]) -> None:
        self._put("child", name=name, params=params, tags=tags, history=history, time=_now())

    def finish(self, status: str, console: Console) -> None:
        if status == "FAILED" and isinstance(sys.exception(), KeyboardInterrupt):
            status = "KILLED"
        self._put("finish", status=status, time=_now())
        left, since = -1, time.monotonic()
        while self._thread.is_alive() and time.monotonic() - since < SECONDS_TO_FINISH:
            self._thread.join(0.1)
            if (now_left := len(self._in_hand) + self._queue.qsize()) != left:
                left, since = now_left, time.monotonic()
        if self._thread.is_alive():
            self._failure = self._failure or f"no answer within {SECONDS_TO_FINISH:.0f} s"
            # What the thread may yet send is kept too: sent twice, it is there once.
            self._journal.keep(self._in_hand + _drain(self._queue))
            self._queue.put(None)
        self._warn()
        if self._failure:
            text = f"MLflow does not have all of it yet: {self._how_to_send()}"
            console.print(text, highlight=False, markup=False, soft_wrap=True)

    def _put(self, kind: str, **entry: Any) -> None:
        self._queue.put({"kind": kind} | entry)
        self._warn()

    def _warn(self) -> None:
        if self._failure and not self._is_warned:
            self._is_warned = True
            warnings.warn(
                f"MLflow at {self._uri}: {self._failure}; the run goes on, and what is not sent is kept for "
                f"{self._how_to_send()}",
                stacklevel=3,
            )

    def _how_to_send(self) -> str:
        return f"python -m pipelines.sync_tracking run={self._journal.folder}"

    def _work(self) -> None:
        start = self._queue.get()
        assert start is not None
        sender = self._begin(start)
        while True:
            first = self._queue.get()
            if first is None:
                return
            self._in_hand = [first, *_drain(self._queue)]
            is_last = self._in_hand[-1]["kind"] == "finish"
            if sender and not self._failure:
                self._try(sender)
            self._journal.keep(self._in_hand)
            self._in_hand = []
            if is_last:
                return

    def _begin(self, start: Entry) -> Sender | None:
        """Open the run, and send what an earlier start of it could not; None where the server is not to be used."""
        self._in_hand = [start]
        try:
            sender = Sender(self._uri, self._journal)
        except Exception as error:  # as an address that MLflow does not take
            self._failure = first_line(error)
            self._journal.keep(self._in_hand)
            return None
        self._try(sender)
        self._journal.keep(self._in_hand)
        while not self._failure and (left_over := self._journal.take()):
            # The run is there and goes on, whatever was said at its last end.
            self._in_hand = [entry for entry in left_over if entry["kind"] not in ("start", "finish")]
            self._try(sender)
            self._journal.put_back(self._in_hand)
        self._in_hand = []
        return sender

    def _try(self, sender: Sender) -> None:
        """Send what is in hand; what is left there could not be sent."""
        try:
            sender.send(self._in_hand)
        except Exception as error:  # whatever a client, a server or a driver raises: the run must go on
            self._failure = first_line(error)


def start_tracker(
    config: Config, uri: str | None, journal: Journal, *, name: str, params: dict[str, str], tags: dict[str, str]
) -> Tracker:
    """The MLflow run of a folder, new or the one that its journal knows; what records nothing where `uri` is None.

    Args:
        name: of the run.
    """
    if uri is None:
        return Tracker()
    # A server says where its files go; a database does not, and MLflow would take the working directory.
    is_server = uri.startswith(("http://", "https://", "databricks"))
    return MlflowTracker(
        journal,
        uri=uri,
        experiment=config.tracking.experiment,
        artifact_location=None if is_server else default_uri(config.run.storage_path)[1],
        run_name=name,
        params=params,
        tags=tags | {"dpl_ray.folder": str(journal.folder)},
    )


def tracking_uri(config: Config) -> str | None:
    """Where MLflow's records go; None where there are to be none."""
    if not config.tracking.enabled:
        return None
    uri = config.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI")
    if uri:
        check_uri("tracking.uri" if config.tracking.uri else "MLFLOW_TRACKING_URI", uri)
    return uri or default_uri(config.run.storage_path)[0]


def check_uri(field: str, uri: str) -> None:
    """`ValueError` where this is no address of a server or database; others than the known ones may be plugins'."""
    scheme, separator, _ = uri.partition("://")
    if scheme == "databricks":
        return
    if not separator or scheme == "file":
        right = f"http://{uri}" if ":" in uri else "http://host:5000"
        raise ValueError(
            f"{field}={uri}: is no address of an MLflow server or database; give it as {right}, or "
            "sqlite:////absolute/path/mlflow.db"
        )
    if scheme.partition("+")[0] not in SCHEMES and (near := suggest(scheme, SCHEMES)):
        raise ValueError(f"{field}={uri}: MLflow knows no {scheme}://{near}")


def default_uri(storage_path: str) -> tuple[str, str]:
    """(tracking URI, artifact location) below run.storage_path: SQLite and a folder, both absolute.

    Raises:
        ValueError: SQLite cannot live in a bucket.
    """
    if "://" in storage_path and not storage_path.startswith("file://"):
        raise ValueError(
            f"run.storage_path={storage_path}: the default MLflow store is a local file; "
            "set tracking.uri to a server, or tracking.enabled=false"
        )
    storage = Storage(storage_path)
    return f"sqlite:///{storage / 'mlflow.db'}", f"file://{storage / 'mlflow-artifacts'}"


def first_line(error: Exception) -> str:
    """What went wrong, in a line: of a request that failed, which one, without the stack of causes below it."""
    text = next(iter(str(error).strip().splitlines()), "").partition(" with exception ")[0]
    return f"{type(error).__name__}: {text}"[:300]


def _drain(entries: queue.SimpleQueue[Entry | None]) -> list[Entry]:
    found = []
    while not entries.empty():
        if (entry := entries.get()) is not None:
            found.append(entry)
    return found


def _now() -> int:
    """Milliseconds since 1970, as MLflow counts them."""
    return int(time.time() * 1000)
