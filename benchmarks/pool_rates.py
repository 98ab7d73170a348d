"""The rates of one core that docs/scale.md plans with: decoding, reading footers, ordering a pass; memory of listing.

python -m benchmarks.pool_rates
"""

from __future__ import annotations

import argparse
import io
import multiprocessing
import pickle
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from benchmarks import paper
from benchmarks.figures import Figure, add_save, median, report
from benchmarks.memory import own_peak
from benchmarks.pool import encoded_digits
from dpl_ray.data.files.location import open_location
from dpl_ray.data.formats.rows import PoolFiles, list_pool
from dpl_ray.data.images.convert import DecodeSettings
from dpl_ray.data.images.decode import decode
from dpl_ray.data.pool.windows import StreamedPool
from dpl_ray.labeling.plan import Plan, empty_plan, extend_plan

ROUNDS = 5
NUM_FILES = 500
PATH_LENGTH = 80  # as that of an image in a bucket
ROWS_PER_PART = 8192


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_save(parser, "pool_rates")
    arguments = parser.parse_args()
    photographs, small = _photographs(), encoded_digits()[:500]
    rows = {
        paper.PHOTOGRAPH: Figure(statistics.mean(map(len, photographs)) / 1000, "kB"),
        paper.DECODE: median(_rate(lambda: _decode(photographs * 10, 224), 20), "images/s"),
        "decode a 32x32 JPEG": median(_rate(lambda: _decode(small, 32), len(small)), "images/s"),
    }
    with tempfile.TemporaryDirectory() as folder:
        for number in range(NUM_FILES):
            table = pa.table({"image": small[:20]})
            pq.write_table(table, Path(folder) / f"{number:06d}.parquet", row_group_size=5)
        location = open_location("pool", folder)
        listed = _rate(lambda: list_pool(location, image_column="image"), NUM_FILES)
        rows["list a folder of parquet files, footers read"] = median(listed, "files/s")
        files = list_pool(location, image_column="image")
    rows[paper.INDEX] = Figure(len(pickle.dumps(files)) / NUM_FILES, "bytes")
    million = _pool_of_spans(files, 1_000_000)
    seconds = [1 / rate for rate in _rate(lambda: _first_rows(million), 1)]
    rows["order of a pass of 1,000,000 spans"] = median(seconds, "s")
    for number in (paper.FEW_FILES, paper.MANY_FILES):
        planned, goes_on = _listing_memory(number)
        rows[paper.LISTING.format(number)] = Figure(planned / number, "bytes a file")
        rows[f"the same beside an earlier plan, {number:,} image files"] = Figure(goes_on / number, "bytes a file")
    report("pool_rates", {row: {paper.MEASURED: figure} for row, figure in rows.items()}, arguments.save)


def _listing_memory(number: int) -> tuple[int, int]:
    """Peak memory, above that of the imports, of a fresh process that lists and plans so many files in one folder.

    Without and with an earlier plan that they are compared with.
    """
    with tempfile.TemporaryDirectory() as base:
        folder = Path(base) / ("x" * (PATH_LENGTH - len(f"{base}//{number}.png")))
        folder.mkdir()
        for file in range(number, 2 * number):
            (folder / f"{file}.png").touch()
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as fresh:
            return fresh.submit(_list_and_plan, str(folder)).result()


def _list_and_plan(folder: str) -> tuple[int, int]:
    before = own_peak()
    listed = list_pool(open_location("pool", folder), image_column="image")
    plan = extend_plan(empty_plan(listed), listed, ROWS_PER_PART)
    written = plan.to_bytes()
    planned = own_peak() - before
    del plan
    extend_plan(Plan.from_bytes(written, listed), listed, ROWS_PER_PART)
    return planned, own_peak() - before


def _rate(work: Callable[[], object], count: int) -> list[float]:
    rates = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        work()
        rates.append(count / (time.perf_counter() - began))
    return rates


def _photographs() -> list[bytes]:
    """scikit-learn's two sample photographs, as files of the web are compressed."""
    from sklearn.datasets import load_sample_images

    encoded = []
    for picture in load_sample_images().images:
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, "jpeg", quality=85)
        encoded.append(buffer.getvalue())
    return encoded


def _decode(images: list[bytes], size: int) -> None:
    for image in images:
        decode(image, DecodeSettings(size, 3))


def _pool_of_spans(files: PoolFiles, number: int) -> StreamedPool:
    """As long as a pool of 10^9 images in row groups of 1,000 is; nothing of it is read."""
    spans = np.column_stack([np.arange(number) % NUM_FILES, np.zeros(number, np.int64), np.full(number, 1000)])
    many = PoolFiles(files.location, files.paths, files.sizes, files.num_rows, spans.astype(np.int64))
    return StreamedPool((many,), DecodeSettings(224, 3), ())


def _first_rows(pool: StreamedPool) -> None:
    copy = StreamedPool(pool.parts, pool.settings, pool.class_names)  # without what the pool has kept
    copy.places(0, 1, seed=0)


if __name__ == "__main__":
    main()
