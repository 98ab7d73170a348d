"""How much of a backbone is trained: its layers in order, those that are frozen, and what each learns.

A layer here is what timm calls one, such as a block of a vision transformer; of other networks, a child of the network,
or of a container that is one.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

WHOLE, HEAD, LAST = "all", "head", "last:"  # of model.train


def depths(backbone: nn.Module) -> dict[str, int]:
    """Name of a parameter -> number of its layer, from 0 at the images."""
    if isinstance(backbone, nn.Sequential) and len(backbone) == 2:  # grey images are made colour before the network
        return {f"1.{name}": depth for name, depth in depths(backbone[1]).items()}
    if matcher := getattr(backbone, "group_matcher", None):
        from timm.models import group_parameters

        found = group_parameters(backbone, matcher(coarse=False), reverse=True)
        numbers = {number: index for index, number in enumerate(sorted(set(found.values())))}
        return {name: numbers[number] for name, number in found.items()}
    depth: dict[str, int] = {}
    for index, (prefix, layer) in enumerate(_layers(backbone)):
        depth |= {f"{prefix}.{name}": index for name, _ in layer.named_parameters()}
    return {name: depth.get(name, 0) for name, _ in backbone.named_parameters()}  # 0: of the network itself


def _layers(backbone: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Name and module of every layer that has parameters, in order."""
    for name, child in backbone.named_children():
        inner = list(child.named_children()) if isinstance(child, nn.Sequential | nn.ModuleList) else []
        for prefix, layer in [(f"{name}.{part}", module) for part, module in inner] or [(name, child)]:
            if next(layer.parameters(), None) is not None:
                yield prefix, layer


def freeze(backbone: nn.Module, train: str) -> None:
    """Leave what model.train says to be trained; the other parameters get no gradient.

    Raises:
        ValueError: the network has no more layers than are to be trained.
    """
    if train == WHOLE:
        return
    depth = depths(backbone)
    num_layers = max(depth.values()) + 1
    num_trained = 0 if train == HEAD else int(train.removeprefix(LAST))
    if num_trained >= num_layers:
        raise ValueError(
            f"model.train={train}: the network has {num_layers} layers; take fewer, or all, which is model.train=all"
        )
    for name, parameter in backbone.named_parameters():
        parameter.requires_grad_(depth[name] >= num_layers - num_trained)


def frozen_modules(network: nn.Module) -> Iterator[nn.Module]:
    """The modules with parameters of which none is trained: their statistics and their noise stand still, too."""
    for module in network.modules():
        parameters = list(module.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            yield module


def share_frozen(teacher: nn.Module, student: nn.Module) -> None:
    """Let a copy of the student hold what is frozen once: the tensors are the student's own."""
    copies = dict(teacher.named_modules())
    frozen = set(frozen_modules(student))
    for name, module in student.named_modules():
        copy = copies[name]
        for key, parameter in module._parameters.items():
            if parameter is not None and not parameter.requires_grad:
                copy._parameters[key] = parameter
        if module in frozen:
            copy._buffers.update(module._buffers)


def learning_rate_scales(backbone: nn.Module, decay: float) -> dict[str, float]:
    """Name of a parameter -> factor on its learning rate: decay^(L - l) in layer l of L (BEiT, Bao 2021; USB).

    The classifier's factor is 1, that of the last layer `decay`.
    """
    depth = depths(backbone)
    num_layers = max(depth.values(), default=0) + 1
    return {name: decay ** (num_layers - layer) for name, layer in depth.items()}
