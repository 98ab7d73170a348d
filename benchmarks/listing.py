"""Peak memory of a process that lists a pool of single image files and plans what is done with it.

python -m benchmarks.listing

There are no files: what a disk or a bucket would answer is made up here, in no order.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
import pyarrow as pa
from pyarrow import fs

from benchmarks import paper
from benchmarks.figures import Figure, Figures, add_save, report
from benchmarks.memory import own_peak
from dpl_ray.data.files.location import Location
from dpl_ray.data.formats.rows import PoolFiles, list_pool
from dpl_ray.data.images.decode import DecodeSettings
from dpl_ray.data.pool.windows import StreamedPool
from dpl_ray.labeling.plan import Plan, empty_plan, extend_plan

PATH_LENGTH = 80  # as that of an image in a bucket
ROWS_PER_PART = 8192
BOUND = 2.0  # GB
ROOT = "/" + "pool" * 8
ABOVE = "account"  # folder of the made-up file system in which the bucket lies


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=paper.IMAGE_FILES)
    add_save(parser, "listing")
    arguments = parser.parse_args()
    rows: Figures = {}
    for place, name in CASES:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as fresh:
            peak = fresh.submit(_measured, WORK[name], place, arguments.files).result()
        rows[f"{place}, {name}"] = {"whole process": Figure(peak / 1e9, "GB", at_most=BOUND)}
    report("listing", rows, arguments.save)


def _measured(work: Callable[[PoolFiles], object], place: Place, number: int) -> int:
    """Bytes."""
    with place.of(number) as location:
        listed = list_pool(location, image_column="image")
    work(listed)
    return own_peak()


def label(listed: PoolFiles) -> None:
    """A labelling begins, and goes on later with the same pool."""
    written = extend_plan(empty_plan(listed), listed, ROWS_PER_PART).to_bytes()
    plan = extend_plan(Plan.from_bytes(written, listed), listed, ROWS_PER_PART)
    assert len(plan) == len(listed)


def label_more(listed: PoolFiles) -> None:
    """A labelling goes on with a pool that has grown, here and there."""
    with tempfile.TemporaryDirectory() as folder:
        plan = Path(folder) / "plan.arrow"
        forked = multiprocessing.get_context("fork").Process(target=_plan_most, args=(listed, plan))
        forked.start()
        forked.join()
        whole = extend_plan(Plan.from_bytes(plan.read_bytes(), listed), listed, ROWS_PER_PART)
    assert len(whole) == len(listed)


def _plan_most(listed: PoolFiles, file: Path) -> None:
    keep = np.arange(len(listed.paths)) % 1000 > 0
    columns = listed.sizes[keep], listed.num_rows[keep], listed.spans[: keep.sum()]
    before = PoolFiles(listed.location, listed.paths.filter(pa.array(keep)), *columns)
    file.write_bytes(extend_plan(empty_plan(before), before, ROWS_PER_PART).to_bytes())


def train(listed: PoolFiles) -> None:
    """The orders of two passes of a streamed pool."""
    pool = StreamedPool((listed,), DecodeSettings(32, 3), ())
    assert len(pool.fingerprint()) == 32
    assert sum(place[3] for place in pool.places(len(pool) - 10, 20, seed=0)) == 20


WORK = {"to label": label, "to label what is new": label_more, "to train": train}


class Place(ABC):
    """Files in folders that a fake file system answers of."""

    def __init__(self, folders: int) -> None:
        self.folders = folders

    @abstractmethod
    def of(self, number: int) -> AbstractContextManager[Location]:
        """Where so many files are listed, as long as it is open."""

    def names(self, number: int) -> Iterator[str]:
        """So many names of files in a folder, in no order."""
        length = PATH_LENGTH - len(f"{ROOT}/000/.jpg")
        return (f"{(place * 2_654_435_761) % 2**32:0{length}d}.jpg" for place in range(number))


class Disk(Place):
    def __str__(self) -> str:
        return f"a disk, {self.folders:,} folder{'s' * (self.folders > 1)}"

    @contextmanager
    def of(self, number: int) -> Iterator[Location]:
        is_file = os.stat_result((0o100644, 0, 0, 1, 0, 0, 60_000, 0, 0, 0))
        is_folder = os.stat_result((0o40755, 0, 0, 1, 0, 0, 0, 0, 0, 0))

        @contextmanager
        def scan(folder: str) -> Iterator[Iterator[Entry]]:
            if folder == ROOT:
                yield (Entry(f"{folder}/{name:03d}", is_folder) for name in range(self.folders))
            else:
                yield (Entry(f"{folder}/{name}", is_file) for name in self.names(number // self.folders))

        system = mock.Mock(get_file_info=lambda path: fs.FileInfo(path, fs.FileType.Directory))
        with mock.patch.object(os, "scandir", scan):
            yield Location("pool", ROOT, system, ROOT, "")


@dataclass(slots=True)
class Entry:
    """As `os.DirEntry`."""

    path: str
    status: os.stat_result

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]

    def stat(self) -> os.stat_result:
        return self.status

    def is_symlink(self) -> bool:
        return False


class Bucket(Place):
    """Its answers pass through pyarrow's own list of files, as those of S3 do."""

    def __str__(self) -> str:
        return f"a bucket, {self.folders:,} folder{'s' * (self.folders > 1)}"

    @contextmanager
    def of(self, number: int) -> Iterator[Location]:
        def look(paths: list[str]) -> list[fs.FileInfo]:
            return [fs.FileInfo(path, fs.FileType.Directory) for path in paths]

        def list_folder(asked: fs.FileSelector) -> list[fs.FileInfo]:
            folder = asked.base_dir
            if folder == ABOVE + ROOT:
                return look([f"{folder}/{name:03d}" for name in range(self.folders)])
            file = partial(fs.FileInfo, type=fs.FileType.File, size=60_000)
            return [file(f"{folder}/{name}") for name in self.names(number // self.folders)]

        handler = mock.Mock(
            spec=fs.FileSystemHandler,
            get_type_name=lambda: "made up",
            normalize_path=lambda path: path,
            get_file_info=look,
            get_file_info_selector=list_folder,
        )
        # What is Python's own is listed otherwise; a folder of it counts as one of pyarrow's.
        filesystem = fs.SubTreeFileSystem(ABOVE, fs.PyFileSystem(handler))
        yield Location("pool", ROOT, filesystem, ROOT[1:], "s3://")


CASES = [
    *((Disk(1), name) for name in ("to label", "to train")),
    *((Disk(1000), name) for name in ("to label", "to label what is new")),
    *((Bucket(1000), name) for name in ("to label", "to train")),
    (Bucket(1), "to label"),
]

if __name__ == "__main__":
    main()
