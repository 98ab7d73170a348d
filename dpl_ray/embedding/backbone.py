"""The network that makes features: one of a library with its weights, or that of a checkpoint.

Legend: N images, D features.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace

import safetensors.torch

from dpl_ray.checking.settings import settle_model
from dpl_ray.config.schema import Config, DataConfig
from dpl_ray.data.features.folder import SPEC_FILE, WEIGHTS_FILE, Spec
from dpl_ray.data.images.convert import DecodeSettings
from dpl_ray.embedding.config import EmbedConfig
from dpl_ray.models import Classifier, build_model, check_model
from dpl_ray.store.storage import Storage
from dpl_ray.training.checkpoint import load_backbone, load_classifier
from dpl_ray.training.checkpoint_folder import find_checkpoint


def open_backbone(config: EmbedConfig) -> tuple[Classifier, Spec, DecodeSettings]:
    """The network, what describes it, and how it reads images.

    Raises:
        ValueError: there is no such network, checkpoint or weights, or it does not take images of the size.
    """
    if config.checkpoint is not None:
        place = find_checkpoint(Storage(config.checkpoint))
        model, trained, info = load_classifier(place)
        settings = replace(DecodeSettings.from_config(trained.data), channels=info.channels)  # type: ignore[arg-type]
        settings, section = replace(settings, image_size=info.image_size[0]), trained.model
        if section.name == "head":
            model, section = load_backbone(place)
    else:
        images = DataConfig(
            image_size=config.image_size,
            channels=config.channels,
            fit=config.fit,
            interpolation=config.interpolation,
        )
        section = config.model.changed(adapter=None)  # which would change nothing before it is trained
        settled = settle_model(Config(data=images, model=section))
        settings = DecodeSettings.from_config(settled.data)
        side = settings.image_size
        assert side is not None, "weights have a size"
        try:
            check_model(settled, settings.channels, (side, side), 2)
        except ValueError as error:
            raise ValueError(str(error).replace("data.image_size", "image_size")) from None
        model = build_model(section, settings.channels, 2).eval()
    assert settings.image_size is not None
    spec = Spec(
        digest=_digest(model, settings),
        num_features=model.classifier.in_features,
        num_views=config.views,
        model=section.changed(weights=None, train="all", adapter=None).model_dump(mode="json"),
        channels=settings.channels,
        image_size=settings.image_size,
        fit=settings.fit,
        interpolation=settings.interpolation,
        class_names=None,
    )
    return model, spec, settings


def _digest(model: Classifier, settings: DecodeSettings) -> str:
    """Of the tensors of the backbone, and of how images are read."""
    digest = hashlib.blake2b(str(settings).encode(), digest_size=8)
    for name, tensor in sorted(model.state_dict().items()):
        if not name.startswith("classifier."):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def save_backbone(folder: Storage, model: Classifier, spec: Spec) -> None:
    """Write what `load_backbone` reads; the spec last."""
    tensors = {
        name: tensor.detach().cpu().contiguous()
        for name, tensor in model.state_dict().items()
        if not name.startswith("classifier.")
    }
    (folder / WEIGHTS_FILE).write(safetensors.torch.save(tensors))
    (folder / SPEC_FILE).write(spec.to_json())
