"""The Ray that is started on this machine: it listens on loopback alone, and takes a token made for it."""

from __future__ import annotations

import atexit
import os
import secrets
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, wait
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from dpl_ray.store.file_systems import one_line
from dpl_ray.store.storage import Storage

if TYPE_CHECKING:
    import psutil

MAX_SOCKET_BYTES = 107 if sys.platform == "linux" else 103  # of the path of a Unix socket
SERVICES = ("gcs_server", "raylet")  # without which Ray ends
SECONDS_BETWEEN_LOOKS = 0.2
T = TypeVar("T")
MODE, TOKEN = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN"
#: Of that Ray; what the user has set stays.
SETTINGS = {
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # of machines that a cloud takes back
    # For a dashboard that is not there the control service would keep what each of 100,000 tasks did, and an actor of
    # Ray Data the metrics of every data set (https://github.com/ray-project/ray/issues/43924).
    "RAY_task_events_report_interval_ms": "0",
    "RAY_enable_metrics_collection": "0",
    # Where more processes run than there are cores, Ray ends what has waited for a second for the next task: each block
    # of a pool would be read by a process that starts for it, which takes longer than to read.
    "RAY_idle_worker_killing_time_threshold_ms": "60000",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # of 2 s: the end of a training is seen so late
}
#: What starts processes that serve a dashboard, an autoscaler and the console: there are none of these. Ray would wait
#: for the first one, and each takes a second of a core.
UNNEEDED = ("start_api_server", "start_monitor", "start_log_monitor")
AGENT_COMMAND = "_build_python_executable_command_memory_profileable"  # of ray._private.services: what runs a script
MINIMAL_AGENT = str(Path(__file__).with_name("minimal_agent.py"))
_before: dict[str, str | None] = {}  # all of these, while a Ray of this process runs
_watchers: list[subprocess.Popen[bytes]] = []  # of that Ray


def check_surroundings() -> None:
    """Refuse an environment in which Ray cannot start on this machine.

    Raises:
        ValueError: naming RAY_TMPDIR or TMPDIR, its value and what would be right.
    """
    variable = "TMPDIR" if "TMPDIR" in os.environ and "RAY_TMPDIR" not in os.environ else "RAY_TMPDIR"
    temporary = os.environ.get(variable, "/tmp")
    try:
        Storage(temporary).check_writable()
    except OSError as error:
        raise ValueError(
            f"{variable}={temporary}: cannot be written ({one_line(error)}); Ray keeps its session there; set "
            "RAY_TMPDIR to a folder that you may write to"
        ) from None
    session = f"ray/session_0000-00-00_00-00-00_000000_{os.getpid()}/sockets/plasma_store"
    if (longest := MAX_SOCKET_BYTES - 1 - len(session)) < len(os.fsencode(temporary)):
        raise ValueError(
            f"{variable}={temporary}: is too long, since the paths of Ray's sockets begin with it; set RAY_TMPDIR to a "
            f"folder of at most {longest} bytes, as /tmp"
        )


def start(**settings: Any) -> None:
    """`ray.init` of a cluster that nobody else can join, from this machine or another.

    All its services run what they are told to. So they listen on 127.0.0.1, and take a token that is in the environment
    of its processes alone. RAY_AUTH_MODE=disabled does without the token.
    """
    import ray

    _before.update({name: os.environ.get(name) for name in (MODE, TOKEN, *SETTINGS)})
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    if os.environ.get(MODE, "token").lower() == "token":
        _set_environment({TOKEN: secrets.token_hex(32)})  # Ray itself sets the mode
    try:
        with small():
            ray.init(address="local", **settings)
        _watchers.append(_watch())
    except BaseException:
        _forget_token()
        raise


@contextmanager
def small() -> Iterator[None]:
    """The Ray that is started within listens on 127.0.0.1, and has no process that nobody asks."""
    from ray._private import ray_constants, services, utils
    from ray._private.node import Node

    command_of = getattr(services, AGENT_COMMAND, None)

    def command(component: str, *arguments: Any, **options: Any) -> list[str]:
        assert command_of is not None
        is_agent = component == getattr(ray_constants, "PROCESS_TYPE_DASHBOARD_AGENT", None)
        return [*command_of(component, *arguments, **options), *([MINIMAL_AGENT] if is_agent else [])]

    unneeded: list[tuple[Any, str, Any]] = [
        # As where the dashboard is not installed: Ray waits 5 s for the ports of an agent that works for one.
        (utils, "get_dashboard_dependency_error", lambda: "none is wanted"),
        (services, AGENT_COMMAND, command),
        *((Node, name, lambda *_, **__: None) for name in UNNEEDED),
    ]
    changed: list[tuple[Any, str, Any]] = [
        # What Ray does on macOS and Windows. As an option of ray.init, 127.0.0.1 becomes an address of the network.
        (ray_constants, "ENABLE_RAY_CLUSTER", False),
        *(each for each in unneeded if hasattr(*each[:2])),  # a later Ray may do without
    ]
    before = [(place, name, getattr(place, name)) for place, name, _ in changed]
    for each in changed:
        setattr(*each)
    try:
        yield
    finally:
        for each in before:
            setattr(*each)


def _watch() -> subprocess.Popen[bytes]:
    """A process that kills the agents of Ray's node when this process has ended, however it ends.

    All other processes of Ray end within seconds after a SIGKILL of this one. The agents would try for a minute to tell
    the control service of it, which has ended too.
    """
    agents = [str(child.pid) for child in _below_raylet()]
    command = ["sh", "-c", f"read _; kill -KILL {' '.join(agents)}"]  # the end of this process ends its input
    # In a session of its own, as Ctrl-C in a terminal would end it.
    return subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True)


def _below_raylet() -> list[psutil.Process]:
    """Agents and workers of Ray's node."""
    import psutil
    from ray._private import worker

    (raylet,) = worker._global_node.all_processes["raylet"]
    with suppress(psutil.NoSuchProcess):
        return psutil.Process(raylet.process.pid).children()
    return []


def is_running() -> bool:
    """Whether this process is connected to a Ray that `start` has started."""
    return bool(_before)


class EndedError(RuntimeError):
    """A service of the Ray that `start` has started is gone."""


def while_alive(work: Callable[[], T]) -> T:
    """What `work` returns, which waits for Ray.

    Raises:
        EndedError: a service of the Ray that this process has started is gone. Ray would end this process some seconds
            later, with pages of its own log.
    """
    from ray._private import worker

    known = getattr(worker._global_node, "all_processes", {})
    services = [(name, info.process) for name in SERVICES for info in known.get(name, ())]
    waiting = Future[T]()

    def run() -> None:
        try:
            waiting.set_result(work())
        except BaseException as error:
            waiting.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    while not wait([waiting], timeout=SECONDS_BETWEEN_LOOKS).done:
        for name, process in services:
            if process.poll() is not None:
                raise EndedError(f"Ray's {name} has ended (status {process.returncode})")
    return waiting.result()


def abandon() -> None:
    """Leave a Ray that is not whole any more: what is left of it is killed, and it is not asked at the end."""
    from ray._private import worker

    for found in getattr(worker._global_node, "all_processes", {}).values():
        for info in found:
            info.process.kill()
    _forget_token()
    # Ray's own way to end waits for what is gone, and tells of it.
    atexit.register(_leave)


def _leave() -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)


def stop() -> None:
    """End the connection to a cluster, and the cluster if `start` has started it."""
    import psutil
    import ray

    processes = _below_raylet() if _watchers else []
    ray.shutdown()
    for process in processes:  # now and then one hangs for good in Ray's own way to end
        with suppress(psutil.NoSuchProcess):
            process.kill()
    while _watchers:
        (watcher := _watchers.pop()).kill()
        watcher.communicate()
    _forget_token()


def _forget_token() -> None:
    """The next cluster of this process may be another one, with a token of its own."""
    if _before:
        _set_environment(_before)
        _before.clear()


def _set_environment(values: Mapping[str, str | None]) -> None:
    from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]

    for name, value in values.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value
    Config.initialize("")  # Ray keeps what it has read
    AuthenticationTokenLoader.instance().reset_cache()
