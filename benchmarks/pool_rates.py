"""The rates of one core that docs/scale.md plans with: decoding, reading footers, ordering a pass.

python -m benchmarks.pool_rates
"""

from __future__ import annotations

import argparse
import io
import pickle
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from benchmarks import paper
from benchmarks.figures import Figure, add_save, median, report
from benchmarks.pool import encoded_digits
from dpl_ray.data.files.location import open_location
from dpl_ray.data.formats.rows import PoolFiles, list_pool
from dpl_ray.data.images.convert import DecodeSettings
from dpl_ray.data.images.decode import decode
from dpl_ray.data.pool.windows import StreamedPool

ROUNDS = 5
NUM_FILES = 500


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
    report("pool_rates", {row: {paper.MEASURED: figure} for row, figure in rows.items()}, arguments.save)


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
