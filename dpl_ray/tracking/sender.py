"""Sends MLflow what a journal says. What is sent a second time, since nobody knows whether it arrived, is there once.

An entry is a dict of JSON values with a `kind` and a `time` (ms):

start    uri, experiment, artifact_location, run_name, params, tags
metrics  values (key -> value), step
tag      key, value
file     file, relative to the run's folder; of a page the drawings beside it too, in figures/, and
         thresholds.json is in MLflow's table format, which its user interface shows as one
child    name, params, tags, folder: its history.jsonl has its metrics (of older versions: history, a list of points)
model    folder, step, registry (null, or name and alias)
finish   status

An entry that MLflow refuses for what is in it would be refused again: it is set aside, and those behind it are sent.
"""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyarrow.fs import LocalFileSystem, copy_files

from dpl_ray.page.html import FIGURES
from dpl_ray.store.history import HISTORY_FILE, TABLE_FILE, HistoryReader, Point, read_points, threshold_table
from dpl_ray.store.storage import Storage
from dpl_ray.tracking.journal import Entry, Journal
from dpl_ray.tracking.server import make_client, shown_uri

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel, Run

ROWS_AT_ONCE = 100  # of a history; told_until is kept after each
MAX_BATCH = 1000  # metrics that MLflow takes in one call
MAX_PARAM = 6000  # characters of a value
MAX_KEY = 250  # characters of a metric's name
DIGEST_ENDING = re.compile(r"_[0-9a-f]{16}$")
REFUSED = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST", "INVALID_STATE")  # what MLflow answers to what is in an entry


class OutsideError(ValueError):
    """An entry names what is not of its run."""


class Sender:
    """A client of one server, for one run."""

    def __init__(self, uri: str, journal: Journal) -> None:
        self._client = make_client(uri)
        self._uri, self._journal, self._folder = uri, journal, journal.folder
        self._history: HistoryReader | None = None
        self._since = 0  # time (ms) of the first row of the history that may not be there
        self._points: list[Point] = []  # of the history, read and not sent
        self.num_calls = 0  # that were answered: whether there is progress
        self.num_sent = 0  # entries and rows of the history

    def send(self) -> None:
        """Send the start of the run, the rows of its history, and then all other entries in order.

        Raises whatever MLflow's client, a server or a database driver does; the journal then has what is left.
        """
        entries = self._journal.unsent
        while entries and entries[0]["kind"] == "start":
            self._send_start(entries[0])
            self._count(entries, 1)
        self._send_history()
        while entries:
            send: Callable[[Entry], object] = getattr(self, "_send_" + entries[0]["kind"])
            with self._set_aside_if_refused(entries[:1]):
                send(entries[0])
            self._count(entries, 1)

    def _count(self, sent: list[Any], number: int) -> None:
        """So many are there, or refused."""
        del sent[:number]
        self.num_sent += number
        self.num_calls += 1

    @contextmanager
    def _set_aside_if_refused(self, entries: list[Entry]) -> Iterator[None]:
        from mlflow.exceptions import MlflowException

        try:
            yield
        except OutsideError as error:
            self._journal.refuse(entries, str(error))
        except MlflowException as error:
            if error.error_code not in REFUSED:
                raise
            self._journal.refuse(entries, shown_uri(str(error)))

    def _below(self, name: str) -> Storage:
        """A file or folder of the run: a journal may be somebody else's, and MLflow gets what it names."""
        if name.startswith("/") or ".." in name.split("/"):
            raise OutsideError(f"{name} is outside of the run")
        return self._folder / name

    def _send_history(self) -> None:
        journal = self._journal
        if journal.policy is None:
            return
        if self._history is None:
            self._since = journal.told_until
            self._history = HistoryReader(self._folder / HISTORY_FILE, journal.policy)
        # Those that were not sent, or the next: no more, as MLflow may be slower than the training.
        while points := self._points or self._history.read(ROWS_AT_ONCE):
            # Those of the same millisecond may not all be there.
            self._points = [point for point in points if point.metrics and point.time and point.time >= self._since]
            if not self._points:
                continue
            entries = [
                {"kind": "metrics", "values": point.metrics, "step": point.step, "time": point.time}
                for point in self._points
            ]
            with self._set_aside_if_refused(entries):
                self._log_metrics(journal.run_id, self._points)
            journal.told_until = max(journal.told_until, self._points[-1].time)
            self._count(self._points, len(self._points))
            journal.save()

    def _send_metrics(self, entry: Entry) -> None:
        self._log_metrics(self._journal.run_id, [Point(entry["step"], entry["values"], entry["time"])])

    def _send_start(self, entry: Entry) -> None:
        """Go on with the run that is known, or create one."""
        journal = self._journal
        journal.policy = entry["params"].get("policy.name")
        run = self._find(journal.run_id) if journal.uri == shown_uri(self._uri) else None
        if run is None:
            journal.forget(shown_uri(self._uri))
            experiment_id = self._experiment(entry["experiment"], entry["artifact_location"])
            run = self._client.create_run(experiment_id, start_time=entry["time"], run_name=entry["run_name"])
            journal.run_id = run.info.run_id
            journal.save()
        else:
            self._client.set_terminated(journal.run_id, "RUNNING")
        if run.data.params:  # which cannot be changed
            return
        self._describe(journal.run_id, entry)

    def _describe(self, run_id: str | None, entry: Entry) -> None:
        from mlflow.entities import Param, RunTag

        params = [Param(key, value[:MAX_PARAM]) for key, value in entry["params"].items()]
        self._client.log_batch(run_id, params=params, tags=[RunTag(key, value) for key, value in entry["tags"].items()])

    def _experiment(self, name: str, artifact_location: str | None) -> str:
        if (found := self._client.get_experiment_by_name(name)) is None:
            with _passing("RESOURCE_ALREADY_EXISTS"):  # another run has made it at the same time
                return str(self._client.create_experiment(name, artifact_location=artifact_location))
            found = self._client.get_experiment_by_name(name)
        assert found is not None
        if found.lifecycle_stage == "deleted":
            raise ValueError(
                f"tracking.experiment={name} was deleted there; `mlflow experiments restore --experiment-id "
                f"{found.experiment_id}` brings it back, or take another tracking.experiment"
            )
        return str(found.experiment_id)

    def _find(self, run_id: str | None) -> Run | None:
        """The run, unless it was deleted."""
        run = None
        if run_id is not None:
            with _passing("RESOURCE_DOES_NOT_EXIST"):
                run = self._client.get_run(run_id)
        return None if run is None or run.info.lifecycle_stage == "deleted" else run

    def _log_metrics(self, run_id: str | None, points: list[Point]) -> None:
        from mlflow.entities import Metric

        metrics = [
            Metric(metric_key(key), value, point.time, point.step)
            for point in points
            for key, value in point.metrics.items()
        ]
        for start in range(0, len(metrics), MAX_BATCH):
            self._client.log_batch(run_id, metrics=metrics[start : start + MAX_BATCH])
            self.num_calls += 1

    def _send_tag(self, entry: Entry) -> None:
        self._client.set_tag(self._journal.run_id, entry["key"], entry["value"])

    def _send_file(self, entry: Entry) -> None:
        file = self._below(entry["file"])
        if not file.exists():  # removed since: all else is to be sent nevertheless
            return
        run_id = self._journal.run_id
        self._log_bytes(run_id, file.name, file.read())
        if file.name.endswith(".html"):
            for name in sorted((figures := self._folder / FIGURES).list()):
                self._log_bytes(run_id, name, (figures / name).read(), FIGURES)
        if file.name == TABLE_FILE:
            self._tag_table(run_id)

    _send_page = _send_table = _send_file  # as older versions called some

    def _tag_table(self, run_id: str | None) -> None:
        """So that `MlflowClient.load_table` and the user interface find it; `log_table` would add to an older one."""
        self._client.set_tag(run_id, "mlflow.loggedArtifacts", json.dumps([{"path": TABLE_FILE, "type": "table"}]))

    def _log_bytes(self, run_id: str | None, name: str, data: bytes, below: str | None = None) -> None:
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder) / name
            copy.write_bytes(data)
            self._client.log_artifact(run_id, str(copy), below)

    def _send_child(self, entry: Entry) -> None:
        journal, name = self._journal, entry["name"]
        if name in journal.children:
            return
        if "history" in entry:
            history = [Point(*row) for row in entry["history"]]
        else:
            history = read_points(self._below(entry["folder"]), entry["params"].get("policy.name"))
        history = [point if point.time else point._replace(time=entry["time"]) for point in history]
        times = [point.time for point in history] or [entry["time"]]
        experiment_id = self._client.get_run(journal.run_id).info.experiment_id
        # One that was begun when the server went is gone on with.
        query = f"tags.`mlflow.parentRunId` = '{journal.run_id}' AND attributes.run_name = \"{name}\""
        if found := self._client.search_runs([experiment_id], query, max_results=1):
            run_id = found[0].info.run_id
        else:
            tags = {"mlflow.parentRunId": journal.run_id}
            run_id = self._client.create_run(experiment_id, min(times), tags, run_name=name).info.run_id
        self._describe(run_id, entry)
        self._log_metrics(run_id, history)
        if table := threshold_table(history):
            self._log_bytes(run_id, TABLE_FILE, table)
            self._tag_table(run_id)
        self._client.set_terminated(run_id, "FINISHED", end_time=max(times))
        journal.children[name] = run_id
        journal.save()

    def _send_model(self, entry: Entry) -> None:
        """As a logged model of the run, and as a version of a registered one where it has a registry."""
        from mlflow.entities import LoggedModelOutput
        from mlflow.models import Model

        journal = self._journal
        model = self._below(entry["folder"])
        if not model.exists():
            return
        run = self._client.get_run(journal.run_id)
        with tempfile.TemporaryDirectory() as copy:
            copy_files(model.path, copy, source_filesystem=model.filesystem, destination_filesystem=LocalFileSystem())
            described = Model.load(copy)
            if described.model_uuid not in journal.models:
                made = self._client.create_logged_model(run.info.experiment_id, "model", source_run_id=journal.run_id)
                journal.models[described.model_uuid] = made.model_id
                journal.save()
            model_id = journal.models[described.model_uuid]
            described.run_id, described.model_id = journal.run_id, model_id
            described.save(str(Path(copy) / "MLmodel"))
            self._client.log_model_artifacts(model_id, copy)
        logged = self._client.finalize_logged_model(model_id, "READY")
        known = run.outputs.model_outputs if run.outputs else []
        if model_id not in [output.model_id for output in known]:
            self._client.log_outputs(journal.run_id, [LoggedModelOutput(model_id, step=entry["step"])])
        if entry["registry"]:
            self._register(logged, entry["time"], **entry["registry"])

    def _register(self, model: LoggedModel, time: int, name: str, alias: str) -> None:
        with _passing("RESOURCE_ALREADY_EXISTS"):
            self._client.create_registered_model(name)
        # Not models:/ID, which the client looks up at another server than its own.
        place, run_id = model.artifact_location, self._journal.run_id
        found = self._client.search_model_versions(f"name = '{name}' AND run_id = '{run_id}'")
        version = next((version for version in found if version.source == place), None)
        if version is None:
            described = f"models:/{model.model_id}, of run {run_id}"
            version = self._client.create_model_version(
                name, place, run_id, description=described, model_id=model.model_id
            )
        holder = self._client.get_registered_model(name).aliases.get(alias)
        # What is sent late does not take the alias from what was made since.
        if holder is None or self._client.get_model_version(name, holder).creation_timestamp <= time:
            self._client.set_registered_model_alias(name, alias, version.version)
        self._journal.registered = f"models:/{name}/{version.version}"
        self._journal.save()

    def _send_finish(self, entry: Entry) -> None:
        self._client.set_terminated(self._journal.run_id, entry["status"], end_time=entry["time"])
        self._journal.is_open = False


@contextmanager
def _passing(code: str) -> Iterator[None]:
    """Let this answer of MLflow's pass."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        if error.error_code != code:
            raise


def metric_key(key: str) -> str:
    """A key as MLflow takes it: letters, digits, and _ - . : / and space, and no empty or dotted part between slashes.

    A key that had to be changed, or that looks like one that was, ends in a digest of what it was, so that two keys
    stay two.
    """
    parts = [re.sub(r"^\.{0,2}$|[^\w\-. :]", "_", part) for part in key.split("/")]
    readable = "/".join(parts)
    if readable == key and len(key) <= MAX_KEY and not DIGEST_ENDING.search(key):
        return key
    digest = hashlib.blake2b(key.encode(errors="surrogatepass"), digest_size=8).hexdigest()
    return f"{readable[: MAX_KEY - len(digest) - 1]}_{digest}"
