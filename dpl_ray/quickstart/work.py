"""What a quick start does beside the steps: it reads images, and passes them through the network without training."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from dpl_ray.config.schema import DataConfig
from dpl_ray.data.decode import DecodeSettings, Payload
from dpl_ray.data.decode_many import decode_many
from dpl_ray.data.labeled import Records, list_records
from dpl_ray.data.pool.choice import list_unlabeled
from dpl_ray.data.pool.files import PoolFiles
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
    (train, test), (pool, named) = _labelled(data), _unlabelled(data)
    some = [*_spread(train), *_spread(test)]
    if pool is not None:
        some += [(name, payload) for name, payload, _ in islice(pool.read_all(), _SAMPLE)]
    began = time.perf_counter()
    decode_many(some, DecodeSettings.from_config(data.changed(image_size=_SIDE)))
    seconds = (time.perf_counter() - began) / max(1, len(some))
    num_pool = len(named) + (0 if pool is None else len(pool))
    return Work(len(train.ids) - len(named), len(test.ids) if test else 0, num_pool, seconds)


def unlabelled_ids(data: DataConfig) -> list[str]:
    """Of the pool, and of what data.train names without a label."""
    pool, named = _unlabelled(data)
    return [*named, *([] if pool is None else [row[0] for row in pool.read_all()])]


def _labelled(data: DataConfig) -> tuple[Records, Records | None]:
    """Those of data.train and data.test."""
    assert data.train is not None, "a layout has it"
    test = None if data.test is None else list_records(data, "data.test", data.test)
    return list_records(data, "data.train", data.train), test


def _unlabelled(data: DataConfig) -> tuple[PoolFiles | None, list[str]]:
    """The pool without what data.train and data.test name, and the ids of data.train without a label."""
    train, test = _labelled(data)
    named = [sample_id for sample_id, label in zip(train.ids, train.labels, strict=True) if label is None]
    taken = {*train.ids, *(test.ids if test else ())}
    return None if data.unlabeled is None else list_unlabeled(data).without(taken), named


def _spread(records: Records | None) -> Iterator[tuple[str, Payload]]:
    """Some of them, from all classes."""
    if records is not None:
        step = -(-len(records.ids) // _SAMPLE)
        yield from zip(records.ids[::step], islice(records.read(), 0, None, step), strict=False)
