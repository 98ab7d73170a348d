"""Who can reach a run on this machine: from the network nobody, and on loopback nobody without its token.

Where the kernel lets us make one, the run has a network of its own, with an address, and a stranger at another.
"""

from __future__ import annotations

import http.client
import json
import os
import shutil
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any

import psutil
import pytest

from dpl_ray.cluster import local
from dpl_ray.cluster.workers import run_workers
from dpl_ray.config.schema import ScaleConfig
from dpl_ray.training.interruption import Stop

pytestmark = [pytest.mark.ray, pytest.mark.slow]
ROOT = Path(__file__).resolve().parents[2]
OWN_NETWORK = ("unshare", "--user", "--map-root-user", "--net", "--mount")
SECRET = "canary-of-the-driver"
HERE, THERE = "10.77.0.1", "10.77.0.2"
#: Process -> a call that its service of Ray knows.
CALLS = {
    "gcs_server": "/ray.rpc.NodeInfoGcsService/GetClusterId",
    "raylet": "/ray.rpc.NodeManagerService/GetNodeStats",
    "ray::RayTrainWorker": "/ray.rpc.CoreWorkerService/NumPendingTasks",
}
#: Prints which ports of an address take a connection.
TRY_ALL = """
import socket, sys
for port in sys.argv[2:]:
    try:
        socket.create_connection((sys.argv[1], int(port)), 5).close()
        print(port)
    except OSError:
        pass
"""


def can_make_networks() -> bool:
    if not all(map(shutil.which, ("unshare", "nsenter", "ip", "mount"))):
        return False
    return subprocess.run([*OWN_NETWORK, "true"], capture_output=True).returncode == 0


def drive(folder: str, has_own_network: bool) -> None:
    """The process of a command with two workers; writes what worker 0 has seen."""
    os.environ["SOME_PASSWORD"] = SECRET
    stranger = _make_network(Path(folder)) if has_own_network else None
    seen = run_workers(
        look,
        {"driver": os.getpid(), "stranger": stranger and stranger.pid},
        scale=ScaleConfig(num_workers=2),
        name="network",
        storage_path=folder,
        on_news=print,
        stop=Stop(),
    )
    (Path(folder) / "seen.json").write_text(json.dumps(seen | {"token left": os.environ.get("RAY_AUTH_TOKEN")}))


def _make_network(folder: Path) -> subprocess.Popen[str]:
    """Give this machine and its name an address, and return a process that stands at another; it ends with this one."""
    stranger = subprocess.Popen(
        ["unshare", "--net", "sh", "-c", "echo ready; cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert stranger.stdout is not None
    assert stranger.stdout.readline() == "ready\n"
    (folder / "hosts").write_text(f"127.0.0.1 localhost\n{HERE} {socket.gethostname()}\n")
    there = f"nsenter --target={stranger.pid} --net"
    for command in (
        f"mount --bind {folder}/hosts /etc/hosts",
        "ip link set lo up",
        "ip link add lan type veth peer name peer",
        f"ip link set peer netns {stranger.pid}",
        f"ip addr add {HERE}/24 dev lan",
        "ip link set lan up",
        f"{there} ip addr add {THERE}/24 dev peer",
        f"{there} ip link set peer up",
        f"ip route add default via {THERE}",
    ):
        subprocess.run(command.split(), check=True)
    return stranger


def look(payload: dict[str, Any], tell: Callable[[Any], None], _stop: Event) -> dict[str, Any] | None:
    """What worker 0 sees of the kernel's table and of those who come in, while all processes of the run stand."""
    from dpl_ray.training.distributed import Workers  # torch, which this module does not load for the controller

    workers = Workers.current()
    tell(workers.device)  # which takes torch to read
    seen = _see(payload) if workers.rank == 0 else None
    workers.gather_json(None)  # the other one stands until then
    return seen


def _see(payload: dict[str, Any]) -> dict[str, Any]:
    driver = psutil.Process(payload["driver"])
    names = {process.pid: process.name() for process in (driver, *driver.children(recursive=True))}
    settings = {
        names[pid]: {key: psutil.Process(pid).environ().get(key) for key in local.SETTINGS}
        for pid in names
        if names[pid] in local.SERVICES
    }
    listening = [
        (names[each.pid], each.laddr.ip.removeprefix("::ffff:"), each.laddr.port)
        for each in psutil.net_connections("tcp")
        if each.status == psutil.CONN_LISTEN and each.pid in names
    ]
    with ThreadPoolExecutor(len(listening)) as executor:  # what is no service lets one wait
        found = executor.map(lambda each: _ask(each[0], each[2]), listening)
        answers = {f"{name} {port}": answer for (name, _, port), answer in zip(listening, found, strict=True)}
    reached = None
    if payload["stranger"]:
        with socket.create_server(("", 0)) as open_to_all:  # which he reaches
            control = str(open_to_all.getsockname()[1])
            ports = [control, *(str(port) for *_, port in listening)]
            command = ["nsenter", f"--target={payload['stranger']}", "--net", sys.executable, "-c", TRY_ALL, HERE]
            found = subprocess.run([*command, *ports], capture_output=True, text=True, check=True).stdout.split()
        reached = ["control" if port == control else port for port in found]
    with_torch = {name for pid, name in names.items() if "libtorch" in Path(f"/proc/{pid}/maps").read_text()}
    return {
        "listening": listening,
        "reached": reached,
        "answers": answers,
        "settings": settings,
        "told": _told(),
        "with torch": sorted(with_torch & {name for name in names.values() if name.startswith("ray::")}),
    }


def _told() -> list[str]:
    """Files of Ray's session, logs above all, that have a secret of the environment in them."""
    from ray._private import worker

    session = Path(worker._global_node.get_session_dir_path())
    secrets = [os.environ[local.TOKEN].encode(), SECRET.encode()]
    files = [path for path in session.rglob("*") if path.is_file()]
    assert any(path.suffix == ".log" for path in files)
    return [str(path) for path in files if any(secret in path.read_bytes() for secret in secrets)]


def _ask(name: str, port: int) -> str:
    """The status of gRPC or HTTP with which a service of Ray answers a call without a token; "" where it is none."""
    import grpc

    call = CALLS.get(name, CALLS["ray::RayTrainWorker"])
    try:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            channel.unary_unary(call)(b"", timeout=1)
            return "answered"
    except grpc.RpcError as error:
        if error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
            return error.code().name
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/version", timeout=1) as response:
            return "metrics" if response.read().startswith(b"# HELP") else "answered"
    except urllib.error.HTTPError as error:
        return str(error.code)
    except (OSError, http.client.HTTPException):
        return ""


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder, own = tmp_path_factory.mktemp("network"), can_make_networks()
    code = f"from tests.cluster.test_network import drive; drive({str(folder)!r}, {own})"
    command = [*(OWN_NETWORK if own else ()), sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads((folder / "seen.json").read_text())
    return found


def test_all_that_listens_in_a_run_listens_on_loopback(seen: dict[str, Any]) -> None:
    """Ray's services, and the store and the connections of torch in both workers."""
    listening = seen["listening"]
    assert {"gcs_server", "raylet", "ray::RuntimeEnvAgent"} <= {name for name, *_ in listening}
    assert len([name for name, *_ in listening if name == "ray::RayTrainWorker"]) >= 2 + 2 + 1
    assert [each for each in listening if each[1] not in ("127.0.0.1", "::1")] == []


def test_the_services_keep_neither_tasks_nor_metrics(seen: dict[str, Any]) -> None:
    kept = {"RAY_task_events_report_interval_ms": "0", "RAY_enable_metrics_collection": "0"}
    assert set(seen["settings"]) == set(local.SERVICES)
    assert [found | kept for found in seen["settings"].values()] == [*seen["settings"].values()]


def test_only_workers_load_torch(seen: dict[str, Any]) -> None:
    """Who passes on their news does not."""
    assert {name.partition(".")[0] for name in seen["with torch"]} == {"ray::RayTrainWorker"}


def test_no_secret_is_in_the_logs_of_ray(seen: dict[str, Any]) -> None:
    assert seen["told"] == []


def test_nobody_at_another_address_reaches_a_run(seen: dict[str, Any]) -> None:
    if seen["reached"] is None:
        pytest.skip("needs network namespaces: unshare, nsenter, ip and a kernel that allows them to users")
    assert seen["reached"] == ["control"]


def test_who_has_no_token_is_refused_on_loopback_too(seen: dict[str, Any]) -> None:
    answers = seen["answers"]

    def answers_of(name: str) -> set[str]:
        return {answer for place, answer in answers.items() if place.startswith(f"{name} ")}

    for name in CALLS:
        assert "UNAUTHENTICATED" in answers_of(name), name
    assert set(answers.values()) <= {"UNAUTHENTICATED", "UNIMPLEMENTED", "401", "metrics", ""}
    assert answers_of("ray::RuntimeEnvAgent") == {"401"}
    assert seen["token left"] is None, "the next cluster of the process has another one"
