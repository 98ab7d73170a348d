"""Files by their extensions, and shards, the files of many images: parquet files (with Lance data sets) and tars.

A sample of a shard is called `file.parquet:row` or `file.tar:member`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib.util import find_spec

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

LANCE_EXTENSIONS = (".lance",)
LANCE_NOT_INSTALLED = "a Lance data set takes the package lance: pip install pylance"
PARQUET_EXTENSIONS = (".parquet", ".pq", *LANCE_EXTENSIONS)
TAR_EXTENSIONS = (".tar",)
_AT_A_TIME = 65_536  # files whose extensions are held
_SHARD_EXTENSIONS = (*PARQUET_EXTENSIONS, *TAR_EXTENSIONS)
_ROW = re.compile(rf"(?is)(.*({'|'.join(map(re.escape, PARQUET_EXTENSIONS))})):0*(\d{{1,18}})")
_MEMBER = re.compile(rf"(?is)(.*?({'|'.join(map(re.escape, TAR_EXTENSIONS))})):(.+)")


def extension_of(path: str) -> str:
    """In lower case, with its dot; "" where there is none."""
    return re.search(r"(\.[^./]*)?\Z", path)[0].lower()  # type: ignore[index]


def by_extension(paths: pa.LargeStringArray, holds: Callable[[str], bool]) -> NDArray[np.bool_]:
    """(F,) what holds of a file by its extension: asked for each of some files at a time, not for each file."""
    found = [np.empty(0, bool)]
    for start in range(0, len(paths), _AT_A_TIME):
        some = extensions_of(paths.slice(start, _AT_A_TIME)).dictionary_encode()
        known = np.array([holds(extension) for extension in some.dictionary.to_pylist()], bool)
        found.append(known[some.indices.to_numpy()])
    return np.concatenate(found)


def extensions_of(paths: pa.LargeStringArray) -> pa.LargeStringArray:
    """(F,) `extension_of` each."""
    return pc.utf8_lower(pc.struct_field(pc.extract_regex(paths, r"(?P<extension>\.[^./]*)$"), 0).fill_null(""))


def is_parquet(path: str) -> bool:
    """Also of a Lance data set, which is a folder and is read as a parquet file is."""
    return extension_of(path) in PARQUET_EXTENSIONS


def is_lance(path: str) -> bool:
    return extension_of(path) in LANCE_EXTENSIONS


def has_lance() -> bool:
    return find_spec("lance") is not None


def is_tar(path: str) -> bool:
    return extension_of(path) in TAR_EXTENSIONS


def is_shard(path: str) -> bool:
    return extension_of(path) in _SHARD_EXTENSIONS


def are_parquet(paths: pa.LargeStringArray) -> NDArray[np.bool_]:
    """(F,) `is_parquet` of each."""
    return by_extension(paths, is_parquet)


def are_tars(paths: pa.LargeStringArray) -> NDArray[np.bool_]:
    """(F,) `is_tar` of each."""
    return by_extension(paths, is_tar)


def are_shards(paths: pa.LargeStringArray) -> NDArray[np.bool_]:
    """(F,) `is_shard` of each."""
    return by_extension(paths, is_shard)


def split_id(sample_id: str) -> tuple[str, str | None]:
    """Shard, and row or member; of an image file itself and None."""
    found = _ROW.fullmatch(sample_id) or _MEMBER.fullmatch(sample_id)
    return (found[1], found[3]) if found else (sample_id, None)
