"""Training on stored features: samples/s of one core, in memory and streamed, and the bytes of a row.

    python -m benchmarks.feature_rates        384 features, one weak and one strong view, B = 64 and 448, mu = 7

The features are random. Rates are by the CPU time of the process, with one thread: what other programs do meanwhile
counts little. A streamed pool is read in this process, and its reading counts.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from itertools import product
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from benchmarks import paper
from benchmarks.figures import Figure, Figures, add_save, median, report
from dpl_ray.config.parse import parse_config
from dpl_ray.config.schema import Config
from dpl_ray.data.batches.feed import BatchFeed
from dpl_ray.data.dataset import ImageSet
from dpl_ray.data.features.rows import COLUMNS, FeatureFiles, StreamedFeatures
from dpl_ray.data.files.location import open_location
from dpl_ray.data.images.convert import DecodeSettings
from dpl_ray.data.pool.windows import PoolFeed, Windows
from dpl_ray.embedding.blocks import as_lists, write_features
from dpl_ray.store.storage import Storage
from dpl_ray.training.distributed import Workers
from dpl_ray.training.memory import keep_freed_memory
from dpl_ray.training.state import build_state
from dpl_ray.training.step import train_step

NUM_FEATURES = paper.NUM_FEATURES  # of a small vision transformer
NUM_CLASSES, NUM_LABELED = 10, 250
POOL_ROWS, ROWS_PER_PART = 32_768, paper.ROWS_PER_PART
NUM_WARM = 3  # steps that are not counted
POLICIES = ("dpl", "fixmatch")
LEAST = 1e5  # samples/s of a core


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[64, 448], help="global labelled batches")
    parser.add_argument("--seconds", type=float, default=4.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=5)
    add_save(parser, "feature_rates")
    given = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    figures: Figures = {}
    with tempfile.TemporaryDirectory() as folder:
        for views in (0, 1, 4):
            rows = POOL_ROWS if views == 1 else ROWS_PER_PART
            pool = _written(Path(folder) / str(views), rows, views)
            size = sum(path.stat().st_size for path in (Path(folder) / str(views)).glob("*.parquet"))
            figures[paper.ROW_BYTES.format(views)] = {"measured": Figure(size / rows)}
            rates = [_reading_rate(pool) for _ in range(given.rounds)]
            figures[paper.ROW_RATE.format(views)] = {"measured": median(rates, "rows/s")}
        pool = _written(Path(folder) / "1", POOL_ROWS, 1)
        taken = pool.take(0, len(pool), seed=0)
        memory = ImageSet(taken.images, taken.targets, taken.ids.astype(str))
        for policy, size in product(POLICIES, given.batch_sizes):
            for place, unlabeled in (("in memory", memory), ("streamed", pool)):
                bounds = {"at_least": LEAST} if (place, size) == ("in memory", max(given.batch_sizes)) else {}
                rates = [_training_rate(policy, size, memory, unlabeled, given.seconds) for _ in range(given.rounds)]
                figures[f"{policy}, B = {size}, {place}"] = {"measured": median(rates, "samples/s", **bounds)}
    report("feature_rates", figures, given.save)


def _random(rows: int, views: int) -> NDArray[np.float16]:
    """(rows, 1 + 2 views, D)"""
    return np.random.default_rng(0).standard_normal((rows, 1 + 2 * views, NUM_FEATURES), np.float32).astype(np.float16)


def _written(folder: Path, rows: int, views: int) -> StreamedFeatures:
    """A pool of random features, in parts as embed writes them."""
    if not folder.exists():
        folder.mkdir()
        for start in range(0, rows, ROWS_PER_PART):
            features, every = np.split(_random(ROWS_PER_PART, views), [1, 1 + views], axis=1), range(ROWS_PER_PART)
            columns = {
                "sample_id": pa.array([f"s3://bucket/photos/{start + row:010d}.jpg" for row in every]),
                "error": pa.nulls(ROWS_PER_PART, pa.string()),
                "label": pa.array([str(row % NUM_CLASSES) for row in every]),
                "pixels": pa.array(np.random.default_rng(start).integers(2**63, size=ROWS_PER_PART).astype(np.uint64)),
            }
            for name, part in zip(COLUMNS, features, strict=True):
                if part.shape[1]:
                    columns[name] = as_lists(part.reshape(ROWS_PER_PART, -1), np.arange(ROWS_PER_PART), ROWS_PER_PART)
            write_features(Storage(str(folder / f"part-{start:010d}.parquet")), columns, {})
    files = FeatureFiles.of(open_location("pool", str(folder)), NUM_FEATURES, views, None)
    return StreamedFeatures((files,), DecodeSettings(), tuple(map(str, range(NUM_CLASSES))), files.shape)


def _reading_rate(pool: StreamedFeatures) -> float:
    began = time.process_time()
    pool.take(0, len(pool), seed=0, num_threads=1)
    return len(pool) / (time.process_time() - began)


def _config(policy: str, batch_size: int) -> Config:
    return parse_config(
        {
            "data": {"name": "features", "train": "random"},
            "model": {"name": "head", "num_features": NUM_FEATURES},
            "policy": {"name": policy},
            "train": {"batch_size": batch_size, "num_steps": 10**6},
            "optim": {"learning_rate": 0.01},
        }
    )


def _training_rate(
    policy: str, batch_size: int, memory: ImageSet, pool: ImageSet | StreamedFeatures, seconds: float
) -> float:
    """Samples/s of CPU time, labelled and unlabelled, after the first steps."""
    config, workers = _config(policy, batch_size), Workers(device=torch.device("cpu"))
    state = build_state(config, 1, NUM_CLASSES, workers, pool_size=len(pool))
    labeled = memory.subset(np.arange(NUM_LABELED))
    if isinstance(pool, StreamedFeatures):
        stream = PoolFeed(pool, Windows.from_config(config), first_step=0, num_steps=config.train.num_steps)
        feed = BatchFeed(config, labeled, stream, 0, 1)
    else:
        feed = BatchFeed(config, labeled, pool, 0, 1)
    for step in range(NUM_WARM):
        train_step(state, feed(step), config, workers)
    samples, began = 0, time.process_time()
    while (spent := time.process_time() - began) < seconds:
        batch = feed(state.step)
        train_step(state, batch, config, workers)
        samples += len(batch)
    feed.close()
    return samples / spent


if __name__ == "__main__":
    main()
