"""Recording a run in MLflow, off the training path: a thread of the driver sends what it is told, in batches.

A tracking server that is down, or goes down, costs one warning and never the run; what it was not sent is kept in the
run's folder for `python -m pipelines.sync_tracking`.
"""

from __future__ import annotations

import contextlib
import os
import queue
import shlex
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console

from dpl_ray.config.schema import Config, RegistryConfig
from dpl_ray.config.section import suggest
from dpl_ray.page.console import show
from dpl_ray.store.history import Point
from dpl_ray.store.storage import Storage
from dpl_ray.tracking.journal import Entry, Journal
from dpl_ray.tracking.sender import Sender, shown_uri

SCHEMES = ("http", "https", "sqlite", "postgresql", "mysql", "mssql")  # of servers and databases
SECONDS_TO_FINISH = 60.0  # without an answer
SECONDS_TO_RETRY = 60.0  # after a failure, until the server is asked again


class Tracker:
    """What the driver tells of a run. This one records nothing, so that nobody has to ask whether there is one."""

    is_recording = False
    failed = False  # whether part of the run has, though it comes to its end

    @property
    def run_id(self) -> str | None:
        """Of MLflow; None until the server has answered."""
        return None

    def needs_child(self, name: str) -> bool:  # noqa: ARG002
        """Whether `log_child` has something to send: false where the run is there whole, or nothing is recorded."""
        return False

    def needs_metrics(self, time: int) -> bool:  # noqa: ARG002
        """Whether the metrics of that time (ms) are still to be sent; false where nothing is recorded."""
        return False

    def log(self, metrics: dict[str, float], step: int, time: int | None = None) -> None:
        """Metrics of a step; told twice with the same time (ms since 1970; None: now), they are there once."""

    def log_tag(self, key: str, value: str) -> None:
        """Text that may change."""

    def log_file(self, file: str) -> None:
        """A file, named relative to the run's folder, as those below."""

    def log_page(self, file: str) -> None:
        """A page as `dpl_ray.page.html` writes it, and the drawings beside it."""

    def log_table(self, file: str) -> None:
        """A table as `dpl_ray.store.history.threshold_table` writes it."""

    def log_model(self, folder: str, step: int, registry: RegistryConfig) -> None:
        """A model in MLflow's format (`export_model`), registered where the registry has a name."""

    def log_child(self, name: str, *, params: dict[str, str], tags: dict[str, str], history: list[Point]) -> None:
        """A finished run below this one, unless it is there."""

    def finish(self, status: str, console: Console) -> None:
        """Send what is left and end the run; what is not answered within a minute is kept, and the console says so.

        Args:
            status: FINISHED, FAILED or KILLED.
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
        self._sender: Sender | None = None
        self._failure: str | None = None  # why nothing is sent just now
        self._failed_at = 0.0
        self._problem: str | None = None  # what there is to warn of
        self._is_warned = self._is_left = False
        self._put(
            "start",
            uri=shown_uri(uri),
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
        return self._journal.run_id if self._journal.uri == shown_uri(self._uri) else None

    def needs_child(self, name: str) -> bool:
        return self._journal.uri != shown_uri(self._uri) or name not in self._journal.children

    def needs_metrics(self, time: int) -> bool:
        return self._journal.uri != shown_uri(self._uri) or time >= self._journal.told_until

    def log(self, metrics: dict[str, float], step: int, time: int | None = None) -> None:
        self._put("metrics", values=metrics, step=step, time=_now() if time is None else time)

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
        self._put("model", folder=folder, step=step, registry=told, time=_now())

    def log_child(self, name: str, *, params: dict[str, str], tags: dict[str, str], history: list[Point]) -> None:
        self._put("child", name=name, params=params, tags=tags, history=history, time=_now())

    def finish(self, status: str, console: Console) -> None:
        self._put("finish", status=status, time=_now())
        progress, since = self._progress(), time.monotonic()
        while self._thread.is_alive() and time.monotonic() - since < SECONDS_TO_FINISH:
            self._thread.join(0.1)
            if (now := self._progress()) != progress:
                progress, since = now, time.monotonic()
        if self._thread.is_alive():
            self._is_left = True
            self._fail(f"no answer within {SECONDS_TO_FINISH:.0f} s")
            # What the thread may yet send is kept too: sent twice, it is there once.
            self._keep(self._in_hand + _drain(self._queue))
            self._queue.put(None)
        self._warn()
        if self._failure:
            show(console, f"MLflow does not have all of it yet: {self._how_to_send()}")

    def _progress(self) -> tuple[int, int]:
        return len(self._in_hand) + self._queue.qsize(), self._sender.num_calls if self._sender else 0

    def _put(self, kind: str, **entry: Any) -> None:
        self._queue.put({"kind": kind} | entry)
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
        return f"python -m pipelines.sync_tracking run={shlex.quote(str(self._journal.folder))}"

    def _work(self) -> None:
        self._in_hand = list(filter(None, [self._queue.get()]))
        try:
            self._sender = Sender(self._uri, self._journal)
        except Exception as error:  # as an address that MLflow does not take
            self._fail(first_line(error))
        self._send()
        self._send_left_over(without=("start", "finish"))  # the run goes on, whatever was said at its last end
        while (first := self._queue.get()) is not None:
            self._in_hand = [first, *_drain(self._queue)]
            is_last = self._in_hand[-1]["kind"] == "finish"
            if self._failure and time.monotonic() - self._failed_at > SECONDS_TO_RETRY:
                self._keep(self._in_hand)
                self._in_hand, self._failure = [], None
                self._send_left_over()
            else:
                self._send()
            if is_last:
                return

    def _send(self) -> None:
        """Send what is in hand, and keep what cannot be sent."""
        self._try()
        self._keep(self._in_hand)
        self._in_hand = []

    def _send_left_over(self, without: tuple[str, ...] = ()) -> None:
        while not self._failure and (left_over := self._journal.take()):
            self._in_hand = [entry for entry in left_over if entry["kind"] not in without]
            self._try()
            self._journal.put_back(self._in_hand)
        self._in_hand = []

    def _try(self) -> None:
        """Send what is in hand; what is left there could not be sent."""
        if self._sender is None or self._failure:
            return
        try:
            self._sender.send(self._in_hand)
        except Exception as error:  # whatever a client, a server or a driver raises: the run must go on
            self._fail(first_line(error))
        if self._journal.num_refused:
            self._problem = self._problem or "it refuses some entries"

    def _fail(self, reason: str) -> None:
        self._failure, self._failed_at = reason, time.monotonic()
        self._problem = self._problem or reason

    def _keep(self, entries: list[Entry]) -> None:
        if self._is_left and threading.current_thread() is self._thread:
            return  # finish has kept them
        try:
            self._journal.keep(entries)
        except Exception as error:  # a full disk, a bucket that does not answer
            self._fail(
                f"{self._failure}, and {len(entries)} entries are lost: they cannot be kept ({first_line(error)})"
            )


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
    config: Config, uri: str | None, journal: Journal, *, name: str, params: dict[str, str], tags: dict[str, str]
) -> Tracker:
    """The MLflow run of a folder, new or the one that its journal knows; what records nothing where `uri` is None.

    Args:
        name: of the run.
    """
    if uri is None:
        return Tracker()
    # A server says where its files go; a database does not, and MLflow would take the working directory.
    place = config.run.storage_path
    is_server = uri.startswith(("http://", "https://", "databricks"))
    is_bucket = "://" in place and not place.startswith("file://")
    return MlflowTracker(
        journal,
        uri=uri,
        experiment=config.tracking.experiment,
        artifact_location=None if is_server or is_bucket else default_uri(place)[1],
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
    if config.tracking.uri and config.tracking.uri != shown_uri(config.tracking.uri):
        raise ValueError(
            f"tracking.uri={shown_uri(config.tracking.uri)}: holds a password, which would be written into files and "
            "pages; give MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or the address as MLFLOW_TRACKING_URI"
        )
    return uri or default_uri(config.run.storage_path)[0]


def check_uri(field: str, uri: str) -> None:
    """`ValueError` where this is no address of a server or database; others than the known ones may be plugins'."""
    scheme, separator, _ = uri.partition("://")
    if scheme == "databricks":
        return
    if scheme == "file":
        path = shown_uri(uri).removeprefix("file://").rstrip("/")
        raise ValueError(
            f"{field}={shown_uri(uri)}: is a folder of files, which MLflow no longer takes as a store; give a database "
            f"in it, as sqlite:///{path}/mlflow.db"
        )
    if not separator:
        right = f"http://{uri}" if ":" in uri else "http://host:5000"
        raise ValueError(
            f"{field}={shown_uri(uri)}: is no address of an MLflow server or database; give it as {right}, or "
            "sqlite:////absolute/path/mlflow.db"
        )
    if scheme.partition("+")[0] not in SCHEMES and (near := suggest(scheme, SCHEMES)):
        raise ValueError(f"{field}={shown_uri(uri)}: MLflow knows no {scheme}://{near}")


def default_uri(storage_path: str) -> tuple[str, str]:
    """(tracking URI, artifact location) below run.storage_path: SQLite and a folder, both absolute.

    Raises:
        ValueError: SQLite cannot live in a bucket, nor its address have this path in it.
    """
    if "://" in storage_path and not storage_path.startswith("file://"):
        raise ValueError(
            f"run.storage_path={storage_path}: the default MLflow store is a local file; "
            "set tracking.uri to a server, or tracking.enabled=false"
        )
    storage = Storage(storage_path)
    if found := sorted(set("?%") & set(str(storage))):
        raise ValueError(
            f"run.storage_path={storage_path}: the address of the default MLflow store, which lies below it, takes no "
            f"{found[0]}; take another folder, set tracking.uri, or tracking.enabled=false"
        )
    return f"sqlite:///{storage / 'mlflow.db'}", Path(str(storage / "mlflow-artifacts")).as_uri()


def first_line(error: Exception) -> str:
    """What went wrong, in a line: of a request that failed, which one, without the stack of causes below it."""
    text = next(iter(str(error).strip().splitlines()), "").partition(" with exception ")[0]
    return shown_uri(f"{type(error).__name__}: {text}"[:300])


def _drain(entries: queue.SimpleQueue[Entry | None]) -> list[Entry]:
    found = []
    while not entries.empty():
        if (entry := entries.get()) is not None:
            found.append(entry)
    return found


def _now() -> int:
    """Milliseconds since 1970, as MLflow counts them."""
    return int(time.time() * 1000)
