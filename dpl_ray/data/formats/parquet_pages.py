"""What the pages of a parquet file say they unpack to, looked at when Arrow reads them: the footer may say less."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping

import pyarrow as pa

_SLACK = 2**20  # bytes of headers, which some writers do not count


class CheckedPages(io.RawIOBase):
    """A parquet file for Arrow, which reads the part of a column in a row group at once, from where it begins."""

    def __init__(self, file: pa.NativeFile, parts: Mapping[int, tuple[int, int]]) -> None:
        """
        Args:
            parts: where such a part begins -> its bytes, and those that it unpacks to, as the footer has them.
        """
        self._file, self._parts = file, parts

    def seek(self, place: int, whence: int = 0) -> int:
        return int(self._file.seek(place, whence))

    def tell(self) -> int:
        return int(self._file.tell())

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        """`ArrowInvalid` where the pages that are read unpack to more than the footer says."""
        place = self.tell()
        data: bytes = self._file.read(None if size < 0 else size)
        length, unpacked = self._parts.get(place, (0, 0))
        at = total = 0
        while at < min(length, len(data)):
            at, page = _page(data, at)
            total += page
            if total > 2 * unpacked + _SLACK:
                raise pa.ArrowInvalid(f"its pages would unpack to more than the {unpacked:,} bytes that it says")
        return data


def _page(data: bytes, at: int) -> tuple[int, int]:
    """Where the page that begins here ends, and the bytes that it unpacks to: fields 3 and 2 of its header.

    A header is a struct of Thrift's compact protocol, https://github.com/apache/thrift (thrift-compact-protocol.md) and
    https://github.com/apache/parquet-format (PageHeader).
    """
    sizes = dict[int, int]()
    try:
        at = _skip(12, data, at, sizes.__setitem__)
        if min(sizes[2], sizes[3]) < 0:
            raise ValueError("negative sizes")
    except (LookupError, ValueError, RecursionError) as error:
        raise pa.ArrowInvalid(f"a page has no header ({error})") from None
    return at + sizes[3], sizes[2]


def _skip(kind: int, data: bytes, at: int, found: Callable[[int, int], None] | None = None) -> int:
    """The end of the value of a kind that begins here; `found` gets number and value of the integers of a struct."""
    if kind in (1, 2):  # true and false, which a field's kind says
        return at
    if kind == 3:
        return at + 1
    if kind in (4, 5, 6):
        return _varint(data, at)[1]
    if kind == 7:
        return at + 8
    if kind == 8:
        size, at = _varint(data, at)
        return at + size
    if kind in (9, 10):
        size, of = data[at] >> 4, data[at] & 15
        size, at = _varint(data, at + 1) if size == 15 else (size, at + 1)
        if size > len(data):  # each takes a byte at least
            raise ValueError(f"a list of {size} values")
        for _ in range(size):
            at = at + 1 if of in (1, 2) else _skip(of, data, at)
        return at
    if kind != 12:
        raise ValueError(f"kind {kind}")
    number = 0
    while data[at]:
        delta, of = data[at] >> 4, data[at] & 15
        number, at = (number + delta, at + 1) if delta else _signed(data, at + 1)
        if found and of in (4, 5, 6):
            value, _ = _signed(data, at)
            found(number, value)
        at = _skip(of, data, at)
    return at + 1


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        value |= (data[at] & 127) << shift
        at, shift = at + 1, shift + 7
        if data[at - 1] < 128:
            return value, at
        if shift > 63:
            raise ValueError("a number too long")


def _signed(data: bytes, at: int) -> tuple[int, int]:
    value, at = _varint(data, at)
    return value >> 1 ^ -(value & 1), at
