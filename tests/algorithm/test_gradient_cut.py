"""gradient_cut.py: the two heads, and which samples' gradients reach them."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dpl_ray.algorithm.gradient_cut import (
    HIGH,
    LOW,
    GradientCutHeads,
    class_sums,
    cut_cross_entropy,
    gradient_size,
    passes,
)
from dpl_ray.algorithm.pseudo_labels import pseudo_labels
from tests.builders import answers_of, make_policy


def randn(*shape: int, seed: int = 0, scale: float = 1) -> Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def random_labels(num_samples: int, num_classes: int, seed: int = 0) -> Tensor:
    return torch.randint(num_classes, (num_samples,), generator=torch.Generator().manual_seed(seed))


def test_heads_start_as_copies_of_the_main_classifier_and_share_nothing_with_it() -> None:
    classifier, heads = nn.Linear(5, 3), GradientCutHeads(5, 3)
    heads.start_as(classifier)
    features = randn(4, 5)
    for logits in heads(features):
        assert torch.equal(logits, classifier(features))
    with torch.no_grad():
        classifier.weight.zero_()
        heads.low.bias.zero_()
    assert heads.low.weight.abs().sum() > 0
    assert heads.high.weight.abs().sum() > 0
    assert heads.high.bias.abs().sum() > 0


def test_heads_read_half_precision_features_in_float32() -> None:
    low, high = GradientCutHeads(5, 3)(randn(4, 5).bfloat16())
    assert low.dtype == high.dtype == torch.float32


@pytest.mark.parametrize("cut", ["confidence", "own", "none"])
def test_the_heads_loss_moves_both_heads_and_never_the_student(cut: str) -> None:
    torch.manual_seed(0)
    backbone, classifier = nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.ReLU()), nn.Linear(5, 3)
    policy = make_policy("dpl", 5, 3, cut=cut)
    policy.start_as(classifier)
    features = backbone(randn(16, 3, 4, seed=1))
    features_weak = backbone(randn(40, 3, 4, seed=2))  # with its gradient, although the step has none here
    pseudo = pseudo_labels(features_weak, classifier(features_weak))
    policy.update(policy.statistics(pseudo))
    policy.auxiliary_loss(pseudo, answers_of(features, classifier(features), random_labels(16, 3))).backward()
    for parameter in [*backbone.parameters(), *classifier.parameters()]:
        assert parameter.grad is None or (parameter.grad == 0).all()
    for head in (policy.heads.low, policy.heads.high):
        assert head.weight.grad.abs().sum() > 0


def test_gradient_size_is_that_of_cross_entropy_at_the_labels_logit() -> None:
    logits, labels = randn(30, 4, scale=4).requires_grad_(), random_labels(30, 4)
    (gradient,) = torch.autograd.grad(F.cross_entropy(logits, labels, reduction="sum"), logits)
    sizes = gradient_size(logits, labels)
    torch.testing.assert_close(sizes, gradient[torch.arange(30), labels].abs(), rtol=0, atol=1e-6)
    assert not sizes.requires_grad


def test_gradient_size_goes_from_zero_for_the_certain_to_one_for_the_wrong() -> None:
    logits = torch.tensor([[100.0, 0.0], [0.0, 0.0], [-100.0, 0.0]])
    assert gradient_size(logits, torch.zeros(3, dtype=torch.int64)).tolist() == [0, 0.5, 1]


eighths = st.integers(0, 8).map(lambda number: number / 8)  # coarse, so that sizes often lie on the boundary


@settings(max_examples=50)
@given(
    samples=st.lists(st.tuples(eighths, eighths, st.integers(0, 2)), max_size=12),
    boundary=st.lists(eighths, min_size=6, max_size=6),
)
def test_low_passes_up_to_and_high_from_the_boundary_of_the_class(
    samples: list[tuple[float, float, int]], boundary: list[float]
) -> None:
    sizes = torch.tensor([[low for low, _, _ in samples], [high for _, high, _ in samples]])
    labels = torch.tensor([label for _, _, label in samples], dtype=torch.int64)
    passed = passes(sizes, labels, torch.tensor(boundary, dtype=torch.float64).view(2, 3))
    assert passed.shape == (2, len(samples))
    for i, (low, high, label) in enumerate(samples):
        assert passed[LOW, i] == (low <= boundary[label])
        assert passed[HIGH, i] == (high >= boundary[3 + label])


def test_with_one_boundary_every_sample_passes_one_head_and_on_the_boundary_both() -> None:
    sizes = torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0]).expand(2, -1)
    passed = passes(sizes, torch.zeros(5, dtype=torch.int64), torch.full((2, 1), 0.5))
    assert passed[LOW].tolist() == [True, True, True, False, False]
    assert passed[HIGH].tolist() == [False, False, True, True, True]


@pytest.mark.parametrize("which", ["some", "none", "all"])
def test_cut_rows_of_the_logit_gradient_are_zero_and_passed_rows_are_those_of_cross_entropy(which: str) -> None:
    boundary = torch.full((2, 3), 0.5) if which == "some" else torch.tensor([[-1.0], [2.0]]).expand(2, 3)
    if which == "all":
        boundary = 1 - boundary
    logits, labels = randn(24, 3, scale=2).requires_grad_(), random_labels(24, 3)
    passed = passes(gradient_size(logits, labels).expand(2, -1), labels, boundary)
    assert {"some": 0 < passed[LOW].sum() < 24, "none": not passed.any(), "all": passed.all()}[which]
    for head in (LOW, HIGH):
        loss = cut_cross_entropy(logits, labels, passed[head])
        (gradient,) = torch.autograd.grad(loss, logits)
        total = 0.0
        for i in range(24):
            if not passed[head, i]:
                assert (gradient[i] == 0).all()
                continue
            powers = [math.exp(value) for value in logits[i].tolist()]
            probs = [power / sum(powers) for power in powers]
            total -= math.log(probs[labels[i]])
            expected = [p - (k == labels[i].item()) for k, p in enumerate(probs)]
            assert gradient[i].tolist() == pytest.approx(expected, abs=1e-6)
        assert loss.item() == pytest.approx(total, rel=1e-5)


def test_cut_cross_entropy_of_no_samples_is_zero() -> None:
    logits = torch.zeros(0, 3, requires_grad=True)
    loss = cut_cross_entropy(logits, torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.bool))
    loss.backward()
    assert loss == 0


@pytest.mark.parametrize("num_samples", [0, 1, 50])
def test_class_sums_are_those_of_a_loop_in_float64(num_samples: int) -> None:
    values, labels = randn(num_samples), random_labels(num_samples, 3)
    expected = [0.0] * 5  # the last two classes never occur
    for value, label in zip(values.tolist(), labels.tolist(), strict=True):
        expected[label] += value
    sums = class_sums(values, labels, 5)
    assert sums.dtype == torch.float64
    assert sums.tolist() == pytest.approx(expected, abs=1e-12)
