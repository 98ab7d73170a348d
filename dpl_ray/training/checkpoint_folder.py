"""The files of a checkpoint (dpl_ray/training/checkpoint.py says which): finding them, and reading them checked.

Imports no torch, so that a wrong path is answered before it is loaded.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, replace
from typing import Any

from dpl_ray.config.parse import parse_config
from dpl_ray.config.schema import BESIDE_RUNS, Config, DataConfig, RunConfig
from dpl_ray.config.section import suggest
from dpl_ray.data.dataset import Splits
from dpl_ray.data.features.folder import BACKBONE_SPEC, Spec, parse_spec
from dpl_ray.data.images.convert import DecodeSettings
from dpl_ray.store.file_systems import one_line
from dpl_ray.store.records import from_yaml, read_tree
from dpl_ray.store.storage import Storage

MANIFEST = "manifest.json"
MAX_SIDE = 2**16  # pixels, or numbers of a feature
LOOKS_LIKE = f"give a folder step-N that holds a {MANIFEST}, or the folder of a run, which holds such folders"


@dataclass(frozen=True)
class ModelInfo:
    """What is needed to build and feed the model besides the configuration."""

    class_names: tuple[str, ...]
    channels: int
    image_size: tuple[int, int]

    @classmethod
    def of(cls, splits: Splits) -> ModelInfo:
        """Of a model for these images."""
        channels, height, width = splits.labeled.images.shape[1:]
        return cls(splits.class_names, channels, (height, width))

    def decode_settings(self, data: DataConfig) -> DecodeSettings:
        """How other images are made such as the model was trained on; image_size is None where those are not square."""
        settings = replace(DecodeSettings.from_config(data), channels=self.channels)  # type: ignore[arg-type]
        height, width = self.image_size
        return replace(settings, image_size=height if height == width else None)


def list_checkpoints(folder: Storage) -> list[Storage]:
    """Finished checkpoints of a run, oldest first."""
    names = sorted(name for name in folder.list() if re.fullmatch(r"step-\d+", name))
    return [folder / name for name in names if (folder / name / MANIFEST).exists()]


def drop_damaged(folder: Storage) -> list[str]:
    """Let the newest checkpoints not count that are damaged, if an older one is whole; returns what is wrong with them.

    Raises:
        ValueError: none is whole.
    """
    told, wrong = [], list[Storage]()
    for checkpoint in reversed(list_checkpoints(folder)):
        try:
            for name in _files(checkpoint):
                read_file(checkpoint, name)
        except ValueError as error:
            told.append(str(error).partition("; remove this folder")[0])
            wrong.append(checkpoint)
            continue
        for each in wrong:
            (each / MANIFEST).remove()
        return told
    if told:
        raise ValueError(f"{told[0]}; no checkpoint before it is whole: remove {wrong[0].parent} to begin anew")
    return []


def history_bytes(folder: Storage) -> int:
    """How many bytes history.jsonl had when the newest checkpoint was written; 0: that is not known."""
    saved = list_checkpoints(folder)
    number: int = read_tree(saved[-1] / MANIFEST).get("history_bytes", 0) if saved else 0
    return number


def open_checkpoint(given: str) -> Storage:
    """`find_checkpoint` of a path as the user wrote it; also a file system that does not answer is a `ValueError`."""
    try:
        return find_checkpoint(Storage(given))
    except OSError as error:
        raise ValueError(f"checkpoint={given}: cannot be read ({one_line(error)}); {LOOKS_LIKE}") from None
    except ValueError as error:
        raise (error if str(error).startswith("checkpoint=") else ValueError(f"checkpoint={error}")) from None


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
        raise ValueError(f"checkpoint={path}: there is no such folder{_near(path) or f'; {LOOKS_LIKE}'}")
    below = [checkpoint for name in path.list() for checkpoint in list_checkpoints(path / name)[-1:]]
    newest = max(below, key=lambda checkpoint: (checkpoint / MANIFEST).changed(), default=None)
    where = f"; the newest one below is {newest}" if newest else ""
    raise ValueError(f"checkpoint={path}: there is no finished checkpoint; {LOOKS_LIKE}{where}")


def _near(path: Storage) -> str:
    """A hint at the run beside it, or in the default folder of runs, that may be meant."""
    runs = RunConfig().storage_path
    for folder, prefix in ((path.parent, f"{path.parent}/"), (Storage(runs), f"{runs}/")):
        if near := suggest(path.name, set(folder.list()).difference(BESIDE_RUNS)):
            return near.replace("did you mean ", f"did you mean {prefix}")
    return ""


def load_config_and_info(checkpoint: Storage) -> tuple[Config, ModelInfo]:
    """The configuration and the model's description that a checkpoint was written with."""
    written, described = read_file(checkpoint, "config.yaml"), read_file(checkpoint, "model.json")
    try:
        config = parse_config(from_yaml(written))
        info: dict[str, Any] = json.loads(described)
        names, channels, size = tuple(map(str, info["class_names"])), int(info["channels"]), info["image_size"]
        info |= {"class_names": names, "channels": channels, "image_size": (int(size[0]), int(size[1]))}
        if not all(0 < number <= MAX_SIDE for number in (channels, *info["image_size"])):
            raise ValueError(f"channels={channels}, image_size={size}")
    except (ValueError, LookupError, TypeError, RecursionError, OverflowError) as error:
        text = f"config.yaml or model.json is not that of a checkpoint ({one_line(error)})"
        raise ValueError(f"checkpoint={checkpoint}: {text}") from None
    if spec := feature_spec(checkpoint, config):  # its model takes the images that the features were made of
        read = {name: getattr(spec, name) for name in ("channels", "image_size", "fit", "interpolation")}
        config = config.changed(data=read)
        info |= {"channels": spec.channels, "image_size": (spec.image_size, spec.image_size)}
    return config, ModelInfo(tuple(info["class_names"]), info["channels"], tuple(info["image_size"]))


def feature_spec(checkpoint: Storage, config: Config) -> Spec | None:
    """What made the features that the model was trained on; None where it was trained on images."""
    return read_spec(checkpoint) if config.model.name == "head" else None


def read_spec(checkpoint: Storage) -> Spec:
    """What made the features of a checkpoint that was trained on them."""
    data = read_file(checkpoint, BACKBONE_SPEC)
    try:
        return parse_spec(data)
    except ValueError as error:
        text = f"{BACKBONE_SPEC} is not that of a checkpoint ({one_line(error)})"
        raise ValueError(f"checkpoint={checkpoint}: {text}") from None


def _files(checkpoint: Storage) -> dict[str, tuple[int, str]]:
    """File -> bytes and SHA-256, as the manifest has them; `ValueError` where it is damaged."""
    try:
        files = read_tree(checkpoint / MANIFEST)["files"]
        return {name: (int(known["size"]), str(known["sha256"])) for name, known in files.items()}
    except (ValueError, LookupError, TypeError, AttributeError):
        raise ValueError(
            f"checkpoint={checkpoint}: {MANIFEST} is damaged; remove this folder to go on from the checkpoint before it"
        ) from None


def read_file(checkpoint: Storage, name: str) -> bytes:
    """A file's bytes, checked against the manifest.

    Raises:
        ValueError: there is no finished checkpoint, or the file is not the one that was written.
    """
    if not (checkpoint / MANIFEST).exists():
        raise ValueError(f"checkpoint={checkpoint}: there is no finished checkpoint (no {MANIFEST})")
    files = _files(checkpoint)
    if name not in files:
        raise ValueError(f"checkpoint={checkpoint}: {MANIFEST} says nothing of {name}")
    size, digest = files[name]
    found = (checkpoint / name).size() or 0  # none of what is no file, as a pipe, which is not read
    data = (checkpoint / name).read() if found == size else b""
    if found != size or hashlib.sha256(data).hexdigest() != digest:
        raise ValueError(
            f"checkpoint={checkpoint}: {name} is damaged or missing ({found} bytes, not {size}); "
            "remove this folder to go on from the checkpoint before it"
        )
    return data
