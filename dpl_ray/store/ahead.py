"""Waiting for many small files at once, without holding all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def map_ahead(function: Callable[[T], R], items: Sequence[T], num_threads: int, at_a_time: int) -> Iterator[R]:
    """`map` by threads, so many items ahead of who takes the results at the most: what is read waits in memory."""
    with ThreadPoolExecutor(num_threads) as executor:
        for start in range(0, len(items), at_a_time):
            yield from executor.map(function, items[start : start + at_a_time])
