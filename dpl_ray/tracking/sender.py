"""Sends entries to MLflow. What is sent a second time, because nobody knows whether it arrived, is there once.

An entry is a dict of JSON values with a `kind`:

start    time, uri, experiment, artifact_location, run_name, params, tags
metrics  values (key -> value), step, time (ms)
tag      key, value
file     file, relative to the run's folder
page     file: an HTML page; its drawings are artifacts besides, in figures/
table    file: MLflow's table format, which its user interface shows as one
child    name, params, tags, history (of [step, values, time]), time
model    time, folder, step, registry (null, or name and alias)
finish   status, time

An entry that MLflow refuses for what is in it would be refused again: it is set aside, and those behind it are sent.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import tempfile
from collections.abc import Callable
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING

from dpl_ray.page.html import FIGURES
from dpl_ray.store.history import TABLE_FILE, Point, threshold_table
from dpl_ray.store.storage import Storage
from dpl_ray.tracking.journal import Entry, Journal

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel, Run

MAX_BATCH = 1000  # metrics that MLflow takes in one call
MAX_PARAM = 6000  # characters of a value
MAX_KEY = 250  # characters of a metric's name
DIGEST_ENDING = re.compile(r"_[0-9a-f]{16}$")
_ADDRESS = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?P<rest>\S*)")
_SECRET_OPTION = re.compile(r"([?&][^=&#]*(?:pass|pwd|token|secret)[^=&#]*=)[^&#]*", re.IGNORECASE)
REFUSED = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST", "INVALID_STATE")  # what MLflow answers to what is in an entry


class Sender:
    """A client of one server, for one run."""

    def __init__(self, uri: str, journal: Journal) -> None:
        self._client = make_client(uri)
        self._uri, self._journal, self._folder = uri, journal, journal.folder
        self.num_calls = 0  # that were answered: whether there is progress

    def send(self, entries: list[Entry]) -> None:
        """Send entries in order, taking each off the list once it is there, so that the list is what is left.

        Raises whatever MLflow's client, a server or a database driver does.
        """
        from mlflow.exceptions import MlflowException

        while entries:
            metrics = list(takewhile(lambda entry: entry["kind"] == "metrics", entries))
            taken = metrics or entries[:1]
            try:
                if metrics:
                    self._log_metrics(self._journal.run_id, metrics)
                    self._journal.told_until = max(self._journal.told_until, *(entry["time"] for entry in metrics))
                    self._journal.save()
                else:
                    send: Callable[[Entry], object] = getattr(self, "_send_" + entries[0]["kind"])
                    send(entries[0])
            except MlflowException as error:
                if error.error_code not in REFUSED or taken[0]["kind"] == "start":
                    raise
                self._journal.refuse(taken, shown_uri(str(error)))
            del entries[: len(taken)]
            self.num_calls += 1

    def _send_start(self, entry: Entry) -> None:
        """Go on with the run that is known, or create one."""
        from mlflow.entities import Param, RunTag

        journal = self._journal
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
        params = [Param(key, value[:MAX_PARAM]) for key, value in entry["params"].items()]
        tags = [RunTag(key, value) for key, value in entry["tags"].items()]
        self._client.log_batch(journal.run_id, params=params, tags=tags)

    def _experiment(self, name: str, artifact_location: str | None) -> str:
        from mlflow.exceptions import MlflowException

        if (found := self._client.get_experiment_by_name(name)) is None:
            try:
                return str(self._client.create_experiment(name, artifact_location=artifact_location))
            except MlflowException as error:
                # Another run has made it at the same time.
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
                found = self._client.get_experiment_by_name(name)
        assert found is not None
        return str(found.experiment_id)

    def _find(self, run_id: str | None) -> Run | None:
        """The run, unless it was deleted."""
        from mlflow.exceptions import MlflowException

        if run_id is None:
            return None
        try:
            run = self._client.get_run(run_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None
        return None if run.info.lifecycle_stage == "deleted" else run

    def _log_metrics(self, run_id: str | None, entries: list[Entry]) -> None:
        from mlflow.entities import Metric

        metrics = [
            Metric(metric_key(key), value, entry["time"], entry["step"])
            for entry in entries
            for key, value in entry["values"].items()
        ]
        for start in range(0, len(metrics), MAX_BATCH):
            self._client.log_batch(run_id, metrics=metrics[start : start + MAX_BATCH])
            self.num_calls += 1

    def _send_tag(self, entry: Entry) -> None:
        self._client.set_tag(self._journal.run_id, entry["key"], entry["value"])

    def _send_file(self, entry: Entry) -> bytes:
        file = self._folder / entry["file"]
        if not file.exists():  # removed since: all else is to be sent nevertheless
            return b""
        data = file.read()
        self._log_bytes(self._journal.run_id, file.name, data)
        return data

    def _send_page(self, entry: Entry) -> None:
        self._send_file(entry)
        figures = self._folder / FIGURES
        for name in sorted(figures.list()):
            self._log_bytes(self._journal.run_id, name, (figures / name).read(), FIGURES)

    def _send_table(self, entry: Entry) -> None:
        if self._send_file(entry):
            self._tag_table(self._journal.run_id, entry["file"])

    def _tag_table(self, run_id: str | None, name: str) -> None:
        """So that `MlflowClient.load_table` and the user interface find it; `log_table` would add to an older one."""
        self._client.set_tag(run_id, "mlflow.loggedArtifacts", json.dumps([{"path": name, "type": "table"}]))

    def _log_bytes(self, run_id: str | None, name: str, data: bytes, below: str | None = None) -> None:
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder) / name
            copy.write_bytes(data)
            self._client.log_artifact(run_id, str(copy), below)

    def _send_child(self, entry: Entry) -> None:
        from mlflow.entities import Param, RunTag

        journal, name = self._journal, entry["name"]
        history = [Point(step, values, told or entry["time"]) for step, values, told in entry["history"]]
        times = [point.time for point in history] or [entry["time"]]
        if name in journal.children:
            return
        experiment_id = self._client.get_run(journal.run_id).info.experiment_id
        # One that was begun when the server went is gone on with.
        query = f"tags.`mlflow.parentRunId` = '{journal.run_id}' AND attributes.run_name = \"{name}\""
        if found := self._client.search_runs([experiment_id], query, max_results=1):
            run_id = found[0].info.run_id
        else:
            tags = {"mlflow.parentRunId": journal.run_id}
            run_id = self._client.create_run(experiment_id, min(times), tags, run_name=name).info.run_id
        params = [Param(key, value[:MAX_PARAM]) for key, value in entry["params"].items()]
        self._client.log_batch(run_id, params=params, tags=[RunTag(key, value) for key, value in entry["tags"].items()])
        self._log_metrics(run_id, [{"values": point.metrics} | point._asdict() for point in history])
        if table := threshold_table(history):
            self._log_bytes(run_id, TABLE_FILE, table)
            self._tag_table(run_id, TABLE_FILE)
        self._client.set_terminated(run_id, "FINISHED", end_time=max(times))
        journal.children[name] = run_id
        journal.save()

    def _send_model(self, entry: Entry) -> None:
        """As a logged model of the run, and as a version of a registered one where it has a registry."""
        from mlflow.entities import LoggedModelOutput
        from mlflow.models import Model

        journal = self._journal
        if not (self._folder / entry["folder"]).exists():
            return
        run = self._client.get_run(journal.run_id)
        with tempfile.TemporaryDirectory() as copy:
            _download(self._folder / entry["folder"], Path(copy))
            described = Model.load(copy)
            if described.model_uuid not in journal.models:
                made = self._client.create_logged_model(run.info.experiment_id, "model", source_run_id=journal.run_id)
                journal.models[described.model_uuid] = made.model_id
                journal.save()
            model_id = journal.models[described.model_uuid]
            described.run_id, described.model_id = journal.run_id, model_id
            described.save(str(Path(copy) / "MLmodel"))
            self._client.log_model_artifacts(model_id, copy)
        model = self._client.finalize_logged_model(model_id, "READY")
        known = run.outputs.model_outputs if run.outputs else []
        if model_id not in [output.model_id for output in known]:
            self._client.log_outputs(journal.run_id, [LoggedModelOutput(model_id, step=entry["step"])])
        if entry["registry"]:
            self._register(model, entry["time"], **entry["registry"])

    def _register(self, model: LoggedModel, time: int, name: str, alias: str) -> None:
        from mlflow.exceptions import MlflowException

        try:
            self._client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
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


def make_client(uri: str) -> MlflowClient:
    """A client that is quiet and does not wait long.

    A SQLite file that is not there is made aside and put into place whole: two runs that begin together, or one that is
    killed, would leave it half migrated for good.
    """
    # Ten attempts over minutes are MLflow's default, and a line of migrations on stderr is Alembic's.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    from mlflow import MlflowClient

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)
    path = Path(uri.removeprefix("sqlite:///"))
    if uri.startswith("sqlite:///") and not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".mlflow-", dir=path.parent) as aside:
            MlflowClient(f"sqlite:///{aside}/mlflow.db").search_experiments()
            try:
                os.link(f"{aside}/mlflow.db", path)
            except OSError:  # another run was faster, or the file system has no links
                if not path.exists():
                    (Path(aside) / "mlflow.db").replace(path)
    return MlflowClient(tracking_uri=uri)


def shown_uri(text: str) -> str:
    """An address, or a text with addresses in it, without passwords and tokens, for what is written and shown."""
    return _ADDRESS.sub(_without_secrets, text)


def _without_secrets(address: re.Match[str]) -> str:
    scheme, rest = address["scheme"], address["rest"]
    # A password in the address of a database may have a slash in it.
    inside = r"[^/?#]" if scheme in ("http", "https") else "."
    rest = re.sub(rf"^([^@:/?#]*):{inside}*@", r"\1@", rest)
    return f"{scheme}://" + _SECRET_OPTION.sub(r"\1", rest)


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


def _download(folder: Storage, copy: Path) -> None:
    """A folder of files and of folders of files."""
    for name in folder.list():
        if inside := (folder / name).list():
            (copy / name).mkdir()
            for file in inside:
                (copy / name / file).write_bytes((folder / name / file).read())
        else:
            (copy / name).write_bytes((folder / name).read())
