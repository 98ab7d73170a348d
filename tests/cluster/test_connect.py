"""Is there room for the workers, and a cluster at the address: what can be told without a cluster."""

from __future__ import annotations

import http.server
import math
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
import ray

from dpl_ray.cluster import connect as cluster
from dpl_ray.cluster import local
from dpl_ray.cluster.connect import (
    cause_line,
    check_readers,
    check_shared,
    checked_resources,
    count_to_crowd_out,
    room,
)
from dpl_ray.config.schema import ScaleConfig
from tests.builders import serving


def check(scale: ScaleConfig) -> None:
    with checked_resources(scale):
        pass


@pytest.mark.parametrize(
    ("nodes", "cpus", "use_gpu", "places"),
    [
        ([{"CPU": 4.0}], 1, False, 4),
        ([{"CPU": 4.0}, {"CPU": 4.0}], 5, False, 0),  # 8 CPUs, and no node with 5
        ([{"CPU": 4.0}, {"CPU": 4.0}], 3, False, 2),
        ([{"CPU": 2.0}], 0.5, False, 4),
        ([{"CPU": 0.3}], 0.1, False, 3),  # 0.3 / 0.1 is a little less than 3
        ([{"CPU": 8.0, "GPU": 2.0}], 1, True, 2),
        ([{"CPU": 8.0}, {"GPU": 4.0}], 1, True, 0),  # CPUs here and GPUs there
        ([{"CPU": -1.0}, {"CPU": 1.0}], 0.5, False, 2),  # what is left of a node that has nothing to give
        ([], 1, False, 0),
    ],
)
def test_a_worker_fits_on_one_node_or_not_at_all(
    nodes: list[dict[str, float]], cpus: float, use_gpu: bool, places: int
) -> None:
    assert room(nodes, cpus, float(use_gpu)) == places


@pytest.mark.parametrize(
    ("nodes", "cpus", "use_gpu", "fewest"),
    [
        ([{"CPU": 2.0}], 0.5, False, 4),
        ([{"CPU": 2.0}, {"CPU": 2.0}], 1.7, False, 2),  # 0.6 of 4 CPUs are left, and no node has them
        ([{"CPU": 4.0}, {"CPU": 4.0}], 1, False, 8),
        ([{"CPU": 4.0}, {"CPU": 4.0}], 1.5, False, math.inf),  # two on a node leave it 1
        ([{"CPU": 8.0}, {"CPU": 4.0, "GPU": 4.0}], 1, True, math.inf),
        ([{"CPU": 4.0, "GPU": 4.0}], 1, True, 4),
        ([{"CPU": 0.4}, {"GPU": 1.0}], 0.5, False, 0),
    ],
)
def test_workers_that_would_leave_no_node_room_to_read_with_are_counted(
    nodes: list[dict[str, float]], cpus: float, use_gpu: bool, fewest: float
) -> None:
    assert count_to_crowd_out(nodes, ScaleConfig(num_workers=1, cpus_per_worker=cpus, use_gpu=use_gpu)) == fewest


def test_the_cause_of_a_failed_task_is_named() -> None:
    traceback = 'ray::Task()\n  File "a.py", line 1\nOSError: the disk is gone\n'
    chained = "\n\nThe above exception was the direct cause of the following exception:\n\nray::Task()\n"
    advice = "ray.exceptions.UserCodeException: UDF failed.\nTo change retry attempts, configure it.\n"
    for text in (traceback, traceback.strip() + chained + advice):
        assert cause_line(RuntimeError(text)) == "OSError: the disk is gone"
    assert cause_line(RuntimeError(traceback.strip() + chained + "TrainError: lost")) == "TrainError: lost"
    assert cause_line(RuntimeError()) == "RuntimeError"


def test_more_than_this_machine_has_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    check(ScaleConfig(num_workers=4, cpus_per_worker=0.5))
    with pytest.raises(ValueError, match=r"scale\.num_workers=5 .* needs 2\.5 CPUs, this machine has 2; at most 4"):
        check(ScaleConfig(num_workers=5, cpus_per_worker=0.5))
    check(ScaleConfig(num_workers=(4, 9), cpus_per_worker=0.5))
    check_readers(ScaleConfig(num_workers=(1, 9), cpus_per_worker=0.75))
    message = r"scale\.num_workers=\[5,9\] .* needs 2\.5 CPUs, this machine has 2; at most 4"
    with pytest.raises(ValueError, match=message):
        check(ScaleConfig(num_workers=(5, 9), cpus_per_worker=0.5))
    with pytest.raises(ValueError, match=r"scale\.num_workers=\[1,9\] leaves 0 of 2 CPUs, .* at most 0\.375 CPUs"):
        check_readers(ScaleConfig(num_workers=(1, 9), cpus_per_worker=0.5))


@pytest.mark.parametrize(
    ("variable", "value", "expected"),
    [
        (
            "TMPDIR",
            "/tmp/" + 40 * "x",
            r"^TMPDIR=/tmp/x+: is too long, .*; set RAY_TMPDIR to .* at most \d\d bytes",
        ),
        ("RAY_TMPDIR", "/tmp/" + 20 * "é", r"^RAY_TMPDIR=/tmp/é+: is too long"),  # as bytes
        ("RAY_TMPDIR", __file__, rf"^RAY_TMPDIR={__file__}: cannot be written .*; set RAY_TMPDIR to a folder that you"),
    ],
)
def test_surroundings_in_which_ray_cannot_start_are_refused(
    variable: str, value: str, expected: str, no_ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RAY_TMPDIR", "TMPDIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, value)
    with pytest.raises(ValueError, match=expected):
        check(ScaleConfig(num_workers=1, cpus_per_worker=0.1))


def test_what_ray_itself_refuses_names_where_it_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: object) -> None:
        raise OSError("AF_UNIX path length cannot exceed 107 bytes")

    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("ray.init", refuse)
    monkeypatch.setenv("RAY_TMPDIR", "/tmp")
    expected = r"^scale\.num_workers: Ray cannot start .*\(AF_UNIX path .*RAY_TMPDIR=/tmp, .*scale\.num_workers=0 does"
    with pytest.raises(ValueError, match=expected):
        cluster.connect(ScaleConfig(num_workers=1))


@pytest.fixture
def control_service() -> Iterator[tuple[int, list[bool]]]:
    """The port of what knows the calls of Ray's services; and whether it asks for a token."""
    asks = [False]

    def answer(_request: bytes, context: grpc.ServicerContext) -> bytes:
        if asks[0] and not dict(context.invocation_metadata()).get("authorization"):
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "no token")
        return b""

    class Any(grpc.GenericRpcHandler):
        def service(self, _details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
            return grpc.unary_unary_rpc_method_handler(answer)

    server = grpc.server(ThreadPoolExecutor(1), handlers=[Any()])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield port, asks
    server.stop(None).wait()


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_a_cluster_that_takes_no_token_is_refused_unless_it_is_on_loopback_or_wanted(
    scheme: str, control_service: tuple[int, list[bool]], monkeypatch: pytest.MonkeyPatch
) -> None:
    port, asks = control_service
    for name in ("RAY_AUTH_MODE", "RAY_USE_TLS"):
        monkeypatch.delenv(name, raising=False)
    scale = ScaleConfig(address=f"{scheme}127.0.0.1:{port}")
    assert scale.address is not None
    cluster._check_address(scale.address, scale)
    monkeypatch.setattr(cluster, "_is_loopback", lambda _host: False)
    message = rf"^scale\.address={scheme}127.*: this cluster takes no token: .* after `export RAY_AUTH_MODE=token RAY"
    with pytest.raises(ValueError, match=message):
        cluster._check_address(scale.address, scale)
    with monkeypatch.context() as told:
        told.setenv("RAY_AUTH_MODE", "disabled")
        cluster._check_address(scale.address, scale)
    monkeypatch.setattr(cluster, "_refusal", lambda *_: None)  # as with the token
    asks[0] = True
    cluster._check_address(scale.address, scale)


@pytest.mark.parametrize(
    ("host", "is_loopback"), [("localhost", True), ("127.0.0.1", True), ("[::1]", True), ("192.0.2.1", False)]
)
def test_what_loopback_is(host: str, is_loopback: bool) -> None:
    assert cluster._is_loopback(host) == is_loopback


@pytest.mark.parametrize("path", ["/runs", "~/runs", "s3://bucket/runs"])
def test_a_folder_that_nodes_share_is_absolute(path: str) -> None:
    check_shared(ScaleConfig(address="head:6379"), "run.storage_path", path)
    check_shared(ScaleConfig(address=None), "run.storage_path", "runs")  # of this machine
    with pytest.raises(ValueError, match=r"^output=labels: on a cluster this folder is another one for every node"):
        check_shared(ScaleConfig(address="head:6379"), "output", "labels")


@pytest.fixture
def silent() -> Iterator[int]:
    """The port of a socket that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening.getsockname()[1]


@pytest.fixture
def website() -> Iterator[int]:
    """The port of a plain HTTP server."""
    with serving(http.server.SimpleHTTPRequestHandler) as port:
        yield port


@pytest.fixture
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray itself would try for two minutes."""
    monkeypatch.setattr(cluster, "connect", lambda scale: pytest.fail("Ray was asked to connect"))


def test_a_cluster_that_refuses_the_token_is_no_missing_cluster(silent: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "_refusal", lambda *_: cluster.REFUSALS["UNAUTHENTICATED"])
    with pytest.raises(
        ValueError, match=r"a Ray cluster answers there, but it refuses the token; RAY_AUTH_MODE"
    ) as error:
        check(ScaleConfig(address=f"127.0.0.1:{silent}"))
    assert "ray start" not in str(error.value)


@pytest.mark.parametrize("scheme", ["", "ray://"])
@pytest.mark.parametrize(
    ("program", "reason"), [("silent", "says nothing within"), ("website", "another program listens there")]
)
def test_another_program_at_the_address_is_refused(
    scheme: str,
    program: str,
    reason: str,
    no_ray: None,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cluster, "SECONDS_TO_ANSWER", 0.5 if program == "silent" else 60)
    address = f"{scheme}127.0.0.1:{request.getfixturevalue(program)}"
    with pytest.raises(ValueError, match=rf"^scale\.address={address}: no Ray cluster answers .*{reason}.*; start one"):
        check(ScaleConfig(address=address))


@pytest.mark.parametrize("was_connected", [False, True])
def test_a_connection_ends_with_the_run_that_made_it(was_connected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the process's next run would be on this cluster, whatever its address."""
    ended: list[bool] = []
    monkeypatch.setattr(cluster, "_check_address", lambda *_: None)
    monkeypatch.setattr(cluster, "connect", lambda scale: not was_connected)
    monkeypatch.setattr("ray.shutdown", lambda: ended.append(True))

    def fail() -> None:
        with checked_resources(ScaleConfig(address="head:6379")):
            assert ended == []
            raise ValueError("the data")

    with pytest.raises(ValueError, match="the data"):
        fail()
    assert ended == ([] if was_connected else [True])


def test_ray_knows_the_settings_of_the_one_that_is_started_here() -> None:
    raylet = (Path(ray.__file__).parent / "core/src/ray/raylet/raylet").read_bytes()
    names = [name.removeprefix("RAY_") for name in local.SETTINGS if name.removeprefix("RAY_").islower()]
    assert len(names) == 3, "those of its services; it would not say that one of them is unknown"
    assert [name for name in names if name.encode() not in raylet] == []
