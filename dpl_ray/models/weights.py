"""Pretrained weights: from a file or the hub to the tensors of a network, each checked. Nothing read is executed."""

from __future__ import annotations

import io
import pickle
import posixpath
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pyarrow as pa
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from dpl_ray.config.schema import ModelConfig
from dpl_ray.store.file_systems import one_line
from dpl_ray.store.storage import Storage

#: Where training scripts put the weights in what they save; those of the moving average before the others.
CONTAINERS = ("state_dict_ema", "model_ema", "state_dict", "model", "teacher")
COUNTER = "num_batches_tracked"  # of BatchNorm: not used where its momentum is a number, and not in every file
KINDS = ("weight", "bias", "running_mean", "running_var")  # that most publications call so
HUB_SECONDS = 5.0  # that the hub has for an answer
OFFLINE = (
    "download the file elsewhere and give its path as model.weights=PATH, or bring the hub's cache and set "
    "HF_HUB_OFFLINE=1"
)


def is_file(path: str) -> bool:
    """Whether there is a file at a path or URI."""
    try:
        storage = Storage(path)
        return bool(storage.filesystem.get_file_info(storage.path).is_file)
    except (OSError, ValueError, pa.ArrowException):
        return False


def read_weights(given: str, path: str) -> dict[str, Tensor]:
    """The tensors of a safetensors file, or of one that torch has saved, in their order.

    Args:
        given: model.weights, for messages.

    Raises:
        ValueError: there is no such file, it is no file of weights, or holds more than tensors and plain values.
    """
    if not is_file(path):
        raise ValueError(
            f"model.weights={given}: there is no such file; give a .safetensors or .pth file, pretrained or "
            "hf-hub:OWNER/NAME"
        )
    try:
        data = Storage(path).read()
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"model.weights={given}: cannot be read ({one_line(error)})") from None
    if posixpath.splitext(path)[1].lower() == ".safetensors":
        try:
            return safetensors.torch.load(data)
        except safetensors.SafetensorError as error:
            raise ValueError(f"model.weights={given}: is no safetensors file ({one_line(error)})") from None
    try:
        content = load_saved(data, torch.device("cpu"))
    except pickle.UnpicklingError:
        raise ValueError(
            f"model.weights={given}: is no file of torch, or holds more than tensors, and is not loaded, since that "
            "could execute code; save its state_dict() as safetensors"
        ) from None
    except Exception as error:  # whatever torch lets out of a file that it has not written
        raise ValueError(f"model.weights={given}: is no file of torch ({one_line(error)})") from None
    return _tensors(given, content)


def load_saved(data: bytes, device: torch.device) -> Any:
    """What `torch.save` has written, if it is tensors and plain values.

    Raises:
        pickle.UnpicklingError: it holds more than these.
        Exception: whatever torch lets out of a file that it has not written, or that says to unpack to more than it is.
    """
    file = io.BytesIO(data)
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:  # torch packs nothing, but reads what is packed, or is there twice
            if sum(member.file_size for member in archive.infolist()) > len(data):
                raise ValueError("it would unpack to more bytes than it has")
    file.seek(0)
    if b"bytearray" in data:  # that torch makes, of any size
        raise pickle.UnpicklingError("it holds a bytearray")
    return torch.load(file, map_location=device, weights_only=True)


def _tensors(given: str, content: Any) -> dict[str, Tensor]:
    """Name -> tensor of what was loaded, out of its container and without the prefix of a wrapped module."""
    for name in CONTAINERS:
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
            break
    named = content.items() if isinstance(content, Mapping) else ()
    tensors = {str(name).removeprefix("module."): value for name, value in named if isinstance(value, Tensor)}
    if not tensors:
        raise ValueError(f"model.weights={given}: holds no tensors by name; save the state_dict() of the network")
    return tensors


def download_weights(given: str, url: str) -> dict[str, Tensor]:
    """The tensors of a file that torch.hub has in its cache, or else downloads.

    Raises:
        ValueError: it is not in the cache and cannot be downloaded; within seconds.
    """
    folder, name = torch.hub.get_dir(), posixpath.basename(url)
    try:
        if not Path(folder, "checkpoints", name).exists():  # torch.hub itself would wait without end
            urlopen(Request(url, method="HEAD"), timeout=HUB_SECONDS).close()
        return torch.hub.load_state_dict_from_url(
            url, map_location="cpu", progress=False, check_hash=True, weights_only=True
        )
    except (OSError, RuntimeError) as error:
        raise ValueError(
            f"model.weights={given}: cannot be downloaded from {url} ({one_line(error)}); put {name} into "
            f"{folder}/checkpoints, or give its path as model.weights=PATH"
        ) from None


def hub_file(repository: str, name: str) -> str:
    """A file of the hub: from its cache on this machine, or else downloaded.

    Raises:
        ValueError: it is not in the cache and the hub does not answer, or does not have it; within seconds.
    """
    import huggingface_hub as hub

    cached = hub.try_to_load_from_cache(repository, name)
    if isinstance(cached, str):
        return cached
    place = f"model.weights: {repository} is not in the cache of this machine, and"
    try:
        hub.HfApi().model_info(repository, timeout=HUB_SECONDS)
        return hub.hf_hub_download(repository, name)
    except Exception as error:  # of the hub's HTTP library, whichever it is
        raise ValueError(f"{place} {hub.constants.ENDPOINT} does not give it ({one_line(error)}); {OFFLINE}") from None


def fit_weights(
    config: ModelConfig,
    tensors: dict[str, Tensor],
    network: nn.Module,
    head: Mapping[str, Tensor],
    convert: Callable[[dict[str, Tensor], nn.Module], dict[str, Tensor]] | None = None,
) -> dict[str, Tensor]:
    """The tensors under the names of the network, for `load_state_dict`.

    They are taken by their names; or by the names that `convert` gives them; or else, since publications name theirs
    otherwise and keep the order, one after another: every shape must then agree.

    Args:
        network: without its last layer; its tensors may be on the meta device.
        head: the tensors of that layer, which the file may have in any shape, or not have.

    Raises:
        ValueError: naming the first tensor that does not fit.
    """
    own = network.state_dict()
    if problem := _misfit(tensors, own, head):
        if convert is not None:
            try:
                converted = convert(dict(tensors), network)
            except Exception:  # timm's conversions expect the keys of certain publications
                converted = tensors
            if not _misfit(converted, own, head):
                return _with_counters(converted, own)
        if (ordered := _by_order(tensors, own, head)) is not None:
            return ordered
        raise ValueError(f"model.weights={config.weights}: does not fit {config.architecture}: {problem}")
    return _with_counters(tensors, own)


def _misfit(tensors: Mapping[str, Tensor], own: Mapping[str, Tensor], head: Mapping[str, Tensor]) -> str:
    """The first tensor that is missing, of another shape or left over; empty where all fit by their names."""
    for name, tensor in own.items():
        if name in tensors and tensors[name].shape != tensor.shape:
            return f"{name} is {_shape(tensors[name])}, that of the network {_shape(tensor)}"
        if name not in tensors and not name.endswith(COUNTER):
            return f"it has no {name} {_shape(tensor)}"
    left = [name for name in tensors if name not in own and name not in head]
    return f"the network has no {left[0]} {_shape(tensors[left[0]])}" if left else ""


def _by_order(
    tensors: Mapping[str, Tensor], own: Mapping[str, Tensor], head: Mapping[str, Tensor]
) -> dict[str, Tensor] | None:
    """The tensors one after another, without the head's at the end; None where a shape or the kind differs."""
    given = [name for name in tensors if not name.endswith(COUNTER)]
    wanted = [name for name in own if not name.endswith(COUNTER)]
    if len(given) not in (len(wanted), len(wanted) + len(head)):
        return None
    pairs = dict(zip(wanted, given, strict=False))
    if any(tensors[theirs].shape != own[ours].shape or not _alike(theirs, ours) for ours, theirs in pairs.items()):
        return None
    return _with_counters({ours: tensors[theirs] for ours, theirs in pairs.items()}, own)


def _alike(theirs: str, ours: str) -> bool:
    """Whether two names may be of one kind: shapes do not tell a mean from a variance, nor whether a file is sorted."""
    kind = theirs.rpartition(".")[2]
    return kind not in KINDS or kind == ours.rpartition(".")[2]


def _with_counters(tensors: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those of the network alone, BatchNorm's counters from the network where the file has none."""
    return {name: tensors[name] if name in tensors else own[name] for name in own}


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a number"
