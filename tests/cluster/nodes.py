"""A Ray cluster of several nodes on this machine, with a token, started with the commands of docs/cluster.md."""

from __future__ import annotations

import contextlib
import os
import secrets
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

from dpl_ray.cluster import local
from tests.documents import ROOT, Document
from tests.processes import descendants
from tests.tutorials import only_line

PAGE = Document(ROOT / "docs" / "cluster.md", (ROOT / "docs" / "cluster.md").read_text())
NUM_CPUS = 2  # of each node


class Node:
    """`ray start ... --block`; waits until it has started."""

    def __init__(self, command: list[str], env: dict[str, str], log: Path) -> None:
        command = [*command, "--block", f"--num-cpus={NUM_CPUS}"]
        self._process = subprocess.Popen(
            command, env=env, stdout=subprocess.PIPE, stderr=log.open("w"), text=True, start_new_session=True
        )
        assert self._process.stdout is not None
        lines = []
        for line in self._process.stdout:
            lines.append(line)
            if "Ray runtime started" in line:
                return
        raise AssertionError("".join(lines) + log.read_text())

    def end(self) -> None:
        self._process.terminate()
        self._process.communicate()

    def processes(self) -> dict[int, str]:
        """Process id -> title."""
        return descendants(self._process.pid)

    def kill(self) -> None:
        """As if the machine were lost."""
        for pid in (self._process.pid, *self.processes()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.communicate()


class Cluster:
    """A head, and the nodes that `add` starts."""

    def __init__(self, logs: Path) -> None:
        port, dashboard_port, client_port, agent_port = free_ports(4)
        self.address, self.client = f"127.0.0.1:{port}", f"ray://127.0.0.1:{client_port}"
        self.env = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        self.env["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"] = "0"  # nobody has to be moved to another node at the end
        # As in an environment that is activated.
        self.env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{self.env['PATH']}"
        self._logs, self.nodes = logs, list[Node]()
        places = [f"--port={port}", f"--dashboard-port={dashboard_port}", f"--ray-client-server-port={client_port}"]
        self._start([*shlex.split(only_line(PAGE, "ray start --head")), *places], agent_port)
        self.env["RAY_API_SERVER_ADDRESS"] = f"http://127.0.0.1:{dashboard_port}"

    def add(self) -> None:
        self._start(
            shlex.split(only_line(PAGE, "ray start --address").replace("HEAD:6379", self.address)), *free_ports(1)
        )

    def _start(self, command: list[str], agent_port: int) -> None:
        # Nodes of one folder remove the working directory of each other's jobs: each unpacks the same package there.
        folder = tempfile.mkdtemp(dir=os.environ.get("RAY_TMPDIR"))
        # Every node of a machine needs an agent's port of its own, or no job can be submitted to it.
        command = [*command, f"--temp-dir={folder}", f"--dashboard-agent-listen-port={agent_port}"]
        self.nodes.append(Node(command, self.env, self._logs / f"node{len(self.nodes)}"))

    def processes(self) -> dict[int, str]:
        """Process id -> title, of all nodes."""
        return {pid: title for node in self.nodes for pid, title in node.processes().items()}

    def end(self) -> None:
        for node in reversed(self.nodes):
            node.end()


def enter(env: dict[str, str]) -> None:
    """Make this process, which has loaded Ray, a client of the cluster with this environment; for `Command`."""
    local._set_environment(env)


def free_ports(number: int) -> list[int]:
    probes = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports
