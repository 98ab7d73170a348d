"""What all tests share: quiet, single-threaded torch, and for the session one Ray cluster and one MLflow database.

The libraries are imported where they are needed: `pytest -n 2` loads this file in a third process, too, and first.
"""

from __future__ import annotations

import functools
import gc
import io
import logging
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# While libraries are loaded Python looks for garbage a quarter of the time.
gc.disable()
# What one process has compiled, those that it starts need not.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
# Before ray, torch and mlflow are imported, and for the workers too.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
os.environ["MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR"] = os.environ["MLFLOW_HTTP_REQUEST_BACKOFF_JITTER"] = "0"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] = "0.5"  # how soon an end or a death is seen, of 2 s
os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 (of 15: other tests would leave them next to no time)
os.environ["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] = "0"  # a process more for each group of workers
# Ray's actors take the last `ray start` of its folder for their own cluster, and wait for it if it is gone. A short
# path, as sockets lie below it.
os.environ["RAY_TMPDIR"] = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
for name in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI"):
    os.environ.pop(name, None)

import pytest  # noqa: E402
from hypothesis import settings  # noqa: E402

ROOT = Path(__file__).parent.parent

# The same examples every time, so that a change is judged by what it changes; `make explore` looks for new ones.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.register_profile("explore", deadline=None, print_blob=True)
settings.load_profile("repeatable")


@functools.cache
def group(file: str) -> str:
    """What of the tests stays in one process: those of a file, and those of all files that share a cluster of Ray."""
    return "ray" if "ray_cluster" in (ROOT / file).read_text() else file


@functools.cache
def place(file: str) -> int:
    """Where a file stands among the others: Ray's take longest, and at the end both processes should have something."""
    text = (ROOT / file).read_text()
    return 0 if group(file) == "ray" else 1 if "mark.ray" in text else 2 if "mark.slow" in text else 3


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The longest come first; tests marked long run with `-m long` alone."""
    if "long" not in config.option.markexpr:
        long = [item for item in items if item.get_closest_marker("long")]
        items[:] = [item for item in items if item not in long]
        config.hook.pytest_deselected(items=long)
    items.sort(key=lambda item: place(item.nodeid.partition("::")[0]))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """For `-n 2`. Not `--dist loadgroup`: pytest 9.2 does not show its groups to xdist 3.8."""
    from xdist.scheduler import LoadScopeScheduling

    class ByGroup(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return group(nodeid.partition("::")[0])

    config.option.loadscopereorder = False  # which would put the files of most tests first, not the longest
    return ByGroup(config, log)


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.set_threshold(10_000, 10, 10)
    gc.enable()


def pytest_unconfigure() -> None:
    gc.freeze()
    shutil.rmtree(os.environ["RAY_TMPDIR"], ignore_errors=True)


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """A local cluster with more logical CPUs than the machine may have, so that tests do not depend on its size."""
    import ray

    ray.init(
        "local",
        num_cpus=4,
        include_dashboard=True,
        dashboard_port=0,
        log_to_driver=False,
        logging_level=logging.ERROR,
        # A process that has nothing to do is kept for the next test: a new one imports for seconds.
        _system_config={"idle_worker_killing_time_threshold_ms": 600_000},
    )
    yield
    ray.shutdown()


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """SIGINT means what it means to Python: tests that run in the background of a shell would ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def mlflow_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database without a run: to make one takes forty migrations, seconds each time."""
    import mlflow
    from filelock import FileLock

    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base  # the first process makes it for all
    with FileLock(shared / "mlflow.lock"):
        if not (path := shared / "mlflow.db").exists():
            mlflow.MlflowClient(tracking_uri=f"sqlite:///{shared / 'new.db'}").search_experiments()
            (shared / "new.db").rename(path)
    return path


@pytest.fixture
def mlflow_store(mlflow_template: Path, tmp_path: Path) -> None:
    """The database that runs with run.storage_path=tmp_path record themselves in."""
    shutil.copy(mlflow_template, tmp_path / "mlflow.db")


@pytest.fixture
def mlflow_uri(mlflow_template: Path, tmp_path: Path) -> str:
    """An MLflow store of the test's own, in a folder beside those that it writes."""
    path = tmp_path / "store" / "mlflow.db"
    path.parent.mkdir()
    shutil.copy(mlflow_template, path)
    return f"sqlite:///{path}"


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Any, str]]:
    """The file system of an S3 server on this machine with two buckets, and the options of its addresses."""
    from urllib.request import Request, urlopen

    from moto.server import ThreadedMotoServer
    from pyarrow import fs

    for name, value in (("ACCESS_KEY_ID", "key"), ("SECRET_ACCESS_KEY", "secret"), ("EC2_METADATA_DISABLED", "true")):
        monkeypatch.setenv(f"AWS_{name}", value)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    # What it holds is the process's: without this, the buckets of the tests before are there.
    urlopen(Request(f"http://127.0.0.1:{port}/moto-api/reset", method="POST")).close()
    options = f"?endpoint_override=127.0.0.1:{port}&scheme=http&region=us-east-1"
    filesystem = fs.S3FileSystem(
        endpoint_override=f"127.0.0.1:{port}", scheme="http", region="us-east-1", allow_bucket_creation=True
    )
    for bucket in ("images", "labels"):
        filesystem.create_dir(bucket)
    yield filesystem, options
    server.stop()


@pytest.fixture(autouse=True)
def unsynced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody cuts the power: what is written waits for no disk. tests/crashes.py says what fsync is for."""
    monkeypatch.setattr("os.fsync", lambda _: None)


@pytest.fixture(autouse=True)
def unrendered(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are not drawn, which is most of a tiny run's time, but for tests marked rendered and those of `figures`.

    What is saved in their place is no image, so that a test which looks at one fails without the mark.
    """
    if not (request.node.get_closest_marker("rendered") or "figures" in request.fixturenames):
        monkeypatch.setattr("dpl_ray.page.plots._render", lambda *_, **__: b"not rendered")


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """The figures that are drawn, in order, not rendered where they would be saved; every axis has to have a name."""
    from matplotlib.figure import Figure

    from tests.figures import check_names

    drawn: list[Any] = []

    def save(figure: Figure, buffer: io.BytesIO, **_: Any) -> None:
        drawn.append(figure)
        buffer.write(b"<svg/>")

    monkeypatch.setattr(Figure, "savefig", save)
    yield drawn
    for figure in drawn:
        check_names(figure)
