"""What it saves to train a part of a pretrained network, or adapters beside it: seconds a step, and memory.

    python -m benchmarks.finetune            networks of timm at 96 px, B=8, mu=7, coverage 1, two threads
    python -m benchmarks.finetune --device cuda --architectures vit_small_patch14_dinov2 --size 224

Each row is measured in a process of its own. Its memory is what the training adds to it at its peak: network, teacher,
optimizer, and what the backward pass keeps of the images; the libraries are not in it. The weights are random: time and
memory are the same.
"""

from __future__ import annotations

import argparse
import multiprocessing
import re
import time
from importlib import import_module
from pathlib import Path

import numpy as np
import torch

from benchmarks.figures import Figure, Figures, add_save, median, report
from benchmarks.memory import own_peak
from benchmarks.step import FixedCoverage
from dpl_ray.config.parse import parse_config
from dpl_ray.data.batches.feed import BatchFeed
from dpl_ray.data.dataset import ImageSet
from dpl_ray.training.distributed import Workers
from dpl_ray.training.memory import keep_freed_memory
from dpl_ray.training.state import build_state
from dpl_ray.training.step import train_step

SETTINGS = {
    "train=all": {},
    "adapter=lora": {"adapter": "lora"},
    "train=last:2": {"train": "last:2"},
    "train=head": {"train": "head"},
}
NUM_CLASSES = 10


def measure(arguments: argparse.Namespace, architecture: str, setting: str) -> tuple[int, list[float], int]:
    """(trained parameters, seconds of each step, bytes)."""
    for library in ("peft", "timm"):  # which a training loads when it needs them
        import_module(library)
    torch.set_num_threads(arguments.threads)
    train = {"batch_size": 8, "mu": 7, "num_steps": 10**6}
    config = parse_config({"train": train, "scale": {"num_workers": 0}})
    # Not through parse_config: it does not freeze random weights.
    config = config.changed(model={"name": "timm", "architecture": architecture} | SETTINGS[setting])
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (500, 3, arguments.size, arguments.size), dtype=np.uint8)
    images = ImageSet(pixels, random.integers(0, NUM_CLASSES, 500), np.arange(500).astype(str))
    workers = Workers(device=torch.device(arguments.device))
    if arguments.device == "cpu":
        keep_freed_memory()  # as a training does
    feed, before = BatchFeed(config, images, images, 0, 1), _memory()
    state = build_state(config, 3, NUM_CLASSES, workers)
    state.policy.__class__ = FixedCoverage
    seconds = []
    for _ in range(arguments.steps + 2):
        batch = feed(state.step).to(workers.device)
        began = time.perf_counter()
        train_step(state, batch, config, workers).sum().item()  # which waits for a GPU
        seconds.append(time.perf_counter() - began)
    on_gpu = arguments.device == "cuda"
    added = torch.cuda.max_memory_allocated() if on_gpu else own_peak() - before
    trained = sum(parameter.numel() for parameter in state.student.parameters() if parameter.requires_grad)
    return trained, seconds[2:], added


def _memory() -> int:
    """Bytes of this process."""
    found = re.search(r"VmRSS:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architectures", nargs="+", default=["vit_tiny_patch16_224", "tf_efficientnet_lite0"])
    parser.add_argument("--size", type=int, default=96, help="side of the images in pixels")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    add_save(parser, "finetune")
    arguments = parser.parse_args()
    figures: Figures = {}
    for architecture in arguments.architectures:
        whole = None
        for setting in SETTINGS:
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                trained, seconds, size = pool.apply(measure, (arguments, architecture, setting))
            row = {
                "trained weights": Figure(trained),
                "a step": median([1e3 * value for value in seconds], "ms"),
                "memory": Figure(size / 2**20, "MiB"),
            }
            whole = whole or row
            for column in ("a step", "memory"):
                row[f"{column} / train=all's"] = Figure(row[column].value / whole[column].value)
            figures[f"{architecture}, {setting}"] = row
    report("finetune", figures, arguments.save)


if __name__ == "__main__":
    main()
