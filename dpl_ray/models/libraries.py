"""Networks of torchvision and timm without their last layer, and the images that their pretrained weights expect."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dpl_ray.config.schema import ModelConfig
from dpl_ray.config.section import suggest
from dpl_ray.models.weights import download_weights, fit_weights, hub_file, is_file, read_weights

Interpolation = Literal["area", "bilinear", "bicubic"]


@dataclass(frozen=True)
class Preprocessing:
    """The images that weights were trained with."""

    mean: tuple[float, ...]  # of each channel, of images in [0, 1]
    std: tuple[float, ...]
    interpolation: Interpolation
    image_size: int  # pixels of a side


class Library(ABC):
    """Where networks come from by name."""

    @abstractmethod
    def check_architecture(self, config: ModelConfig) -> None:
        """`ValueError` unless there is the architecture; both libraries would look for some names on the network."""

    @abstractmethod
    def check(self, config: ModelConfig) -> None:
        """`ValueError` unless there is the architecture, and the weights for it; files of weights are looked into."""

    @abstractmethod
    def preprocessing(self, config: ModelConfig) -> Preprocessing | None:
        """Of the weights; None for random ones."""

    @abstractmethod
    def build(self, config: ModelConfig) -> tuple[nn.Module, int]:
        """The network, images of three channels -> features (N, D), and D."""


class Torchvision(Library):
    """Classification models of torchvision; weights by torchvision's names, or from a file."""

    def check_architecture(self, config: ModelConfig) -> None:
        from torchvision import models

        known = models.list_models(module=models)
        if config.architecture not in known:
            near = suggest(config.architecture, known) or "; as resnet18, efficientnet_b0 or mobilenet_v3_small"
            raise ValueError(
                f"model.architecture={config.architecture}: torchvision has no such classification model{near}"
            )

    def check(self, config: ModelConfig) -> None:
        from torchvision import models

        self.check_architecture(config)
        if config.weights is None:
            return
        weights = ["DEFAULT", *models.get_model_weights(config.architecture).__members__]
        if config.weights not in weights and not is_file(config.weights):
            raise ValueError(
                f"model.weights={config.weights}: {config.architecture} has no such weights, nor is it a file; "
                f"known: {', '.join(dict.fromkeys(weights))}{suggest(config.weights, weights)}"
            )
        with torch.device("meta"):
            network, head = _without_head(_torchvision_network(config), config)
        self._fitting(config, network, head)

    def preprocessing(self, config: ModelConfig) -> Preprocessing | None:
        if config.weights is None:
            return None
        preset = (_torchvision_weights(config) or _torchvision_weights(config, "DEFAULT")).transforms()
        size, interpolation = preset.crop_size[0], preset.interpolation.value
        return Preprocessing(tuple(preset.mean), tuple(preset.std), _interpolation(interpolation), size)

    def build(self, config: ModelConfig) -> tuple[nn.Module, int]:
        self.check_architecture(config)
        network, head = _without_head(_torchvision_network(config), config)
        if config.weights is not None:
            network.load_state_dict(self._fitting(config, network, head))
        return network, next(iter(head.values())).shape[1]

    def _fitting(self, config: ModelConfig, network: nn.Module, head: dict[str, Tensor]) -> dict[str, Tensor]:
        assert config.weights is not None
        named = _torchvision_weights(config)
        tensors = download_weights(config.weights, named.url) if named else read_weights(config.weights, config.weights)
        return fit_weights(config, tensors, network, head)


class Timm(Library):
    """Any backbone of timm; weights of its own (`pretrained`), of another repository of the hub, or from a file."""

    def check_architecture(self, config: ModelConfig) -> None:
        import timm

        if not timm.is_model(config.architecture):
            near = suggest(config.architecture, timm.list_models()) or "; as convnext_atto or vit_small_patch14_dinov2"
            raise ValueError(f"model.architecture={config.architecture}: timm has no such model{near}")

    def check(self, config: ModelConfig) -> None:
        self.check_architecture(config)
        if config.weights is not None:
            with torch.device("meta"):
                network, head = _timm_network(config)
            self._fitting(config, network, head)

    def preprocessing(self, config: ModelConfig) -> Preprocessing | None:
        from timm.data import resolve_data_config

        if config.weights is None:
            return None
        wanted = resolve_data_config(pretrained_cfg=_timm_facts(config))
        size, interpolation = wanted["input_size"][-1], wanted["interpolation"]
        return Preprocessing(tuple(wanted["mean"]), tuple(wanted["std"]), _interpolation(interpolation), size)

    def build(self, config: ModelConfig) -> tuple[nn.Module, int]:
        self.check_architecture(config)
        network, head = _timm_network(config)
        if config.weights is not None:
            network.load_state_dict(self._fitting(config, network, head))
        return network, network.head_hidden_size

    def _fitting(self, config: ModelConfig, network: nn.Module, head: dict[str, Tensor]) -> dict[str, Tensor]:
        import timm

        assert config.weights is not None
        # By timm's convention: from the keys of the original publication, where its authors know them.
        home = sys.modules[timm.model_entrypoint(config.architecture).__module__]
        convert = getattr(home, "checkpoint_filter_fn", None)
        return fit_weights(config, read_weights(config.weights, _timm_file(config)), network, head, convert)


LIBRARIES: dict[str, Library] = {"torchvision": Torchvision(), "timm": Timm()}


def library_of(config: ModelConfig) -> Library:
    """The library of model.name; there is one for every name but wide_resnet."""
    return LIBRARIES[config.name]


def _torchvision_network(config: ModelConfig) -> nn.Module:
    """A network of torchvision with random weights, on torch's device of this context."""
    from torchvision import models

    try:
        return models.get_model(config.architecture)
    except NotImplementedError:  # RegNet counts its channels with tensors, which those of the meta device cannot do
        with torch.device("cpu"):
            network = models.get_model(config.architecture)
        return network.to(torch.get_default_device())


def _torchvision_weights(config: ModelConfig, name: str | None = None) -> Any:
    """The weights of torchvision that have this name, or that of model.weights; None where there are none."""
    from torchvision import models

    known = models.get_model_weights(config.architecture)
    name = name or config.weights
    return known[name] if name in ("DEFAULT", *known.__members__) else None


def _interpolation(name: str) -> Interpolation:
    """The nearest of ours: timm also knows `random`, `lanczos` and others."""
    return "bilinear" if name == "bilinear" else "bicubic"


def _without_head(network: nn.Module, config: ModelConfig) -> tuple[nn.Module, dict[str, Tensor]]:
    """A network of torchvision with its last linear layer taken out, and the tensors of that layer by their names."""
    linear = [(name, module) for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise ValueError(
            f"model.architecture={config.architecture}: it has no linear layer to put a classifier in place of"
        )
    name, last = linear[-1]
    parent, _, attribute = name.rpartition(".")
    setattr(network.get_submodule(parent), attribute, nn.Identity())
    return network, {f"{name}.{part}": tensor for part, tensor in last.state_dict().items()}


def _timm_network(config: ModelConfig) -> tuple[Any, dict[str, Tensor]]:
    """A network of timm with random weights and without its classifier, and the tensors that this would have had."""
    import timm

    options: dict[str, Any] = {"dynamic_img_size": True}  # position embeddings are interpolated for images of any size
    try:
        network = timm.create_model(config.architecture, num_classes=0, **options)
    except TypeError:  # it has none
        options = {}
        network = timm.create_model(config.architecture, num_classes=0)
    own = network.state_dict()
    with torch.device("meta"):
        whole = timm.create_model(config.architecture, **options).state_dict()
    return network, {name: tensor for name, tensor in whole.items() if name not in own}


def _timm_facts(config: ModelConfig) -> dict[str, Any]:
    """timm's facts on pretrained weights: where they are, and the images that they expect."""
    import timm

    if repository := _repository(config):
        from timm.models import load_model_config_from_hf

        hub_file(repository, "config.json")
        facts, architecture, _ = load_model_config_from_hf(repository)
        if architecture != config.architecture.partition(".")[0]:
            raise ValueError(
                f"model.weights={config.weights}: they are of {architecture}; set model.architecture={architecture}"
            )
        return facts
    found = timm.get_pretrained_cfg(config.architecture)
    return found.to_dict() if found else {}


def _repository(config: ModelConfig) -> str | None:
    scheme, _, name = (config.weights or "").partition(":")
    return name if scheme == "hf-hub" else None


def _timm_file(config: ModelConfig) -> str:
    """The file that model.weights means, downloaded where it is one of the hub."""
    assert config.weights is not None
    if config.weights != "pretrained" and not _repository(config):
        return config.weights
    facts = _timm_facts(config)
    repository = facts.get("hf_hub_id") or _repository(config)
    if not repository or facts.get("custom_load"):
        import timm

        others = timm.list_pretrained(f"{config.architecture.partition('.')[0]}*") or timm.list_pretrained()
        raise ValueError(
            f"model.weights={config.weights}: timm has no weights of {config.architecture} on the hub; it has those of "
            f"{', '.join(others[:5])}; or give a file"
        )
    return hub_file(repository, facts.get("hf_hub_filename") or "model.safetensors")
