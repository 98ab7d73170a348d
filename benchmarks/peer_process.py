"""The training step of semilearn 0.3.2 on a CPU: `benchmarks.peer` starts this with the peer on the path.

The peer's network, loaders, augmentation, FixMatch and hooks are its own code, unchanged. It asks for a GPU at a few
places: here the copy to it is the identity, waiting for it is nothing, and its clock is the process's. What this
step does not use (other networks, data sets and domains, trackers) is empty, and so is ruamel, which reads its YAML
files: its settings are handed in. For every line that comes in, it takes one step, data included, and answers with the
seconds.
"""

from __future__ import annotations

import sys
import time
from types import ModuleType
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pyarrow.parquet as pq
import torch
import torchvision

EMPTY = "wandb aim transformers timm torchaudio progress skimage tensorboard ruamel"


class _Clock:
    """In place of torch.cuda.Event."""

    def __init__(self, enable_timing: bool) -> None:  # noqa: ARG002
        self.at = 0.0

    def record(self) -> None:
        self.at = time.perf_counter()

    def elapsed_time(self, end: _Clock) -> float:
        return 1e3 * (end.at - self.at)


class _Empty(ModuleType):
    """A module, and all that is below it, in which every name is a stand-in."""

    __path__: list[str] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return MagicMock


class _Finder:
    """Finds empty modules where the real ones are not wanted."""

    def find_spec(self, name: str, *_: object) -> Any:
        from importlib.machinery import ModuleSpec

        if name.partition(".")[0] in EMPTY.split() or name == "torch.utils.tensorboard":
            return ModuleSpec(name, self, is_package=True)  # type: ignore[arg-type]
        return None

    def create_module(self, spec: Any) -> ModuleType:
        return _Empty(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


def hand_in(file: str) -> None:
    """Put the images of a parquet file with the columns img and label in the place of torchvision's download."""
    from io import BytesIO

    from PIL import Image

    table = pq.read_table(file, columns=["img", "label"])
    pixels = [np.asarray(Image.open(BytesIO(each["bytes"]))) for each in table["img"].to_pylist()]

    class Cifar10:
        def __init__(self, *_: object, **__: object) -> None:
            self.data, self.targets = np.stack(pixels), table["label"].to_pylist()

    torchvision.datasets.CIFAR10 = Cifar10


def algorithm(batch_size: int, mu: int) -> Any:
    """FixMatch of the peer with WRN-28-2, ready for its first step."""
    torch.Tensor.cuda = lambda self, *_, **__: self  # type: ignore[method-assign]
    torch.cuda.synchronize = lambda *_: None
    torch.cuda.Event = _Clock  # type: ignore[misc, assignment]
    sys.meta_path.insert(0, _Finder())
    from semilearn import get_algorithm, get_config, get_net_builder  # type: ignore[import-not-found]

    given: dict[str, Any] = {
        "algorithm": "fixmatch", "T": 0.5, "p_cutoff": 0.95, "hard_label": True, "net": "wrn_28_2",
        "use_pretrain": False, "dataset": "cifar10", "data_dir": ".", "num_classes": 10, "num_labels": 40,
        "img_size": 32, "crop_ratio": 0.875, "batch_size": batch_size, "uratio": mu, "eval_batch_size": 64,
        "num_workers": 0, "world_size": 1, "rank": 0, "epoch": 1, "num_train_iter": 1000,
        "num_eval_iter": 10**9, "num_log_iter": 10**9, "distributed": False, "gpu": None,
    }  # fmt: skip
    sys.argv = sys.argv[:1]
    config = get_config(given)
    for name, value in given.items():
        setattr(config, name, value)
    found = get_algorithm(config, get_net_builder(config.net, from_name=False), tb_log=None, logger=None)
    found.model.train()
    found.epoch = 0
    found.call_hook("before_run")
    found.call_hook("before_train_epoch")
    return found


def main() -> None:
    file, batch_size, mu = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(1)
    hand_in(file)
    answers, sys.stdout = sys.stdout, sys.stderr  # the peer prints
    peer = algorithm(batch_size, mu)
    batches = zip(peer.loader_dict["train_lb"], peer.loader_dict["train_ulb"], strict=False)
    print("ready", file=answers, flush=True)
    for _ in sys.stdin:
        began = time.perf_counter()
        labeled, unlabeled = next(batches)
        peer.call_hook("before_train_step")
        peer.out_dict, peer.log_dict = peer.train_step(**peer.process_batch(**labeled, **unlabeled))
        peer.call_hook("after_train_step")
        peer.it += 1
        print(time.perf_counter() - began, file=answers, flush=True)


if __name__ == "__main__":
    main()
