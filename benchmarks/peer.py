"""Our training step beside that of semilearn 0.3.2, data included: FixMatch, WRN-28-2, one core, in one run.

    pip install --no-deps --target PEER semilearn==0.3.2
    python -m benchmarks.peer --semilearn PEER --images 'cifar10/train-00000-of-00005.parquet'

The peer runs its own code in a process of its own (benchmarks/peer_process.py). torch, torchvision, numpy and Pillow
are those of this environment for both, so that no other version of them is measured. Both have the same images, B = 16
and mu = 7. Steps alternate, so that what else the machine does meets both. The peer computes every strong view; ours
leaves out those without a weight, so that it is measured at two shares of samples with a weight. Ours keeps freed
memory, as each of its trainings does; the peer leaves that to the C library.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from benchmarks.figures import Figures, add_save, quartiles, report
from dpl_ray.algorithm.fixed_threshold import FixMatch
from dpl_ray.algorithm.pseudo_labels import PseudoLabels
from dpl_ray.config.compose import load_config
from dpl_ray.config.schema import Config
from dpl_ray.data.batches.feed import BatchFeed
from dpl_ray.data.dataset import ImageSet
from dpl_ray.data.splits.sources import load_splits
from dpl_ray.training.distributed import Workers
from dpl_ray.training.memory import keep_freed_memory
from dpl_ray.training.state import TrainState, build_state
from dpl_ray.training.step import train_step

VERSION = "0.3.2"  # of semilearn
BOUNDS = {1.0: 0.55, 0.7: 0.40}  # coverage -> our time over the peer's
WARM_UP = 2


class FixedCoverage(FixMatch):
    """FixMatch, of whose samples a known share has weight 1 and the rest none."""

    coverage: ClassVar[float] = 1.0

    def weights(self, pseudo: PseudoLabels) -> Tensor:
        super().weights(pseudo)
        places = torch.arange(len(pseudo.labels))
        return (places < round(self.coverage * len(places))).to(pseudo.confidence.dtype)


class Peer:
    """The process of the peer."""

    def __init__(self, semilearn: Path, images: str, batch_size: int, mu: int) -> None:
        if not (semilearn / f"semilearn-{VERSION}.dist-info").is_dir():
            raise SystemExit(f"--semilearn={semilearn}: pip has not written semilearn {VERSION} to this folder")
        script = Path(__file__).with_name("peer_process.py")
        self.process = subprocess.Popen(
            [sys.executable, str(script), images, str(batch_size), str(mu)],
            env=os.environ | {"PYTHONPATH": str(semilearn.resolve()), "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        self._answer("ready")

    def step(self) -> float:
        """Seconds of a step of the peer."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return float(self._answer())

    def _answer(self, expected: str = "") -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline().strip()
        if not line or (expected and line != expected):
            raise ValueError("--semilearn: the peer did not start; is this the folder that pip wrote it to?")
        return line


class Ours:
    """Our training, one step at a time."""

    def __init__(self, config: Config, labeled: ImageSet, unlabeled: ImageSet, coverage: float) -> None:
        self.config, self.workers = config, Workers()
        self.state: TrainState = build_state(config, 3, 10, self.workers)
        self.state.policy.__class__ = type("Fixed", (FixedCoverage,), {"coverage": coverage})
        self.feed = BatchFeed(config, labeled, unlabeled, 0, 1)

    def step(self) -> float:
        """Seconds of a step of ours."""
        began = time.perf_counter()
        train_step(self.state, self.feed(self.state.step), self.config, self.workers)
        return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--semilearn", type=Path, required=True, metavar="PEER", help="folder that pip wrote it to")
    parser.add_argument("--images", required=True, metavar="FILE", help="parquet file of CIFAR-10 with img and label")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--mu", type=int, default=7)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--weak-precision", choices=["float32", "bfloat16"], default="float32", help="of ours")
    add_save(parser, "peer")
    given = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()  # as a training does
    config = load_config(
        [
            "data=parquet", f"data.train={given.images}", "data.image_column=img", "policy=fixmatch", "model.depth=28",
            "data.num_labels_per_class=4",
            f"train.batch_size={given.batch_size}", f"train.mu={given.mu}", "scale.num_workers=0",
            f"train.weak_precision={given.weak_precision}",
        ]
    )  # fmt: skip
    splits = load_splits(config.data, seed=0)
    assert isinstance(splits.unlabeled, ImageSet)
    ours = {coverage: Ours(config, splits.labeled, splits.unlabeled, coverage) for coverage in BOUNDS}
    peer = Peer(given.semilearn, given.images, given.batch_size, given.mu)
    rounds = []
    for index in range(WARM_UP + given.rounds):
        seconds = peer.step(), *(each.step() for each in ours.values())
        if index >= WARM_UP:
            rounds.append(seconds)
    peer.process.kill()
    peers, *columns = zip(*rounds, strict=True)
    figures: Figures = {
        f"coverage {coverage}": {
            "ours": quartiles([1e3 * each for each in column], "ms"),
            f"semilearn {VERSION}": quartiles([1e3 * each for each in peers], "ms"),
            "ours / semilearn": quartiles(
                [mine / theirs for mine, theirs in zip(column, peers, strict=True)], at_most=bound
            ),
        }
        for (coverage, bound), column in zip(BOUNDS.items(), columns, strict=True)
    }
    report("peer", figures, given.save)


if __name__ == "__main__":
    main()
