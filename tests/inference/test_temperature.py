"""The temperature that is fitted on labelled images: properties, a search on a grid, and the edges."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax

from dpl_ray.inference.temperature import FEWEST_WRONG, LIMITS, calibrate, fit_temperature


def loss(logits: np.ndarray, targets: np.ndarray, temperature: float) -> float:
    log_probs = log_softmax(logits.astype(np.float64) / temperature, axis=1)
    return -float(log_probs[np.arange(len(targets)), targets].mean())


def drawn(
    num_images: int, num_classes: int, scale: float, temperature: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Logits, and classes that are drawn from softmax(logits / temperature)."""
    random = np.random.default_rng(seed)
    logits = (scale * random.normal(size=(num_images, num_classes))).astype(np.float32)
    probs = np.exp(log_softmax(logits / temperature, axis=1))
    return logits, np.array([random.choice(num_classes, p=row / row.sum()) for row in probs.astype(np.float64)])


@settings(max_examples=25)
@given(st.integers(1, 40), st.integers(1, 6), st.floats(0.01, 100), st.floats(0, 1), st.integers(0, 2**32 - 1))
def test_no_temperature_fits_better(num_images: int, num_classes: int, scale: float, right: float, seed: int) -> None:
    random = np.random.default_rng(seed)
    logits = (scale * random.normal(size=(num_images, num_classes))).astype(np.float32)
    others = random.integers(0, num_classes, num_images)
    targets = np.where(random.random(num_images) < right, logits.argmax(axis=1), others)
    fitted = fit_temperature(logits, targets)
    assert LIMITS[0] <= fitted <= LIMITS[1]
    found = loss(logits, targets, fitted)
    assert found <= loss(logits, targets, 1)
    for other in np.geomspace(*LIMITS, 15):
        assert found <= loss(logits, targets, other) * (1 + 1e-4) + 1e-6


def test_the_temperature_is_the_one_that_the_labels_were_drawn_with() -> None:
    for temperature in (0.4, 2.5):
        assert fit_temperature(*drawn(4000, 5, 3, temperature, 0)) == pytest.approx(temperature, rel=0.1)


@pytest.mark.parametrize(
    ("logits", "targets", "expected"),
    [
        ([[3.0], [1.0]], [0, 0], 1),  # one class
        ([[0.0, 0.0], [0.0, 0.0]], [0, 1], 1),  # it says nothing
        ([[3.0, 1.0], [1.0, 2.0]], [0, 1], LIMITS[0]),  # all right
        ([[3.0, 1.0], [1.0, 2.0]], [1, 0], LIMITS[1]),  # all wrong
        ([[1.0, 0.5]], [0], LIMITS[0]),  # one image
        ([[1.0, -np.inf], [0.3, 0.0], [-np.inf, 2.0], [0.1, 0.0]], [0, 1, 1, 0], None),  # classes that are ruled out
        ([[1.0, -np.inf]], [1], LIMITS[1]),  # wrongly so
    ],
)
def test_edges(logits: list[list[float]], targets: list[int], expected: float | None) -> None:
    found = fit_temperature(np.array(logits, np.float32), np.array(targets))
    if expected is not None:
        assert found == pytest.approx(expected, rel=1e-3)
    assert LIMITS[0] <= found <= LIMITS[1]


def test_no_label_fits_and_measures() -> None:
    logits, targets = drawn(400, 3, 4, 3, 0)
    found = calibrate(logits, targets)
    assert found is not None
    assert found.helps
    assert found.temperature == pytest.approx(fit_temperature(logits, targets), rel=1e-2)
    np.testing.assert_array_equal(found.probs.argmax(axis=1), logits.argmax(axis=1))
    moved = found.probs
    for image in range(0, len(targets), 40):
        changed = targets.copy()
        changed[image] = (changed[image] + 1) % 3
        other = calibrate(logits, changed)
        assert other is not None
        np.testing.assert_array_equal(other.probs[image], moved[image])
        assert not np.array_equal(other.probs, moved), "its label fits the temperature of other images"


def test_a_calibrated_model_and_one_with_few_wrong_images_need_none() -> None:
    logits, targets = drawn(300, 3, 4, 1, 2)
    found = calibrate(logits, targets)
    assert found is not None
    assert not found.helps
    labels = logits.argmax(axis=1)
    labels[: FEWEST_WRONG - 1] = (labels[: FEWEST_WRONG - 1] + 1) % 3
    assert calibrate(logits, labels) is None
    assert calibrate(logits[:1], labels[:1]) is None
