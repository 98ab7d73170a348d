"""A batch in parts has the answer of the whole batch, and no part is larger than it may be."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dpl_ray.algorithm.policy import Policy
from dpl_ray.config.schema import ModelConfig
from dpl_ray.embedding.blocks import BlockEmbedder
from dpl_ray.inference.label_batch import label_batch
from dpl_ray.inference.look import look
from dpl_ray.models import Classifier, answer_in_parts, build_model
from dpl_ray.models.in_parts import IMAGES_BY_SIDE, part_size
from dpl_ray.training.evaluation import predict_logits
from tests.builders import make_policy


def small_network(side: int, number: int) -> tuple[Classifier, Tensor, list[int]]:
    """A network, images, and the list of the sizes in which it is asked."""
    torch.manual_seed(0)
    model = build_model(ModelConfig(depth=10, width=1), 3, 10).eval()
    asked: list[int] = []
    model.register_forward_pre_hook(lambda _, given: asked.append(len(given[0])))
    return model, torch.randint(0, 256, (number, 3, side, side), dtype=torch.uint8), asked


@pytest.mark.parametrize("number", [0, 1, 80, 81, 200])
def test_the_answer_is_that_of_the_whole_batch(number: int) -> None:
    model, images, asked = small_network(32, number)
    features, logits = answer_in_parts(model, images)
    assert sum(asked) == number
    assert max(asked) <= part_size(images) == 80
    with torch.inference_mode():
        whole = model(images)
    torch.testing.assert_close((features, logits), tuple(whole))


@given(st.integers(1, 600), st.integers(1, 600))
def test_the_larger_the_images_the_fewer_at_once(height: int, width: int) -> None:
    size = part_size(torch.empty(1, 3, height, width, dtype=torch.uint8))
    assert size >= 1
    assert size == 1 or size**2 * height * width <= IMAGES_BY_SIDE**2
    assert size >= part_size(torch.empty(1, 3, height + 1, width, dtype=torch.uint8))


def test_stored_features_are_not_cut() -> None:
    assert part_size(torch.zeros(5000, 1, 1, 1280, dtype=torch.float16)) == 5000


def test_another_device_takes_all_at_once() -> None:
    assert part_size(torch.empty(5000, 3, 32, 32, device="meta")) == 5000


def test_a_model_that_trains_is_refused() -> None:
    model, images, _ = small_network(32, 2)
    with pytest.raises(ValueError, match=r"call model\.eval"):
        answer_in_parts(model.train(), images)


def _label(model: Classifier, images: Tensor) -> object:
    return label_batch(model, _policy(model), images)


def _look(model: Classifier, images: Tensor) -> object:
    return look(model, _policy(model), images.numpy())


def _predict(model: Classifier, images: Tensor) -> object:
    return predict_logits(model, np.asarray(images))


def _embed(model: Classifier, images: Tensor) -> object:
    return BlockEmbedder._embed(cast(BlockEmbedder, SimpleNamespace(model=model)), images)


def _policy(model: Classifier) -> Policy:
    return make_policy("dpl", model.classifier.in_features, model.classifier.out_features)


@pytest.mark.parametrize("use", [_label, _look, _predict, _embed])
def test_whatever_asks_a_trained_model_cuts_its_batches(use: Callable[[Classifier, Tensor], object]) -> None:
    model, images, asked = small_network(32, 200)
    use(model, images)
    assert asked == [80, 80, 40]
