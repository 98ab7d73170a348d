"""Recording a run in MLflow, off the training path: a thread of the driver sends metrics in batches.

A tracking server that is down, or goes down, costs metrics and one warning, never the run.
"""

from __future__ import annotations

import logging
import os
import queue
import re
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from dpl_ray.storage import Storage

MAX_BATCH = 1000  # metrics that MLflow takes in one call
SECONDS_TO_FINISH = 60.0


@dataclass(frozen=True)
class ChildRun:
    """A finished run below another one."""

    name: str
    params: dict[str, str]
    tags: dict[str, str]
    history: list[tuple[int, dict[str, float]]]  # step, metrics
    on_recorded: Callable[[str], None]  # called with its run id once all of it is there


class Tracker(Protocol):
    """What the driver tells of a run."""

    @property
    def run_id(self) -> str | None: ...

    def log(self, metrics: dict[str, float], step: int) -> None: ...

    def log_file(self, file: Storage) -> None: ...

    def log_tag(self, key: str, value: str) -> None: ...

    def log_child(self, child: ChildRun) -> None: ...

    def finish(self, status: str) -> None: ...


class NullTracker:
    """Records nothing, so that nobody has to ask whether there is a tracker."""

    run_id = None

    def log(self, metrics: dict[str, float], step: int) -> None:
        pass

    def log_file(self, file: Storage) -> None:
        pass

    def log_tag(self, key: str, value: str) -> None:
        pass

    def log_child(self, child: ChildRun) -> None:
        pass

    def finish(self, status: str) -> None:
        pass


class MlflowTracker:
    """One MLflow run. Every call returns at once; a thread of its own does the work."""

    def __init__(
        self,
        *,
        uri: str,
        experiment: str,
        artifact_location: str | None,
        run_name: str,
        params: dict[str, str],
        tags: dict[str, str],
        files: list[Storage],
        run_id: str | None = None,
        on_start: Callable[[str], None] = lambda _: None,
    ) -> None:
        """
        Args:
            artifact_location: where a new experiment keeps its files; None leaves that to the server.
            files: kept with the run from its start.
            run_id: of a run to go on with; None starts one.
            on_start: called with the run id once it is known.
        """
        self.run_id = run_id
        self._uri, self._experiment, self._artifact_location = uri, experiment, artifact_location
        self._run_name, self._params, self._tags, self._on_start = run_name, params, tags, on_start
        self._jobs: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        self._failure: str | None = None
        self._num_lost = 0
        for file in files:
            self.log_file(file)
        self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)
        self._thread.start()

    def log(self, metrics: dict[str, float], step: int) -> None:
        self._jobs.put(("metrics", (metrics, step, int(time.time() * 1000))))

    def log_file(self, file: Storage) -> None:
        self._jobs.put(("file", file))

    def log_tag(self, key: str, value: str) -> None:
        self._jobs.put(("tag", (key, value)))

    def log_child(self, child: ChildRun) -> None:
        self._jobs.put(("child", child))

    def finish(self, status: str) -> None:
        """Send what is left and end the run as FINISHED or FAILED; gives up after a minute."""
        self._jobs.put(("finish", status))
        self._thread.join(SECONDS_TO_FINISH)
        if self._thread.is_alive():
            self._failure = self._failure or f"no answer within {SECONDS_TO_FINISH:.0f} s"
        if self._failure:
            warnings.warn(
                f"MLflow at {self._uri}: {self._failure}; {self._num_lost} metrics were not recorded there. "
                "The run itself is whole: history.jsonl in its folder has them all",
                stacklevel=2,
            )

    def _work(self) -> None:
        try:
            self._client = self._connect()
        except Exception as error:  # whatever a client, a server or a driver raises: the run must go on
            self._failure = _first_line(error)
        while True:
            jobs = [self._jobs.get()]
            while not self._jobs.empty():
                jobs.append(self._jobs.get())
            self._do(jobs)
            if any(kind == "finish" for kind, _ in jobs):
                return

    def _do(self, jobs: list[tuple[str, Any]]) -> None:
        from mlflow.entities import Metric

        metrics = [
            Metric(metric_key(key), value, timestamp, step)
            for kind, payload in jobs
            if kind == "metrics"
            for values, step, timestamp in [payload]
            for key, value in values.items()
        ]
        children = [payload for kind, payload in jobs if kind == "child"]
        try:
            if self._failure:
                raise ConnectionError(self._failure)
            self._log_metrics(self.run_id, metrics)
            for child in children:
                self._log_child(child)
            for kind, payload in jobs:
                if kind == "file":
                    self._log_file(payload)
                elif kind == "tag":
                    self._client.set_tag(self.run_id, *payload)
                elif kind == "finish":
                    self._client.set_terminated(self.run_id, payload)
        except Exception as error:
            self._failure = _first_line(error)
            self._num_lost += len(metrics) + sum(len(values) for child in children for _, values in child.history)

    def _log_metrics(self, run_id: str | None, metrics: list[Any]) -> None:
        for start in range(0, len(metrics), MAX_BATCH):
            self._client.log_batch(run_id, metrics=metrics[start : start + MAX_BATCH])

    def _log_child(self, child: ChildRun) -> None:
        from mlflow.entities import Metric, Param, RunTag

        experiment_id = self._client.get_run(self.run_id).info.experiment_id
        tags = {"mlflow.parentRunId": self.run_id}
        run_id = self._client.create_run(experiment_id, run_name=child.name, tags=tags).info.run_id
        params = [Param(key, value[:6000]) for key, value in child.params.items()]
        self._client.log_batch(run_id, params=params, tags=[RunTag(key, value) for key, value in child.tags.items()])
        now = int(time.time() * 1000)
        metrics = [
            Metric(metric_key(key), value, now, step) for step, values in child.history for key, value in values.items()
        ]
        self._log_metrics(run_id, metrics)
        self._client.set_terminated(run_id, "FINISHED")
        child.on_recorded(run_id)

    def _log_file(self, file: Storage) -> None:
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder) / file.name
            copy.write_bytes(file.read())
            self._client.log_artifact(self.run_id, str(copy))

    def _connect(self) -> Any:
        # Ten attempts over minutes are MLflow's default, and a line of migrations on stderr is Alembic's.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
        import mlflow
        from mlflow.entities import Param, RunTag

        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.ERROR)
        client = mlflow.MlflowClient(tracking_uri=self._uri)
        if self.run_id is None:
            found = client.get_experiment_by_name(self._experiment)
            experiment_id = (
                found.experiment_id
                if found
                else client.create_experiment(self._experiment, artifact_location=self._artifact_location)
            )
            self.run_id = client.create_run(experiment_id, run_name=self._run_name).info.run_id
            params = [Param(key, value[:6000]) for key, value in self._params.items()]
            tags = [RunTag(key, value) for key, value in self._tags.items()]
            client.log_batch(self.run_id, params=params, tags=tags)
        else:
            client.set_terminated(self.run_id, "RUNNING")
        self._on_start(self.run_id)
        return client


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


def metric_key(key: str) -> str:
    """A key as MLflow takes it: letters, digits, and _ - . : / and space."""
    return re.sub(r"[^\w\-. :/]", "_", key)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"[:300]
