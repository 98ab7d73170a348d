"""Ray: is there room, and getting connected quietly."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import signal
import socket
import threading
from collections.abc import Iterable, Iterator, Mapping
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from dpl_ray.cluster import local
from dpl_ray.config.schema import ScaleConfig
from dpl_ray.config.section import shown
from dpl_ray.store.paths import expand_path

#: Set before Ray is imported; what the user has set stays.
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
SECONDS_TO_ANSWER = 2.0
READER_CPUS = (
    0.5  # that a task which reads and decodes a streamed pool reserves; two a CPU, since tasks wait in between
)
TOKEN_COMMAND = "export RAY_AUTH_MODE=token RAY_AUTH_TOKEN=$(python -c 'import secrets; print(secrets.token_hex(32))')"
CLIENT_PORT = 10001  # of ray://
#: Scheme of an address -> a call that its service knows: for ray:// the client server, else the control service.
FIRST_CALLS = {"": "/ray.rpc.NodeInfoGcsService/GetClusterId", "ray": "/ray.rpc.RayletDriver/ClusterInfo"}
#: gRPC's status -> what it means for the user.
REFUSALS = {
    "UNAVAILABLE": "another program listens there, or one that asks for TLS",
    "DEADLINE_EXCEEDED": f"what listens there says nothing within {SECONDS_TO_ANSWER:.0f} s",
    "UNIMPLEMENTED": "host:port takes the port of `ray start --port`, ray://host:port that of --ray-client-server-port",
    "UNAUTHENTICATED": "it refuses the token; RAY_AUTH_MODE=token and RAY_AUTH_TOKEN must be those of the cluster",
}


def cluster_address(scale: ScaleConfig) -> str | None:
    """Where to connect; None where a cluster is started on this machine. Ray lets RAY_ADDRESS say what auto is."""
    address = scale.address
    if address in (None, "auto"):
        address = os.environ.get("RAY_ADDRESS") or address
    return None if address == "local" else address


@contextlib.contextmanager
def checked_resources(scale: ScaleConfig) -> Iterator[None]:
    """Refuse what this machine cannot give, or what the cluster at scale.address cannot.

    Where scale.num_workers is null, it is only a cluster that has to have room for a worker, and this machine a GPU.

    A connection that this takes ends with the block: the next run of this process may be on another cluster.

    Raises:
        ValueError: naming the field, what is asked for and what there is.
    """
    address = cluster_address(scale)
    connected = False
    if scale.num_workers is None and address is not None:
        scale = scale.changed(num_workers=1)
    if not scale.num_workers:
        if scale.use_gpu and not count_gpus():
            raise ValueError("scale.use_gpu=true: this machine has no GPU; scale.use_gpu=false trains on CPUs")
    elif address is None:
        _check(scale, [this_machine(scale)], "this machine")
        local.check_surroundings()
    else:
        _check_address(address, scale)
        connected = connect(scale)
    try:
        yield
    finally:
        if connected:
            disconnect()


def check_readers(scale: ScaleConfig) -> None:
    """Refuse workers that leave no CPU to read a streamed pool with: the run would wait for ever.

    Raises:
        ValueError: naming the fields, and what would do.
    """
    import ray

    if not scale.num_workers:
        return
    nodes = connected_nodes() if ray.is_initialized() else [this_machine(scale)]
    num_cpus = sum(node.get("CPU", 0.0) for node in nodes)
    fewest, most = scale.worker_range
    number = max(fewest, min(most, room(nodes, scale.cpus_per_worker, float(scale.use_gpu))))
    given = f"scale.cpus_per_worker={scale.cpus_per_worker:g} with scale.num_workers={shown(scale.num_workers)}"
    needed = number * scale.cpus_per_worker
    if needed + READER_CPUS > num_cpus:
        spared = (num_cpus - READER_CPUS) / number
        raise ValueError(
            f"{given} leaves "
            f"{num_cpus - needed:g} of {num_cpus:g} CPUs, and reading a streamed pool takes {READER_CPUS:g}; "
            + (f"at most {spared:g} CPUs a worker, or fewer workers, leave it" if spared > 0 else "it takes more CPUs")
        )
    if count_to_crowd_out(nodes, scale) <= number:
        raise ValueError(
            f"{given} may leave no node with {READER_CPUS:g} CPU, which reading a streamed pool takes; take fewer CPUs "
            "a worker, or fewer workers"
        )


def count_to_crowd_out(nodes: Iterable[Mapping[str, float]], scale: ScaleConfig) -> float:
    """Fewest workers that, placed badly, leave no node a CPU to read with; infinite where none can."""
    total = 0.0
    for node in nodes:
        spare = node.get("CPU", 0.0) - READER_CPUS
        if spare < 0:
            continue
        wanted = int(spare / scale.cpus_per_worker + 1e-9) + 1
        total += wanted if wanted <= room([node], scale.cpus_per_worker, float(scale.use_gpu)) else math.inf
    return total


def check_cluster(scale: ScaleConfig) -> None:
    """The same for the cluster that is connected."""
    _check(scale, connected_nodes(), "the cluster")


def room(nodes: Iterable[Mapping[str, float]], cpus: float, gpus: float = 0.0) -> int:
    """How many processes that reserve so much the nodes, given by their resources, carry at once.

    A process is not spread over two nodes.
    """
    places = 0
    for node in nodes:
        by_cpu = max(0, math.floor(node.get("CPU", 0.0) / cpus + 1e-9))
        places += min(by_cpu, math.floor(node.get("GPU", 0.0) / gpus + 1e-9)) if gpus else by_cpu
    return places


def connected_nodes() -> list[dict[str, float]]:
    """Resources of the nodes of the cluster that is connected."""
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def this_machine(scale: ScaleConfig) -> dict[str, float]:
    """Its resources, as those of a node; GPUs are counted where they are used."""
    return {"CPU": float(os.cpu_count() or 1), "GPU": float(count_gpus()) if scale.use_gpu else 0.0}


def nodes_for(scale: ScaleConfig) -> tuple[list[dict[str, float]], str]:
    """The nodes that processes would run on, and how messages call them; within `checked_resources`."""
    if cluster_address(scale):
        return connected_nodes(), "the cluster"
    return [this_machine(scale)], "this machine"


def check_shared(scale: ScaleConfig, field: str, path: str) -> None:
    """Refuse a folder that the nodes of a cluster would not share."""
    if cluster_address(scale) and "://" not in path and not Path(expand_path(path, f"{field}={path}")).is_absolute():
        raise ValueError(
            f"{field}={path}: on a cluster this folder is another one for every node, and a job's is removed; give an "
            "absolute path that all nodes share, or s3://"
        )


def _check(scale: ScaleConfig, nodes: list[dict[str, float]], where: str) -> None:
    wanted, cpus, given = scale.worker_range[0], scale.cpus_per_worker, f"scale.num_workers={shown(scale.num_workers)}"
    places = room(nodes, cpus, float(scale.use_gpu))
    if places >= wanted:
        return
    num_cpus, num_gpus = (sum(node.get(kind, 0.0) for node in nodes) for kind in ("CPU", "GPU"))
    if wanted * cpus > num_cpus:
        raise ValueError(
            f"{given} with scale.cpus_per_worker={cpus:g} needs {wanted * cpus:g} CPUs, {where} has "
            f"{num_cpus:g}; at most {room(nodes, cpus)} workers fit"
        )
    if scale.use_gpu and wanted > num_gpus:
        raise ValueError(
            f"scale.use_gpu=true with {given} needs {wanted} GPUs, {where} has {num_gpus:g}; "
            "scale.use_gpu=false trains on CPUs"
        )
    per_worker = f"{cpus:g} CPUs" + (" and a GPU" if scale.use_gpu else "")
    raise ValueError(
        f"{given}: a worker needs {per_worker} on one node, and {where}'s {len(nodes)} nodes have "
        f"room for {places} of them"
    )


def count_gpus() -> int:
    import torch

    return torch.cuda.device_count()


def connect(scale: ScaleConfig) -> bool:
    """Connect to the cluster, or start one on this machine; true where this call did so.

    Raises:
        ValueError: there is no cluster at the address, none can be started here, or it has not got what the workers
            need.
    """
    _set_environment()
    address = cluster_address(scale)
    import ray
    from ray._private import worker

    # Pages on standard output of every process that dies: what of it concerns the user is told in a line of our own.
    worker.print_to_stdstream = lambda *_, **__: None
    started = not ray.is_initialized()
    if started:
        own: dict[str, Any] = {"include_dashboard": False, "num_cpus": os.cpu_count()}
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        on_terminate = signal.getsignal(signal.SIGTERM)
        try:
            # Where no address is given, a cluster that somebody left on this machine is not taken over.
            ray.init(address=address, **quiet) if address else local.start(**quiet, **own)
        # Ray ends the process where it gives up, and where it waits in vain it raises an Exception of no kind.
        except (Exception, SystemExit) as error:
            raise (_no_cluster(address, scale, str(error)) if address else _no_start(error)) from None
        finally:
            if callable(on_terminate) and threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, on_terminate)  # Ray's own ends the process without a word
    try:
        check_cluster(scale)
    except ValueError:
        if started:
            disconnect()
        raise
    return started


def disconnect() -> None:
    """End what `connect` began."""
    local.stop()


def cause_line(failure: Any) -> str:
    """The line of a failure's text, a traceback from another process, that names the exception."""
    text = str(failure)
    # Ray Data puts an exception of its own, with advice on retries, behind the one of the task.
    cause, _, wrapper = text.rpartition("\n\nThe above exception was the direct cause of the following exception:\n")
    if "UserCodeException: " in wrapper and cause:
        text = cause
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else type(failure).__name__


def _set_environment() -> None:
    for key, value in ENVIRONMENT.items():
        os.environ.setdefault(key, value)


def _check_address(address: str, scale: ScaleConfig) -> None:
    """Nothing, or another program, listens at the address: told at once, where Ray tries for two minutes."""
    scheme, _, place = address.rpartition("://")
    if address == "auto" or scheme not in ("", "ray"):
        return
    host, colon, port = place.partition("/")[0].rpartition(":")
    if scheme == "ray" and not colon:
        host, port = port, str(CLIENT_PORT)
    if not host or not port.isdecimal() or int(port) > 65535:
        raise _no_cluster(address, scale, "it takes auto, host:port or ray://host:port")
    try:
        socket.create_connection((host.strip("[]"), int(port)), SECONDS_TO_ANSWER).close()
    except OSError as error:
        raise _no_cluster(address, scale, str(error)) from None
    if (reason := _refusal(f"{host}:{port}", FIRST_CALLS[scheme])) is not None:
        raise _no_cluster(address, scale, reason)
    told = os.environ.get("RAY_USE_TLS") == "1" or os.environ.get(local.MODE, "token").lower() != "token"
    if not told and not _is_loopback(host) and _is_open(f"{host}:{port}", FIRST_CALLS[scheme]):
        raise ValueError(
            f"{_field(address, scale)}={address}: this cluster takes no token: whoever reaches it runs programs with "
            f"its files and credentials; start it anew, on each node after `{TOKEN_COMMAND}`, or set "
            "RAY_AUTH_MODE=disabled to use it as it is"
        )


def _is_loopback(host: str) -> bool:
    return ip_address(socket.getaddrinfo(host.strip("[]"), None)[0][4][0]).is_loopback


def _is_open(place: str, call: str) -> bool:
    """Whether a call without a token is answered."""
    import grpc

    with grpc.insecure_channel(place) as channel:
        try:
            channel.unary_unary(call)(b"", timeout=SECONDS_TO_ANSWER)
        except grpc.RpcError as error:
            return error.code() is not grpc.StatusCode.UNAUTHENTICATED
    return True


def _refusal(place: str, call: str) -> str | None:
    """Why what listens there is not the service that is looked for; None if it is."""
    _set_environment()
    import grpc
    from ray._private.grpc_utils import init_grpc_channel
    from ray._private.ray_constants import GLOBAL_GRPC_OPTIONS

    # As Ray makes its own: with the token, the TLS settings and the proxy of its environment.
    channel = init_grpc_channel(place, GLOBAL_GRPC_OPTIONS)
    try:
        channel.unary_unary(call)(b"", timeout=SECONDS_TO_ANSWER)
    except grpc.RpcError as error:
        return REFUSALS.get(error.code().name)  # whatever else it says, it knows the call
    finally:
        channel.close()
    return None


def _no_start(error: BaseException) -> ValueError:
    local.check_surroundings()  # says more, where it is known
    where = ", ".join(f"{name}={os.environ.get(name, '')}" for name in ("RAY_TMPDIR", "TMPDIR"))
    first_line = next(iter(str(error).strip().splitlines()), "no reason given")
    return ValueError(
        f"scale.num_workers: Ray cannot start on this machine ({first_line}); it writes below RAY_TMPDIR or TMPDIR "
        f"({where}), and scale.num_workers=0 does without Ray"
    )


def _field(address: str | None, scale: ScaleConfig) -> str:
    return "scale.address" if address == scale.address else "RAY_ADDRESS"


def _no_cluster(address: str | None, scale: ScaleConfig, reason: str) -> ValueError:
    field = _field(address, scale)
    if reason == REFUSALS["UNAUTHENTICATED"]:
        return ValueError(f"{field}={address}: a Ray cluster answers there, but {reason}")
    first_line = next(iter(reason.strip().splitlines()), "no answer")
    return ValueError(
        f"{field}={address}: no Ray cluster answers there ({first_line}); start one with `ray start --head`, "
        "or leave scale.address and RAY_ADDRESS empty to start one here"
    )
