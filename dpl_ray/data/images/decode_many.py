"""Decoding many encoded images in threads, in order, with a bounded number of them in memory.

Legend: N images, C channels, H and W pixels.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from dpl_ray.data.dataset import BadImage
from dpl_ray.data.images.convert import DecodeSettings
from dpl_ray.data.images.decode import Payload, decode_or_reason, quiet_pillow

_CHUNK_SIZE = 32


def decode_many(
    items: Iterable[tuple[str, Payload]], settings: DecodeSettings, *, num_threads: int | None = None
) -> tuple[NDArray, list[int], list[BadImage]]:
    """Decode (id, payload) pairs.

    Returns:
        images (N, C, H, W), or stored features in their place, the N positions in `items` that they come from, and the
        rest with reasons.

    Raises:
        ValueError: the images differ in size and `settings.image_size` is None.
    """
    num_threads = num_threads or count_threads()
    images: list[NDArray] = []
    kept: list[int] = []
    bad: list[BadImage] = []
    first: tuple[str, tuple[int, ...]] | None = None
    position = 0
    # Held open for the whole pass, so that the threads do not wait for each other at its lock.
    with quiet_pillow(), ThreadPoolExecutor(num_threads) as executor:
        for ids, results in _map_chunks(executor, iter(items), settings, max_pending=4 * num_threads):
            good: list[NDArray] = []
            for sample_id, result in zip(ids, results, strict=True):
                if isinstance(result, str):
                    bad.append(BadImage(sample_id, result))
                else:
                    first = first or (sample_id, result.shape)
                    check_same_size(first, (sample_id, result.shape))
                    good.append(result)
                    kept.append(position)
                position += 1
            if good:
                images.append(np.stack(good))
    if not images:
        side = settings.image_size or 0
        return np.empty((0, settings.channels, side, side), np.uint8), kept, bad
    return np.concatenate(images), kept, bad


def count_threads() -> int:
    """Threads that decode: some of them wait for files."""
    return min(32, (os.cpu_count() or 1) + 4)


def check_same_size(first: tuple[str, tuple[int, ...]], other: tuple[str, tuple[int, ...]]) -> None:
    """`ValueError` where two images, by id and shape (C, H, W), differ in size, which data.image_size would mend."""
    if first[1] != other[1]:
        sizes = [f"{shape[2]}x{shape[1]}" for _, shape in (first, other)]
        raise ValueError(
            f"data.image_size=null: images differ in size ({first[0]} is {sizes[0]}, {other[0]} is {sizes[1]}); "
            "set the side to resize them to, as data.image_size=32"
        )


def _map_chunks(
    executor: ThreadPoolExecutor, items: Iterator[tuple[str, Payload]], settings: DecodeSettings, *, max_pending: int
) -> Iterator[tuple[list[str], list[NDArray | str]]]:
    """Like `executor.map` over chunks of the items, but reading at most `max_pending` chunks ahead."""
    pending: deque[tuple[list[str], Future[list[NDArray | str]]]] = deque()
    while chunk := list(islice(items, _CHUNK_SIZE)):
        payloads = [payload for _, payload in chunk]
        pending.append(([name for name, _ in chunk], executor.submit(_decode_chunk, payloads, settings)))
        if len(pending) >= max_pending:
            ids, future = pending.popleft()
            yield ids, future.result()
    while pending:
        ids, future = pending.popleft()
        yield ids, future.result()


def _decode_chunk(payloads: list[Payload], settings: DecodeSettings) -> list[NDArray | str]:
    return [decode_or_reason(payload, settings) for payload in payloads]
