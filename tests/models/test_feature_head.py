"""What stands in place of a backbone where its features are stored."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dpl_ray.config.schema import ModelConfig
from dpl_ray.data.dataset import ImageSet, Splits
from dpl_ray.models import build_model
from dpl_ray.models.feature_head import LEAST_DEVIATION, FeatureHead
from dpl_ray.store.storage import Storage
from dpl_ray.training.distributed import Workers
from dpl_ray.training.loop import train
from tests.builders import tiny_config, tiny_splits

D, V = 6, 1


def features(num_samples: int, seed: int) -> torch.Tensor:
    """(N, 1 + 2 V, 1, D) whose features differ in place and spread; the last is the same everywhere."""
    drawn = torch.randn(num_samples, 1 + 2 * V, 1, D, generator=torch.Generator().manual_seed(seed))
    drawn = drawn * torch.arange(D) + 3
    return drawn.half()


@pytest.mark.parametrize("hidden", [None, 4])
def test_features_of_the_image_as_it_is_are_standardized(hidden: int | None) -> None:
    head, parts = FeatureHead(D, hidden), [features(30, 0), features(20, 1)]
    head.standardize(parts)
    plain = torch.cat(parts)[:, 0, 0].double()
    expected = (plain - plain.mean(0)) / plain.std(0, correction=0).clamp(min=LEAST_DEVIATION)
    torch.testing.assert_close(head((torch.cat(parts)).float()), head.layers(expected.float()), rtol=1e-4, atol=1e-4)
    assert head(torch.cat(parts).float()).isfinite().all()


def test_a_classifier_of_features_starts_at_zero() -> None:
    model = build_model(ModelConfig(name="head", num_features=D), 1 + 2 * V, 3)
    assert not model.classifier.weight.any()


def splits() -> Splits:
    """Those of `tiny_splits`, with features in place of the images."""
    made, parts = tiny_splits(), {}
    for seed, name in enumerate(("labeled", "unlabeled", "validation", "test")):
        part = getattr(made, name)
        parts[name] = ImageSet(np.ascontiguousarray(features(len(part), seed).numpy()), part.targets, part.ids)
    return Splits(**parts, class_names=made.class_names, bad=())


def test_training_scales_by_the_labelled_images_and_the_pool_together(tmp_path: object) -> None:
    config = tiny_config(
        data={"name": "features", "train": "folder"},
        model={"name": "head", "num_features": D},
        train={"num_steps": 2, "baseline": False},
        policy={"name": "fixmatch"},
    )
    data = splits()
    found: list[torch.Tensor] = []

    def save(folder: Storage, state: object, *_: object, **__: object) -> Storage:
        found.append(state.teacher.backbone.mean.clone())  # type: ignore[attr-defined]
        return folder

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dpl_ray.training.loop.save_checkpoint", save)
        train(config, data, Workers(), Storage(str(tmp_path)), lambda _: None)
    plain = np.concatenate([data.labeled.images, data.unlabeled.images])[:, 0, 0].astype(np.float64)  # type: ignore[union-attr]
    torch.testing.assert_close(found[-1], torch.from_numpy(plain.mean(axis=0)).float())
