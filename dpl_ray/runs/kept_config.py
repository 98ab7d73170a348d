"""The configuration that the folder of a run keeps: YAML, whose first line has the checksum of the others."""

from __future__ import annotations

import hashlib
from typing import Any

from dpl_ray.config.parse import to_yaml
from dpl_ray.config.schema import Config
from dpl_ray.store.records import OTHER, damaged, from_yaml
from dpl_ray.store.storage import Storage
from dpl_ray.training.checkpoint_folder import list_checkpoints

CONFIG_FILE = "config.yaml"
_HEADER = b"# checksum: "


def write_kept(folder: Storage, config: Config) -> None:
    """Keep it in the folder of a run."""
    text = to_yaml(config).encode()
    (folder / CONFIG_FILE).write(_header(text) + text)


def read_kept(folder: Storage) -> dict[str, Any]:
    """The configuration that a run has been begun with, as a tree; empty where there is none.

    Raises:
        ValueError: the file is not as it was written; naming it, and where there is a copy.
    """
    file = folder / CONFIG_FILE
    if not file.exists():
        return {}
    header, end, text = (data := file.read()).partition(b"\n")
    is_checked = header.startswith(_HEADER)  # of an older version it has no checksum
    try:
        if is_checked and header + end != _header(text):
            raise ValueError(OTHER)
        tree = from_yaml(data)
        if not isinstance(tree, dict) or tree.keys() - Config.model_fields.keys():
            raise ValueError("it is no configuration")
    except ValueError as error:
        saved = list_checkpoints(folder)
        remedy = f"copy {saved[-1] / CONFIG_FILE} over it" if saved else "remove the folder to begin anew"
        raise damaged(file, error, f"{remedy}, or take another run.name") from None
    return tree


def _header(text: bytes) -> bytes:
    return _HEADER + hashlib.blake2b(text, digest_size=8).hexdigest().encode() + b"\n"
