"""Checkpoints: directories of tensors and text in which nothing executes code when it is loaded.

    step-00000600/
      student.safetensors  teacher.safetensors  policy.safetensors
      trainer.pt           step, seconds, optimizer, sums since the last record, for torch.load(weights_only=True)
      config.yaml          the resolved configuration
      model.json           class names, channels, image size
      backbone.*           of data=features: the network that made them (dpl_ray/data/features/folder.py)
      manifest.json        written last: size and SHA-256 of the others, and how many bytes history.jsonl had

Random states and the data position are functions of seed and step, so the step is all there is to save of them. A
directory without a manifest is a write that did not finish, and does not count.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import pickle
import time
import warnings
from collections.abc import Callable, Iterator

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from dpl_ray.algorithm.policies import build_policy
from dpl_ray.algorithm.policy import Policy, RunFacts
from dpl_ray.config.parse import to_yaml
from dpl_ray.config.schema import Config, ModelConfig
from dpl_ray.config.section import validated
from dpl_ray.data.features.folder import BACKBONE_WEIGHTS, read_backbone
from dpl_ray.models import Classifier, build_model
from dpl_ray.models.adapters import merge_lora
from dpl_ray.models.on_images import OnImages
from dpl_ray.models.weights import load_saved
from dpl_ray.store.file_systems import one_line
from dpl_ray.store.records import write_json
from dpl_ray.store.storage import Storage
from dpl_ray.training.checkpoint_folder import (
    MANIFEST,
    ModelInfo,
    list_checkpoints,
    load_config_and_info,
    read_file,
    read_spec,
)
from dpl_ray.training.distributed import Workers
from dpl_ray.training.state import TrainState

MODULES = ("student", "teacher", "policy")
WAITS = (1, 2, 4, 8, 15, 30)  # seconds between attempts to write


def save_checkpoint(
    folder: Storage,
    state: TrainState,
    config: Config,
    info: ModelInfo,
    workers: Workers,
    *,
    keep: int,
    save_history: Callable[[], int] = lambda: 0,
) -> Storage:
    """Write `folder/step-N` and remove all but the `keep` newest. Interrupted, the older ones are whole.

    Every worker calls this, for what the policy keeps in shards; worker 0 writes. Storage that fails for a while is
    tried again for a minute.

    Args:
        save_history: brings the records until this step to the storage, and returns how many bytes they are.

    Raises:
        OSError: the checkpoint, or the records before it, cannot be written.
    """
    target = folder / f"step-{state.step:08d}"
    shards, sums = _gather_shards(state.policy, workers), torch.stack(workers.gather(state.sums.cpu()))
    if workers.rank:
        return target
    trainer = io.BytesIO()
    facts = {"step": state.step, "seconds": state.seconds, "sums": sums}
    torch.save(facts | {"optimizer": state.optimizer.state_dict()}, trainer)
    tensors = {name: getattr(state, name).state_dict() for name in MODULES}
    tensors["policy"] |= shards
    contents = {f"{name}.safetensors": _encode(named) for name, named in tensors.items()}
    contents["trainer.pt"] = trainer.getvalue()
    contents["config.yaml"] = to_yaml(config).encode()
    contents["model.json"] = json.dumps(
        {"class_names": info.class_names, "channels": info.channels, "image_size": info.image_size}
    ).encode()
    if config.model.name == "head":  # with the backbone, so that the model of the checkpoint takes images
        assert config.data.train is not None, "the configuration requires it"
        contents |= read_backbone("data.train", config.data.train)
    for seconds in (*WAITS, None):
        try:
            _write(target, state.step, contents, save_history())
            break
        except OSError as error:
            if seconds is None:
                raise
            warnings.warn(f"{target}: cannot be written ({one_line(error)}); tried again in {seconds} s", stacklevel=2)
            time.sleep(seconds)
    for old in list_checkpoints(folder)[:-keep]:
        old.delete()
    return target


def _write(target: Storage, step: int, contents: dict[str, bytes], num_bytes: int) -> None:
    """The files of a checkpoint, and at last its manifest, without which it does not count."""
    (target / MANIFEST).remove()  # of one that was damaged, or was written by another attempt
    for name, data in contents.items():
        (target / name).write(data)
    files = {name: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in contents.items()}
    write_json(target / MANIFEST, {"step": step, "history_bytes": num_bytes, "files": files})


def load_state(checkpoint: Storage, state: TrainState, workers: Workers) -> None:
    """Bring a freshly built state to where the checkpoint was written, by any number of workers."""
    device = state.student.classifier.weight.device
    for name in MODULES:
        with _tensors(checkpoint, f"{name}.safetensors") as tensors:
            if name == "policy":
                tensors |= {key: tensors[key][workers.rank :: workers.world_size] for key in state.policy.sharded}
            getattr(state, name).load_state_dict(tensors)
    data = read_file(checkpoint, "trainer.pt")
    try:
        trainer = load_saved(data, device)
        state.optimizer.load_state_dict(trainer["optimizer"])
        state.step, state.seconds = int(trainer["step"]), float(trainer.get("seconds", 0.0))
        if "sums" in trainer:  # (workers, len(SUMS)); those of another number of workers are shared out
            state.sums.copy_(trainer["sums"][workers.rank :: workers.world_size].sum(dim=0))
    except pickle.UnpicklingError:
        raise ValueError(f"checkpoint={checkpoint}: trainer.pt holds more than tensors, and is not loaded") from None
    except Exception as error:  # whatever torch lets out of a file that it has not written
        text = f"trainer.pt is not that of a training ({one_line(error)})"
        raise ValueError(f"checkpoint={checkpoint}: {text}") from None


def load_classifier(checkpoint: Storage, which: str = "teacher") -> tuple[Classifier, Config, ModelInfo]:
    """The teacher (or `student`) of a checkpoint, on the CPU, in evaluation mode; adapters are in its weights."""
    config, info = load_config_and_info(checkpoint)
    with _tensors(checkpoint, f"{which}.safetensors") as tensors:
        model = _build_with(tensors, config.model, info.channels, len(info.class_names))
    if config.model.adapter is not None:
        merge_lora(model)
    if config.model.name == "head":
        model = OnImages(load_backbone(checkpoint)[0], model)
    return model.eval(), config, info


def load_backbone(checkpoint: Storage) -> tuple[Classifier, ModelConfig]:
    """The network that made the features which a checkpoint's head was trained on, in evaluation mode."""
    spec = read_spec(checkpoint)
    section = validated(ModelConfig, spec.model).changed(weights=None)
    with _tensors(checkpoint, BACKBONE_WEIGHTS) as tensors:
        # Its classifier is none of the features'.
        classifier = {"classifier.weight": torch.zeros(2, spec.num_features), "classifier.bias": torch.zeros(2)}
        return _build_with(tensors | classifier, section, spec.channels, 2).eval(), section


def _build_with(tensors: dict[str, Tensor], section: ModelConfig, channels: int, num_classes: int) -> Classifier:
    """The network of a configuration, which may be a stranger's, with the tensors of a checkpoint.

    Raises:
        ValueError: there is no such architecture.
        RuntimeError: the tensors are not those of the network; known before it takes any memory.
    """
    # The weights come from the checkpoint: pretrained ones would be downloaded for nothing, and could be anywhere.
    section = section.changed(weights=None)
    with torch.device("meta"):
        build_model(section, channels, num_classes).load_state_dict(dict(tensors), assign=True)
    model = build_model(section, channels, num_classes)
    model.load_state_dict(tensors)
    return model


def load_policy(checkpoint: Storage) -> Policy:
    """The policy of a checkpoint with its state, whole (as of one worker), on the CPU, in evaluation mode."""
    config, info = load_config_and_info(checkpoint)
    with _tensors(checkpoint, "teacher.safetensors") as teacher:
        num_features = teacher["classifier.weight"].shape[1]
    with _tensors(checkpoint, "policy.safetensors") as tensors:
        policy = build_policy(config.policy.model_dump(), num_features, len(info.class_names))
        # What has a row for every sample says how many there were.
        pool_size = max((len(tensors[name]) for name in policy.sharded), default=0)
        policy.join(RunFacts(pool_size, config.train.batch_size * config.train.mu, frozen=config.model.name == "head"))
        policy.load_state_dict(tensors)
    return policy.requires_grad_(False).eval()


@contextlib.contextmanager
def _tensors(checkpoint: Storage, name: str) -> Iterator[dict[str, Tensor]]:
    """The tensors of a file; `ValueError`, also of what is done with them, where they are not those of the network."""
    data = read_file(checkpoint, name)
    try:
        yield safetensors.torch.load(data)
    except (SafetensorError, RuntimeError, LookupError, TypeError) as error:
        text = f"{name} does not hold the tensors of its configuration ({one_line(error)})"
        raise ValueError(f"checkpoint={checkpoint}: {text}") from None


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
