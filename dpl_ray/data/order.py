"""Which samples make up the global batch of a step: a function of seed and step, and of nothing else.

So the order does not depend on the number of workers, needs no state to resume, and any step can be asked for.
"""

from __future__ import annotations

from enum import IntEnum
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray


class RandomStream(IntEnum):
    """Independent sources of randomness below one seed."""

    ORDER_LABELED = 0
    ORDER_UNLABELED = 1
    VIEWS_LABELED = 2
    VIEWS_UNLABELED = 3
    VIEWS_STRONG = 4
    LAYERS = 5
    WINDOWS = 6


@lru_cache(maxsize=8)
def _permutation(size: int, seed: int, stream: RandomStream, number: int) -> NDArray[np.int64]:
    order = np.random.default_rng([seed, stream, number]).permutation(size)
    order.setflags(write=False)
    return order


def sample_order(size: int, batch_size: int, step: int, seed: int, stream: RandomStream) -> NDArray[np.int64]:
    """Indices, (batch_size,) int64, of the samples in the global batch of `step`.

    The samples 0..size-1 are passed through in a new permutation each time, batches running on from one pass into
    the next, so that after p passes every sample was drawn exactly p times.
    """
    positions = np.arange(step * batch_size, (step + 1) * batch_size)
    passes, places = np.divmod(positions, size)
    return np.concatenate(
        [_permutation(size, seed, stream, int(number))[places[passes == number]] for number in np.unique(passes)]
    )


def view_uniforms(num_rows: int, num_columns: int, step: int, seed: int, stream: RandomStream) -> NDArray[np.float32]:
    """(num_rows, num_columns) float32 in [0, 1): the parameters of the views of a whole global batch."""
    return np.random.default_rng([seed, stream, step]).random((num_rows, num_columns), dtype=np.float32)


def layer_seed(seed: int, step: int, rank: int) -> int:
    """Seed of the layers that draw (dropout), of one worker in one step."""
    return int(np.random.SeedSequence([seed, RandomStream.LAYERS, step, rank]).generate_state(1)[0])
