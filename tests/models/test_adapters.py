"""Low-rank adapters in a frozen backbone."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dpl_ray.config.compose import load_config
from dpl_ray.config.schema import ModelConfig
from dpl_ray.embedding.backbone import open_backbone
from dpl_ray.embedding.config import EmbedConfig
from dpl_ray.models import Classifier, build_model
from dpl_ray.models.adapters import add_lora, merge_lora, targets
from dpl_ray.models.layers import depths
from dpl_ray.store.storage import Storage
from dpl_ray.training.checkpoint import ModelInfo, load_classifier, save_checkpoint
from dpl_ray.training.distributed import Workers
from dpl_ray.training.state import build_state
from tests.builders import PRETRAINED, adapted, tiny_config

CONVOLUTIONS = {"name": "timm", "architecture": "tf_efficientnet_lite0"}  # of which some pad by the size of images
TRANSFORMER = {"name": "timm", "architecture": "test_vit"}
NETWORKS = [CONVOLUTIONS, TRANSFORMER, {"name": "torchvision", "architecture": "resnet18"}]


def build(channels: int = 3, **fields: Any) -> Classifier:
    torch.manual_seed(0)
    return build_model(ModelConfig(**fields), channels, 5)


def learn(network: nn.Module) -> None:
    """As if the adapters had been trained: at first they add nothing."""
    for name, parameter in network.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.05)


def pictures(channels: int = 3) -> Tensor:
    return torch.rand(2, channels, 32, 32, generator=torch.Generator().manual_seed(0))


def without_adapter(name: str) -> str:
    return re.sub(r"\.(base_layer|lora_[AB]\.default)\.", ".", name)


def test_adapters_are_in_the_attention_of_transformers() -> None:
    network = build(**TRANSFORMER).backbone
    assert targets(network) == [
        f"blocks.{block}.attn.{layer}" for block in range(len(network.blocks)) for layer in ("qkv", "proj")
    ]


def test_adapters_are_in_the_convolutions_of_other_networks_but_for_those_by_channel() -> None:
    network = build(**CONVOLUTIONS).backbone
    convolutions = {name for name, module in network.named_modules() if isinstance(module, nn.Conv2d)}
    assert convolutions - set(targets(network)) == {name for name in convolutions if name.endswith("conv_dw")}


def test_a_layer_that_another_module_reads_has_no_adapter() -> None:
    """torch's attention multiplies by the weights of `out_proj` itself: an adapter there would do nothing."""

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Conv2d(3, 8, 32, 32)
            self.attention = nn.MultiheadAttention(8, 2)
            self.out = nn.Linear(8, 8)

        def forward(self, images: Tensor) -> Tensor:
            tokens = self.embed(images).flatten(2).transpose(1, 2)
            return self.out(self.attention(tokens, tokens, tokens)[0])

    assert targets(Network()) == ["embed", "out"]


@pytest.mark.parametrize(("fields", "channels"), [*zip(NETWORKS, (3, 1, 3), strict=True)], ids=str)
def test_adapters_add_nothing_at_first_and_leave_a_plain_network_with_what_they_learned(
    fields: dict[str, Any], channels: int
) -> None:
    plain, model = build(channels, **fields).eval(), build(channels, **fields, adapter="lora").eval()
    with torch.no_grad():
        at_first = model(pictures(channels))[0]
        torch.testing.assert_close(at_first, plain(pictures(channels))[0], rtol=0, atol=0)
        learn(model)
        learned = model(pictures(channels))[0]
        assert not torch.allclose(learned, at_first, rtol=1e-2)
        merge_lora(model)
        torch.testing.assert_close(model(pictures(channels))[0], learned, rtol=1e-3, atol=1e-4)
    assert model.state_dict().keys() == plain.state_dict().keys()


@pytest.mark.parametrize("fields", NETWORKS, ids=str)
def test_an_adapter_learns_as_fast_as_its_layer_would(fields: dict[str, Any]) -> None:
    network = build(**fields).backbone
    before = depths(network)
    add_lora(network, 2, 2)
    after = depths(network)
    assert any("lora" in name for name in after)
    assert {name: before[without_adapter(name)] for name in after} == after


def test_rank_and_alpha_are_what_is_said() -> None:
    one, two = (build(**TRANSFORMER, adapter="lora", lora_rank=3, lora_alpha=alpha).backbone for alpha in (3, 6))
    assert one.blocks[0].attn.qkv.lora_A["default"].weight.shape[0] == 3
    assert two.blocks[0].attn.qkv.scaling["default"] == 2 * one.blocks[0].attn.qkv.scaling["default"] == 2


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Classifier]:
    """A checkpoint of a transformer with adapters, and the teacher that it holds."""
    folder = tmp_path_factory.mktemp("adapted")
    config = tiny_config(model=adapted(folder))
    state = build_state(config, 3, 5, Workers())
    learn(state.teacher)
    info = ModelInfo(tuple("abcde"), 3, (32, 32))
    return Path(str(save_checkpoint(Storage(str(folder)), state, config, info, Workers(), keep=1))), state.teacher


def test_a_checkpoint_is_loaded_as_a_plain_network(checkpoint: tuple[Path, Classifier]) -> None:
    path, teacher = checkpoint
    loaded, _, _ = load_classifier(Storage(str(path)))
    assert loaded.state_dict().keys() == build(**TRANSFORMER).state_dict().keys()
    images = pictures()
    with torch.no_grad():
        torch.testing.assert_close(loaded(images)[1], teacher(images)[1], rtol=1e-4, atol=1e-4)


def test_features_are_embedded_by_what_the_adapters_learned(checkpoint: tuple[Path, Classifier]) -> None:
    path, teacher = checkpoint
    backbone, spec, _ = open_backbone(EmbedConfig(checkpoint=str(path)))
    again = build_model(ModelConfig(**spec.model), 3, 5).eval()  # of what the folder of features says
    again.load_state_dict(backbone.state_dict())
    images = pictures()
    with torch.no_grad():
        torch.testing.assert_close(again(images)[0], teacher(images)[0], rtol=1e-4, atol=1e-4)


def test_the_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ValueError, match=r"^model\.adapter=lora needs peft, .*: pip install 'dpl_ray\[lora\]'$"):
        build(**TRANSFORMER, adapter="lora")


def test_a_network_without_a_layer_for_adapters_is_refused() -> None:
    network = nn.Sequential(nn.Conv2d(3, 3, 1, groups=3), nn.PReLU())
    with pytest.raises(ValueError, match=r"^model\.adapter=lora: the network has no plain linear layer"):
        add_lora(network, 2, 2)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["model=timm"], r"^model\.adapter=lora: what is frozen would stay as random .* model\.weights"),
        (
            ["model=timm", f"model.weights={PRETRAINED['weights']}", "model.train=last:2"],
            r"^model\.train=last:2: beside adapters the whole backbone is frozen; leave out one of the two",
        ),
    ],
)
def test_settings_that_do_not_fit_adapters_are_refused(given: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_config([*given, "model.adapter=lora"])
