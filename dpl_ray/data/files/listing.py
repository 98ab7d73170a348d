"""The user's files at a place: those of a folder, of a glob or of a list. What is left out is counted."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pyarrow import fs

from dpl_ray.config.section import suggest
from dpl_ray.data.files.globs import is_glob
from dpl_ray.data.files.kinds import NAMELESS, as_text
from dpl_ray.data.files.location import Location, glob_of
from dpl_ray.data.files.shards import (
    LANCE_EXTENSIONS,
    LANCE_NOT_INSTALLED,
    extension_of,
    extensions_of,
    has_lance,
)
from dpl_ray.data.files.walk import Walk
from dpl_ray.store.file_systems import one_line

_ARCHIVE = "an archive is not read; unpack it, and give the folder"
_ARRAYS = "arrays are not read from files; load them, and train with dpl_ray.fit_arrays"
#: Extension -> what to do with such a file.
_ADVICE = dict.fromkeys((".zip", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar"), _ARCHIVE)
_ADVICE |= dict.fromkeys(LANCE_EXTENSIONS, "give the path of one Lance data set, as pool.lance")
_ADVICE |= dict.fromkeys((".npz", ".npy", ".mat", ".h5", ".hdf5", ".pt", ".pkl"), _ARRAYS)


@dataclass(frozen=True)
class Listing:
    """Files in the order of their paths: shards, and what may be images."""

    paths: pa.LargeStringArray  # (F,)
    sizes: NDArray[np.int64]  # (F,) bytes
    left_out: Counter[str] = field(default_factory=Counter)  # files by extension, folders by name

    def keep(self, wanted: NDArray[np.bool_]) -> Listing:
        """The files where `wanted` (F,) is true; the others are left out."""
        if wanted.all():
            return self
        found = pc.value_counts(extensions_of(self.paths.filter(pa.array(~wanted)))).to_pylist()
        left_out = self.left_out + Counter({item["values"] or NAMELESS: item["counts"] for item in found})
        return Listing(self.paths.filter(pa.array(wanted)), self.sizes[wanted], left_out)


def list_files(location: Location) -> Listing:
    """The files that a folder holds (recursively), a glob matches, or the one file, whatever it is called.

    A glob knows *, ?, [...] and **; a folder that it matches gives the files below. A folder is listed once, however
    many links lead to it, and links to the folders above are not followed. Of a list of places, a file that several
    have is there once.
    """
    if location.listed:
        return _merged(location, {place.path: list_files(place) for place in location.listed})
    info = _file_info(location, location.path)
    if info.type == fs.FileType.File:
        if advice := _ADVICE.get(extension_of(info.path)):
            raise location.error(advice)
        return Listing(pa.array([info.path], pa.large_string()), np.array([info.size], np.int64))
    if info.type == fs.FileType.Directory and extension_of(info.path) in LANCE_EXTENSIONS:
        if not has_lance():
            raise location.error(LANCE_NOT_INSTALLED)
        inside = location.filesystem.get_file_info(fs.FileSelector(info.path, recursive=True))
        size = sum(each.size or 0 for each in inside)
        return Listing(pa.array([info.path], pa.large_string()), np.array([size], np.int64))
    base, pattern = location.path, None
    if info.type != fs.FileType.Directory:
        if not is_glob(location.path):
            windows = "; the folders of a path are separated by /" if "\\" in location.path else ""
            raise location.error(f"there is no such file or folder{windows or _near_path(location)}")
        base, pattern = location.root_of(""), glob_of(location)
        if _file_info(location, base).type != fs.FileType.Directory:
            raise location.error(f"no file matches; the folder {location.name(base)} does not exist")
    try:
        found = Walk(location, base, pattern)
    except (UnicodeDecodeError, UnicodeEncodeError) as error:
        name = error.object if isinstance(error.object, bytes) else os.fsencode(error.object)
        raise location.error(f"cannot be listed: a name in it is not UTF-8 ({name!r}); rename it") from None
    except (pa.ArrowException, OSError) as error:
        raise location.error(f"cannot be listed ({one_line(error)})") from None
    listing = Listing(*found.arrays(), found.left_out)
    if not len(listing.paths):
        if listing.left_out:
            advice = next(filter(None, map(_ADVICE.get, listing.left_out)), "copy images there, or name another folder")
            raise location.error(f"no image and no parquet file in it ({as_text(listing.left_out)} left out); {advice}")
        raise location.error(
            "no file matches; ** stands for folders at any depth, as photos/**/*.jpg"
            if pattern
            else "the folder is empty; copy images there, or name another folder"
        )
    if pattern and (missing := pattern.missing(listing.paths.to_pylist() if pattern.parts else [])):
        raise location.error(f"{location.name(missing)} is missing; * stands for those that are there")
    return listing


def _merged(location: Location, listings: Mapping[str, Listing]) -> Listing:
    """One listing of several places, by their paths."""
    paths = pa.concat_arrays([listing.paths for listing in listings.values()])
    order = pc.array_sort_indices(paths)
    paths, sizes = paths.take(order), np.concatenate([listing.sizes for listing in listings.values()])[order.to_numpy()]
    keys = paths if location.scheme else _real_paths(paths)
    rows = pa.table({"key": keys, "row": np.arange(len(keys))}).group_by("key").aggregate([("row", "min")])
    first = np.sort(rows.column("row_min").to_numpy())
    apart = (listing.left_out for path, listing in listings.items() if not location.contains(path))
    return Listing(paths.take(pa.array(first)), sizes[first], sum(apart, Counter()))


def _real_paths(paths: pa.LargeStringArray) -> pa.LargeStringArray:
    """(F,) the local files, in the folders that their folders really are."""
    folders = pc.replace_substring_regex(paths, r"[^/]*$", "").dictionary_encode()
    real = pa.array(map(os.path.realpath, folders.dictionary.to_pylist()), pa.large_string()).take(folders.indices)
    names = pc.replace_substring_regex(paths, "(?s)^.*/", "")
    return pc.binary_join_element_wise(real, names, pa.scalar("/", pa.large_string()))


def _file_info(location: Location, path: str) -> fs.FileInfo:
    try:
        return location.filesystem.get_file_info(path)
    except (pa.ArrowException, OSError) as error:
        advice = "; check credentials, region and network" if location.scheme else ""
        raise location.error(f"cannot be read ({one_line(error)}){advice}") from None


def _near_path(location: Location) -> str:
    """A hint at the sibling that may be meant, or at the folder above that is missing too."""
    path = Path(location.path)
    if location.scheme:
        return ""
    if not path.parent.is_dir():
        return f" (nor a folder {path.parent})"
    return suggest(path.name, [sibling.name for sibling in path.parent.iterdir()])
