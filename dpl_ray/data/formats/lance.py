"""Lance data sets, read as parquet files are, by `lance`, which the extra of that name installs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

import pyarrow as pa

from dpl_ray.store.file_systems import one_line

_GROUP_ROWS = 1024


class LanceTable:
    """A Lance data set, with what is used of a `pyarrow.parquet.ParquetFile`."""

    def __init__(self, uri: str) -> None:
        """`OSError` where it cannot be opened."""
        import lance

        with _as_os_errors():
            self._dataset: Any = lance.dataset(uri)
            num_rows = self._dataset.count_rows()
        self.schema_arrow: pa.Schema = self._dataset.schema
        self.group_rows = [min(_GROUP_ROWS, num_rows - first) for first in range(0, num_rows, _GROUP_ROWS)]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Nothing is open between two reads."""

    def iter_batches(
        self, batch_size: int, *, row_groups: Sequence[int], columns: Sequence[str]
    ) -> Iterator[pa.RecordBatch]:
        for group in row_groups:
            with _as_os_errors():
                scanner = self._dataset.scanner(
                    columns=list(columns), offset=group * _GROUP_ROWS, limit=_GROUP_ROWS, batch_size=batch_size
                )
                yield from scanner.to_batches()

    def read(self, columns: Sequence[str]) -> pa.Table:
        with _as_os_errors():
            return self._dataset.to_table(columns=list(columns))


@contextmanager
def _as_os_errors() -> Iterator[None]:
    """Of what a damaged data set provokes; a panic of Lance's Rust is no `Exception`."""
    try:
        yield
    except BaseException as error:
        if isinstance(error, ValueError | RuntimeError) or type(error).__name__ == "PanicException":
            raise OSError(one_line(error)) from error
        raise
