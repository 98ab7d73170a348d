"""What streaming a pool costs: memory by size of the pool, rate of the feed, and what a step waits for it.

    python -m benchmarks.pool --images 'cifar10/train-*.parquet' --image-column img

The pools are the JPEG images given (scikit-learn's digits as 32x32 JPEG where none are), repeated under new ids.
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from itertools import cycle, islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.figures import Figure, Figures, median, report
from benchmarks.memory import MemorySampler
from dpl_ray.config.schema import ScaleConfig
from dpl_ray.data.files.location import open_location
from dpl_ray.data.formats.rows import PoolFiles, list_pool
from dpl_ray.data.images.convert import DecodeSettings
from dpl_ray.data.images.decode_many import decode_many
from dpl_ray.data.pool.windows import StreamedPool, Windows

IMAGE_SIZE = 32
NUM_AROUND = 8  # windows read before and after those whose rate is taken
ROWS_PER_FILE, ROWS_PER_GROUP = 10_000, 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", help="parquet files of JPEG images; default: scikit-learn's digits")
    parser.add_argument("--image-column", default="img")
    parser.add_argument("--sizes", type=int, nargs="+", default=[100_000, 400_000], help="images in the pools")
    parser.add_argument("--rounds", type=int, default=5, help="of feed and plain loop, in turn")
    parser.add_argument("--steps", type=int, default=30, help="of WRN-28-2, for the time that a step waits")
    parser.add_argument(
        "--ahead",
        type=_ahead,
        nargs="+",
        default=[None],
        help="data.pool.windows_ahead of the feed: one feed for each, in turn",
    )
    parser.add_argument("--folder", help="where the pools are written; default: a temporary one, removed again")
    parser.add_argument("--only", choices=["memory", "feed", "wait"], help="one of the three measurements")
    parser.add_argument(
        "--save", action="store_true", help="write docs/results/bench/pool_feed.json, pool_wait.json, pool_memory.json"
    )
    parser.add_argument("--train", help=argparse.SUPPRESS)  # a training run in a process of its own, as JSON
    options = parser.parse_args()
    if options.train:
        print(json.dumps(_train(**json.loads(options.train))))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(options.folder or temporary)
        pools = [write_pool(folder / str(size), size, options.images, options.image_column) for size in options.sizes]
        measurements: dict[str, Callable[[], Figures]] = {
            "feed": lambda: _compare_feed(pools[-1], options.rounds, options.ahead),
            "wait": lambda: _measure_wait(pools[0], options.steps),
            "memory": lambda: _compare_memory(pools, options.sizes),
        }
        for name, measure in measurements.items():
            if options.only in (None, name):
                report("pool", measure(), f"pool_{name}" if options.save else None)


def _ahead(text: str) -> int | None:
    return None if text == "null" else int(text)


def _encoded_images(images: str | None, column: str) -> list[bytes]:
    if images is not None:
        files = list_pool(open_location("--images", images), image_column=column)
        rows = [row for span in files.spans.tolist() for row in files.read(*span)]
        return [payload for _, payload, _ in rows if isinstance(payload, bytes)]
    return encoded_digits()


def encoded_digits() -> list[bytes]:
    """scikit-learn's digits as 32x32 JPEG."""
    from PIL import Image
    from sklearn.datasets import load_digits

    encoded = []
    for digit in load_digits().images:
        buffer = io.BytesIO()
        grey = Image.fromarray((digit * 15.9375).astype(np.uint8)).resize((IMAGE_SIZE, IMAGE_SIZE))
        grey.convert("RGB").save(buffer, "jpeg")
        encoded.append(buffer.getvalue())
    return encoded


def write_pool(folder: Path, size: int, images: str | None, column: str) -> Path:
    """Parquet files of `size` images; what is there already is taken as it is."""
    if folder.is_dir():
        return folder
    folder.mkdir(parents=True)
    source = cycle(_encoded_images(images, column))
    for number, start in enumerate(range(0, size, ROWS_PER_FILE)):
        rows = list(islice(source, min(ROWS_PER_FILE, size - start)))
        pq.write_table(pa.table({"image": rows}), folder / f"{number:06d}.parquet", row_group_size=ROWS_PER_GROUP)
    return folder


# Memory: as many steps as the largest pool has in a pass, 2 workers, a small network so that they are short.


def _compare_memory(pools: list[Path], sizes: list[int]) -> Figures:
    steps = -(-max(sizes) // (64 * 28))
    # Nothing passes a threshold of 1: else strong views, of which there are more and more, would be measured.
    small = ["model.depth=10", "model.width=1"]
    found = [
        _train_apart(
            pool=str(pool),
            overrides=[*small, "policy=fixmatch", "policy.threshold=1", "train.batch_size=64", "train.mu=28"],
            steps=steps,
        )["peaks"]
        for pool in pools
    ]
    return {
        name: {f"pool of {size:,}": Figure(peaks[name] / 1e6, "MB") for size, peaks in zip(sizes, found, strict=True)}
        | {"ratio": Figure(found[-1][name] / found[0][name], at_most=1.15)}
        for name in sorted(set.intersection(*map(set, found)))
    }


def _train_apart(**arguments: object) -> dict:
    command = [sys.executable, "-m", "benchmarks.pool", "--train", json.dumps(arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def _train(pool: str, overrides: list[str], steps: int) -> dict:
    """A streamed run in this process; peaks by kind of process, and the times of its steps."""
    from dpl_ray import fit, load_config

    with tempfile.TemporaryDirectory() as folder:
        labeled = _labeled(Path(pool), Path(folder) / "labeled.parquet")
        config = load_config(
            [
                "data=parquet", f"data.train={labeled}", f"data.unlabeled={pool}", f"data.image_size={IMAGE_SIZE}",
                "data.pool.mode=stream", f"train.num_steps={steps}", "train.baseline=false", "train.log_every=5",
                "scale=local", f"run.storage_path={folder}/runs", "run.name=pool", "tracking.enabled=false", *overrides,
            ]
        )  # fmt: skip
        began = time.perf_counter()
        with MemorySampler() as sampler:
            fit(config)
        history = (Path(folder) / "runs/pool/history.jsonl").read_text().splitlines()
    metrics = [json.loads(line)["metrics"] for line in history]
    times = [(row["time/data_wait"], row["time/step"]) for row in metrics if "time/step" in row]
    return {"peaks": sampler.peaks, "times": times, "seconds": time.perf_counter() - began}


def _labeled(pool: Path, path: Path) -> Path:
    """A few rows of the pool as labelled images; what they show does not matter to time and memory."""
    table = pq.ParquetFile(min(pool.glob("*.parquet"))).read_row_group(0).slice(0, 100)
    pq.write_table(table.append_column("label", pa.array([row % 10 for row in range(len(table))])), path)
    return path


# Feed: images/s of the windows as a worker takes them, beside a plain loop over the same files on the same cores.


def _compare_feed(folder: Path, rounds: int, aheads: list[int | None]) -> Figures:
    from dpl_ray.cluster import connect as cluster
    from dpl_ray.cluster.windows import COUNTED, shares_ahead_here

    num_processes = os.cpu_count() or 1
    files = list_pool(open_location("data.unlabeled", str(folder)), image_column="image")
    pool = StreamedPool((files,), DecodeSettings(IMAGE_SIZE, 3), tuple("0123456789"))
    windows = Windows(16, 7, 73, seed=0)
    plain: list[float] = []
    feeds: dict[int | None, list[float]] = {ahead: [] for ahead in aheads}
    cluster.connect(ScaleConfig(num_workers=1))  # Ray as a training starts it
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(num_processes, mp_context=context, initializer=_warm) as executor:
        list(executor.map(_decode_spans, [(files, files.spans[:1])] * num_processes))
        for _ in range(rounds):
            parts = [(files, files.spans[index::num_processes]) for index in range(num_processes)]
            began = time.perf_counter()
            count = sum(executor.map(_decode_spans, parts))
            plain.append(count / (time.perf_counter() - began))
            for ahead, rates in feeds.items():
                rates.append(_feed_rate(pool, replace(windows, ahead=ahead)))
    null = f"null ({shares_ahead_here(COUNTED * windows.rows * pool.bytes_per_image(), 1)})"
    cluster.disconnect()
    figures: Figures = {"plain loop": {"rate": median(plain, "images/s")}}
    for ahead, rates in feeds.items():
        ratios = [feed / loop for feed, loop in zip(rates, plain, strict=True)]
        figures[f"feed, windows_ahead={null if ahead is None else ahead}"] = {
            "rate": median(rates, "images/s"),
            "feed / plain loop": median(ratios, at_least=0.9),
        }
    return figures


def _feed_rate(pool: StreamedPool, windows: Windows) -> float:
    """Images/s of a pass in the middle of reading: windows are on their way both when it begins and when it ends."""
    from dpl_ray.cluster.windows import read_windows

    count = len(pool) // windows.rows
    reading = read_windows(pool, windows, range(count + 2 * NUM_AROUND), 0, 1)
    for _ in islice(reading, NUM_AROUND):
        pass
    began = time.perf_counter()
    for _ in islice(reading, count):
        pass
    seconds = time.perf_counter() - began
    for _ in reading:  # to its end: what Ray Data still reads would share the CPUs with what is measured next
        pass
    return count * windows.rows / seconds


def _warm() -> None:
    import dpl_ray.data.pool.windows  # noqa: F401


def _decode_spans(part: tuple[PoolFiles, np.ndarray]) -> int:
    files, spans = part
    settings = DecodeSettings(IMAGE_SIZE, 3)
    count = 0
    for span in spans.tolist():
        rows = files.read(*span)
        images, _, _ = decode_many([row[:2] for row in rows], settings, num_threads=1)
        count += len(images)
    return count


# What a step waits for.


def _measure_wait(pool: Path, steps: int) -> Figures:
    result = _train_apart(pool=str(pool), overrides=["model.depth=28", "model.width=2"], steps=steps)
    times = result["times"][1:]  # the first record has the start of Ray Data in it, and the warming up of the network
    shares = median([100 * wait / step for wait, step in times], "%", at_most=5)
    rows = {"a step, WRN-28-2, 2 workers": median([step for _, step in times], "s"), "its wait for data": shares}
    return {row: {"measured": figure} for row, figure in rows.items()}


if __name__ == "__main__":
    main()
