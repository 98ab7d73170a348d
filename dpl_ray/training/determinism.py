"""Algorithms that give the same numbers in every run, on a GPU. On a CPU all are of that kind."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"  # which cuBLAS reads where a process first uses it


@contextmanager
def algorithms(*, deterministic: bool) -> Iterator[None]:
    """Where `deterministic`, torch takes no algorithm whose result depends on the order in which threads end.

    It comes before the process computes on a GPU, where cuBLAS sizes its workspace. An operation that has no such
    algorithm is a `RuntimeError` of torch that names it.
    """
    if not deterministic:
        yield
        return
    os.environ.setdefault(WORKSPACE, ":4096:8")
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False  # it takes the fastest algorithm, by a measurement
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.backends.cudnn.benchmark = before[1]
