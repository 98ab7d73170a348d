"""What a quick start does beside the steps: it reads images, and passes them through the network without training."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from dpl_ray.config.schema import DataConfig
from dpl_ray.data.formats.rows import PoolFiles
from dpl_ray.data.images.convert import DecodeSettings
from dpl_ray.data.images.decode import Payload
from dpl_ray.data.images.decode_many import decode_many
from dpl_ray.data.labeled.records import Records, list_records
from dpl_ray.data.pool.choice import files_named, list_unlabeled
from dpl_ray.report.pool import MAX_IMAGES

_SAMPLE = 32  # images of each place that the time of reading is measured with
_SIDE = 64  # pixels; what an image is resized to hardly matters


@dataclass(frozen=True)
class Work:
    """The images of a layout."""

    num_labelled: int
    num_test: int
    num_pool: int
    seconds_per_image: float  # of reading and decoding one

    @property
    def num_images(self) -> int:
        return self.num_labelled + self.num_test + self.num_pool

    @property
    def seconds_to_read(self) -> float:
        """Of all images for the training, and of the pool again for its predictions."""
        return (self.num_images + self.num_pool) * self.seconds_per_image

    @property
    def num_passes(self) -> int:
        """Passes of an image through the network after the steps: scores of two models, report and predictions."""
        return 2 * self.num_test + min(self.num_pool, MAX_IMAGES) + self.num_pool


def measure_work(data: DataConfig) -> Work:
    """Count the images, and read some of them."""
    train, test = _labelled(data)
    parts = unlabelled(data)
    rows = [islice(part.read_all(), _SAMPLE) for part in parts]
    some = [*_spread(train), *_spread(test), *((name, payload) for part in rows for name, payload, _ in part)]
    began = time.perf_counter()
    decode_many(some, DecodeSettings.from_config(data.changed(image_size=_SIDE)))
    seconds = (time.perf_counter() - began) / max(1, len(some))
    num_labelled = sum(label is not None for label in train.labels)
    return Work(num_labelled, len(test.ids) if test else 0, sum(map(len, parts)), seconds)


def unlabelled(data: DataConfig) -> list[PoolFiles]:
    """What data.train names without a label, and the pool without what data.train and data.test name."""
    train, test = _labelled(data)
    labelled = {sample_id for sample_id, label in zip(train.ids, train.labels, strict=True) if label is not None}
    named = sorted(set(train.ids) - labelled)
    parts = []
    if named:
        parts.append(train.files.without(labelled) if train.files else files_named(train, named))
    if data.unlabeled is not None:
        parts.append(list_unlabeled(data).without({*train.ids, *(test.ids if test else ())}))
    return [part for part in parts if len(part)]


def _labelled(data: DataConfig) -> tuple[Records, Records | None]:
    """Those of data.train and data.test."""
    assert data.train is not None, "a layout has it"
    test = None if data.test is None else list_records(data, "data.test", data.test)
    return list_records(data, "data.train", data.train), test


def _spread(records: Records | None) -> Iterator[tuple[str, Payload]]:
    """Some of them, from all classes."""
    if records is not None:
        step = -(-len(records.ids) // _SAMPLE)
        yield from zip(records.ids[::step], islice(records.read(), 0, None, step), strict=False)
