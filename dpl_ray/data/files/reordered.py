"""Values of files in another order than that of their listing, which holds them: a pool may have 10⁷ paths."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray


class Reordered:
    """Of two arrays, of NumPy or of pyarrow, whose values are not copied; what is taken of it is an array."""

    def __init__(self, listed: Any, others: Any, order: NDArray[np.int32]) -> None:
        """
        Args:
            others: those that the listing has not.
            order: (F,) the place of each value among the listed ones, and the others behind them.
        """
        self._listed, self._others, self._order = listed, others, order

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return self.take(np.arange(*index.indices(len(self))))
        return self.take(np.array([index]))[0]

    def take(self, indices: NDArray[np.int64]) -> Any:
        """The values at these indices."""
        order = self._order[indices]
        beyond = order >= len(self._listed)
        parts = [self._listed.take(order[~beyond]), self._others.take(order[beyond] - len(self._listed))]
        whole = np.concatenate(parts) if isinstance(parts[0], np.ndarray) else pa.concat_arrays(parts)
        return whole.take(np.argsort(np.argsort(beyond, kind="stable")))
