"""Checkpoints: directories of tensors and text in which nothing executes code when it is loaded.

    step-00000600/
      student.safetensors  teacher.safetensors  policy.safetensors
      trainer.pt           step, seconds and optimizer, for torch.load(weights_only=True)
      config.yaml          the resolved configuration
      model.json           class names, channels, image size
      manifest.json        written last: size and SHA-256 of the others

Random states and the data position are functions of seed and step, so the step is all there is to save of them. A
directory without a manifest is a write that did not finish, and does not count.
"""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import re
from dataclasses import dataclass
from typing import Any

import safetensors.torch
import torch
import yaml
from torch import Tensor

from dpl_ray.algorithm.policy import Policy
from dpl_ray.config import Config, parse_config, to_yaml
from dpl_ray.models import Classifier, build_model
from dpl_ray.storage import Storage
from dpl_ray.training.distributed import Workers
from dpl_ray.training.state import TrainState

MANIFEST = "manifest.json"
MODULES = ("student", "teacher", "policy")
LOOKS_LIKE = f"give a folder step-N that holds a {MANIFEST}, or the folder of a run, which holds such folders"


@dataclass(frozen=True)
class ModelInfo:
    """What is needed to build and feed the model besides the configuration."""

    class_names: tuple[str, ...]
    channels: int
    image_size: tuple[int, int]


def save_checkpoint(
    folder: Storage, state: TrainState, config: Config, info: ModelInfo, workers: Workers, *, keep: int
) -> Storage:
    """Write `folder/step-N` and remove all but the `keep` newest. Interrupted, the older ones are whole.

    Every worker calls this, for what the policy keeps in shards; worker 0 writes.
    """
    target = folder / f"step-{state.step:08d}"
    shards = _gather_shards(state.policy, workers)
    if workers.rank:
        return target
    trainer = io.BytesIO()
    torch.save({"step": state.step, "seconds": state.seconds, "optimizer": state.optimizer.state_dict()}, trainer)
    tensors = {name: getattr(state, name).state_dict() for name in MODULES}
    tensors["policy"] |= shards
    contents = {f"{name}.safetensors": _encode(named) for name, named in tensors.items()}
    contents["trainer.pt"] = trainer.getvalue()
    contents["config.yaml"] = to_yaml(config).encode()
    contents["model.json"] = json.dumps(
        {"class_names": info.class_names, "channels": info.channels, "image_size": info.image_size}
    ).encode()
    for name, data in contents.items():
        (target / name).write(data)
    manifest = {
        name: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in contents.items()
    }
    (target / MANIFEST).write(json.dumps({"step": state.step, "files": manifest}, indent=1).encode())
    for old in list_checkpoints(folder)[:-keep]:
        old.delete()
    return target


def list_checkpoints(folder: Storage) -> list[Storage]:
    """Finished checkpoints of a run, oldest first."""
    names = sorted(name for name in folder.list() if re.fullmatch(r"step-\d+", name))
    return [folder / name for name in names if (folder / name / MANIFEST).exists()]


def find_checkpoint(path: Storage) -> Storage:
    """The checkpoint that the path is, or the newest one in the folder of a run.

    Raises:
        ValueError: it is neither; naming the newest checkpoint in the folders below, if there is one.
    """
    if (path / MANIFEST).exists():
        return path
    if inside := list_checkpoints(path):
        return inside[-1]
    if not path.exists():
        raise ValueError(f"checkpoint={path}: there is no such folder; {LOOKS_LIKE}")
    below = [checkpoint for name in path.list() for checkpoint in list_checkpoints(path / name)[-1:]]
    newest = max(below, key=lambda checkpoint: (checkpoint / MANIFEST).changed(), default=None)
    where = f"; the newest one below is {newest}" if newest else ""
    raise ValueError(f"checkpoint={path}: there is no finished checkpoint; {LOOKS_LIKE}{where}")


def load_state(checkpoint: Storage, state: TrainState, workers: Workers) -> None:
    """Bring a freshly built state to where the checkpoint was written, by any number of workers."""
    device = state.student.classifier.weight.device
    for name in MODULES:
        tensors = safetensors.torch.load(_read(checkpoint, f"{name}.safetensors"))
        if name == "policy":
            tensors |= {key: tensors[key][workers.rank :: workers.world_size] for key in state.policy.sharded}
        getattr(state, name).load_state_dict(tensors)
    try:
        trainer = torch.load(io.BytesIO(_read(checkpoint, "trainer.pt")), map_location=device, weights_only=True)
    except pickle.UnpicklingError:
        raise ValueError(f"checkpoint={checkpoint}: trainer.pt holds more than tensors, and is not loaded") from None
    state.optimizer.load_state_dict(trainer["optimizer"])
    state.step, state.seconds = trainer["step"], trainer.get("seconds", 0.0)


def load_config_and_info(checkpoint: Storage) -> tuple[Config, ModelInfo]:
    """The configuration and the model's description that a checkpoint was written with."""
    config = parse_config(yaml.safe_load(_read(checkpoint, "config.yaml")))
    info: dict[str, Any] = json.loads(_read(checkpoint, "model.json"))
    return config, ModelInfo(tuple(info["class_names"]), info["channels"], tuple(info["image_size"]))


def load_classifier(checkpoint: Storage, which: str = "teacher") -> tuple[Classifier, Config, ModelInfo]:
    """The teacher (or `student`) of a checkpoint, on the CPU, in evaluation mode."""
    config, info = load_config_and_info(checkpoint)
    # The weights come from the checkpoint: pretrained ones would be downloaded for nothing.
    model = build_model(config.model.model_copy(update={"weights": None}), info.channels, len(info.class_names))
    model.load_state_dict(safetensors.torch.load(_read(checkpoint, f"{which}.safetensors")))
    return model.eval(), config, info


def _gather_shards(policy: Policy, workers: Workers) -> dict[str, Tensor]:
    """The whole of every buffer of which each worker holds the rows id % world_size == rank."""
    whole = {}
    for name in policy.sharded:
        shards = workers.gather(policy.get_buffer(name).cpu())
        whole[name] = shards[0].new_empty(sum(len(shard) for shard in shards))
        for rank, shard in enumerate(shards):
            whole[name][rank :: workers.world_size] = shard
    return whole


def _encode(tensors: dict[str, Tensor]) -> bytes:
    return safetensors.torch.save({name: value.detach().cpu().contiguous() for name, value in tensors.items()})


def _read(checkpoint: Storage, name: str) -> bytes:
    """A file's bytes, checked against the manifest.

    Raises:
        ValueError: there is no finished checkpoint, or the file is not the one that was written.
    """
    if not (checkpoint / MANIFEST).exists():
        raise ValueError(f"checkpoint={checkpoint}: there is no finished checkpoint (no {MANIFEST})")
    try:
        expected = json.loads((checkpoint / MANIFEST).read())["files"][name]
        size, digest = expected["size"], expected["sha256"]
    except (ValueError, LookupError, TypeError):
        raise ValueError(f"checkpoint={checkpoint}: {MANIFEST} is damaged, or says nothing of {name}") from None
    data = (checkpoint / name).read() if (checkpoint / name).exists() else b""
    if len(data) != size or hashlib.sha256(data).hexdigest() != digest:
        raise ValueError(
            f"checkpoint={checkpoint}: {name} is damaged or missing ({len(data)} bytes, not {size}); "
            "remove this folder to go on from the checkpoint before it"
        )
    return data
