"""Peak memory of a program and of all that it starts, Ray's object store included; of this process alone."""

from __future__ import annotations

import os
import re
import threading
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

SECONDS_BETWEEN_SAMPLES = 0.5


class MemorySampler:
    """Peak memory of this process and its descendants by their names, and of Ray's object store."""

    def __init__(self) -> None:
        self.peaks: dict[str, float] = defaultdict(float)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> MemorySampler:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(SECONDS_BETWEEN_SAMPLES):
            for _, name, size in processes_below(os.getpid()):
                self.peaks[name] = max(self.peaks[name], size)
            self.peaks["object store"] = max(self.peaks["object store"], object_store())


def own_peak() -> int:
    """Bytes of this process at its peak; getrusage counts the process that started it too."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) * 1024


def processes_below(root: int) -> Iterator[tuple[int, str, float]]:
    """(id, name, bytes) of a process and all below: anonymous memory, so that the object store's is not in it."""
    children: dict[int, list[int]] = defaultdict(list)
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:  # it has ended
                continue
            children[parent].append(int(entry.name))
    waiting = [root]
    while waiting:
        process = waiting.pop()
        waiting += children[process]
        try:
            command = Path(f"/proc/{process}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            status = Path(f"/proc/{process}/status").read_text()
        except OSError:
            continue
        anonymous = re.search(r"RssAnon:\s+(\d+) kB", status)
        if anonymous:
            yield process, _kind(command, process == root), float(anonymous[1]) * 1024


def _kind(command: str, is_root: bool) -> str:
    if is_root:
        return "driver"
    if "TrainWorker" in command:
        return "training worker"
    for known in ("raylet", "gcs_server", "dashboard"):
        if known in command.partition(" ")[0] or f"/{known}" in command:
            return f"Ray: {known}"
    return "Ray Data's reader and idle" if "ray::" in command else "other of Ray"


def object_store() -> float:
    import ray

    if not ray.is_initialized():
        return 0.0
    from ray._private.internal_api import get_memory_info_reply, get_state_from_address

    try:
        state = get_state_from_address(ray.get_runtime_context().gcs_address)
        return float(get_memory_info_reply(state).store_stats.object_store_bytes_used)
    except Exception:  # Ray's private interface, and it may just be starting or ending
        return 0.0
