"""A run that records itself on a live MLflow server, as a team shares one."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from dpl_ray import fit, load_config
from dpl_ray.provenance import describe_config

NUM_STEPS, LOG_EVERY = 6, 2


@pytest.fixture
def server(tmp_path: Path, mlflow_store: None) -> Iterator[str]:
    """The address of `mlflow server`, with SQLite and its artifacts below tmp_path."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--host=127.0.0.1", f"--port={port}", "--workers=1"]
    command += [f"--backend-store-uri=sqlite:///{tmp_path}/mlflow.db", f"--artifacts-destination={tmp_path}/artifacts"]
    log = tmp_path / "server.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            command,
            cwd=tmp_path,
            env=os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    address = f"http://127.0.0.1:{port}"
    try:
        while not is_healthy(address):
            # Asked five times a second, until it answers or has ended; pytest's own timeout bounds the rest.
            try:
                pytest.fail(f"the server ended with {process.wait(0.2)}:\n{log.read_text()}")
            except subprocess.TimeoutExpired:
                continue
        yield address
    finally:
        os.killpg(process.pid, signal.SIGTERM)  # the server's worker is a process of its own
        process.wait()


def is_healthy(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"{address}/health", timeout=5) as answer:
            return answer.status == 200
    except (urllib.error.URLError, http.client.HTTPException, OSError):
        return False


@pytest.mark.slow
def test_a_live_server_has_parameters_metrics_files_and_the_checkpoint(server: str, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    overrides = [f"train.num_steps={NUM_STEPS}", f"train.log_every={LOG_EVERY}", "train.baseline=false"]
    overrides += ["scale.num_workers=0", "model.width=1", "train.batch_size=4", f"tracking.uri={server}"]
    overrides += [f"run.storage_path={tmp_path}/runs", "run.name=tiny"]
    config = load_config(overrides)
    result = fit(config)
    assert result.tracking_uri == server
    client = MlflowClient(tracking_uri=server)
    run = client.get_run(result.run_id)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "tiny"
    assert run.data.params == describe_config(config)
    assert run.data.params["train.num_steps"] == str(NUM_STEPS)
    assert run.data.tags["checkpoint"] == result.checkpoint
    assert (Path(result.checkpoint) / "manifest.json").exists()
    steps = list(range(LOG_EVERY, NUM_STEPS + 1, LOG_EVERY))
    thresholds = [f"threshold/{state}/{name}" for state in ("over", "under") for name in range(10)]
    for key in ("train/loss_labeled", "train/loss_unlabeled", "pseudo/coverage", *thresholds):
        assert [point.step for point in client.get_metric_history(result.run_id, key)] == steps, key
    for key in ("eval/accuracy", "train/loss_labeled", "pseudo/coverage"):
        assert run.data.metrics[key] == pytest.approx(result.metrics[key])
    # Fetched through the server, as those see them who have not got the run's folder.
    for name in ("report.html", "config.yaml"):
        fetched = Path(client.download_artifacts(result.run_id, name, str(tmp_path)))
        assert fetched.read_bytes() == (tmp_path / "runs" / "tiny" / name).read_bytes()
