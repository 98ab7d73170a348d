"""Metrics of predictions, against scikit-learn and slow loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, balanced_accuracy_score

from dpl_ray.models import build_model
from dpl_ray.training.evaluation import classification_metrics, evaluate_split, predict_probs
from tests.builders import tiny_config, tiny_set


def random_predictions(num_images: int, num_classes: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    random = np.random.default_rng(seed)
    logits = torch.from_numpy(random.normal(size=(num_images, num_classes)) * 2)
    return logits.softmax(dim=1).float(), torch.from_numpy(random.integers(0, num_classes, num_images))


def expected_calibration_error(probs: torch.Tensor, targets: torch.Tensor, num_bins: int = 15) -> float:
    """Sum over bins of share * |accuracy - mean confidence|."""
    bins: dict[int, list[tuple[float, bool]]] = {}
    for row, target in zip(probs.tolist(), targets.tolist(), strict=True):
        confidence = max(row)
        index = min(int(np.ceil(confidence * num_bins)) - 1, num_bins - 1)
        bins.setdefault(index, []).append((confidence, row.index(confidence) == target))
    error = 0.0
    for members in bins.values():
        confidences, rights = zip(*members, strict=True)
        error += len(members) / len(targets) * abs(np.mean(confidences) - np.mean(rights))
    return float(error)


@pytest.mark.parametrize("seed", range(3))
def test_metrics_are_those_of_scikit_learn_and_of_a_loop(seed: int) -> None:
    probs, targets = random_predictions(200, 5, seed)
    predicted = probs.argmax(dim=1).numpy()
    metrics = classification_metrics(probs, targets)
    assert metrics["eval/accuracy"] == pytest.approx(accuracy_score(targets, predicted))
    assert metrics["eval/balanced_accuracy"] == pytest.approx(balanced_accuracy_score(targets, predicted))
    assert metrics["eval/ece"] == pytest.approx(expected_calibration_error(probs, targets), abs=1e-5)


@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
def test_a_class_without_images_does_not_count_in_the_balanced_accuracy() -> None:
    probs, targets = random_predictions(100, 4, 0)
    targets = targets.clamp(max=2)
    expected = balanced_accuracy_score(targets, probs.argmax(dim=1).numpy())
    assert classification_metrics(probs, targets)["eval/balanced_accuracy"] == pytest.approx(expected)


def test_predictions_do_not_depend_on_the_batch_size_and_take_read_only_arrays() -> None:
    torch.manual_seed(0)
    model = build_model(tiny_config().model, channels=3, num_classes=3)
    images = tiny_set("test", 11, 3, 3, 8, seed=0).images
    images.setflags(write=False)
    torch.testing.assert_close(predict_probs(model, images, batch_size=4), predict_probs(model, images))
    assert predict_probs(model, images[:0]).shape == (0, 3)


def test_a_model_that_is_always_right_scores_one() -> None:
    class Oracle(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.classifier = torch.nn.Linear(1, 3)

        def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            logits = 100.0 * torch.nn.functional.one_hot(images[:, 0, 0, 0].long(), 3)
            return logits, logits

    split = tiny_set("test", 9, 3, 1, 8, seed=0)
    split.images[:, 0, 0, 0] = split.targets
    metrics = evaluate_split(Oracle(), split)  # type: ignore[arg-type]
    assert metrics["eval/accuracy"] == metrics["eval/balanced_accuracy"] == 1
    assert metrics["eval/ece"] == pytest.approx(0, abs=1e-6)
