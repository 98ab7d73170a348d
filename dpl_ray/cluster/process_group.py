"""torch's process group of the workers of Ray Train: what it opens listens on one address, not on all.

Through torch's store the workers find each other, and gloo and NCCL take numbers from whoever connects: none of them
asks who it is. Ray Train's own group has the store listen on all addresses.

torch is imported by the workers alone: Ray Train's controller, which imports this too, has no use for it.
"""

from __future__ import annotations

import gc
import os
import socket
import sys
from datetime import timedelta
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

import ray
from ray.train.backend import Backend, BackendConfig

if TYPE_CHECKING:
    from torch.distributed import TCPStore

LOOPBACK = "lo0" if sys.platform == "darwin" else "lo"
TIMEOUT = timedelta(minutes=30)
_store: TCPStore | None = None  # of worker 0


class NodeAddressConfig(BackendConfig):
    """The store listens on the address that worker 0's node has in the cluster: on one machine that is loopback."""

    @property
    def backend_cls(self) -> type[Backend]:
        return _Backend

    @property
    def train_func_context(self) -> type[Any]:
        """Makes a worker's GPU the current one."""
        from ray.train.torch.config import TorchConfigContextManager

        return TorchConfigContextManager


class _Backend(Backend):
    share_cuda_visible_devices = True

    def on_start(self, worker_group: Any, backend_config: BackendConfig) -> None:  # noqa: ARG002
        backend = "nccl" if worker_group.get_resources_per_worker().get("GPU", 0) else "gloo"
        others = [worker_group.execute_single_async(rank, _load_torch) for rank in range(1, len(worker_group))]
        place = worker_group.execute_single(0, _listen)
        ray.get(others)
        joins = (
            worker_group.execute_single_async(rank, _join, backend, place, rank, len(worker_group))
            for rank in range(len(worker_group))
        )
        ray.get(list(joins))


def _load_torch() -> None:
    """In all workers at the same time; without looks for garbage, which modules are not: they take a third of it."""
    gc.disable()
    import torch.distributed  # noqa: F401

    gc.freeze()
    gc.enable()


def _listen() -> tuple[str, int]:
    """Open the store in this process; its host and port."""
    _load_torch()
    from torch.distributed import TCPStore

    global _store
    host = ray.util.get_node_ip_address()
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as listening:
        port = listening.getsockname()[1]
        _store = TCPStore(
            host, port, is_master=True, wait_for_workers=False, master_listen_fd=os.dup(listening.fileno())
        )
    return host, port


def _join(backend: str, place: tuple[str, int], rank: int, world_size: int) -> None:
    import torch.distributed as dist

    if ip_address(place[0]).is_loopback:
        for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):  # they would take the name of the machine, or a card
            os.environ.setdefault(name, LOOPBACK)
    store = _store or dist.TCPStore(*place, is_master=False, timeout=TIMEOUT)
    dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=TIMEOUT)
