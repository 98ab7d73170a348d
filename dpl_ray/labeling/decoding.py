"""Reading and decoding one block of a pool, in processes that do without torch.

Legend: N images, C channels, S pixels a side, D features.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dpl_ray.data.images.convert import DecodeSettings
from dpl_ray.data.images.decode_many import decode_many
from dpl_ray.labeling.plan import Plan


@dataclass(frozen=True)
class DecodedBlock:
    """A block ready for the model."""

    number: int
    images: NDArray  # (N, C, S, S) uint8 those that could be decoded, or stored features (N, 1, 1, D) float16
    kept: NDArray[np.int64]  # (N,) their rows in the block
    errors: dict[int, str]  # row -> reason, of all others


def decode_block(plan: Plan, block: int, settings: DecodeSettings, num_threads: int | None = None) -> DecodedBlock:
    """Read and decode a block; it never fails for what is in the files."""
    images, kept, bad = decode_many(plan.read(block), settings, num_threads=num_threads)
    missing = sorted(set(range(plan.num_rows(block))) - set(kept))
    errors = {row: image.reason for row, image in zip(missing, bad, strict=True)}
    return DecodedBlock(block, images, np.array(kept, np.int64), errors)
