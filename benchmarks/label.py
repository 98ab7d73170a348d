"""Images/s of labelling a pool, beside a plain PyTorch loop over the same files.

    python -m benchmarks.label                                 digits as PNG in parquet, repeated
    python -m benchmarks.label --pool FOLDER --image-column img

Both sides have the same model (WRN-28-2, untrained), batches and decode, and the same cores: the loop runs one process
a core, with one thread each, and cuts the files among them by row groups, as `label_pool` has an actor a core. They
alternate in one run.

Two rates: of the whole command, from its call to the summary, and of the steady state, which leaves out what does not
grow with the pool (Ray's start, loading the model). The steady rate is that of all images after the first block is
done until the last is; the loop's that of all batches after the first.
"""

from __future__ import annotations

import argparse
import io
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.multiprocessing as mp
from PIL import Image
from rich.console import Console
from rich.table import Table

import dpl_ray.labeling
from benchmarks.environment import environment_line
from dpl_ray.config import Config, parse_config
from dpl_ray.data.decode import DecodeSettings, decode_many
from dpl_ray.data.files import open_location
from dpl_ray.data.pool_files import PoolFiles, list_pool
from dpl_ray.labeling_config import parse_labeling
from dpl_ray.labeling_console import LabelProgress
from dpl_ray.labels import label_batch
from dpl_ray.storage import Storage
from dpl_ray.training.checkpoint import ModelInfo, load_classifier, load_policy, save_checkpoint
from dpl_ray.training.distributed import Workers
from dpl_ray.training.state import build_state

SIZE, CLASSES = 32, tuple("0123456789")


def make_checkpoint(folder: Path, arguments: argparse.Namespace) -> str:
    config: Config = parse_config(
        {
            "data": {"name": "digits", "image_size": SIZE},
            "model": {"depth": arguments.depth, "width": arguments.width},
        }
    )
    state = build_state(config, 3, len(CLASSES), Workers())
    info = ModelInfo(CLASSES, 3, (SIZE, SIZE))
    return str(save_checkpoint(Storage(str(folder)), state, config, info, Workers(), keep=1))


def write_digits(folder: Path, num_images: int) -> None:
    """scikit-learn's digits, enlarged to 32 pixels, as PNG in parquet, again and again."""
    from sklearn.datasets import load_digits

    cells = []
    for image in load_digits().images:
        buffer = io.BytesIO()
        Image.fromarray((image * 15).astype(np.uint8)).resize((SIZE, SIZE)).save(buffer, "png")
        cells.append(buffer.getvalue())
    repeated = [cells[number % len(cells)] for number in range(num_images)]
    folder.mkdir(parents=True)
    pq.write_table(pa.table({"image": repeated}), folder / "digits.parquet", row_group_size=1000)


def plain_loop(rank: int, num_processes: int, checkpoint: str, files: PoolFiles, batch_size: int, clock: Any) -> None:
    """One process of the loop: its share of the spans, in batches, straight through."""
    torch.set_num_threads(1)
    model = load_classifier(Storage(checkpoint))[0].to(memory_format=torch.channels_last)
    policy = load_policy(Storage(checkpoint))
    times: list[float] = []
    counted = 0
    for span in files.spans.tolist()[rank::num_processes]:
        rows = [(sample_id, payload) for sample_id, payload, _ in files.read(*span)]
        images, _, _ = decode_many(rows, DecodeSettings(SIZE), num_threads=1)
        for start in range(0, len(images), batch_size):
            label_batch(model, policy, torch.from_numpy(images[start : start + batch_size]))
            counted += min(batch_size, len(images) - start) if times else 0
            times.append(time.time())
    clock.put(counted / (times[-1] - times[0]))


def run_loop(arguments: argparse.Namespace, checkpoint: str, files: PoolFiles) -> tuple[float, float]:
    """(whole rate, steady rate)"""
    clock = mp.get_context("spawn").SimpleQueue()
    began = time.time()
    mp.spawn(
        plain_loop,
        (arguments.processes, checkpoint, files, arguments.batch_size, clock),
        nprocs=arguments.processes,
    )
    seconds = time.time() - began
    return len(files) / seconds, sum(clock.get() for _ in range(arguments.processes))


class _Timed(LabelProgress):
    """Remembers when blocks were done."""

    news: list[tuple[float, int]] = []

    def add(self, num_rows: int) -> None:
        _Timed.news.append((time.time(), num_rows))
        super().add(num_rows)


def run_label(arguments: argparse.Namespace, checkpoint: str, pool: str, output: Path) -> tuple[float, float]:
    """(whole rate, steady rate)"""
    _Timed.news = []
    dpl_ray.labeling.LabelProgress = _Timed  # type: ignore[misc]
    began = time.time()
    result = dpl_ray.labeling.label_pool(
        parse_labeling(
            {
                "checkpoint": checkpoint,
                "pool": pool,
                "output": str(output),
                "image_column": arguments.image_column,
                "batch_size": arguments.batch_size,
                "rows_per_part": arguments.rows_per_part,
                "scale": {"num_workers": arguments.processes},
                "tracking": {"enabled": False},
            }
        )
    )
    seconds = time.time() - began
    # From the first block of every actor on: the first ones are done at about the same time.
    news = _Timed.news
    first = news[arguments.processes - 1][0]
    steady = sum(rows for _, rows in news[arguments.processes :]) / (news[-1][0] - first)
    return result.num_rows / seconds, steady


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pool", help="parquet files of images; default: digits")
    parser.add_argument("--image-column", default="image")
    parser.add_argument("--images", type=int, default=20_000, help="of the digits")
    parser.add_argument("--processes", type=int, default=2, help="actors, and processes of the loop")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--rows-per-part", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--depth", type=int, default=28)
    parser.add_argument("--width", type=int, default=2)
    arguments = parser.parse_args()
    rates: dict[str, list[tuple[float, float]]] = {"plain loop": [], "label_pool": []}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        checkpoint = make_checkpoint(folder / "run", arguments)
        if not arguments.pool:
            write_digits(folder / "pool", arguments.images)
        pool = arguments.pool or str(folder / "pool")
        files = list_pool(open_location("pool", pool), image_column=arguments.image_column)
        for repeat in range(arguments.repeats):
            rates["plain loop"].append(run_loop(arguments, checkpoint, files))
            rates["label_pool"].append(run_label(arguments, checkpoint, pool, folder / f"out{repeat}"))
            print({name: [round(rate) for rate in found[-1]] for name, found in rates.items()}, flush=True)
    title = f"{len(files):,} images, WRN-{arguments.depth}-{arguments.width}, {arguments.processes} processes"
    table = Table("images/s, median (range)", "whole command", "steady state", title=title, title_justify="left")
    for name, found in rates.items():
        columns = list(zip(*found, strict=True))
        table.add_row(name, *(f"{statistics.median(c):,.0f} ({min(c):,.0f}-{max(c):,.0f})" for c in columns))
    pairs = list(zip(rates["label_pool"], rates["plain loop"], strict=True))
    ratios = [[mine[index] / loop[index] for mine, loop in pairs] for index in range(2)]
    table.add_row(
        "ratio (bound, steady: 0.9)", *(f"{statistics.median(c):.2f} ({min(c):.2f}-{max(c):.2f})" for c in ratios)
    )
    console = Console()
    console.print(table)
    console.print(environment_line(), soft_wrap=True)


if __name__ == "__main__":
    main()
