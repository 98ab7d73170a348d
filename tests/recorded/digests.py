"""Weights after 20 steps of every policy, as few numbers: `python -m tests.recorded.digests` writes digests.json.

Write it anew only where a change of the mathematics is meant, and say so in the commit.
"""

from __future__ import annotations

import json
import tempfile
import zlib
from pathlib import Path

import torch

from dpl_ray.algorithm.policies import POLICIES
from dpl_ray.config.schema import Config
from dpl_ray.store.storage import Storage
from dpl_ray.training.distributed import Workers
from dpl_ray.training.loop import train
from tests.builders import tiny_config, tiny_splits

FILE = Path(__file__).with_name("digests.json")


def digest(config: Config, folder: Path) -> dict[str, float]:
    """Metrics of the run, and of each part of its checkpoint the sum of its tensors with fixed random signs.

    Such a sum moves with every weight; unlike a hash it may be compared within what another CPU rounds otherwise.
    """
    outcome = train(config, tiny_splits(), Workers(), Storage(str(folder)), lambda record: None)
    from safetensors.torch import load_file

    found = {
        f"metric {key}": value for key, value in outcome.metrics.items() if not key.startswith(("time", "through"))
    }
    for file in sorted(Path(outcome.checkpoint).glob("*.safetensors")):
        total = 0.0
        for name, tensor in load_file(file).items():
            if name in ("mean", "std"):  # constants of the model, which it did not always save
                continue
            generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
            signs = torch.randint(0, 2, tensor.shape, generator=generator) * 2 - 1
            total += float((tensor.double() * signs).sum())
        found[file.stem] = total
    return found


def all_digests() -> dict[str, dict[str, float]]:
    """Policy -> its digest."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        return {name: digest(tiny_config(policy={"name": name}), Path(folder) / name) for name in POLICIES}


if __name__ == "__main__":
    FILE.write_text(json.dumps(all_digests(), indent=1) + "\n")
