"""Low-rank adapters in a frozen backbone (LoRA, Hu 2021), by the library peft."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

ATTENTION = re.compile("att(entio)?n(?!.*pool)", re.IGNORECASE)  # in the name of a class
USUAL_SIZE = 224  # pixels of a side: what networks take that do not say what they take


def add_lora(network: nn.Module, rank: int, alpha: int) -> None:
    """Freeze a network, and put an adapter beside each of its `targets`; what it computes stays the same at first.

    A layer W x becomes W x + alpha / rank B A x, B zero at first. A is drawn from torch's global generator.

    Raises:
        ValueError: peft is not installed, or the network has no layer that takes an adapter.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ModuleNotFoundError as error:
        raise ValueError(
            f"model.adapter=lora needs {error.name}, which is not installed: pip install 'dpl_ray[lora]'"
        ) from None
    names = targets(network)
    if not names:
        raise ValueError(
            "model.adapter=lora: the network has no plain linear layer or convolution that an adapter goes beside; "
            "model.train=last:2 trains its last layers"
        )
    pattern = "|".join(map(re.escape, names))  # a list of names would also take what ends alike
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=alpha, target_modules=pattern), network)


def merge_lora(network: nn.Module) -> None:
    """Add what the adapters learned to the weights beside them, and take them out: a plain network is left."""
    from peft.tuners.lora import LoraLayer

    for name, module in list(network.named_modules()):
        if isinstance(module, LoraLayer):
            module.merge()
            network.set_submodule(name, module.get_base_layer())


def targets(network: nn.Module) -> list[str]:
    """The names of the layers that get adapters: the layers of attention, as in the paper.

    Where a network has none: all its linear layers, and its convolutions without groups. Layers whose weights are read
    by another module and that are not called themselves are left out, since their adapter would have no effect; so
    are layers of other classes, which may do more than multiply.
    """
    found = list(_plain_layers(network))
    of_attention = [name for name in found if ATTENTION.search(_parent(network, name))]
    return of_attention or found


def _plain_layers(network: nn.Module) -> Iterator[str]:
    from timm.layers import Conv2dSame

    called: set[nn.Module] = set()
    shapes, side = copy.deepcopy(network).to("meta").eval(), _side(network)
    handle = register_module_forward_pre_hook(lambda module, _: called.add(module))
    with handle, torch.no_grad():
        shapes(torch.zeros(1, 3, side, side, device="meta"))
    for name, module in shapes.named_modules():
        plain = type(module) in (nn.Linear, nn.Conv2d, Conv2dSame) and getattr(module, "groups", 1) == 1
        if plain and module in called:
            yield name


def _parent(network: nn.Module, name: str) -> str:
    return type(network.get_submodule(name.rpartition(".")[0])).__name__


def _side(network: nn.Module) -> int:
    """Pixels of a side of images that the network takes."""
    known = getattr(network, "pretrained_cfg", None) or {}  # timm's
    return int(known["input_size"][-1] if "input_size" in known else getattr(network, "image_size", USUAL_SIZE))
