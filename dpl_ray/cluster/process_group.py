"""torch's process group of the workers of Ray Train: what it opens listens on one address, not on all.

Through torch's store the workers find each other, and gloo and NCCL take numbers from whoever connects: none of them
asks who it is. Ray Train's own group has the store listen on all addresses.
"""

from __future__ import annotations

import os
import socket
import sys
from datetime import timedelta
from ipaddress import ip_address
from typing import Any

import ray
import torch.distributed as dist
from ray.train.torch.config import TorchConfig, _TorchBackend

LOOPBACK = "lo0" if sys.platform == "darwin" else "lo"
_store: dist.TCPStore | None = None  # of worker 0


class NodeAddressConfig(TorchConfig):
    """The store listens on the address that worker 0's node has in the cluster: on one machine that is loopback."""

    @property
    def backend_cls(self) -> type[_TorchBackend]:
        return _Backend


class _Backend(_TorchBackend):
    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        backend = "nccl" if worker_group.get_resources_per_worker().get("GPU", 0) else "gloo"
        place = worker_group.execute_single(0, _listen)
        joins = (
            worker_group.execute_single_async(
                rank, _join, backend, place, rank, len(worker_group), timedelta(seconds=backend_config.timeout_s)
            )
            for rank in range(len(worker_group))
        )
        ray.get(list(joins))


def _listen() -> tuple[str, int]:
    """Open the store in this process; its host and port."""
    global _store
    host = ray.util.get_node_ip_address()
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as listening:
        port = listening.getsockname()[1]
        _store = dist.TCPStore(
            host, port, is_master=True, wait_for_workers=False, master_listen_fd=os.dup(listening.fileno())
        )
    return host, port


def _join(backend: str, place: tuple[str, int], rank: int, world_size: int, timeout: timedelta) -> None:
    if ip_address(place[0]).is_loopback:
        for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):  # they would take the name of the machine, or a card
            os.environ.setdefault(name, LOOPBACK)
    store = _store or dist.TCPStore(*place, is_master=False, timeout=timeout)
    dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=timeout)
