"""Runs that record themselves on a live MLflow server, as a team shares one; and one whose server dies."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dpl_ray import FitResult, fit, load_checkpoint, load_config
from dpl_ray.commands import cli, sync_tracking
from dpl_ray.runs.history_writer import HistoryWriter
from dpl_ray.store.storage import Storage
from dpl_ray.tracking.journal import Journal
from dpl_ray.training.records import Record

NUM_STEPS, LOG_EVERY = 6, 2
STEPS = list(range(LOG_EVERY, NUM_STEPS + 1, LOG_EVERY))
KEYS = ["train/loss_labeled", "train/loss_unlabeled", "pseudo/coverage"]
KEYS += [f"threshold/{state}/{name}" for state in ("over", "under") for name in range(10)]


class Server:
    """`mlflow server`, with SQLite and its artifacts in a folder; always at the same address."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        self.address, self._folder = f"http://127.0.0.1:{self._port}", folder
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--host=127.0.0.1", f"--port={self._port}", "--workers=1"]
        command += [f"--backend-store-uri=sqlite:///{self._folder}/mlflow.db"]
        command += [f"--artifacts-destination={self._folder}/artifacts"]
        log = self._folder / "server.log"
        with log.open("w") as output:
            self._process = subprocess.Popen(
                command,
                cwd=self._folder,
                env=os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        while not is_healthy(self.address):
            # Asked five times a second, until it answers or has ended; pytest's own timeout bounds the rest.
            try:
                pytest.fail(f"the server ended with {self._process.wait(0.2)}:\n{log.read_text()}")
            except subprocess.TimeoutExpired:
                continue

    def kill(self) -> None:
        """With the workers, which are processes of their own."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


def is_healthy(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"{address}/health", timeout=5) as answer:
            return answer.status == 200
    except (urllib.error.URLError, http.client.HTTPException, OSError):
        return False


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, mlflow_template: Path) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    (folder / "mlflow.db").write_bytes(mlflow_template.read_bytes())
    running = Server(folder)
    yield running
    running.kill()


def train(server: Server, folder: Path, *more: str) -> FitResult:
    overrides = [f"train.num_steps={NUM_STEPS}", f"train.log_every={LOG_EVERY}", "train.baseline=false"]
    overrides += ["model.width=1", "train.batch_size=4", "scale.num_workers=0", f"tracking.uri={server.address}"]
    return fit(load_config([*overrides, f"run.storage_path={folder}/runs", "run.name=tiny", *more]))


@pytest.mark.slow
def test_a_live_server_has_everything(server: Server, tmp_path: Path) -> None:
    """What workers measure comes to this process, which alone sends it; cluster/test_ray.py has two of them."""
    import mlflow

    result = train(server, tmp_path, "registry.name=digits", "tracking.experiment=whole")
    assert result.tracking_uri == server.address
    client = mlflow.MlflowClient(tracking_uri=server.address)
    run = client.get_run(result.run_id)
    assert (run.info.status, run.info.run_name) == ("FINISHED", "tiny")
    assert run.data.params["train.num_steps"] == str(NUM_STEPS)
    assert {"commit", "hardware", "version.torch", "data.fingerprint"} <= set(run.data.tags)
    assert run.data.tags["checkpoint"] == result.checkpoint
    for key in KEYS:
        assert [point.step for point in client.get_metric_history(result.run_id, key)] == STEPS, key
    for key in ("eval/accuracy", "train/loss_labeled", "pseudo/coverage"):
        assert run.data.metrics[key] == pytest.approx(result.metrics[key])
    # Fetched through the server, as those see them who have not got the run's folder.
    for name in ("report.html", "config.yaml", "thresholds.json"):
        fetched = Path(client.download_artifacts(result.run_id, name, str(tmp_path)))
        assert fetched.read_bytes() == (tmp_path / "runs" / "tiny" / name).read_bytes()
    mlflow.set_tracking_uri(server.address)
    try:
        model = mlflow.pyfunc.load_model("models:/digits@candidate")
    finally:
        mlflow.set_tracking_uri("")
    assert (model.metadata.run_id, result.registered) == (result.run_id, "models:/digits/1")
    images = np.arange(3 * 64, dtype=np.uint8).reshape(3, 1, 8, 8)
    found = load_checkpoint(result.checkpoint).predict(images)
    answers = model.predict(images)
    assert [answer["label"] for answer in answers] == found.names
    assert [answer["confidence"] for answer in answers] == pytest.approx(found.confidences, abs=1e-5)


@pytest.mark.slow
def test_a_server_that_dies_in_the_middle_costs_one_warning_and_is_told_later(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from mlflow import MlflowClient

    client, add = MlflowClient(tracking_uri=server.address), HistoryWriter.add
    experiment = client.create_experiment("dying")

    def killing(self: HistoryWriter, record: Record) -> dict[str, Any]:
        row = add(self, record)
        if "train/loss_labeled" in record.metrics and record.step == STEPS[1]:
            # It has begun: the first metrics are there.
            while not any("train/loss_labeled" in run.data.metrics for run in client.search_runs([experiment])):
                pass
            server.kill()
        return row

    monkeypatch.setattr(HistoryWriter, "add", killing)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", UserWarning)
        result = train(server, tmp_path, "tracking.experiment=dying", "registry.name=later")
    messages = [str(warning.message) for warning in told if "MLflow" in str(warning.message)]
    assert len(messages) == 1
    assert f"sync-tracking run={tmp_path}/runs/tiny" in messages[0]
    assert Journal(Storage(f"{tmp_path}/runs/tiny")).has_unsent
    server.start()
    assert client.get_run(str(result.run_id)).info.status == "RUNNING"
    arguments = [f"run={tmp_path}/runs/tiny"]
    assert cli.run(sync_tracking.COMMAND, arguments) == 0
    assert f"entries sent to run {result.run_id}" in capsys.readouterr().out
    run = client.get_run(str(result.run_id))
    assert run.info.status == "FINISHED"
    for key in KEYS:
        assert [point.step for point in client.get_metric_history(str(result.run_id), key)] == STEPS, key
    assert run.data.metrics["eval/accuracy"] == pytest.approx(result.metrics["eval/accuracy"])
    fetched = Path(client.download_artifacts(str(result.run_id), "report.html", str(tmp_path)))
    assert fetched.read_bytes() == Path(result.report).read_bytes()
    assert str(client.get_model_version_by_alias("later", "candidate").run_id) == result.run_id
    assert not Journal(Storage(f"{tmp_path}/runs/tiny")).has_unsent
