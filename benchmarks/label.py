"""Images/s of labelling a pool, beside a plain PyTorch loop over the same files.

    python -m benchmarks.label --images 'cifar10/train-*.parquet' --image-column img

Both sides have the same model (WRN-28-2, untrained), batches and decode, and the same cores: the loop runs one process
a core, with one thread each, and cuts the files among them by row groups, as `label_pool` has an actor a core. They
alternate in one run. The command is a process of its own, whose imports and listing count. The loop's processes import
in its time, too; the one that starts them is there already, and has listed the files.

Two rates: of the whole command on the larger pool, and of the steady state, without what does not grow with the pool
(processes, Ray's start, loading the model): the images that the larger pool has more than the smaller one, by the
seconds that it takes longer.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.multiprocessing as mp

from benchmarks.figures import Figures, add_save, median, report
from benchmarks.pool import write_pool
from dpl_ray.config.parse import parse_config
from dpl_ray.config.schema import Config
from dpl_ray.data.files.location import open_location
from dpl_ray.data.formats.rows import PoolFiles, list_pool
from dpl_ray.data.images.convert import DecodeSettings
from dpl_ray.data.images.decode_many import decode_many
from dpl_ray.inference.label_batch import label_batch
from dpl_ray.store.storage import Storage
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


def plain_loop(rank: int, num_processes: int, checkpoint: str, files: PoolFiles, batch_size: int) -> None:
    """One process of the loop: its share of the spans, in batches, straight through."""
    torch.set_num_threads(1)
    model = load_classifier(Storage(checkpoint))[0].to(memory_format=torch.channels_last)
    policy = load_policy(Storage(checkpoint))
    for span in files.spans.tolist()[rank::num_processes]:
        rows = [(sample_id, payload) for sample_id, payload, _ in files.read(*span)]
        images, _, _ = decode_many(rows, DecodeSettings(SIZE), num_threads=1)
        for start in range(0, len(images), batch_size):
            label_batch(model, policy, torch.from_numpy(images[start : start + batch_size]))


def time_loop(arguments: argparse.Namespace, checkpoint: str, pool: Path) -> float:
    """Seconds."""
    files = list_pool(open_location("pool", str(pool)), image_column="image")
    began = time.perf_counter()
    mp.spawn(plain_loop, (arguments.processes, checkpoint, files, arguments.batch_size), nprocs=arguments.processes)
    return time.perf_counter() - began


def time_label(arguments: argparse.Namespace, checkpoint: str, pool: Path) -> float:
    """Seconds of the whole command, from its start as a process of its own to its end."""
    with tempfile.TemporaryDirectory() as output:
        command = [
            *(sys.executable, "-m", "pipelines.label"),
            f"checkpoint={checkpoint}",
            f"pool={pool}",
            f"output={output}/labels",
            "image_column=image",
            f"batch_size={arguments.batch_size}",
            f"rows_per_part={arguments.rows_per_part}",
            f"scale.num_workers={arguments.processes}",
            "tracking.enabled=false",
        ]
        began = time.perf_counter()
        subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
        return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", help="parquet files of JPEG images; default: scikit-learn's digits")
    parser.add_argument("--image-column", default="img")
    parser.add_argument("--sizes", type=int, nargs=2, default=[6_000, 120_000], help="images in the two pools")
    parser.add_argument("--processes", type=int, default=2, help="actors, and processes of the loop")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--rows-per-part", type=int, default=2_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--depth", type=int, default=28)
    parser.add_argument("--width", type=int, default=2)
    add_save(parser, "label")
    arguments = parser.parse_args()
    small, large = arguments.sizes
    kinds: dict[str, Callable[..., float]] = {"plain loop": time_loop, "label_pool": time_label}
    rates: dict[str, list[tuple[float, float]]] = {name: [] for name in kinds}
    with tempfile.TemporaryDirectory() as temporary:
        checkpoint = make_checkpoint(Path(temporary) / "run", arguments)
        pools = [
            write_pool(Path(temporary) / str(size), size, arguments.images, arguments.image_column)
            for size in (small, large)
        ]
        for _ in range(arguments.repeats):
            for name, measure in kinds.items():
                seconds = [measure(arguments, checkpoint, pool) for pool in pools]
                rates[name].append((large / seconds[1], (large - small) / (seconds[1] - seconds[0])))
            print({name: [round(rate) for rate in found[-1]] for name, found in rates.items()}, flush=True)
    kinds_of_rate = ("whole command", "steady state")
    figures: Figures = {
        name: {
            kind: median(values, "images/s")
            for kind, values in zip(kinds_of_rate, zip(*found, strict=True), strict=True)
        }
        for name, found in rates.items()
    }
    pairs = list(zip(rates["label_pool"], rates["plain loop"], strict=True))
    whole, steady = ([mine[index] / loop[index] for mine, loop in pairs] for index in range(len(kinds_of_rate)))
    figures["ratio"] = dict(zip(kinds_of_rate, (median(whole, at_least=0.95), median(steady)), strict=True))
    report("label", figures, arguments.save)


if __name__ == "__main__":
    main()
