"""What a model says of images, for use: names, confidences, probabilities, and a table of them.

Legend: N images, C classes.
"""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from os import PathLike, fspath
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dpl_ray.store.records import csv_text
from dpl_ray.store.storage import Storage

if TYPE_CHECKING:
    from pandas import DataFrame

COLUMNS = ("path", "label", "confidence", "runner_up", "runner_up_confidence", "error")
_MAX_SHOWN = 20  # rows in a notebook
_MAX_NAMED = 5  # classes in a line


class Predictions:
    """What a model says of N images, in the order in which they were given.

    Attributes:
        ids: (N,) path, `file.parquet:row`, or for an image that has neither its place among those given.
        probabilities: (N, C) float32, the rows sum to one; NaN for an image that cannot be read.
        class_names: (C,) of the columns of `probabilities`.
        bad: id -> reason, of the images that cannot be read.
    """

    def __init__(
        self,
        ids: Sequence[str],
        probabilities: NDArray[np.float32],
        class_names: Sequence[str],
        bad: Mapping[str, str],
    ) -> None:
        self.ids, self.class_names, self.bad = tuple(ids), tuple(class_names), dict(bad)
        self.probabilities = probabilities

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def names(self) -> list[str | None]:
        """(N,) the most likely class; None for an image that cannot be read."""
        readable = np.isfinite(self.confidences)
        labels = self.probabilities.argmax(axis=1)
        return [self.class_names[label] if good else None for label, good in zip(labels, readable, strict=True)]

    @property
    def confidences(self) -> NDArray[np.float32]:
        """(N,) its probability; NaN for an image that cannot be read."""
        return self.probabilities.max(axis=1)

    def rows(self) -> Iterator[tuple[Any, ...]]:
        """A row for each image, as COLUMNS; None where there is nothing to say."""
        order = np.argsort(-self.probabilities, axis=1, kind="stable")[:, :2]
        for sample_id, probs, best in zip(self.ids, self.probabilities, order, strict=True):
            if np.isfinite(probs).all():
                said = [value for label in best for value in (self.class_names[label], round(float(probs[label]), 6))]
                yield (sample_id, *said, None)
            else:
                yield (sample_id, None, None, None, None, self.bad[sample_id])

    def to_pandas(self) -> DataFrame:
        """A row for each image: path, label, confidence, runner_up, runner_up_confidence, error."""
        import pandas

        return pandas.DataFrame(list(self.rows()), columns=COLUMNS)

    def write(self, path: str | PathLike[str]) -> None:
        """Write the rows of `to_pandas` as CSV, on a disk or into a bucket. A file that is there is replaced."""
        Storage(fspath(path)).write(csv_text([COLUMNS, *self.rows()]).encode())

    def __repr__(self) -> str:
        said = Counter(name for name in self.names if name is not None)
        parts = [f"{name}: {number:,}" for name, number in said.most_common(_MAX_NAMED)]
        parts += [f"{len(said) - _MAX_NAMED} other classes"] if len(said) > _MAX_NAMED else []
        parts += [f"{len(self) - said.total():,} unreadable"] if self.bad else []
        return f"Predictions({len(self):,} images; {', '.join(parts)})"

    def _repr_html_(self) -> str:
        table = self.to_pandas().to_html(index=False, max_rows=_MAX_SHOWN, na_rep="")
        return f"<p>{html.escape(repr(self))}</p>{table}"
