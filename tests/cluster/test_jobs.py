"""Jobs of a cluster with a token, started and submitted as docs/cluster.md and the tutorial say.

On two nodes in `make test-jobs` alone, which takes more than a minute.
"""

from __future__ import annotations

import json
import secrets
import shlex
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow.dataset as ds
import pytest
from mlflow import MlflowClient

from tests.cluster.nodes import PAGE, Cluster
from tests.documents import ROOT, Document
from tests.faults import num_rows, weights
from tests.tutorials import FOLDER, Reader, only_line, with_overrides

pytestmark = [pytest.mark.ray, pytest.mark.slow]
TUTORIAL = Document(FOLDER / "cluster.md", (FOLDER / "cluster.md").read_text())


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    started = Cluster(tmp_path_factory.mktemp("nodes"))
    yield started
    started.end()


def submit(command: list[str], env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    # A head that has just been started answers before its agent does; each attempt takes seconds by itself.
    for _ in range(5):
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=280)
        if "No available agent" not in done.stderr:
            break
    return done


def training(cluster: Cluster, folder: Path, *changes: str) -> list[str]:
    """The command of the tutorial, which takes seconds; the folder, where it works, gets the images."""
    exec(TUTORIAL.blocks[0].text, {})
    words = Reader(environment=cluster.env | {"PWD": str(folder)}).words(only_line(TUTORIAL, "ray job submit"))
    return with_overrides(words, ("train.num_steps=20", "train.baseline=false", "tracking.enabled=false", *changes))


def test_the_command_of_the_tutorial_runs_as_a_job_of_a_cluster_with_tokens(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert only_line(TUTORIAL, "ray start --head") == only_line(PAGE, "ray start --head")
    command = training(cluster, tmp_path, "scale.num_workers=1")
    refused = submit(command, cluster.env | {"RAY_AUTH_TOKEN": secrets.token_hex(32)})
    assert refused.returncode != 0
    assert not (tmp_path / "runs").exists()
    done = submit(command, cluster.env)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "accuracy" in done.stdout
    assert (tmp_path / "runs" / "job" / "step-00000020" / "manifest.json").exists()


@pytest.mark.parametrize("form", ["address", "client"])
def test_both_forms_of_an_address_are_recognized_with_the_token_and_refused_with_another(
    cluster: Cluster, form: str
) -> None:
    address = getattr(cluster, form)
    code = "from dpl_ray.cluster.connect import _check_address as check; from dpl_ray.config.schema import ScaleConfig;"
    command = [sys.executable, "-c", code + f"check({address!r}, ScaleConfig(address={address!r}))"]
    done = subprocess.run(command, cwd=ROOT, env=cluster.env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    wrong = cluster.env | {"RAY_AUTH_TOKEN": secrets.token_hex(32)}
    refused = subprocess.run(command, cwd=ROOT, env=wrong, capture_output=True, text=True, check=False)
    assert refused.returncode == 1
    assert f"scale.address={address}: a Ray cluster answers there, but it refuses the token" in refused.stderr


@pytest.mark.long
def test_jobs_train_on_two_nodes_and_label_and_their_status_is_that_of_the_command(
    cluster: Cluster, mlflow_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.add()
    monkeypatch.chdir(tmp_path)
    one_a_node = ("scale.num_workers=2", "scale.cpus_per_worker=1.5")  # of the 2 CPUs of each
    command = training(cluster, tmp_path, "train.batch_size=16", *one_a_node)
    done = submit(command, cluster.env)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 Ray Train workers" in done.stdout
    assert (tmp_path / "runs" / "job" / "step-00000020" / "manifest.json").exists()

    files = sorted(Path("photos/unlabelled").iterdir())[:64]
    with tarfile.open("pool-0.tar", "w") as pool:
        for file in files:
            pool.add(file, file.name)
    words = shlex.split(only_line(PAGE, "ray job submit --working-dir . -- python -m pipelines.label"))
    places = (f"checkpoint={tmp_path}/runs/job", f"pool={tmp_path}/pool-{{0..0}}.tar", f"output={tmp_path}/labels")
    words = with_overrides(words, (*places, *one_a_node, "rows_per_part=16", "force=true"))
    secret = {"env_vars": {"MLFLOW_TRACKING_URI": mlflow_uri}}
    done = submit([*words[:3], f"--runtime-env-json={json.dumps(secret)}", *words[3:]], cluster.env)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "starts with 2 actors: 64 images in 1 files" in done.stdout
    found = ds.dataset(tmp_path / "labels").to_table()["sample_id"].to_pylist()
    assert sorted(found) == [f"{tmp_path}/pool-0.tar:{file.name}" for file in files]
    (run,) = MlflowClient(mlflow_uri).search_runs(["1"])
    assert run.data.metrics["label/rows"] == 64

    done = submit(with_overrides(command, ("train.num_steps=none",)), cluster.env)
    assert done.returncode == 1, "Ray knows no other one"
    assert "failed with exit code 2" in done.stdout + done.stderr
    assert "train.num_steps=none: " in done.stdout


def wait_for(is_so: Callable[[], bool]) -> None:
    while not is_so():  # until the test's own end of time
        time.sleep(0.2)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_job_goes_on_to_the_same_result_after_it_was_stopped_and_after_its_head_was_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As docs/cluster.md says; no checkpoint is written but at the end and when the job is stopped."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "logs").mkdir()
    env = json.dumps({"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "60"}})

    def command(cluster: Cluster, folder: Path, *options: str) -> list[str]:
        fields = ("train.num_steps=400", "train.log_every=4", "train.checkpoint_every=10000", "scale.num_workers=1")
        words = training(cluster, tmp_path, *fields, f"run.storage_path={folder}/runs", "run.name=first")
        return [*words[:3], f"--runtime-env-json={env}", *options, *words[3:]]

    def has_rows(number: int) -> Callable[[], bool]:
        return lambda: num_rows(tmp_path) >= number

    cluster = Cluster(tmp_path / "logs")
    try:
        done = submit(command(cluster, tmp_path, "--no-wait", "--submission-id=stopped"), cluster.env)
        assert done.returncode == 0, done.stdout + done.stderr
        wait_for(has_rows(10))
        submit(["ray", "job", "stop", "stopped"], cluster.env)
        assert "was stopped" in submit(["ray", "job", "status", "stopped"], cluster.env).stdout
        (saved,) = (tmp_path / "runs" / "first").glob("step-*/manifest.json")
        rows = num_rows(tmp_path)
        assert rows < 100
        submit(command(cluster, tmp_path, "--no-wait"), cluster.env)
        wait_for(has_rows(rows + 5))
    finally:
        cluster.nodes[0].kill()
    assert [*(tmp_path / "runs" / "first").glob("step-*/manifest.json")] == [saved], "it had not ended"
    cluster = Cluster(tmp_path / "logs")
    try:
        for folder in (tmp_path, tmp_path / "whole"):
            done = submit(command(cluster, folder), cluster.env)
            assert done.returncode == 0, done.stdout + done.stderr
    finally:
        cluster.end()
    assert weights(tmp_path) == weights(tmp_path / "whole")
