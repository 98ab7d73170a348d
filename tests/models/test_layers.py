"""How much of a backbone is trained."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from dpl_ray.config.compose import load_config
from dpl_ray.config.schema import ModelConfig
from dpl_ray.data.batches.feed import BatchFeed
from dpl_ray.models import Classifier, build_model
from dpl_ray.models.layers import depths, freeze, learning_rate_scales
from dpl_ray.training.distributed import Workers
from dpl_ray.training.state import TrainState, build_state
from dpl_ray.training.step import train_step
from tests.builders import PRETRAINED, tiny_config, tiny_feed, tiny_splits

NETWORKS = [
    {"depth": 10, "width": 1},
    {"name": "torchvision", "architecture": "resnet18"},
    {"name": "timm", "architecture": "tf_efficientnet_lite0"},
    {"name": "timm", "architecture": "test_vit"},
]


def build(channels: int = 3, **fields: Any) -> Classifier:
    return build_model(ModelConfig(**fields), channels, 3)


@pytest.mark.parametrize("fields", NETWORKS, ids=str)
@pytest.mark.parametrize("channels", [1, 3])
def test_layers_are_counted_from_the_images_without_a_gap(fields: dict[str, Any], channels: int) -> None:
    backbone = build(channels, **fields).backbone
    found = depths(backbone)
    names = [name for name, _ in backbone.named_parameters()]
    assert found.keys() == set(names)
    assert set(found.values()) == set(range(max(found.values()) + 1))
    assert found[names[0]] == 0
    assert found[names[-1]] == max(found.values())


def test_layers_of_a_vision_transformer_are_its_blocks() -> None:
    backbone = build(name="timm", architecture="test_vit").backbone
    found = depths(backbone)
    assert found["pos_embed"] == found["patch_embed.proj.weight"] == 0
    blocks = [found[f"blocks.{index}.attn.qkv.weight"] for index in range(len(backbone.blocks))]
    assert blocks == list(range(1, len(blocks) + 1))


@pytest.mark.parametrize("fields", NETWORKS[1:], ids=str)
@pytest.mark.parametrize(("train", "num_trained"), [("head", 0), ("last:1", 1), ("last:3", 3)])
def test_the_last_layers_alone_are_trained(fields: dict[str, Any], train: str, num_trained: int) -> None:
    model = build(**fields, train=train)
    found = depths(model.backbone)
    trained = {found[name] for name, parameter in model.backbone.named_parameters() if parameter.requires_grad}
    num_layers = max(found.values()) + 1
    assert trained == set(range(num_layers - num_trained, num_layers))
    assert all(parameter.requires_grad for parameter in model.classifier.parameters())


def test_more_layers_than_there_are_are_refused() -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
    freeze(network, "last:2")
    with pytest.raises(ValueError, match=r"^model\.train=last:3: the network has 3 layers; .* model\.train=all"):
        freeze(network, "last:3")


def test_frozen_layers_stay_in_evaluation_mode() -> None:
    model = build(name="timm", architecture="tf_efficientnet_lite0", train="last:1")
    for _ in range(2):
        norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
        assert [norm.training for norm in norms] == [norm.weight.requires_grad for norm in norms]
        assert not model.backbone.blocks[0].training  # dropout in it, too
        assert model.training
        model.eval()
        assert not any(module.training for module in model.modules())
        model.train()


def test_a_layer_learns_slower_than_the_one_after_it() -> None:
    backbone = build(name="timm", architecture="test_vit").backbone
    scales, found = learning_rate_scales(backbone, 0.5), depths(backbone)
    last = max(found.values())
    for name, scale in scales.items():
        assert scale == 0.5 ** (last + 1 - found[name])


def trained(steps: int = 3, **groups: dict[str, Any]) -> tuple[TrainState, dict[str, torch.Tensor], BatchFeed]:
    """A state after some steps, and the student's tensors before them."""
    config = tiny_config(**groups)
    splits = tiny_splits(num_labeled=4)
    state = build_state(config, 3, 3, Workers(), pool_size=len(splits.unlabeled))
    before = {name: tensor.clone() for name, tensor in state.student.state_dict().items()}
    feed = tiny_feed(config, splits)
    for _ in range(steps):
        train_step(state, feed(state.step), config, Workers())
    return state, before, feed


@pytest.mark.parametrize("fields", [{"train": "head"}, {"train": "last:1"}, {"adapter": "lora"}], ids=str)
def test_what_is_frozen_has_no_gradient_no_optimizer_state_and_no_copy(fields: dict[str, str]) -> None:
    state, before, _ = trained(model=PRETRAINED | fields)
    student, teacher = state.student, state.teacher
    optimized = {id(parameter) for group in state.optimizer.param_groups for parameter in group["params"]}
    frozen = [name for name, parameter in student.named_parameters() if not parameter.requires_grad]
    assert frozen
    for name, parameter in student.named_parameters():
        if name in frozen:
            assert parameter.grad is None, name
            assert id(parameter) not in optimized, name
            assert teacher.get_parameter(name) is parameter, name
            assert torch.equal(parameter, before[name]), name
        else:
            assert id(parameter) in optimized, name
            assert teacher.get_parameter(name) is not parameter, name
            assert not torch.equal(parameter, before[name]), name
    for name, buffer in student.named_buffers():
        if name.rpartition(".")[0] + ".weight" in frozen:
            assert torch.equal(buffer, before[name]), "statistics of frozen BatchNorm stand still"
            assert teacher.get_buffer(name) is buffer, name


def test_rates_follow_the_layers_and_the_schedule() -> None:
    optim = {"learning_rate": 0.01, "layer_decay": 0.5, "num_warmup_steps": 4}
    state, _, _ = trained(steps=2, model=PRETRAINED | {"train": "last:2"}, optim=optim)
    # The third of four steps of the warm-up begins from the second; heads and classifier learn at the whole rate.
    assert sorted({group["lr"] for group in state.optimizer.param_groups}) == pytest.approx([0.00125, 0.0025, 0.005])


def test_a_rate_for_all_layers_leaves_the_two_groups_of_before() -> None:
    state, _, _ = trained(steps=0)
    assert [group["weight_decay"] for group in state.optimizer.param_groups] == [5e-4, 0.0]


@pytest.mark.parametrize("train", ["none", "last", "last:0", "head:1"])
def test_another_word_is_refused(train: str) -> None:
    with pytest.raises(ValueError, match=rf"^model\.train={train}: must be all, head or last:N, as last:2"):
        load_config([f"model.train={train}"])


def test_random_weights_are_not_frozen() -> None:
    with pytest.raises(ValueError, match=r"^model\.train=head: what is frozen would stay as random .* model\.weights"):
        load_config(["model=timm", "model.train=head"])
