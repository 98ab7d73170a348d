"""Pseudo-labels that dpl-ray label has written, as labels to train on: `data.labels`.

Of the output, only the ids and labels of the selected samples are held; their images are read from the pool's files.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import TypeAdapter

from dpl_ray.config.schema import DataConfig
from dpl_ray.config.section import shown
from dpl_ray.data.dataset import UNLABELED
from dpl_ray.data.files.kinds import read_file
from dpl_ray.data.files.listing import list_files
from dpl_ray.data.files.location import Location, open_location
from dpl_ray.data.files.reach import OutOfReachError, Reach, check_addresses
from dpl_ray.data.files.shards import is_parquet
from dpl_ray.data.formats.parquet import open_table
from dpl_ray.data.formats.rows import PoolFiles, list_pool
from dpl_ray.data.images.decode import Payload
from dpl_ray.data.labeled.records import Records
from dpl_ray.data.labels import clean_name, some
from dpl_ray.data.pool.choice import bytes_per_image, memory_size
from dpl_ray.store.file_systems import one_line
from dpl_ray.store.records import parse_tree

if TYPE_CHECKING:
    from pyarrow.dataset import Dataset

JOB_FILE = "_ledger/job.json"
SUMMARY_FILE = "_report/summary.json"  # written when the job has finished
MEMORY_SHARE = 0.5  # of the machine's, that the selected images may take
BATCH_ROWS = 65_536
NO_OUTPUT = "is no output of dpl-ray label"
_NAMES = TypeAdapter(tuple[list[str], str | list[str], str])
_NUM_THREADS = 16  # that look at parts: they wait for files


@dataclass(frozen=True)
class PseudoLabels:
    """The samples that a finished output has selected, or the most confident ones of each class."""

    location: Location
    class_names: tuple[str, ...]
    pool: str | tuple[str, ...]  # that was labelled
    labels: dict[str, int]  # sample id -> class index
    unreadable: frozenset[str] = frozenset()  # ids: known to be of no use, so that they are not taken into the pool

    def of(self, ids: Iterable[str]) -> NDArray[np.int64]:
        """(N,) pseudo-label of each id, UNLABELED where it has none."""
        return np.array([self.labels.get(sample_id, UNLABELED) for sample_id in ids], np.int64)

    def check_class_names(self, class_names: tuple[str, ...], origin: str) -> None:
        """Refuse other classes than those of `origin`: an index would mean another class."""
        if class_names != self.class_names:
            raise self.location.error(
                f"its classes are {some(self.class_names)}, but those of {origin} are {some(class_names)}; label the "
                "pool with a model of these classes, or set data.class_names to those of the output"
            )

    def records(self, data: DataConfig, taken: Collection[str]) -> Records:
        """The selected samples as labelled records, in the order of the pool's files.

        Args:
            data: `data.unlabeled` is the pool that was labelled.
            taken: ids that have another use, as true labels or for testing: they are left out.

        Raises:
            ValueError: the pool lacks a sample, or the images would not fit into memory.
        """
        assert data.unlabeled is not None
        location = replace(open_location("data.unlabeled", data.unlabeled), reach=Reach.of(data))
        pool = list_pool(location, image_column=data.image_column)
        wanted = self.labels.keys() - set(taken)
        rows = sorted(pool.rows(wanted).items())
        ids = [pool.sample_id(file, row) for file, of_file in rows for row in of_file]
        self.check_found(wanted - set(ids), data)
        labels = [self.class_names[self.labels[sample_id]] for sample_id in ids]
        records = Records(self.location, ids, list(labels), partial(_payloads, pool, rows), self.class_names)
        check_memory(len(ids), bytes_per_image(data, records), self.location)
        return records

    def check_found(self, missing: Collection[str], data: DataConfig) -> None:
        """`ValueError` where data.unlabeled lacks selected samples."""
        if missing:
            raise self.location.error(
                f"{len(missing)} of its {len(self.labels)} selected samples are not in data.unlabeled="
                f"{shown(data.unlabeled)}, as {min(missing)}; give the pool that was labelled (pool={shown(self.pool)})"
            )


def read_pseudo_labels(data: DataConfig) -> PseudoLabels:
    """Read the output of dpl-ray label that data.labels names, in batches.

    Raises:
        ValueError: it is no output, or an unfinished one, or it holds nothing selected, or a sample twice.
    """
    assert data.labels is not None
    location = open_location("data.labels", data.labels)
    job = read_job(location)
    class_names = tuple(map(clean_name, job["class_names"]))
    if not (parts := part_files(location)):
        raise location.error(f"{NO_OUTPUT} (no parquet file in it)")
    try:
        dataset = _open(location, parts)
        table = _read_selected(location, dataset, data, len(class_names))
        bad = dataset.to_table(columns=["sample_id"], filter=pc.field("error").is_valid())
    except (pa.ArrowException, OSError, KeyError) as error:
        raise location.error(f"{NO_OUTPUT} ({one_line(error)})") from None
    labels = _to_labels(location, table, class_names)
    pool = job["pool"] if isinstance(job["pool"], str) else tuple(job["pool"])
    if data.unlabeled is None:
        try:
            check_addresses([pool] if isinstance(pool, str) else pool, location, data)
        except OutOfReachError as error:
            raise location.error(f"its pool is {shown(pool)}: {error}; or set data.unlabeled to it") from None
    return PseudoLabels(location, class_names, pool, labels, frozenset(bad.column("sample_id").to_pylist()))


def part_files(location: Location) -> list[str]:
    """The parquet files of an output, in the order of their names: not those of its ledger."""
    return [path for path in list_files(location).paths.to_pylist() if is_parquet(path)]


def read_job(location: Location) -> dict[str, Any]:
    """What the labels of a finished output depend on, as its class names and pool.

    Raises:
        ValueError: it is no output, or an unfinished one.
    """
    try:
        job: dict[str, Any] = parse_tree(read_file(location.filesystem, f"{location.path}/{JOB_FILE}"))["identity"]
        if not {"class_names", "pool"} <= job.keys():
            raise ValueError("without class_names and pool")
        _NAMES.validate_python((job["class_names"], job["pool"], job.get("image_column", "image")))
    except (FileNotFoundError, NotADirectoryError):
        list_files(location)  # has its own words for a folder that is not there
        raise location.error(f"{NO_OUTPUT} (no {JOB_FILE} in it)") from None
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise location.error(f"{NO_OUTPUT} ({JOB_FILE}: {one_line(error)})") from None
    if not location.filesystem.get_file_info(f"{location.path}/{SUMMARY_FILE}").is_file:
        raise location.error(f"is not finished (no {SUMMARY_FILE}); run the same dpl-ray label command again first")
    return job


def _open(location: Location, parts: list[str]) -> Dataset:
    """`OSError` or `pa.ArrowException` where one cannot be opened, or would unpack to far more than the file has."""
    from pyarrow import dataset as ds  # imports pandas

    def check(path: str) -> None:
        with open_table(location, path):
            pass

    with ThreadPoolExecutor(_NUM_THREADS) as executor:
        list(executor.map(check, parts))
    scan = ds.ParquetFragmentScanOptions(page_checksum_verification=True)
    return ds.dataset(
        parts, filesystem=location.filesystem, format=ds.ParquetFileFormat(default_fragment_scan_options=scan)
    )


def _read_selected(location: Location, dataset: Dataset, data: DataConfig, num_classes: int) -> pa.Table:
    per_class = data.labels_per_class
    if data.image_size is not None:
        # Before an id is held: there may be more of them than fit.
        count = dataset.count_rows(filter=pc.field("selected"))
        count = count if per_class is None else min(count, per_class * num_classes)
        check_memory(count, data.channels * data.image_size**2, location)
    columns = ["sample_id", "pseudo_label", "confidence"]
    kept = dataset.schema.empty_table().select(columns)
    batches = []
    for batch in dataset.to_batches(columns=columns, filter=pc.field("selected"), batch_size=BATCH_ROWS):
        batches.append(pa.Table.from_batches([batch]))
        if per_class is not None:
            kept = _most_confident(pa.concat_tables([kept, *batches]), per_class)
            batches = []
    return pa.concat_tables([kept, *batches])


def _most_confident(table: pa.Table, per_class: int) -> pa.Table:
    """The rows of the highest confidence of each class; of equal ones, those of the first ids."""
    order = [("pseudo_label", "ascending"), ("confidence", "descending"), ("sample_id", "ascending")]
    table = table.sort_by(order)
    labels = table.column("pseudo_label").to_numpy()
    rank = np.arange(len(labels)) - np.searchsorted(labels, labels)
    return table.filter(pa.array(rank < per_class))


def _to_labels(location: Location, table: pa.Table, class_names: tuple[str, ...]) -> dict[str, int]:
    if not len(table):
        raise location.error("not one of its samples is selected")
    ids, targets = table.column("sample_id").to_pylist(), table.column("pseudo_label").to_pylist()
    labels: dict[str, int] = {}
    for sample_id, target in zip(ids, targets, strict=True):
        if target is None or not 0 <= target < len(class_names):
            raise location.error(f"pseudo-label {target} of {sample_id} is outside its {len(class_names)} classes")
        if sample_id in labels:
            raise location.error(f"{sample_id} is there more than once; every sample has one pseudo-label")
        labels[sample_id] = target
    return labels


def _payloads(pool: PoolFiles, rows: list[tuple[int, list[int]]]) -> Iterator[Payload]:
    """The encoded images of these rows of each file."""
    return (payload for file, of_file in rows for _, payload, _ in pool.read_rows(file, np.array(of_file)))


def check_memory(num_images: int, image_bytes: int, location: Location) -> None:
    """`ValueError` where so many selected images, or their features, do not fit."""
    limit = MEMORY_SHARE * memory_size()
    if num_images * image_bytes > limit:
        raise location.error(
            f"the {num_images} selected images take {num_images * image_bytes / 2**30:.1f} GiB decoded, more than half "
            f"of this machine's memory ({limit / 2**30:.1f} GiB); take fewer, as data.labels_per_class=1000"
        )
