"""models/: images to features to logits."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import ResNet18_Weights, resnet18

from dpl_ray.config.parse import parse_config
from dpl_ray.config.schema import ModelConfig
from dpl_ray.models import Classifier, build_model, check_model, library_of


def images(num_images: int, channels: int, size: int = 16) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (num_images, channels, size, size), dtype=torch.uint8, generator=generator)


def build(channels: int = 3, num_classes: int = 5, **fields: Any) -> Classifier:
    torch.manual_seed(0)
    return build_model(ModelConfig(**fields), channels, num_classes)


SMALL = {"depth": 10, "width": 1}
RESNET = {"name": "torchvision", "architecture": "resnet18"}
FAMILIES = pytest.mark.parametrize("fields", [SMALL, SMALL | {"normalization": "group"}, RESNET], ids=str)


@FAMILIES
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [8, 33])
def test_images_become_features_and_logits(fields: dict[str, Any], channels: int, size: int) -> None:
    model = build(channels, **fields)
    features, logits = model(images(2, channels, size))
    assert features.shape == (2, model.classifier.in_features)
    assert logits.shape == (2, 5)
    assert features.isfinite().all()
    torch.testing.assert_close(logits, model.classifier(features))


@FAMILIES
@pytest.mark.parametrize("channels", [1, 3])
def test_bytes_and_floats_of_the_same_image_give_the_same_logits(fields: dict[str, Any], channels: int) -> None:
    model = build(channels, **fields).eval()
    as_bytes = images(4, channels)
    as_bytes[0], as_bytes[1] = 0, 255
    with torch.no_grad():
        torch.testing.assert_close(model(as_bytes), model(as_bytes.float() / 255), rtol=1e-5, atol=1e-5)


def test_the_backbone_sees_black_as_minus_one_and_white_as_one() -> None:
    model = Classifier(nn.Flatten(), 4, 2)
    features, _ = model(torch.tensor([[[[0, 255], [255, 0]]]], dtype=torch.uint8))
    assert features.tolist() == [[-1, 1, 1, -1]]
    features, _ = model(torch.tensor([[[[0.0, 1.0], [0.5, 0.0]]]]))
    assert features.tolist() == [[-1, 1, 0, -1]]


def test_a_grey_image_is_read_as_colour_by_networks_of_torchvision() -> None:
    grey, colour = build(1, **RESNET).eval(), build(3, **RESNET).eval()
    batch = images(2, 1)
    with torch.no_grad():
        torch.testing.assert_close(grey(batch), colour(batch.expand(-1, 3, -1, -1)))


@pytest.mark.parametrize(("depth", "width"), [(10, 1), (10, 3), (16, 2), (28, 2)])
def test_depth_counts_the_layers_and_width_widens_them(depth: int, width: int) -> None:
    backbone = build(depth=depth, width=width).backbone
    convolutions = [module for module in backbone.modules() if isinstance(module, nn.Conv2d)]
    # The stem and two convolutions in each of three groups of (depth - 4) / 6 blocks; 1x1 are the shortcuts.
    assert sum(module.kernel_size == (3, 3) for module in convolutions) == 1 + (depth - 4)
    assert sum(module.kernel_size == (1, 1) for module in convolutions) == (2 if width == 1 else 3)
    assert {module.out_channels for module in convolutions} == {16, 16 * width, 32 * width, 64 * width}
    assert backbone.num_features == 64 * width
    maps: list[Tensor] = []
    backbone.blocks.register_forward_hook(lambda _module, _inputs, output: maps.append(output))
    backbone(torch.zeros(2, 3, 16, 16))
    assert maps[0].shape == (2, 64 * width, 4, 4)


def test_the_layers_of_the_wide_network_are_joined_as_published() -> None:
    backbone = build(depth=16, width=2, normalization="group").backbone

    def activate(x: Tensor, norm: nn.Module) -> Tensor:
        return F.leaky_relu(norm(x), 0.1)

    batch = images(2, 3) / 255
    x = backbone.stem(batch)
    for index, block in enumerate(backbone.blocks):
        inside = activate(x, block.norm1)
        out = block.conv2(activate(block.conv1(inside), block.norm2))
        carried = inside if index == 0 else x  # only the network's first block activates what its shortcut carries
        x = out + (carried if block.shortcut is None else block.shortcut(carried))
    expected = activate(x, backbone.norm).flatten(2).mean(dim=2)
    assert [block.shortcut is None for block in backbone.blocks] == [False, True] * 3
    torch.testing.assert_close(backbone(batch), expected, rtol=1e-5, atol=1e-5)


def test_wrn_28_2_is_the_fields_network_of_about_a_million_and_a_half_parameters() -> None:
    # 1,467,610 for 10 classes, the 1.47 M of FixMatch's tables (it counts no buffers).
    assert sum(parameter.numel() for parameter in build(num_classes=10).parameters()) == 1_467_610


def test_group_normalization_keeps_the_images_of_a_batch_apart() -> None:
    model = build(**SMALL, normalization="group")
    batch = images(4, 3)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    assert [name for name, _ in model.named_buffers()] == ["mean", "std"], "and no statistics of batches"
    for index in range(4):
        torch.testing.assert_close(model(batch)[1][index], model(batch[index : index + 1])[1][0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("fields", [SMALL, RESNET], ids=str)
@pytest.mark.parametrize("channels", [1, 3])
def test_batch_normalization_has_the_configured_momentum(fields: dict[str, Any], channels: int) -> None:
    model = build(channels, **fields, bn_momentum=0.25)
    layers = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert layers
    assert {layer.momentum for layer in layers} == {0.25}


@FAMILIES
def test_every_parameter_gets_a_gradient(fields: dict[str, Any]) -> None:
    model = build(**fields)
    model(images(4, 3, 33))[1].square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


@FAMILIES
def test_the_weights_are_a_function_of_the_seed(fields: dict[str, Any]) -> None:
    first, again = build(**fields).state_dict(), build(**fields).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)


def check_library(**fields: Any) -> None:
    library_of(ModelConfig(**fields)).check(ModelConfig(**fields))


def test_an_unknown_architecture_is_answered_with_a_near_one() -> None:
    with pytest.raises(ValueError, match=r"^model.architecture=resnet81: .*did you mean resnet\d+\?$"):
        check_library(name="torchvision", architecture="resnet81")


def test_a_network_of_another_task_is_not_a_classification_model() -> None:
    with pytest.raises(ValueError, match=r"^model.architecture=fcn_resnet50: torchvision has no such classification"):
        check_library(name="torchvision", architecture="fcn_resnet50")


def test_unknown_weights_are_answered_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"^model.weights=IMAGENET: resnet18 has .*IMAGENET1K_V1"):
        check_library(**RESNET, weights="IMAGENET")


def test_an_architecture_without_a_linear_layer_is_a_value_error() -> None:
    with pytest.raises(ValueError, match=r"^model.architecture=squeezenet1_1: "):
        build(name="torchvision", architecture="squeezenet1_1")


def check(size: int, batch_size: int, num_workers: int, **fields: Any) -> None:
    config = {"model": fields, "train": {"batch_size": batch_size}, "scale": {"num_workers": num_workers}}
    check_model(parse_config(config), 3, (size, size), 5)


@pytest.mark.parametrize(
    ("size", "fields", "remedy"),
    [
        (4, SMALL, "a larger data.image_size, model.normalization=group"),
        (32, RESNET, "a larger data.image_size$"),
        (32, RESNET | {"architecture": "densenet121"}, "a larger data.image_size$"),
    ],
)
def test_one_image_a_worker_needs_a_map_of_more_than_one_value(size: int, fields: dict[str, Any], remedy: str) -> None:
    message = r"train\.batch_size=4 with scale\.num_workers=4: a worker has one labelled image, .* single value for "
    with pytest.raises(ValueError, match=rf"^{message}{size}x{size} pixels; train\.batch_size=8 would do, or {remedy}"):
        check(size, 4, 4, **fields)
    with pytest.raises(ValueError, match=r"^train\.batch_size=1: a worker has .* train\.batch_size=2 would do"):
        check(size, 1, 0, **fields)
    check(size, 8, 4, **fields)
    check(2 * size, 4, 4, **fields)


def test_one_image_a_worker_is_enough_where_nothing_is_normalized_over_the_batch() -> None:
    with pytest.raises(ValueError, match=r"a worker has one labelled image"):
        check(4, 1, 1, **SMALL, normalization="batch")
    check(4, 1, 1, **SMALL, normalization="group")  # raises nothing, nor does a network without normalization
    check(64, 1, 1, name="torchvision", architecture="vgg11")


def test_images_that_are_too_small_for_the_network_are_named() -> None:
    with pytest.raises(ValueError, match=r"^data\.image_size: alexnet does not take images of 8x8 pixels \("):
        check(8, 4, 0, name="torchvision", architecture="alexnet")


@pytest.mark.parametrize("channels", [1, 3])
def test_pretrained_weights_get_images_scaled_as_in_their_training(
    channels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = ResNet18_Weights.DEFAULT
    torch.manual_seed(1)
    theirs = resnet18()
    monkeypatch.setattr("dpl_ray.models.weights.urlopen", lambda *_, **__: io.BytesIO())
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", lambda *_, **__: theirs.state_dict())
    model = build(channels, **RESNET, weights="DEFAULT").eval()
    theirs.fc = nn.Identity()
    batch = images(2, channels, size=224)
    with torch.no_grad():
        expected = theirs.eval()(weights.transforms(resize_size=224)(batch.expand(-1, 3, -1, -1)))
        torch.testing.assert_close(model(batch)[0], expected, rtol=1e-4, atol=1e-4)
        # A checkpoint brings the scaling with it: nothing is downloaded for a model that is loaded.
        loaded = build(channels, **RESNET).eval()
        loaded.load_state_dict(model.state_dict())
        torch.testing.assert_close(loaded(batch), model(batch))


def test_a_checkpoint_without_a_scaling_keeps_that_of_its_time() -> None:
    model = build(**SMALL).eval()
    saved = {name: value for name, value in model.state_dict().items() if name not in ("mean", "std")}
    loaded = Classifier(build(**SMALL).backbone, 64, 5, mean=(0.1, 0.2, 0.3), std=(1.0, 2.0, 3.0)).eval()
    loaded.load_state_dict(saved)
    torch.testing.assert_close(loaded(images(2, 3)), model(images(2, 3)), rtol=0, atol=0)
