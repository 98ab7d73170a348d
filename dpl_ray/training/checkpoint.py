"""Checkpoints: directories of tensors and text in which nothing executes code when it is loaded.

    step-00000600/
      student.safetensors  teacher.safetensors  policy.safetensors
      trainer.pt           step and optimizer, for torch.load(weights_only=True)
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
from torch import Tensor, nn

from dpl_ray.config import Config, parse_config, to_yaml
from dpl_ray.models import Classifier, build_model
from dpl_ray.storage import Storage
from dpl_ray.training.state import TrainState

MANIFEST = "manifest.json"
MODULES = ("student", "teacher", "policy")


@dataclass(frozen=True)
class ModelInfo:
    """What is needed to build and feed the model besides the configuration."""

    class_names: tuple[str, ...]
    channels: int
    image_size: tuple[int, int]


def save_checkpoint(folder: Storage, state: TrainState, config: Config, info: ModelInfo, *, keep: int) -> Storage:
    """Write `folder/step-N` and remove all but the `keep` newest. Interrupted, the older ones are whole."""
    target = folder / f"step-{state.step:08d}"
    trainer = io.BytesIO()
    torch.save({"step": state.step, "optimizer": state.optimizer.state_dict()}, trainer)
    contents = {f"{name}.safetensors": _tensors(getattr(state, name)) for name in MODULES}
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


def load_state(checkpoint: Storage, state: TrainState) -> None:
    """Bring a freshly built state to where the checkpoint was written."""
    device = state.student.classifier.weight.device
    for name in MODULES:
        getattr(state, name).load_state_dict(safetensors.torch.load(_read(checkpoint, f"{name}.safetensors")))
    try:
        trainer = torch.load(io.BytesIO(_read(checkpoint, "trainer.pt")), map_location=device, weights_only=True)
    except pickle.UnpicklingError:
        raise ValueError(f"checkpoint={checkpoint}: trainer.pt holds more than tensors, and is not loaded") from None
    state.optimizer.load_state_dict(trainer["optimizer"])
    state.step = trainer["step"]


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


def _tensors(module: nn.Module) -> bytes:
    tensors: dict[str, Tensor] = {
        name: value.detach().cpu().contiguous() for name, value in module.state_dict().items()
    }
    return safetensors.torch.save(tensors)


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
