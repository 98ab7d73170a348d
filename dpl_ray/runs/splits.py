"""Which labelled images a run is trained on, and which it holds out: `splits.parquet` in its folder.

A row for each image of the two: id, split (labelled, validation), pixels (a hash; of stored features, of these).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from dpl_ray.data.dataset import ImageSet, Splits
from dpl_ray.data.splits.copies import hashes_of
from dpl_ray.store.records import OTHER, damaged
from dpl_ray.store.storage import Storage

SPLITS_FILE = "splits.parquet"
CHECKSUM = b"dpl_ray.checksum"  # of the schema's metadata


@dataclass(frozen=True)
class KnownSplit:
    """The N images of a split, as the run has kept them."""

    ids: NDArray[np.object_]  # (N,) bytes
    pixels: NDArray[np.uint64]  # (N,) hashes

    def has(self, part: ImageSet) -> NDArray[np.bool_]:
        """(M,) whether each of M images is one of these: the same pixels, or the same file (this may have features)."""
        return np.isin(hashes_of(part), self.pixels) | np.isin(_as_bytes(part), self.ids)


def write_splits(folder: Storage, splits: Splits) -> None:
    """Keep the images of a run in its folder."""
    parts = {"labelled": splits.labeled, "validation": splits.validation}
    table = pa.table(
        {
            "id": pa.array(np.concatenate([_as_bytes(part) for part in parts.values()]), pa.binary()),
            "split": pa.array(np.repeat(list(parts), list(map(len, parts.values())))),
            "pixels": np.concatenate([hashes_of(part) for part in parts.values()]),
        }
    )
    sink = pa.BufferOutputStream()
    pq.write_table(table.replace_schema_metadata({CHECKSUM: _checksum(table)}), sink)
    (folder / SPLITS_FILE).write(sink.getvalue())


def read_splits(run: Storage) -> dict[str, KnownSplit] | None:
    """Split -> its images, from the folder of a run; None where that has kept none.

    Older versions kept none; the same training command, started again, writes the file.

    Raises:
        ValueError: the file is not as it was written.
    """
    file = run / SPLITS_FILE
    if not file.exists():
        return None
    data = file.read()
    try:
        table = pq.read_table(pa.BufferReader(data))
        ids, pixels, of = (table[name].to_numpy() for name in ("id", "pixels", "split"))
        if (table.schema.metadata or {}).get(CHECKSUM, checksum := _checksum(table)) != checksum:
            raise ValueError(OTHER)
    except (OSError, LookupError, ValueError, pa.ArrowException) as error:
        raise damaged(file, error, "remove it: the same training command writes it anew") from None
    return {name: KnownSplit(ids[of == name], pixels[of == name]) for name in ("labelled", "validation")}


def _checksum(table: pa.Table) -> bytes:
    """Of what is in it, which is the same however it is written."""
    digest = hashlib.blake2b(digest_size=8)
    for column in table.columns:
        digest.update(repr(column.to_pylist()).encode())
    return digest.hexdigest().encode()


def _as_bytes(part: ImageSet) -> NDArray[np.object_]:
    """(N,) ids: names of files need not be text."""
    return np.array([sample_id.encode(errors="surrogateescape") for sample_id in part.ids.tolist()], object)
