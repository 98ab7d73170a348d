"""Networks of torchvision and timm: their weights, and the images that these expect."""

from __future__ import annotations

import http.server
import io
import threading
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_data_config
from torch import Tensor, nn
from torchvision.models import EfficientNet_B0_Weights, ResNet18_Weights, resnet18

from dpl_ray.checking.settings import settle_model
from dpl_ray.config.compose import load_config
from dpl_ray.config.schema import ModelConfig
from dpl_ray.data.images.convert import DecodeSettings
from dpl_ray.data.images.decode import decode
from dpl_ray.models import Classifier, build_model, check_model, library_of
from dpl_ray.models.weights import download_weights, fit_weights
from tests.builders import PRETRAINED, serving, tiny_config
from tests.labeling.jobs import encode

LITE0 = PRETRAINED["weights"]
OVERRIDES = ["model=timm", "model.architecture=tf_efficientnet_lite0", f"model.weights={LITE0}"]
NETWORK = {"name": "timm", "architecture": "tf_efficientnet_lite0"}


def build(channels: int = 3, **fields: Any) -> Classifier:
    torch.manual_seed(0)
    return build_model(ModelConfig(**fields), channels, 5).eval()


def check(**fields: Any) -> None:
    library_of(ModelConfig(**fields)).check(ModelConfig(**fields))


def pictures(num_images: int, channels: int = 3, size: int = 64) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (num_images, channels, size, size), dtype=torch.uint8, generator=generator)


@pytest.fixture(scope="module")
def lite0() -> nn.Module:
    """timm's own network with its own last layer and these weights, laid in one after another."""
    network = timm.create_model("tf_efficientnet_lite0")
    tensors = torch.load(LITE0, weights_only=True)
    network.load_state_dict(dict(zip(network.state_dict(), tensors.values(), strict=True)))
    return network.eval()


def test_features_of_real_weights_are_those_of_timm_for_the_same_picture(lite0: nn.Module) -> None:
    config = settle_model(load_config([*OVERRIDES, "data.channels=3"]))
    assert (config.data.image_size, config.data.interpolation) == (224, "bicubic")
    pixels = pictures(1, size=300)[0].permute(1, 2, 0).numpy()
    # Ours cuts nothing off a square picture; timm's crop of 7/8 is a habit of ImageNet's test.
    theirs = create_transform(**resolve_data_config(model=lite0) | {"crop_pct": 1.0})(Image.fromarray(pixels))
    ours = decode(encode(Image.fromarray(pixels)), DecodeSettings.from_config(config.data))
    model = build(**NETWORK, weights=LITE0)
    with torch.no_grad():
        features, _ = model(torch.from_numpy(ours)[None])
        logits = lite0.classifier(features)
        torch.testing.assert_close(logits, lite0(theirs[None]), rtol=1e-4, atol=1e-4)


def test_pictures_for_torchvisions_weights_are_those_of_its_own_pipeline() -> None:
    weights = EfficientNet_B0_Weights.IMAGENET1K_V1  # bicubic
    preset = weights.transforms(resize_size=224)
    expected = library_of(ModelConfig(name="torchvision")).preprocessing(
        ModelConfig(name="torchvision", architecture="efficientnet_b0", weights="DEFAULT")
    )
    assert expected is not None
    pixels = pictures(1, size=300)[0].permute(1, 2, 0).numpy()
    settings = DecodeSettings(expected.image_size, 3, "crop", expected.interpolation)
    ours = decode(encode(Image.fromarray(pixels)), settings)
    scaled = (ours / 255 - np.array(expected.mean)[:, None, None]) / np.array(expected.std)[:, None, None]
    np.testing.assert_allclose(scaled, preset(Image.fromarray(pixels)).numpy(), atol=1e-5)


def test_logits_of_torchvisions_weights_are_those_of_its_own_pipeline(tmp_path: Path) -> None:
    torch.manual_seed(1)
    theirs = resnet18().eval()
    torch.save(theirs.state_dict(), tmp_path / "w.pth")
    fields = {"name": "torchvision", "architecture": "resnet18", "weights": str(tmp_path / "w.pth")}
    pixels = pictures(1, size=300)[0].permute(1, 2, 0).numpy()
    picture = ResNet18_Weights.IMAGENET1K_V1.transforms(resize_size=224)(Image.fromarray(pixels))
    network = ["model=torchvision", "model.architecture=resnet18", f"model.weights={fields['weights']}"]
    config = settle_model(load_config([*network, "data.channels=3"]))
    ours = decode(encode(Image.fromarray(pixels)), DecodeSettings.from_config(config.data))
    with torch.no_grad():
        features, _ = build(**fields)(torch.from_numpy(ours)[None])
        logits = theirs(picture[None])
        torch.testing.assert_close(theirs.fc(features), logits, rtol=1e-3, atol=1e-4 * float(logits.std()))


def test_grey_pictures_reach_a_pretrained_network_as_colour() -> None:
    grey, colour = build(1, **NETWORK, weights=LITE0), build(3, **NETWORK, weights=LITE0)
    batch = pictures(2, 1)
    with torch.no_grad():
        torch.testing.assert_close(grey(batch)[0], colour(batch.expand(-1, 3, -1, -1))[0])


def test_a_checkpoint_brings_weights_and_scaling(tmp_path: Path) -> None:
    theirs = timm.create_model("resnet18", num_classes=7)  # mean and deviation of ImageNet
    path = tmp_path / "resnet18.safetensors"
    safetensors.torch.save_file(theirs.state_dict(), path)
    fields = {"name": "timm", "architecture": "resnet18"}
    model, loaded = build(**fields, weights=str(path)), build(**fields)
    assert not torch.equal(model.mean, loaded.mean)
    loaded.load_state_dict(model.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(loaded(pictures(2)), model(pictures(2)), rtol=0, atol=0)


def test_position_embeddings_are_interpolated_for_images_of_another_size(tmp_path: Path) -> None:
    path = tmp_path / "vit.safetensors"
    safetensors.torch.save_file(timm.create_model("test_vit").state_dict(), path)
    model = build(name="timm", architecture="test_vit", weights=str(path))
    for size in (160, 96, 32):
        assert model(pictures(2, size=size))[0].isfinite().all()


@pytest.mark.parametrize("architecture", ["resnet18", "mobilenetv3_small_050", "test_vit", "convnext_atto"])
def test_the_features_of_every_network_have_the_size_that_it_says(architecture: str) -> None:
    model = build(name="timm", architecture=architecture)
    assert model(pictures(2))[0].shape == (2, model.classifier.in_features)


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("container", [None, "state_dict", "model_ema"])
def test_weights_come_out_of_what_training_scripts_save(tmp_path: Path, prefix: str, container: str | None) -> None:
    tensors = {f"{prefix}{name}": value for name, value in resnet18(num_classes=3).state_dict().items()}
    torch.save({container: tensors, "epoch": 3} if container else tensors, tmp_path / "saved.pth")
    for name in ("torchvision", "timm"):  # both call the tensors so
        model = build(name=name, architecture="resnet18", weights=str(tmp_path / "saved.pth"))
        torch.testing.assert_close(model.backbone.state_dict()["conv1.weight"], tensors[f"{prefix}conv1.weight"])


def test_weights_of_a_larger_network_of_the_same_family_are_refused(tmp_path: Path) -> None:
    safetensors.torch.save_file(timm.create_model("resnet34").state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match=r"does not fit resnet18: the network has no layer\d\.\d\.\S+ "):
        check(name="timm", architecture="resnet18", weights=str(tmp_path / "w.safetensors"))


def test_one_tensor_of_another_shape_is_named(tmp_path: Path) -> None:
    tensors = timm.create_model("resnet18").state_dict()
    tensors["layer2.0.conv1.weight"] = torch.zeros(128, 64, 5, 5)
    safetensors.torch.save_file(tensors, tmp_path / "w.safetensors")
    message = r"does not fit resnet18: layer2\.0\.conv1\.weight is 128x64x5x5, that of the network 128x64x3x3$"
    with pytest.raises(ValueError, match=message):
        check(name="timm", architecture="resnet18", weights=str(tmp_path / "w.safetensors"))


def test_a_file_of_foreign_names_that_is_sorted_is_not_laid_in_by_order(tmp_path: Path) -> None:
    """As safetensors files are: the shapes alone would agree, and put means in the place of weights."""
    tensors = nn.Sequential(nn.BatchNorm2d(4), nn.BatchNorm2d(4)).state_dict()
    network, config = nn.Sequential(nn.BatchNorm2d(4), nn.BatchNorm2d(4)), ModelConfig(name="timm", weights="w")
    foreign = {f"theirs.{name}": value for name, value in tensors.items()}
    assert fit_weights(config, foreign, network, {}).keys() == tensors.keys()
    with pytest.raises(ValueError, match=r"^model\.weights=w: does not fit resnet18: it has no 0\.weight 4$"):
        fit_weights(config, dict(sorted(foreign.items())), network, {})


def test_one_tensor_too_few_is_not_laid_in_by_order(tmp_path: Path) -> None:
    tensors = dict(list(torch.load(LITE0, weights_only=True).items())[1:])
    torch.save(tensors, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"does not fit tf_efficientnet_lite0: it has no conv_stem\.weight 32x3x3x3$"):
        check(**NETWORK, weights=str(tmp_path / "w.pth"))


class Malicious:
    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("executed",)


def test_a_file_that_would_execute_code_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"state_dict": resnet18().state_dict(), "extra": Malicious()}, tmp_path / "w.pth")
    for name in ("timm", "torchvision"):
        with pytest.raises(ValueError, match=r"w\.pth: .*holds more than tensors, and is not loaded"):
            check(name=name, architecture="resnet18", weights=str(tmp_path / "w.pth"))
    assert not capsys.readouterr().out


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_a_file_of_something_else_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"no weights at all")
    with pytest.raises(ValueError, match=r"^model\.weights=.*w\.\w+: is no "):
        check(**NETWORK, weights=str(tmp_path / name))


def test_an_unknown_network_of_timm_is_answered_with_a_near_one() -> None:
    with pytest.raises(ValueError, match=r"vit_tiny_patch61_224: timm has no such model; did you mean vit_tiny"):
        check(name="timm", architecture="vit_tiny_patch61_224")


def fail(*_: Any, **__: Any) -> Any:
    raise OSError("Name or service not known")


@pytest.mark.parametrize("weights", ["pretrained", "hf-hub:someone/something"])
def test_a_hub_that_cannot_be_reached_is_answered_with_the_offline_way(
    weights: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", fail)
    monkeypatch.setattr(
        huggingface_hub, "hf_hub_download", lambda *_, **__: pytest.fail("it would try again and again")
    )
    with pytest.raises(ValueError, match=r"does not give it \(Name or service .* model\.weights=PATH"):
        check(**NETWORK, weights=weights)


def test_weights_of_torchvision_that_cannot_be_downloaded_are_answered_with_the_file_that_is_wanted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("dpl_ray.models.weights.urlopen", lambda *_, **__: io.BytesIO())
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", fail)
    with pytest.raises(
        ValueError, match=r"^model\.weights=DEFAULT: cannot be .*put resnet18-\w+\.pth into .*checkpoints"
    ):
        check(name="torchvision", architecture="resnet18", weights="DEFAULT")


def test_a_server_that_does_not_answer_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = threading.Event()

    class Silent(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            ended.wait()

    monkeypatch.setattr("dpl_ray.models.weights.HUB_SECONDS", 0.05)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with serving(Silent) as port:
        try:
            with pytest.raises(
                ValueError, match=r"cannot be downloaded from .*w\.pth \(.*timed out\); put w\.pth into "
            ):
                download_weights("DEFAULT", f"http://127.0.0.1:{port}/w.pth")
        finally:
            ended.set()


def test_a_network_that_computes_its_layers_with_tensors_is_built() -> None:
    config = tiny_config(model={"name": "torchvision", "architecture": "regnet_y_400mf"})
    check_model(config, 3, (32, 32), 5)
    with torch.device("meta"):
        assert next(build(name="torchvision", architecture="regnet_y_400mf").backbone.parameters()).is_meta


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the hub with a repository of a small network, as a machine without a network has it."""
    network = timm.create_model("test_vit")
    (tmp_path / "config.json").write_text(
        '{"architecture": "test_vit", "num_classes": 1000, "pretrained_cfg": '
        '{"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "interpolation": "bilinear", "input_size": [3, 64, 64]}}'
    )
    safetensors.torch.save_file(network.state_dict(), tmp_path / "model.safetensors")
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda _repository, name: str(tmp_path / name))
    monkeypatch.setattr("timm.models._hub.hf_hub_download", lambda _repository, name, **_: str(tmp_path / name))
    return tmp_path


def test_weights_of_a_repository_of_the_hub_come_with_their_images(hub: Path) -> None:
    overrides = ["model=timm", "model.architecture=test_vit", "model.weights=hf-hub:someone/something"]
    config = settle_model(load_config(overrides))
    assert (config.data.image_size, config.data.interpolation) == (64, "bilinear")
    model = build_model(config.model, 3, 5)
    assert model.mean.flatten().tolist() == pytest.approx([0.1, 0.2, 0.3])
    saved = safetensors.torch.load_file(hub / "model.safetensors")
    assert torch.equal(model.backbone.state_dict()["blocks.0.attn.qkv.weight"], saved["blocks.0.attn.qkv.weight"])


def test_a_repository_of_another_architecture_is_named(hub: Path) -> None:
    with pytest.raises(ValueError, match=r"they are of test_vit; set model\.architecture=test_vit$"):
        check(**NETWORK, weights="hf-hub:someone/something")


def test_what_the_data_say_is_kept() -> None:
    config = settle_model(load_config([*OVERRIDES, "data.image_size=96", "data.interpolation=area"]))
    assert (config.data.image_size, config.data.interpolation) == (96, "area")


def test_weights_without_a_library_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^model\.weights=DEFAULT: there are none for model=wide_resnet"):
        load_config(["model.weights=DEFAULT"])
