"""pseudo_labels.py: probabilities, labels and confidence of weak views."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dpl_ray.algorithm.pseudo_labels import align, entropy, pseudo_labels


def random_logits(num_samples: int, num_classes: int, seed: int = 0, scale: float = 3) -> Tensor:
    return scale * torch.randn(num_samples, num_classes, generator=torch.Generator().manual_seed(seed))


def softmax(row: list[float]) -> list[float]:
    powers = [math.exp(value - max(row)) for value in row]
    return [power / sum(powers) for power in powers]


def test_probs_labels_and_confidence_are_those_of_a_loop() -> None:
    logits, features = random_logits(20, 4), torch.randn(20, 5)
    pseudo = pseudo_labels(features, logits)
    for i, row in enumerate(logits.tolist()):
        expected = softmax(row)
        assert pseudo.probs[i].tolist() == pytest.approx(expected, abs=1e-6)
        assert pseudo.labels[i] == expected.index(max(expected))
        assert pseudo.confidence[i].item() == pytest.approx(max(expected), abs=1e-6)
    assert pseudo.features is features
    assert torch.equal(pseudo.logits, logits)
    assert pseudo.labels.dtype == torch.int64


def test_alignment_changes_labels_and_confidence_but_not_the_logits() -> None:
    logits, factors = random_logits(50, 3), [0.2, 1.0, 5.0]
    pseudo = pseudo_labels(torch.zeros(50, 2), logits, torch.tensor(factors, dtype=torch.float64))
    for i, row in enumerate(logits.tolist()):
        scaled = [p * factor for p, factor in zip(softmax(row), factors, strict=True)]
        expected = [value / sum(scaled) for value in scaled]
        assert pseudo.probs[i].tolist() == pytest.approx(expected, abs=1e-6)
        assert pseudo.labels[i] == expected.index(max(expected))
        assert pseudo.confidence[i].item() == pytest.approx(max(expected), abs=1e-6)
    assert torch.equal(pseudo.logits, logits)
    assert (pseudo.labels != logits.argmax(dim=1)).any()


def test_logits_of_half_precision_are_read_in_float32() -> None:
    logits = random_logits(8, 3).bfloat16()
    pseudo = pseudo_labels(torch.zeros(8, 2), logits)
    assert {pseudo.logits.dtype, pseudo.probs.dtype, pseudo.confidence.dtype} == {torch.float32}
    assert torch.equal(pseudo.probs, logits.float().softmax(dim=1))


@pytest.mark.parametrize("alignment", [None, torch.tensor([0.5, 2.0])])
def test_no_images_give_no_pseudo_labels(alignment: Tensor | None) -> None:
    pseudo = pseudo_labels(torch.zeros(0, 3), torch.zeros(0, 2), alignment)
    assert (pseudo.probs.shape, pseudo.labels.shape, pseudo.confidence.shape) == ((0, 2), (0,), (0,))


@settings(max_examples=50)
@given(
    factors=st.lists(st.floats(0.01, 100), min_size=2, max_size=6),
    seed=st.integers(0, 1000),
    common=st.floats(0.01, 100),
)
def test_aligned_rows_sum_to_one_and_a_common_factor_does_nothing(
    factors: list[float], seed: int, common: float
) -> None:
    probs = random_logits(5, len(factors), seed).double().softmax(dim=1)
    aligned = align(probs, torch.tensor(factors, dtype=torch.float64))
    torch.testing.assert_close(aligned.sum(dim=1), torch.ones(5, dtype=torch.float64))
    assert ((aligned >= 0) & (aligned <= 1)).all()
    torch.testing.assert_close(align(probs, torch.full((len(factors),), common)), probs)
    torch.testing.assert_close(align(aligned, 1 / torch.tensor(factors, dtype=torch.float64)), probs)


def test_alignment_by_the_mean_of_one_row_makes_that_row_uniform() -> None:
    probs = random_logits(1, 4).double().softmax(dim=1)
    torch.testing.assert_close(align(probs, 1 / (4 * probs[0])), torch.full((1, 4), 0.25, dtype=torch.float64))


def test_alignment_keeps_the_precision_of_the_probabilities() -> None:
    assert align(torch.rand(2, 3), torch.ones(3, dtype=torch.float64)).dtype == torch.float32


def test_entropy_is_that_of_a_loop_and_zero_probabilities_count_nothing() -> None:
    probs = torch.cat([random_logits(10, 4).softmax(dim=1), torch.eye(4)])
    expected = [-sum(p * math.log(p) for p in row if p > 0) for row in probs.tolist()]
    assert entropy(probs).tolist() == pytest.approx(expected, abs=1e-6)
    assert (entropy(torch.eye(4)) == 0).all()


@pytest.mark.parametrize("num_classes", [2, 10])
def test_entropy_is_largest_where_the_probabilities_are_equal(num_classes: int) -> None:
    uniform = torch.full((1, num_classes), 1 / num_classes)
    assert entropy(uniform).item() == pytest.approx(math.log(num_classes), abs=1e-6)
    assert (entropy(random_logits(100, num_classes).softmax(dim=1)) <= math.log(num_classes) + 1e-6).all()
