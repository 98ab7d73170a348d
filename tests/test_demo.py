"""What `make demo` prints through Ray Train: its own lines, and not one of Ray's or MLflow's."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from dpl_ray.config import BESIDE_RUNS

ROOT = Path(__file__).resolve().parent.parent
NUM_STEPS = 2
#: What conftest.py sets for the other tests. A user has not set it: what it would silence must be silent by itself.
SET_BY_TESTS = ("OMP_NUM_THREADS", "MLFLOW_DISABLE_TELEMETRY", "RAY_USAGE_STATS_ENABLED")
ALLOWED = (
    r"demo starts with 2 Ray Train workers: digits, 40 labelled images of 10 classes, 1398 in the pool, .* 359 test",
    r"starting Ray takes some 20 seconds",
    rf" *(supervised|dpl) +\d+/{NUM_STEPS} steps +[\d,]+ images/s  (\d\d:\d\d:\d\d|--:--:--) left"
    r"(  loss \d+\.\d{3}(  coverage \d\.\d\d  precision \d\.\d\d)?)?",
    r"Last teacher on the test split",
    r"Thresholds of every class \(confidence\)",
    r"[┏┡└][━┳╇┩┓─┴┘]+",
    r"┃ +┃ +dpl ┃ supervised ┃",
    r"┃ class ┃ over-confident ┃ under-confident ┃",
    r"│ [a-z (),ECE-]+ │ +\d+\.\d % │( +\d+\.\d %)? +│",
    r"│ \d +│ +\d\.\d{3} │ +\d\.\d{3} │",
    r"(The pool (helped|hurt)|It cannot be told whether the pool helped or hurt): \d+\.\d % against \d+\.\d % "
    r"supervised, difference [+-]\d+\.\d points \[95 %: [+-]\d+\.\d, [+-]\d+\.\d\], 359 test images",
    r"checkpoint  /.+",
    r"MLflow run  [0-9a-f]{32}",
    r"report      /.+",
    r"look at it: mlflow ui --backend-store-uri sqlite:////.+",
)


@pytest.mark.slow
@pytest.mark.ray
def test_the_demo_prints_its_own_lines_and_no_other(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pipelines.train", f"train.num_steps={NUM_STEPS}", "train.batch_size=4"]
    command += ["model.width=1", f"run.storage_path={tmp_path}/runs", "run.name=demo"]
    environment = {name: value for name, value in os.environ.items() if name not in SET_BY_TESTS}
    done = subprocess.run(
        command, cwd=ROOT, env=environment | {"COLUMNS": "120"}, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    lines = [line.rstrip() for line in done.stdout.splitlines()]
    assert [line for line in lines if not any(re.fullmatch(pattern, line) for pattern in ALLOWED)] == []
    assert [pattern for pattern in ALLOWED if not any(re.fullmatch(pattern, line) for line in lines)] == []
    values = dict(re.split(r"  +|: ", line, maxsplit=1) for line in lines[-4:])
    assert (Path(values["checkpoint"]) / "manifest.json").exists()
    assert Path(values["report"]).read_text().startswith("<!doctype html>")
    database = values["look at it"].partition("sqlite:///")[2]
    assert Path(database).is_file()
    assert (tmp_path / "runs" / "mlflow-artifacts" / values["MLflow run"]).is_dir()
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {"demo", *BESIDE_RUNS}
