"""Pools that do not fit into memory: which rows a step takes, and reading them a window at a time.

The rows of the pool make an endless sequence of passes. In each pass the spans of all files come in a new order, and
the rows of a span follow each other. The sequence is cut into windows of `steps` global batches, and these into
chunks, one for each labelled image of a batch; a chunk is shuffled, and every step of the window takes the next mu
rows of each. So, as for a pool in memory, what a step takes is a function of seed and step: it does not depend on the
number of workers, every image is taken once a pass, and a run goes on exactly where it stopped.

    window   |<--------------------- batch_size * mu * steps rows ---------------------->|
    workers  |<----------------- 0 ----------------->|<---------------- 1 -------------->|
    chunks   | mu * steps | mu * steps |     ...     |
                  shuffled, mu rows a step

A worker reads its share of a window, rows that follow each other in the files, and holds it until its steps are done.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import groupby
from operator import itemgetter
from typing import Any, NamedTuple, TypedDict

import numpy as np
from numpy.typing import NDArray

from dpl_ray.config.schema import Config
from dpl_ray.data.dataset import BadImage
from dpl_ray.data.formats.rows import PoolFiles, Rows
from dpl_ray.data.images.convert import DecodeSettings
from dpl_ray.data.images.decode_many import decode_many
from dpl_ray.data.labels import label_indices
from dpl_ray.data.order import RandomStream

MAX_WINDOWS_WITHOUT_AN_IMAGE = 64


class UnreadablePoolError(RuntimeError):
    """A worker finds no image to go on with."""


class Taken(NamedTuple):
    """Rows of the sequence of passes, decoded, without those that cannot be read: K of the rows that were asked for."""

    images: NDArray[Any]  # (K, C, S, S) uint8, or (K, 1 + 2 V, 1, D) float16 of features
    ids: NDArray[np.int64]  # (K,)
    targets: NDArray[np.int64]  # (K,) UNLABELED where unknown
    kept: NDArray[np.int64]  # (K,) their places among the rows that were asked for
    bad: list[BadImage]  # the others, in order


@dataclass(frozen=True, eq=False)
class StreamedPool:
    """A pool that is read while it is trained on. A sample's id is its number among the rows, file after file."""

    parts: tuple[PoolFiles, ...]
    settings: DecodeSettings
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    @cached_property
    def _first_ids(self) -> NDArray[np.unsignedinteger]:
        """(S + 1,) id of the first row of each span, and of one that would follow; few bytes of each image file."""
        counts = np.concatenate([np.empty(0, np.int64), *(part.spans[:, 2] for part in self.parts)])
        first_ids = np.zeros(1 + len(counts), np.min_scalar_type(len(self)))
        np.cumsum(counts, out=first_ids[1:])
        return first_ids

    def span_of(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """The span of each of these ids."""
        return np.searchsorted(self._first_ids, ids.astype(self._first_ids.dtype), side="right") - 1

    def span(self, number: int) -> tuple[int, int, int, int, int]:
        """Part, file, first row, number of rows, and id of the first row."""
        first_id = int(self._first_ids[number])
        part = 0
        while number >= len(self.parts[part].spans):
            number, part = number - len(self.parts[part].spans), part + 1
        file, first, rows = self.parts[part].spans[number].tolist()
        return part, file, first, rows, first_id

    def order(self, number: int, seed: int) -> tuple[NDArray[np.unsignedinteger], NDArray[np.unsignedinteger]]:
        """Order (S,) of the spans in a pass, and the place (S,) in the pass at which each of these ends."""
        stream = [seed, RandomStream.ORDER_UNLABELED, number]
        num_spans = len(self._first_ids) - 1
        order = np.random.default_rng(stream).permutation(num_spans).astype(np.min_scalar_type(num_spans))
        ends = self._first_ids[1:][order]
        ends -= self._first_ids[:-1][order]
        return order, np.cumsum(ends, out=ends)

    def ids_ending(self, text: str) -> list[str]:
        """Sample ids of the pool that are the text, or end with it."""
        return [sample_id for part in self.parts for sample_id in part.ids_ending(text)]

    def fingerprint(self) -> str:
        """Hex digest of names, sizes and rows: pixels are not read for it."""
        return hashlib.blake2b("".join(part.fingerprint() for part in self.parts).encode(), digest_size=16).hexdigest()

    def bytes_per_image(self) -> int:
        """Decoded."""
        assert self.settings.image_size is not None, "checked where the pool is made"
        return self.settings.channels * self.settings.image_size**2

    def names(self, ids: NDArray[np.int64]) -> list[str]:
        """The sample ids of the files, of these ids."""
        names = []
        for number, run in groupby(zip(self.span_of(ids).tolist(), ids.tolist(), strict=True), itemgetter(0)):
            part, file, first, _, first_id = self.span(number)
            names += self.parts[part].names(file, np.array([first + number - first_id for _, number in run]))
        return names

    def take(self, start: int, count: int, seed: int, *, num_threads: int | None = None) -> Taken:
        """Rows start .. start + count - 1 of the sequence of passes, decoded.

        Args:
            num_threads: that decode what is read already (of shards); files are always read by several.
        """
        rows, ids = self.read(start, count, seed)
        waits = any(callable(payload) for _, payload, _ in rows)
        images, places, bad = decode_many(
            [row[:2] for row in rows], self.settings, num_threads=None if waits else num_threads
        )
        kept = np.array(places, np.int64)
        targets = label_indices([rows[place][2] for place in places], self.class_names)
        return Taken(images, ids[kept], targets, kept, bad)

    def read(self, start: int, count: int, seed: int) -> tuple[Rows, NDArray[np.int64]]:
        """Rows start .. start + count - 1 of the sequence of passes, encoded, and their ids (count,)."""
        rows: Rows = []
        ids = []
        for part, file, first, taken, first_id in self.places(start, count, seed):
            rows += self.parts[part].read(file, first, taken)
            ids.append(np.arange(first_id, first_id + taken))
        return rows, np.concatenate(ids)

    def places(self, start: int, count: int, seed: int) -> list[tuple[int, int, int, int, int]]:
        """Part, file, first row, number of rows and first id of what follows each other in the sequence of passes."""
        found = []
        while count:
            number, place = divmod(start, len(self))
            order, ends = _pass(self, number, seed)
            index = int(np.searchsorted(ends, ends.dtype.type(place), side="right"))
            part, file, first, rows, first_id = self.span(int(order[index]))
            skipped = place - (int(ends[index]) - rows)
            taken = min(rows - skipped, count)
            found.append((part, file, first + skipped, taken, first_id + skipped))
            start, count = start + taken, count - taken
        return found


@lru_cache(maxsize=2)  # a window may lie in two
def _pass(pool: StreamedPool, number: int, seed: int) -> tuple[NDArray[np.unsignedinteger], ...]:
    return pool.order(number, seed)


@dataclass(frozen=True)
class Windows:
    """How the sequence is cut; sizes are global, and do not depend on the number of workers."""

    batch_size: int
    mu: int
    steps: int  # global batches in a window
    seed: int
    ahead: int | None = None  # windows read in advance where Ray reads; says nothing of what is in them

    @classmethod
    def from_config(cls, config: Config) -> Windows:
        train = config.train
        num_unlabeled = train.batch_size * train.mu
        pool = config.data.pool
        return cls(
            train.batch_size, train.mu, max(1, pool.shuffle_rows // num_unlabeled), train.seed, pool.windows_ahead
        )

    @property
    def rows(self) -> int:
        return self.batch_size * self.mu * self.steps

    def order(self, number: int, rank: int, world_size: int) -> NDArray[np.int64]:
        """(steps, U) places in a worker's share of the window that each step takes; U = mu * batch_size / workers."""
        share = self.batch_size // world_size  # chunks
        length = self.mu * self.steps
        columns = []
        for index in range(share):
            chunk = [self.seed, RandomStream.WINDOWS, number, rank * share + index]
            order = np.random.default_rng(chunk).permutation(length)
            columns.append(index * length + order.reshape(self.steps, self.mu))
        return np.concatenate(columns, axis=1)


class WindowRows(TypedDict):
    """A worker's share of a window, decoded: R rows, in the order of the files.

    The place of an image that cannot be read is taken by another one of its chunk, so that batches stay whole, and do
    not depend on the number of workers.
    """

    images: NDArray[Any]  # (R, C, S, S) uint8, or (R, 1 + 2 V, 1, D) float16 of features
    ids: NDArray[np.int64]  # (R,)
    targets: NDArray[np.int64]  # (R,) UNLABELED where unknown: for the records alone
    bad: NDArray[np.str_]  # (R,) sample id of the image that cannot be read at this place, else ""
    reasons: NDArray[np.str_]  # (R,)


def read_window(
    pool: StreamedPool, windows: Windows, number: int, rank: int, world_size: int, *, num_threads: int | None = None
) -> WindowRows:
    """Read and decode a worker's share of a window.

    Args:
        num_threads: as of `StreamedPool.take`.

    Raises:
        UnreadablePoolError: there is no readable image in a chunk of it, nor in those of the windows that follow.
    """
    size = windows.rows // world_size
    start = number * windows.rows + rank * size
    taken = pool.take(start, size, windows.seed, num_threads=num_threads)
    reasons = np.full(size, "", dtype=object)
    names = reasons.copy()
    bad = taken.bad
    if not bad:
        return WindowRows(images=taken.images, ids=taken.ids, targets=taken.targets, bad=names, reasons=reasons)
    unreadable = np.setdiff1d(np.arange(size), taken.kept)
    names[unreadable] = [image.id for image in bad]
    reasons[unreadable] = [image.reason for image in bad]
    length, parts = windows.mu * windows.steps, [taken]
    filled = np.full(size, -1)
    filled[taken.kept] = np.arange(len(taken.kept))
    for first in np.unique(unreadable // length) * length:
        chunk = filled[first : first + length]
        others = chunk[chunk >= 0]
        if not len(others):
            parts.append(_following(pool, windows, start + int(first)))
            others = sum(len(part.ids) for part in parts[:-1]) + np.arange(len(parts[-1].ids))
        chunk[chunk < 0] = np.resize(others, int(np.sum(chunk < 0)))
    images, ids, targets = (np.concatenate([part[index] for part in parts])[filled] for index in range(3))
    return WindowRows(images=images, ids=ids, targets=targets, bad=names, reasons=reasons)


def _following(pool: StreamedPool, windows: Windows, start: int) -> Taken:
    """What can be read of the same chunk in the windows that follow: nothing of the one at `start` can."""
    length = windows.mu * windows.steps
    for number in range(1, MAX_WINDOWS_WITHOUT_AN_IMAGE + 1):
        taken = pool.take(start + number * windows.rows, length, windows.seed)
        if len(taken.ids):
            return taken
    listed = ", ".join(f"{image.id} ({image.reason})" for image in taken.bad[:3])
    raise UnreadablePoolError(f"none of {length} images of the pool that follow each other can be read, as {listed}")


WindowReader = Callable[[StreamedPool, Windows, range, int, int], Generator[WindowRows, None, None]]
"""(pool, windows, numbers, rank, world_size) -> the worker's shares of the windows of these numbers, in order."""


def read_here(
    pool: StreamedPool, windows: Windows, numbers: range, rank: int, world_size: int
) -> Generator[WindowRows, None, None]:
    """The `WindowReader` of this process, without Ray."""
    for number in numbers:
        yield read_window(pool, windows, number, rank, world_size)


class PoolFeed:
    """A worker's rows of each step, which have to be asked for one step after the other.

    At most two windows' shares are held here: the one that is used and, read in a thread, the next one.
    """

    def __init__(
        self,
        pool: StreamedPool,
        windows: Windows,
        *,
        first_step: int,
        num_steps: int,
        rank: int = 0,
        world_size: int = 1,
        read: WindowReader = read_here,
    ) -> None:
        """
        Args:
            first_step: the first that will be asked for: 0, or where a run goes on.
            num_steps: none will be asked for from this one on.
        """
        self.windows, self.rank, self.world_size = windows, rank, world_size
        self.pool_size = len(pool)
        self._bad: list[BadImage] = []
        self._next = first_step // windows.steps
        self._last = -(-num_steps // windows.steps)
        self._source = read(pool, windows, range(self._next, self._last), rank, world_size)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="pool")
        self._coming: Future[WindowRows | None] = self._thread.submit(next, self._source, None)
        self._rows: WindowRows | None = None
        self._order = np.empty((0, 0), np.int64)

    def __call__(self, step: int) -> tuple[NDArray[Any], NDArray[np.int64], NDArray[np.int64]]:
        """Images (U, C, S, S) or features (U, 1 + 2 V, 1, D), ids (U,), targets (U,): this worker's share of a step."""
        number, index = divmod(step, self.windows.steps)
        while self._next <= number:
            self._advance()
        assert self._rows is not None, "asked for within num_steps"
        assert number == self._next - 1, "steps are asked for in order"
        rows = self._order[index]
        return self._rows["images"][rows], self._rows["ids"][rows], self._rows["targets"][rows]

    def _advance(self) -> None:
        self._rows = self._coming.result()
        self._order = self.windows.order(self._next, self.rank, self.world_size)
        self._next += 1
        if self._next < self._last:
            self._coming = self._thread.submit(next, self._source, None)
        if self._rows is not None:
            found = zip(self._rows["bad"], self._rows["reasons"], strict=True)
            self._bad += [BadImage(str(name), str(reason)) for name, reason in found if reason]

    def take_bad(self) -> list[BadImage]:
        """Images that could not be read, and files that are none, found since the last call."""
        found, self._bad = self._bad, []
        return found

    def close(self) -> None:
        """Stop reading; waits for the share that is on its way."""
        self._thread.shutdown(wait=True, cancel_futures=True)
        self._source.close()
