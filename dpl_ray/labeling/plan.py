"""How the labelling of a pool is cut up: inputs, each with a manifest when it is done, and their blocks.

An *input* is a shard, or a run of image files. A *block* is a run of rows of a shard (of a parquet file, whole row
groups where they are small enough), or of image files; its labels are one part of the output. Files, inputs and blocks
keep their numbers: what is new in the pool is appended. What is held of the plan is a few numbers a file and a block.
"""

from __future__ import annotations

import hashlib
import io
import math
import re
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from operator import methodcaller
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pyarrow import ipc

from dpl_ray.data.features.rows import FeatureFiles
from dpl_ray.data.files.reordered import Reordered
from dpl_ray.data.files.shards import are_shards, is_shard
from dpl_ray.data.files.walk import Files
from dpl_ray.data.formats.rows import PoolFiles
from dpl_ray.data.images.decode import Payload
from dpl_ray.store.records import OTHER

BLOCKS_PER_INPUT = 16  # of image files
#: Blocks that a pool is cut into where each then has LEAST_ROWS: of few, actors wait long for the last one of another.
MANY_BLOCKS, LEAST_ROWS = 128, 1024
ARROW_END, CHECKSUM_BYTES = b"ARROW1", 16  # of Arrow's file, and of the checksum after it
_PART = re.compile(r"part-(\d+)-(\d+)\.parquet")
_FILES_AT_A_TIME = 65_536
_SCHEMA = pa.schema(
    {
        "path": pa.large_string(),
        "size": pa.int64(),
        "num_rows": pa.int64(),
        "input": pa.int64(),
        "blocks": pa.list_(pa.int64()),
    }
)
MAX_DECODED_BYTES = 64 * 2**20  # of a block


@dataclass(frozen=True)
class Plan:
    """Legend: F files, I inputs, K blocks."""

    pool: PoolFiles  # in the order in which files came in; its spans are the blocks: first file, first row, rows
    file_inputs: NDArray[np.int64]  # (F,) rising
    block_inputs: NDArray[np.int64]  # (K,) rising

    def __len__(self) -> int:
        """Rows of the pool."""
        return len(self.pool)

    @property
    def num_inputs(self) -> int:
        return int(self.file_inputs[-1]) + 1 if len(self.file_inputs) else 0

    @property
    def num_blocks(self) -> int:
        return len(self.block_inputs)

    @cached_property
    def _first_blocks(self) -> NDArray[np.int64]:
        return np.searchsorted(self.block_inputs, np.arange(self.num_inputs + 1))

    @cached_property
    def _first_files(self) -> NDArray[np.int64]:
        return np.searchsorted(self.file_inputs, np.arange(self.num_inputs + 1))

    def blocks_of(self, number: int) -> range:
        """The blocks of an input; an empty shard has none."""
        return range(*self._first_blocks[number : number + 2].tolist())

    def files_of(self, number: int) -> range:
        return range(*self._first_files[number : number + 2].tolist())

    def input_name(self, number: int) -> str:
        files = self.files_of(number)
        last = f" ... {self.pool.name(files[-1])}" if len(files) > 1 else ""
        return self.pool.name(files[0]) + last

    def input_of(self, block: int) -> int:
        return int(self.block_inputs[block])

    def num_rows(self, block: int) -> int:
        return int(self.pool.spans[block, 2])

    def part_name(self, block: int) -> str:
        number = self.input_of(block)
        return part_name(number, block - int(self._first_blocks[number]))

    def block_named(self, part: str) -> int | None:
        """The block whose part is called so; None where no part is."""
        found = _PART.fullmatch(part)
        number, index = map(int, found.groups()) if found else (self.num_inputs, 0)
        blocks = self.blocks_of(number) if number < self.num_inputs else range(0)
        return blocks[index] if index < len(blocks) and part == part_name(number, index) else None

    def read(self, block: int) -> list[tuple[str, Payload]]:
        """Sample id and encoded image, or features, of each row of a block; no image file is read here."""
        file, first, count = self.pool.spans[block].tolist()
        if is_shard(self.pool.paths[file].as_py()):
            return [(sample_id, payload) for sample_id, payload, _ in self.pool.read(file, first, count)]
        return [row[:2] for number in range(file, file + count) for row in self.pool.read(number, 0, 1)]

    def sample_ids(self, block: int) -> list[str]:
        file, first, count = self.pool.spans[block].tolist()
        if is_shard(self.pool.paths[file].as_py()):
            return self.pool.names(file, np.arange(first, first + count))
        return [self.pool.name(number) for number in range(file, file + count)]

    def to_bytes(self) -> bytes:
        """One row a file, in Arrow's IPC format, and a checksum; a block stands at its first file."""
        sink, spans, pool = io.BytesIO(), self.pool.spans, self.pool
        with ipc.new_file(sink, _SCHEMA, options=ipc.IpcWriteOptions(compression="zstd")) as writer:
            for start in range(0, len(pool.paths), _FILES_AT_A_TIME):
                some = slice(start, start + _FILES_AT_A_TIME)
                files = np.arange(start, start + len(pool.sizes[some]) + 1)
                ends = np.searchsorted(spans[:, 0], files)
                rows = pa.array(spans[ends[0] : ends[-1], 2])
                blocks = pa.ListArray.from_arrays(pa.array((ends - ends[0]).astype(np.int32)), rows)
                numbers = [pa.array(each[some]) for each in (pool.sizes, pool.num_rows, self.file_inputs)]
                writer.write_batch(pa.record_batch([pool.paths[some], *numbers, blocks], schema=_SCHEMA))
        with sink.getbuffer() as written:
            checksum = _checksum(written)
        sink.write(checksum)
        return sink.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes, like: PoolFiles) -> Plan:
        """What `to_bytes` gave, of files that are read as those of the pool are.

        What the pool knows of its files is not held a second time.
        """
        view = memoryview(data)
        if not data.endswith(ARROW_END):  # one of an older version has no checksum
            view, checksum = view[:-CHECKSUM_BYTES], view[-CHECKSUM_BYTES:]
            if checksum != _checksum(view):
                raise ValueError(OTHER)
        reader = ipc.open_file(pa.py_buffer(view))
        files, order, others = 0, None, _Others()  # no order as long as they are the first ones of the pool
        inputs, num_blocks, rows = (bytearray() for _ in range(3))
        for number in range(reader.num_record_batches):
            for batch in pa.Table.from_batches([reader.get_batch(number)]).to_batches(_FILES_AT_A_TIME):
                names, sizes, counts = (batch[name] for name in ("path", "size", "num_rows"))
                facts = names.cast(pa.large_string()), sizes.to_numpy(), counts.to_numpy()
                same = slice(files, files + len(batch))
                if order is None and not _are_same(facts, [part[same] for part in _facts(like)]):
                    order = bytearray(np.arange(files, dtype=np.int32).tobytes())
                if order is not None:
                    order += others.places(like, *facts).tobytes()
                files += len(batch)
                inputs += batch["input"].to_numpy().tobytes()
                num_blocks += batch["blocks"].value_lengths().to_numpy().tobytes()
                rows += batch["blocks"].flatten().to_numpy().tobytes()
        if not files:
            return empty_plan(like)
        blocks_of, counts = np.frombuffer(num_blocks, np.int32), np.frombuffer(rows, np.int64)
        with_blocks = np.flatnonzero(blocks_of)
        of_blocks = np.repeat(with_blocks, blocks_of[with_blocks])
        # Rows of a shard start at 0 and follow each other; a block of other files starts at its first.
        starts = np.cumsum(counts) - counts
        firsts = starts - starts[np.searchsorted(of_blocks, of_blocks)] if len(counts) else starts
        if order is None:
            paths, sizes, num_rows = (part[:files] for part in _facts(like))
        else:
            paths, sizes, num_rows = others.after(like, np.frombuffer(order, np.int32))
        pool = replace(empty_plan(like).pool, paths=paths, sizes=sizes, num_rows=num_rows)
        spans = np.stack([of_blocks, firsts, counts], axis=1).reshape(-1, 3)
        file_inputs = np.frombuffer(inputs, np.int64)
        return cls(replace(pool, spans=spans), file_inputs, file_inputs[of_blocks])


def _facts(pool: PoolFiles) -> tuple[Any, Any, Any]:
    """What is known of the files of a pool: path, bytes and rows of each, (F,)."""
    return pool.paths, pool.sizes, pool.num_rows


def _are_same(facts: Sequence[Any], others: Sequence[Any]) -> bool:
    paths, *numbers = zip(facts, others, strict=True)
    return paths[0].equals(paths[1]) and all(np.array_equal(*pair) for pair in numbers)


class _Others:
    """Files of a plan that its pool has not, or has otherwise."""

    def __init__(self) -> None:
        self._files, self._num_rows = Files(), bytearray()

    def places(
        self, listed: PoolFiles, paths: pa.LargeStringArray, sizes: NDArray[np.int64], num_rows: NDArray[np.int64]
    ) -> NDArray[np.int32]:
        """(N,) where in the pool each of these files is; behind its end, among the others, where it is not."""
        places = np.full(len(paths), -1, np.int32)
        for at, mine in _matches(listed.paths, paths):
            are_same = (listed.sizes.take(at) == sizes[mine]) & (listed.num_rows.take(at) == num_rows[mine])
            places[mine[are_same]] = at[are_same]
        missing = np.flatnonzero(places < 0)
        places[missing] = len(listed.paths) + len(self._num_rows) // 8 + np.arange(len(missing))
        self._files.add(paths.take(missing), sizes[missing])
        self._num_rows += num_rows[missing].tobytes()
        return places

    def after(self, listed: PoolFiles, order: NDArray[np.int32]) -> tuple[Any, Any, Any]:
        """The facts of files in this order, of which those of the pool are not copied."""
        others = (*self._files.arrays(), np.frombuffer(self._num_rows, np.int64))
        paths, sizes, num_rows = (Reordered(*pair, order) for pair in zip(_facts(listed), others, strict=True))
        return paths, sizes, num_rows


def _checksum(data: bytes | memoryview) -> bytes:
    return hashlib.blake2b(data, digest_size=CHECKSUM_BYTES).digest()


def part_name(number: int, index: int) -> str:
    """Of the part of a block, by the number of its input and its place in that."""
    return f"part-{number:06d}-{index:05d}.parquet"


def empty_plan(like: PoolFiles) -> Plan:
    """Without a file of the pool, whose location and columns it keeps."""
    nothing = np.zeros(0, np.int64)
    pool = replace(
        like,
        paths=pa.array([], pa.large_string()),
        sizes=nothing,
        num_rows=nothing,
        spans=nothing.reshape(0, 3),
        labels=None,
        gone={},
        unopened=(),
        left_out=Counter(),
    )
    return Plan(pool, nothing, nothing)


def extend_plan(plan: Plan, listed: PoolFiles, max_rows: int) -> Plan:
    """The plan with what is new in the pool; files that are gone stay.

    Args:
        max_rows: of a block; the blocks of a small pool have fewer (`usual_rows`).

    Raises:
        ValueError: a file has another size than when it was planned.
    """
    planned, are_new = len(plan.pool.paths), np.ones(len(listed.paths), bool)
    order = np.full(planned, -1, np.int32)
    for at, before in _matches(listed.paths, plan.pool.paths):
        then = plan.pool.sizes.take(before)
        for changed in np.flatnonzero(then != listed.sizes[at])[:1].tolist():
            file = int(at[changed])
            raise listed.location.error(
                f"{listed.name(file)} has changed since it was planned ({then[changed]:,} bytes then, "
                f"{listed.sizes[file]:,} now); take another output"
            )
        are_new[at], order[before] = False, at
    new = np.flatnonzero(are_new)
    if not len(new):
        return plan
    # Image files follow each other, so that a block of them is a range.
    are_new_shards = are_shards(listed.paths)[new]
    num_shards = int(are_new_shards.sum())
    taken = np.concatenate([new[are_new_shards], new[~are_new_shards]]) if 0 < num_shards < len(new) else new
    number, place, usual = plan.num_inputs, planned, usual_rows(listed, max_rows)
    spans: list[tuple[int, int, int]] = []
    firsts = np.searchsorted(listed.spans[:, 0], [taken[:num_shards], taken[:num_shards] + 1]).T.tolist()
    for index, (start, stop) in enumerate(firsts):
        first = 0
        for count in cut_rows(listed.spans[start:stop, 2].tolist(), usual, max_rows):
            spans.append((place + index, first, count))
            first += count
    shard_spans = np.array(spans, np.int64).reshape(-1, 3)
    num_others = len(taken) - num_shards
    starts = np.arange(0, num_others, usual)
    counts = np.minimum(usual, num_others - starts)
    other_spans = np.stack([place + num_shards + starts, np.zeros_like(starts), counts], axis=1)
    per_input = BLOCKS_PER_INPUT * usual
    block_inputs = number + np.concatenate([shard_spans[:, 0] - place, num_shards + starts // per_input])
    first_input = number + num_shards
    of_others = np.repeat(np.arange(first_input, first_input + -(-num_others // per_input)), per_input)[:num_others]
    file_inputs = [plan.file_inputs, np.arange(number, first_input), of_others]
    paths, sizes, num_rows = _facts(listed)
    if planned or taken is not new:  # else they are in the order of the listing
        gone = np.flatnonzero(order < 0)
        order[gone] = len(listed.paths) + np.arange(len(gone))
        order = np.concatenate([order, taken.astype(np.int32)])
        others = [part.take(gone) for part in _facts(plan.pool)]
        paths, sizes, num_rows = (Reordered(*pair, order) for pair in zip(_facts(listed), others, strict=True))
    pool = replace(
        plan.pool,
        spans=np.concatenate([plan.pool.spans, shard_spans, other_spans]),
        paths=paths,
        sizes=sizes,
        num_rows=num_rows,
    )
    return Plan(
        pool,
        np.concatenate(file_inputs),
        np.concatenate([plan.block_inputs, block_inputs]),
    )


def _matches(
    paths: pa.LargeStringArray, known: pa.LargeStringArray
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Indices among the paths, which are sorted, and among the known ones, of those that are in both.

    A table of some known ones is held at a time. These are mostly sorted too, and are looked for between the least and
    the greatest of them alone.
    """
    for start in range(0, len(known), _FILES_AT_A_TIME):
        some = known[start : start + _FILES_AT_A_TIME]
        ends = pc.min_max(some)
        low = bisect_left(paths, ends["min"].as_py(), key=methodcaller("as_py"))
        high = bisect_right(paths, ends["max"].as_py(), key=methodcaller("as_py"))
        found = pc.index_in(paths[low:high], value_set=some).fill_null(-1).to_numpy()
        both = np.flatnonzero(found >= 0)
        yield low + both, start + found[both]


def usual_rows(listed: PoolFiles, max_rows: int) -> int:
    """Rows of a block that is made of smaller pieces, by the rows of the whole pool.

    Stored features have max_rows: thousands of them take less time than a task and a file.
    """
    if isinstance(listed, FeatureFiles):
        return max_rows
    return min(max_rows, max(LEAST_ROWS, len(listed) // MANY_BLOCKS))


def cut_rows(spans: list[int], usual: int, max_rows: int) -> list[int]:
    """Rows of each block: as many whole spans as are no more than usual together, or one span.

    A span of more than max_rows is cut into equal shares, as few as may be: it is read once for each of them.
    """
    blocks: list[int] = []
    together = 0
    for count in spans:
        if together and together + count > usual:
            blocks.append(together)
            together = 0
        if count <= max_rows:
            together += count
            continue
        shares = math.ceil(count / max_rows)
        blocks += [count * (share + 1) // shares - count * share // shares for share in range(shares)]
    return [*blocks, together] if together else blocks


def rows_per_block(wanted: int, bytes_per_row: int) -> int:
    """Rows of a block: those wanted, or as many as MAX_DECODED_BYTES holds of decoded images, or features, so large."""
    return max(1, min(wanted, MAX_DECODED_BYTES // bytes_per_row))
