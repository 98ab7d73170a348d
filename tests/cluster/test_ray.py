"""Training through Ray Train with 2 workers: the demo, a killed worker, and Ctrl-C."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import zipfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file

from dpl_ray import FitResult, fit, load_checkpoint, load_config
from dpl_ray.cluster import local
from dpl_ray.cluster.connect import check_cluster, checked_resources
from dpl_ray.config.schema import BESIDE_RUNS, ScaleConfig
from dpl_ray.page.console import Progress
from dpl_ray.store.history import read_history
from dpl_ray.store.storage import Storage
from dpl_ray.training.interruption import Interrupted
from tests.tutorials import with_overrides

pytestmark = pytest.mark.ray
ROOT = Path(__file__).resolve().parents[2]
NUM_STEPS = 200
#: What conftest.py sets for the other tests. A user has not set it: what it would silence must be silent by itself.
SET_BY_TESTS = (
    "OMP_NUM_THREADS",
    "MLFLOW_DISABLE_TELEMETRY",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR",
    "MLFLOW_HTTP_REQUEST_BACKOFF_JITTER",
    "RAY_USAGE_STATS_ENABLED",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER",
)
ALLOWED = (
    r"demo starts with 2 Ray Train workers: digits, 40 labelled images of 10 classes, 1398 in the pool, .* 359 test",
    r"starting Ray takes some 10 seconds",
    rf"(supervised|dpl) +\d+/{NUM_STEPS} steps  (\d:\d\d:\d\d|-:--:--) left(  [\d,]+ images/s)?"
    r"(  test \d+\.\d %)?(  loss \d+\.\d{3}(  coverage \d\.\d\d  precision \d\.\d\d)?)?",
    r"Last teacher on the test split",
    r"Thresholds of every class \(confidence\)",
    r"[┏┡└][━┳╇┩┓─┴┘]+",
    r"┃ +┃ +dpl ┃ supervised ┃",
    r"┃ class ┃ over-confident ┃ under-confident ┃",
    r"│ [a-z (),ECE-]+ │ +\d+\.\d % │( +\d+\.\d %)? +│",
    r"│ \d +│ +\d\.\d{3} │ +\d\.\d{3} │",
    r"(The pool (helped|hurt)|It cannot be told whether the pool helped or hurt): \d+\.\d % against \d+\.\d % "
    r"supervised, difference [+-]\d+\.\d points \[95 %: [+-]\d+\.\d, [+-]\d+\.\d\], 359 test images",
    rf"(Loss still falling|Too short): .+; train longer, as train\.num_steps={2 * NUM_STEPS}.*",
    r"checkpoint  /.+",
    r"model       /.+",
    r"MLflow run  [0-9a-f]{32}",
    r"report      /.+",
    r"look at it: mlflow ui --backend-store-uri sqlite:////.+",
)


def arguments(folder: Path, *overrides: str) -> list[str]:
    fixed = [f"train.num_steps={NUM_STEPS}", "train.log_every=10", "train.checkpoint_every=50", "model.width=1"]
    return [*fixed, "train.batch_size=4", "scale=local", f"run.storage_path={folder}", "run.name=demo", *overrides]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[subprocess.CompletedProcess[str], Path]:
    """What `make demo` prints, with a smaller network, as a user starts it; and the folder of its runs."""
    folder = tmp_path_factory.mktemp("demo") / "runs"
    environment = {name: value for name, value in os.environ.items() if name not in SET_BY_TESTS} | {"COLUMNS": "120"}
    command = [sys.executable, "-m", "pipelines.train", *arguments(folder)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done, folder


@pytest.fixture(scope="module")
def whole(demo: tuple[subprocess.CompletedProcess[str], Path]) -> FitResult:
    """The demo's result: a run of 2 workers that nothing has disturbed. Told again, not trained again."""
    return fit(load_config(arguments(demo[1])))


@pytest.mark.slow
def test_the_demo_prints_its_own_lines_and_no_other(demo: tuple[subprocess.CompletedProcess[str], Path]) -> None:
    done, folder = demo
    assert done.stderr == ""
    lines = [line.rstrip() for line in done.stdout.splitlines()]
    assert [line for line in lines if not any(re.fullmatch(pattern, line) for pattern in ALLOWED)] == []
    assert [pattern for pattern in ALLOWED if not any(re.fullmatch(pattern, line) for line in lines)] == []
    values = dict(re.split(r"  +|: ", line, maxsplit=1) for line in lines[-5:])
    assert (Path(values["checkpoint"]) / "manifest.json").exists()
    assert Path(values["report"]).read_text().startswith("<!doctype html>")
    assert (Path(values["model"]) / "MLmodel").exists()
    database = values["look at it"].partition("sqlite:///")[2]
    assert Path(database).is_file()
    assert (folder / "mlflow-artifacts" / values["MLflow run"]).is_dir()
    assert {path.name for path in folder.iterdir()} == {"demo", *BESIDE_RUNS}


def test_two_workers_learn_digits(whole: FitResult) -> None:
    assert whole.baseline is not None
    assert whole.metrics["eval/accuracy"] > 0.5, "chance is 0.1"
    assert 0 < whole.metrics["pseudo/coverage"] <= 1
    assert set(whole.thresholds) == {"over", "under"}
    for name in map(str, range(10)):
        assert 0 < whole.thresholds["under"][name] <= whole.thresholds["over"][name] <= 1
    assert Path(whole.report).read_text().startswith("<!doctype html>")
    found = load_checkpoint(whole.checkpoint).predict(torch.zeros(2, 1, 8, 8, dtype=torch.uint8))
    assert found.probabilities.sum(axis=1).tolist() == pytest.approx([1, 1])


def test_mlflow_has_configuration_metrics_thresholds_and_files(whole: FitResult) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=whole.tracking_uri)
    run = client.get_run(whole.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["train.num_steps"] == str(NUM_STEPS)
    assert run.data.params["policy.name"] == "dpl"
    assert run.data.tags["checkpoint"] == whole.checkpoint
    assert {"commit", "hardware", "version.torch", "data.fingerprint"} <= set(run.data.tags)
    keys = {"train/loss_labeled", "train/loss_unlabeled", "pseudo/coverage", "pseudo/precision", "eval/accuracy"}
    keys |= {"eval/balanced_accuracy", "eval/ece", "time/data_wait", "time/step", "throughput/images_per_second"}
    keys |= {"pseudo/high_entropy_share", "baseline/eval/accuracy", "baseline/train/loss_labeled"}
    assert keys <= set(run.data.metrics)
    for state in ("over", "under"):
        for name in range(10):
            history = client.get_metric_history(whole.run_id, f"threshold/{state}/{name}")
            assert sorted(point.step for point in history) == list(range(10, NUM_STEPS + 1, 10))
    assert {file.path for file in client.list_artifacts(whole.run_id)} >= {"report.html", "config.yaml"}
    assert run.data.tags["report"] == whole.report
    assert run.data.tags["mlflow.note.content"].startswith(str(whole.verdict))


def test_after_a_killed_worker_killed_news_and_an_interruption_the_run_ends_with_the_same_weights(
    whole: FitResult, ray_cluster: None, ctrl_c: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray
    from ray.util.state import list_actors

    shown, processes, killed = Progress.update, dict[str, int](), list[int]()
    steps, interrupted = list[int](), list[int]()

    def show(self: Progress, done: int, *args: Any, **options: Any) -> None:
        shown(self, done, *args, **options)
        steps.append(done)
        if not processes:
            address = ray.get_runtime_context().gcs_address  # of this cluster, should there be others
            alive = list_actors(address, filters=[("state", "=", "ALIVE")], detail=True)
            processes.update({actor.class_name: actor.pid for actor in alive})
        if done >= 60 and not killed:
            killed.extend(pid for name, pid in processes.items() if name in ("RayTrainWorker", "Mailbox"))
            for pid in killed:
                os.kill(pid, signal.SIGKILL)
        # Once it goes on after the step in which a worker was killed.
        if done >= 120 and not interrupted:
            interrupted.append(done)
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Progress, "update", show)
    overrides = ("train.baseline=false", "tracking.enabled=false")
    with pytest.raises(Interrupted, match=rf"^step \d+ of {NUM_STEPS} of dpl is saved$") as said:
        fit(load_config(arguments(tmp_path, *overrides)))
    assert len(killed) == 2
    stopped = int(str(said.value).split()[1])
    assert [path.name for path in sorted((tmp_path / "demo").glob("step-*"))][-1] == f"step-{stopped:08d}"
    result = fit(load_config(arguments(tmp_path, *overrides)))
    rows = read_history(Storage(str(tmp_path / "demo")))
    recorded = {row["step"] for row in rows if "train/loss_labeled" in row["metrics"]}
    assert recorded == set(range(10, NUM_STEPS + 1, 10)), "no row was lost with what brings the news"
    assert any(later < earlier for earlier, later in pairwise(steps)), "some steps are told twice"
    for name in ("student", "teacher", "policy"):
        mine = load_file(Path(result.checkpoint) / f"{name}.safetensors")
        expected = load_file(Path(whole.checkpoint) / f"{name}.safetensors")
        assert [key for key in expected if not torch.equal(mine[key], expected[key])] == []
    assert result.metrics["eval/accuracy"] == whole.metrics["eval/accuracy"]


@pytest.mark.slow
def test_a_signal_ends_with_one_line_and_its_status(tmp_path: Path) -> None:
    """As a user starts it, with a cluster of its own; Ctrl-C is tested above and in jobs/test_fit.py."""
    small = ("train.num_steps=100000", "train.baseline=false", "tracking.enabled=false", "scale.num_workers=1")
    command = [sys.executable, "-m", "pipelines.train", *with_overrides(arguments(tmp_path), small)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    history = tmp_path / "demo" / "history.jsonl"
    for _ in process.stdout:  # progress, which goes on until there is a record
        if history.exists():
            break
    process.send_signal(signal.SIGTERM)
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 143, output + errors
    saved = sorted((tmp_path / "demo").glob("step-*"))[-1]
    step = int(saved.name.removeprefix("step-"))
    again = shlex.join(["python", *command[1:]])
    assert errors == f"interrupted: step {step:,} of 100,000 of dpl is saved; go on with: {again}\n"
    assert history.read_bytes()


@pytest.mark.slow
def test_all_that_a_command_has_started_ends_soon_after_its_sigkill() -> None:
    """Ray's own agents would try for a minute to reach its control service, which is gone."""
    code = "import sys; from dpl_ray.cluster import local; local.start(include_dashboard=False)"
    code += "; print(); sys.stdin.read()"
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    started = psutil.Process(process.pid).children(recursive=True)
    assert len(started) > 5
    run = " ".join(word for each in started for word in each.cmdline())
    assert "raylet" in run
    assert not [name for name in ("dashboard.py", "monitor.py") if name in run], "nobody asks them"
    assert local.MINIMAL_AGENT in run
    process.kill()
    process.communicate()
    assert psutil.wait_procs(started, timeout=50)[1] == []


def test_the_agent_of_a_node_does_nothing_for_a_dashboard(tmp_path: Path) -> None:
    script = tmp_path / "agent.py"
    script.write_text(
        "import sys; from ray.dashboard.utils import DashboardAgentModule, get_all_modules\n"
        "print(__name__, sys.argv, get_all_modules(DashboardAgentModule), sys.path)"
    )
    said = subprocess.check_output([sys.executable, local.MINIMAL_AGENT, script, "--head"], text=True)
    assert said.startswith(f"__main__ {[str(script), '--head']} [] ")
    assert str(tmp_path) in said.partition("] [] ")[2]
    assert str(Path(local.MINIMAL_AGENT).parent) not in said


def test_more_workers_than_the_cluster_carries_are_refused(ray_cluster: None) -> None:
    with pytest.raises(ValueError, match=r"scale\.num_workers=9 .* needs 9 CPUs, the cluster has 4; at most 4"):
        check_cluster(ScaleConfig(num_workers=9, cpus_per_worker=1))


def test_the_address_of_a_cluster_is_recognized_and_its_other_form_is_not(ray_cluster: None) -> None:
    import ray

    address = ray.get_runtime_context().gcs_address
    with checked_resources(ScaleConfig(address=address)):
        assert ray.is_initialized()
    assert ray.is_initialized(), "the connection was there before"
    wrong = ScaleConfig(address=f"ray://{address}")
    message = rf"^scale\.address=ray://{address}: .* --ray-client-server-port"
    with pytest.raises(ValueError, match=message), checked_resources(wrong):
        pass


def test_what_travels_to_a_cluster_is_under_5_mb(tmp_path: Path) -> None:
    from ray._private.runtime_env.packaging import create_package

    package = tmp_path / "package.zip"
    create_package(str(ROOT), package, include_gitignore=True)
    assert package.stat().st_size < 5 * 2**20
    names = zipfile.ZipFile(package).namelist()
    assert {"pipelines/train.py", "dpl_ray/jobs/fit.py", "conf/data/digits.yaml"} <= set(names)
    assert not [name for name in names if name.startswith((".venv", ".git/", "runs", "docs", "tests"))]
