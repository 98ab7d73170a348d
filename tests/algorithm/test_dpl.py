"""dpl.py against METHOD part 2, steps 2 to 5, written as loops over lists of floats.

Legend: U unlabelled, B labelled images, C classes, D features; index 0 is LGP, index 1 is HGP.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dpl_ray.algorithm.dpl import RULES, DynamicPseudoLabels, band_weight, gaussian_weight
from dpl_ray.algorithm.policy import RunFacts
from dpl_ray.algorithm.pseudo_labels import PseudoLabels, pseudo_labels
from tests.builders import answers_of, make_policy

CUTS = ("confidence", "own", "none")

Row = list[float]


def softmax(row: Row) -> Row:
    powers = [math.exp(value - max(row)) for value in row]
    return [power / sum(powers) for power in powers]


def argmax(row: Row) -> int:
    return row.index(max(row))


class Reference:
    """The method on lists. Its heads are trained by gradients worked out here."""

    def __init__(
        self,
        classifier: nn.Linear,
        *,
        decay: float,
        rule: str,
        cut: str,
        epsilon: float,
        alignment: bool,
        heads_weight: float = 1.0,
        balance: float = 0.0,
        pace: float = 1.0,
        shares: list[float] | str | None = None,
    ):
        self.decay, self.slow_decay, self.estimated = decay**pace, decay, shares == "estimated"
        self.rule, self.cut, self.epsilon, self.alignment = rule, cut, epsilon, alignment
        self.fades = shares is None
        self.heads_weight, self.balance = heads_weight, balance
        self.heads = [(classifier.weight.tolist(), classifier.bias.tolist()) for _ in range(2)]
        self.num_classes = len(self.heads[0][1])
        self.boundary = [[1 - 1 / self.num_classes] * self.num_classes for _ in range(2)]
        self.states = [[1 / self.num_classes] * self.num_classes for _ in range(2)]
        self.shares = shares if isinstance(shares, list) else [1 / self.num_classes] * self.num_classes
        self.mean_probs = [1 / self.num_classes] * self.num_classes
        self.mass, self.prior = ([1 / self.num_classes] * self.num_classes for _ in range(2))
        self.num_crossed = 0
        #: Distance of the nearest gradient size to its boundary: a test that has to tell them apart reads it.
        self.margin = math.inf

    def head_logits(self, head: int, features: Row) -> Row:
        weight, bias = self.heads[head]
        return [sum(w * x for w, x in zip(row, features, strict=True)) + b for row, b in zip(weight, bias, strict=True)]

    def size(self, head: int, features: Row, logits: Row, label: int) -> float:
        seen = self.head_logits(head, features) if self.cut == "own" else logits
        return 1 - softmax(seen)[label]

    def passed(self, head: int, size: float, boundary: float) -> bool:
        if self.cut == "none":
            return True
        self.margin = min(self.margin, abs(size - boundary))
        return size <= boundary if head == 0 else size >= boundary

    def average(self, state: Row, k: int, values: Row) -> None:
        """The mean of the values into the moving average of class k; no values leave it."""
        if values:
            state[k] = self.decay * state[k] + (1 - self.decay) * sum(values) / len(values)

    def weights(self, features: list[Row], logits: list[Row], progress: float) -> Row:
        """Read pseudo-labels, move the state and weigh: what a step does before its loss."""
        self.features, self.logits = features, logits
        self.labels: list[int] = []
        confidences: Row = []
        for row in logits:
            probs = softmax(row)
            if self.alignment:
                aligned = [share / mean for share, mean in zip(self.shares, self.mean_probs, strict=True)]
                if self.fades:
                    left = max(0.3, 1 - 2 * progress)  # of the alignment
                    aligned = [left * factor + 1 - left for factor in aligned]
                factors = self.prior if self.estimated else aligned
                probs = [p * factor for p, factor in zip(probs, factors, strict=True)]
                probs = [p / sum(probs) for p in probs]
            self.labels.append(argmax(probs))
            confidences.append(max(probs))

        samples = list(zip(features, self.labels, confidences, strict=True))
        # By the thresholds that the step before left.
        weights_before = [self.weight(*sample) for sample in samples]
        self.see(features)
        if total := sum(weights_before):
            total = max(total, 1e-6)
            for k in range(self.num_classes):
                of_class = sum(w for w, label in zip(weights_before, self.labels, strict=True) if label == k)
                self.average(self.mass, k, [of_class / total])
                share = max(of_class / total, 0.02 / self.num_classes)
                self.prior[k] = self.slow_decay * self.prior[k] + (1 - self.slow_decay) * share

        self.cut_boundary = [list(row) for row in self.boundary]
        for head in range(2):
            for k in range(self.num_classes):
                sizes: Row = []
                passed_confidences: Row = []
                for x, row, label in zip(features, logits, self.labels, strict=True):
                    if label != k:
                        continue
                    sizes.append(self.size(head, x, row, label))
                    if self.passed(head, sizes[-1], self.cut_boundary[head][k]):
                        passed_confidences.append(max(softmax(self.head_logits(head, x))))
                self.average(self.boundary[head], k, sizes)
                self.average(self.states[head], k, passed_confidences)
        for k in range(self.num_classes):
            self.average(self.mean_probs, k, [softmax(row)[k] for row in logits])
        self.num_crossed += sum(low < high for low, high in zip(*self.states, strict=True))

        mass = [max(share, 0.02 / self.num_classes) for share in self.mass]
        return [self.weight(*sample) * (min(mass) / mass[sample[1]]) ** self.balance for sample in samples]

    def see(self, features: list[Row]) -> None:
        """Move what more there is of state."""

    def weight(self, features: Row, label: int, confidence: float) -> float:
        if self.rule == "agreement":
            return float(all(argmax(self.head_logits(head, features)) == label for head in range(2)))
        over, under = self.over()[label], self.under()[label]
        width = max(over - under, self.epsilon)
        if confidence >= over:
            return 1.0
        if self.rule == "band":
            return max(0.0, 1 - (over - confidence) / width)
        return math.exp(-((confidence - over) ** 2) / (2 * width**2))

    def over(self) -> Row:
        return [max(pair) for pair in zip(*self.states, strict=True)]

    def under(self) -> Row:
        return [min(pair) for pair in zip(*self.states, strict=True)]

    def train_heads(self, features: list[Row], logits: list[Row], targets: list[int], learning_rate: float) -> float:
        """The heads' loss over labelled and unlabelled samples, and a gradient step of both heads."""
        features, logits, labels = features + self.features, logits + self.logits, targets + self.labels
        loss = 0.0
        for head in range(2):
            weight, bias = self.heads[head]
            moved, moved_bias = [list(row) for row in weight], list(bias)
            for x, row, label in zip(features, logits, labels, strict=True):
                if not self.passed(head, self.size(head, x, row, label), self.cut_boundary[head][label]):
                    continue
                probs = softmax(self.head_logits(head, x))
                loss -= self.heads_weight * math.log(probs[label]) / len(labels)
                for k, p in enumerate(probs):
                    slope = self.heads_weight * (p - (k == label)) / len(labels)
                    moved_bias[k] -= learning_rate * slope
                    for d, value in enumerate(x):
                        moved[k][d] -= learning_rate * slope * value
            self.heads[head] = (moved, moved_bias)
        return loss


def randn(*shape: int, seed: int, scale: float = 1) -> Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def read(policy: DynamicPseudoLabels, features: Tensor, logits: Tensor, progress: float = 0.0) -> PseudoLabels:
    return pseudo_labels(features, logits, policy.alignment(progress))


def observe(policy: DynamicPseudoLabels, features: Tensor, logits: Tensor, progress: float = 0.0) -> PseudoLabels:
    """Read pseudo-labels and move the policy by them, as a step does."""
    pseudo = read(policy, features, logits, progress)
    policy.update(policy.statistics(pseudo))
    return pseudo


@dataclass(frozen=True)
class Sizes:
    num_unlabeled: int
    num_labeled: int
    num_classes: int


SIZES = {
    "usual": Sizes(14, 4, 4),
    "more classes than images": Sizes(5, 2, 9),
    "two classes, one image": Sizes(1, 1, 2),
    "none unlabelled": Sizes(0, 3, 3),
}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("alignment", ["falling", "unaligned", "equal shares", "known shares", "estimated shares"])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("cut", CUTS)
def test_several_steps_are_those_of_the_loops(cut: str, rule: str, alignment: str, size: str) -> None:
    num_features, learning_rate, decay = 5, 0.2, 0.7
    parameters: dict[str, Any] = {"rule": rule, "cut": cut, "epsilon": 0.05, "alignment": alignment != "unaligned"}
    parameters |= {"heads_weight": 3.0, "balance": 0.5, "pace": 2.0}
    n = SIZES[size]
    if alignment == "known shares":
        total = n.num_classes * (n.num_classes + 1) / 2
        parameters["shares"] = [k / total for k in range(1, n.num_classes + 1)]
    if alignment in ("equal shares", "estimated shares"):
        parameters["shares"] = alignment.split()[0]
    torch.manual_seed(0)
    classifier = nn.Linear(num_features, n.num_classes)
    with torch.no_grad():
        classifier.weight.mul_(4)
    policy = make_policy("dpl", num_features, n.num_classes, ema_decay=decay, **parameters)
    policy.start_as(classifier)
    reference = Reference(classifier, decay=decay, **parameters)
    for step in range(5):
        features = randn(n.num_unlabeled, num_features, seed=4 * step)
        # The main classifier drifts away from the heads' start.
        logits = classifier(features).detach() + 0.3 * step * randn(n.num_unlabeled, n.num_classes, seed=4 * step + 1)
        features_labeled = randn(n.num_labeled, num_features, seed=4 * step + 2)
        logits_labeled = classifier(features_labeled).detach() + 0.3 * step
        targets = torch.arange(step, step + n.num_labeled) % n.num_classes

        progress = step / 6
        pseudo = observe(policy, features, logits, progress)
        weights = policy.weights(pseudo)
        loss = policy.auxiliary_loss(pseudo, answers_of(features_labeled, logits_labeled, targets))
        policy.zero_grad()
        loss.backward()
        with torch.no_grad():
            for parameter in policy.parameters():
                parameter -= learning_rate * parameter.grad

        expected_weights = reference.weights(features.tolist(), logits.tolist(), progress)
        expected_loss = reference.train_heads(
            features_labeled.tolist(), logits_labeled.tolist(), targets.tolist(), learning_rate
        )
        assert reference.margin > 1e-5, "a gradient size so near its boundary that float32 cannot tell them apart"
        assert pseudo.labels.tolist() == reference.labels
        for name, expected in (
            ("boundary", reference.boundary),
            ("cut", reference.cut_boundary),
            ("states", reference.states),
            ("mean_probs", reference.mean_probs),
            ("mass", reference.mass),
            ("prior", reference.prior),
        ):
            buffer = getattr(policy, name)
            assert buffer.dtype == torch.float64
            torch.testing.assert_close(buffer, torch.tensor(expected).double(), rtol=0, atol=2e-6, msg=name)
        thresholds = policy.thresholds()
        assert thresholds["over"].tolist() == pytest.approx(reference.over(), abs=2e-6)
        assert thresholds["under"].tolist() == pytest.approx(reference.under(), abs=2e-6)
        assert policy.num_crossed == reference.num_crossed
        assert weights.tolist() == pytest.approx(expected_weights, abs=1e-4)
        margins = [math.log(share) if reference.estimated else 0.0 for share in reference.prior]
        found = policy.unlabeled_logits(logits_labeled) - logits_labeled
        torch.testing.assert_close(found, torch.tensor(margins).expand_as(found), rtol=0, atol=1e-5)
        assert loss.item() == pytest.approx(expected_loss, abs=3e-5)
        for head, (weight, bias) in zip((policy.heads.low, policy.heads.high), reference.heads, strict=True):
            torch.testing.assert_close(head.weight.detach(), torch.tensor(weight), rtol=0, atol=1e-5)
            torch.testing.assert_close(head.bias.detach(), torch.tensor(bias), rtol=0, atol=1e-5)


def test_everything_starts_uniform() -> None:
    policy = make_policy("dpl", 3, 5)
    assert policy.boundary.tolist() == policy.cut.tolist() == [[1 - 1 / 5] * 5] * 2
    assert policy.states.tolist() == [[1 / 5] * 5] * 2
    assert policy.mean_probs.tolist() == [1 / 5] * 5
    assert policy.alignment(0.0).tolist() == [1] * 5
    assert policy.num_crossed == 0
    assert make_policy("dpl", 3, 5, alignment=False).alignment(0.0) is None


def with_states(policy: DynamicPseudoLabels, low: list[float], high: list[float]) -> DynamicPseudoLabels:
    policy.states.copy_(torch.tensor([low, high]))
    return policy


@pytest.mark.parametrize("cut", CUTS)
def test_a_class_that_does_not_occur_keeps_its_boundary_and_states(cut: str) -> None:
    policy = with_states(make_policy("dpl", 4, 3, cut=cut, ema_decay=0.5), [0.9, 0.8, 0.7], [0.6, 0.5, 0.4])
    logits = randn(20, 3, seed=0, scale=2)
    logits[:, 1] = -20  # no image is of class 1
    before, boundary = policy.states.clone(), policy.boundary.clone()
    for step in range(3):
        pseudo = observe(policy, randn(20, 4, seed=step), logits)
        assert (pseudo.labels != 1).all()
    assert torch.equal(policy.states[:, 1], before[:, 1])
    assert torch.equal(policy.boundary[:, 1], boundary[:, 1])
    assert (policy.states[:, [0, 2]] != before[:, [0, 2]]).any(dim=0).all()
    assert (policy.boundary[:, [0, 2]] != boundary[:, [0, 2]]).all()


@pytest.mark.parametrize("head", [0, 1], ids=["low", "high"])
def test_a_class_whose_samples_did_not_pass_keeps_that_heads_state(head: int) -> None:
    policy = with_states(make_policy("dpl", 4, 2, alignment=False), [0.9, 0.8], [0.6, 0.5])
    # Every size of class 0 is above the low head's boundary, or below the high head's.
    policy.boundary[:, 0] = -1.0 if head == 0 else 2.0
    before, boundary = policy.states.clone(), policy.boundary.clone()
    logits = torch.tensor([[2.0, 0.0], [1.0, 0.0], [0.0, 3.0]])
    observe(policy, randn(3, 4, seed=0), logits)
    assert policy.states[head, 0] == before[head, 0]
    assert policy.states[1 - head, 0] != before[1 - head, 0]
    assert (policy.boundary[:, 0] != boundary[:, 0]).all()


def test_thresholds_swap_where_the_states_have_crossed_and_it_is_counted() -> None:
    policy = with_states(make_policy("dpl", 3, 3), [0.9, 0.4, 0.6], [0.5, 0.7, 0.6])
    nothing = torch.zeros_like(policy.statistics(read(policy, torch.zeros(0, 3), torch.zeros(0, 3))))
    for step in range(1, 4):
        policy.update(nothing)
        assert policy.num_crossed == step  # class 1; equal states are in order
    thresholds = policy.thresholds()
    torch.testing.assert_close(thresholds["over"], torch.tensor([0.9, 0.7, 0.6]).double(), rtol=0, atol=1e-7)
    torch.testing.assert_close(thresholds["under"], torch.tensor([0.5, 0.4, 0.6]).double(), rtol=0, atol=1e-7)


def test_the_loss_is_cut_at_the_boundary_that_the_step_found() -> None:
    policy = make_policy("dpl", 4, 3, ema_decay=0.5)
    found = policy.boundary.clone()
    pseudo = observe(policy, randn(20, 4, seed=0), randn(20, 3, seed=1, scale=3))
    assert torch.equal(policy.cut, found)
    assert not torch.equal(policy.boundary, found)
    arguments = pseudo, answers_of(randn(4, 4, seed=2), randn(4, 3, seed=3), torch.tensor([0, 1, 2, 0]))
    loss = policy.auxiliary_loss(*arguments)
    policy.boundary.fill_(-1)
    assert policy.auxiliary_loss(*arguments) == loss


@pytest.mark.parametrize("alignment", [True, False])
@pytest.mark.parametrize("cut", CUTS)
def test_nothing_unlabelled_moves_nothing(cut: str, alignment: bool) -> None:
    policy = with_states(make_policy("dpl", 3, 2, cut=cut, alignment=alignment), [0.9, 0.8], [0.5, 0.4])
    before = {name: value.clone() for name, value in policy.state_dict().items()}
    pseudo = observe(policy, torch.zeros(0, 3), torch.zeros(0, 2))
    assert policy.weights(pseudo).shape == (0,)
    for name, value in policy.state_dict().items():
        if name != "cut":  # the boundary that this step found
            assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("rule", ["gaussian", "band"])
def test_none_is_selected_far_below_the_thresholds_and_all_are_above_them(rule: str) -> None:
    policy = with_states(make_policy("dpl", 4, 3, rule=rule), [0.99] * 3, [0.95] * 3)
    doubtful = read(policy, randn(10, 4, seed=0), randn(10, 3, seed=1, scale=0.1))
    assert (policy.weights(doubtful) <= policy.min_weight).all()
    certain = read(policy, randn(10, 4, seed=0), 1000 * torch.eye(3)[torch.arange(10) % 3])
    assert (policy.weights(certain) == 1).all()


def test_agreement_takes_exactly_what_both_heads_call_by_the_pseudo_label() -> None:
    policy = make_policy("dpl", 2, 2, rule="agreement")
    with torch.no_grad():
        for head, matrix in ((policy.heads.low, [[1.0, 0.0], [0.0, 1.0]]), (policy.heads.high, [[1.0, 0.0], [0.0, 3]])):
            head.weight.copy_(torch.tensor(matrix))
            head.bias.zero_()
    # Both say 0; low says 0 and high 1; both say 1; both say 0 against the pseudo-label.
    features = torch.tensor([[4.0, 1.0], [2.0, 1.0], [1.0, 2.0], [4.0, 1.0]])
    logits = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    assert policy.weights(read(policy, features, logits)).tolist() == [1, 0, 1, 0]


@pytest.mark.parametrize("alignment", [True, False])
def test_a_class_without_any_probability_in_a_batch_leaves_the_next_step_finite(alignment: bool) -> None:
    # No average over steps hides it: the mean probability of class 2 is exactly zero in float32.
    policy = make_policy("dpl", 4, 3, ema_decay=0.0, alignment=alignment)
    features, logits = randn(6, 4, seed=0), randn(6, 3, seed=1)
    logits[:, 2] = -200
    observe(policy, features, logits)
    pseudo = observe(policy, features, logits)
    assert pseudo.probs.isfinite().all()
    assert (pseudo.labels != 2).all()
    assert policy.weights(pseudo).isfinite().all()


def grid(*shape: int, seed: int) -> Tensor:
    """Multiples of 1/8: products and their sums are exact, whatever the order a library takes them in."""
    return torch.randint(-16, 17, shape, generator=torch.Generator().manual_seed(seed)) / 8


@settings(max_examples=30)
@given(
    cuts=st.lists(st.integers(0, 12), max_size=4),
    cut=st.sampled_from(CUTS),
    alignment=st.booleans(),
    num_classes=st.integers(2, 5),
    seed=st.integers(0, 1000),
)
def test_statistics_of_shards_sum_to_those_of_the_batch(
    cuts: list[int], cut: str, alignment: bool, num_classes: int, seed: int
) -> None:
    policy = make_policy("dpl", 4, num_classes, cut=cut, alignment=alignment)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.copy_(grid(*parameter.shape, seed=seed))
    policy.mean_probs.copy_(randn(num_classes, seed=seed).softmax(dim=0))
    features, logits = grid(12, 4, seed=seed + 1), grid(12, num_classes, seed=seed + 2)
    whole = policy.statistics(read(policy, features, logits))
    edges = [0, *sorted(cuts), 12]  # two equal edges are an empty shard
    shards = [
        policy.statistics(read(policy, features[start:stop], logits[start:stop])) for start, stop in pairwise(edges)
    ]
    assert whole.dtype == torch.float64
    assert {shard.shape for shard in shards} == {whole.shape}
    torch.testing.assert_close(torch.stack(shards).sum(dim=0), whole, rtol=0, atol=1e-12)


unit = st.floats(0, 1)


@settings(max_examples=200)
@given(confidences=st.lists(unit, min_size=1), states=st.tuples(unit, unit), epsilon=st.floats(1e-6, 1))
@pytest.mark.parametrize("weight", [gaussian_weight, band_weight])
def test_weights_rise_with_the_confidence_from_zero_to_one_at_the_over_confident_threshold(
    weight: Any, confidences: list[float], states: tuple[float, float], epsilon: float
) -> None:
    under, over = sorted(states)
    ascending = torch.tensor(sorted([*confidences, over]), dtype=torch.float64)
    limits = (torch.full_like(ascending, over), torch.full_like(ascending, under))
    weights = weight(ascending, *limits, epsilon)
    assert ((weights >= 0) & (weights <= 1)).all()
    assert (weights.diff() >= 0).all()
    assert (weights[ascending >= over] == 1).all()
    torch.testing.assert_close(
        weight(ascending.float(), *(limit.float() for limit in limits), epsilon)[ascending >= over],
        torch.ones(int((ascending >= over).sum())),
        rtol=0,
        atol=0,
    )


@settings(max_examples=200)
@given(states=st.tuples(unit, unit), epsilon=st.floats(1e-6, 1))
def test_weight_at_the_under_confident_threshold(states: tuple[float, float], epsilon: float) -> None:
    under, over = (torch.tensor([value], dtype=torch.float64) for value in sorted(states))
    width = (over - under).item()
    gaussian, band = (rule(under, over, under, epsilon).item() for rule in (gaussian_weight, band_weight))
    if width > epsilon:
        assert gaussian == pytest.approx(math.exp(-1 / 2))
        assert band == 0
    else:
        # A narrower band is taken as epsilon wide.
        assert gaussian == pytest.approx(math.exp(-((width / epsilon) ** 2) / 2))
        assert band == pytest.approx(1 - width / epsilon)


@pytest.mark.parametrize("rule", ["gaussian", "band"])
def test_weights_read_the_thresholds_of_each_samples_class(rule: str) -> None:
    policy = with_states(make_policy("dpl", 3, 2, rule=rule, alignment=False), [0.99, 0.7], [0.9, 0.6])
    pseudo = read(policy, torch.zeros(2, 3), torch.tensor([[1.5, 0.0], [0.0, 1.5]]))
    strict, lenient = policy.weights(pseudo).tolist()
    assert pseudo.confidence[0] == pseudo.confidence[1]
    assert strict < 0.5
    assert lenient == 1


def test_what_is_not_given_depends_on_whether_the_data_are_stored_features() -> None:
    for frozen, expected, start in ((True, (0.99**10, 10.0, 0.5), 1.0), (False, (0.99, 1.0, 0.0), 0.5)):
        policy = make_policy("dpl", 3, 2)
        policy.join(RunFacts(10, 4, frozen=frozen))
        assert (policy.ema_decay, policy.heads_weight, policy.balance) == expected
        assert policy.states.tolist() == [[start] * 2] * 2
    policy = make_policy("dpl", 3, 2, ema_decay=0.5, pace=2.0, balance=0.0)
    policy.join(RunFacts(10, 4, frozen=True))
    assert (policy.ema_decay, policy.heads_weight, policy.balance) == (0.25, 10.0, 0.0)


@pytest.mark.parametrize(
    ("parameters", "frozen", "estimated"),
    [({}, True, True), ({}, False, False), ({"shares": "equal"}, True, False), ({"shares": "estimated"}, False, True)],
)
def test_shares_are_estimated_where_it_is_said_and_by_default_on_stored_features(
    parameters: dict[str, Any], frozen: bool, estimated: bool
) -> None:
    policy = make_policy("dpl", 3, 2, **parameters)
    policy.join(RunFacts(10, 4, frozen=frozen))
    policy.prior.copy_(torch.tensor([0.8, 0.2]))
    factors = policy.alignment(0.0)
    assert factors.tolist() == pytest.approx([0.8, 0.2] if estimated else [1, 1])


@pytest.mark.parametrize(
    ("shares", "later", "last"),
    [(None, [1.25, 0.75], [1.15, 0.85]), ("equal", [1.5, 0.5], [1.5, 0.5]), ([1, 3], [0.75, 0.75], [0.75, 0.75])],
)
@pytest.mark.parametrize("kind", [float, partial(torch.tensor, dtype=torch.float64)], ids=["host", "device"])
def test_alignment_falls_to_a_part_of_itself_where_nothing_is_known_of_the_shares(
    shares: Any, later: list[float], last: list[float], kind: Callable[[float], float | Tensor]
) -> None:
    policy = make_policy("dpl", 3, 2, shares=shares)
    policy.mean_probs.copy_(torch.tensor([1 / 3, 1.0]))
    found = [policy.alignment(kind(progress)) for progress in (0.0, 0.25, 0.5, 1.0)]
    first = [0.75, 0.75] if isinstance(shares, list) else [1.5, 0.5]
    for factors, expected in zip(found, (first, later, last, last), strict=True):
        assert factors.dtype == torch.float64
        assert factors.tolist() == pytest.approx(expected)


def test_stored_features_without_an_alignment_have_none() -> None:
    policy = make_policy("dpl", 3, 2, alignment=False)
    policy.join(RunFacts(10, 4, frozen=True))
    assert policy.alignment(0.0) is None
    assert torch.equal(policy.unlabeled_logits(torch.ones(1, 2)), torch.ones(1, 2))


def test_the_labelled_loss_is_the_balanced_softmax_of_unequal_labels_and_plain_of_equal_ones() -> None:
    logits, targets, counts = randn(6, 3, seed=0), torch.tensor([0, 0, 0, 1, 1, 2]), torch.tensor([6, 3, 1])
    policy = make_policy("dpl", 3, 3)
    policy.join(RunFacts(10, 4, labeled_counts=counts))
    # -log (n_y e^z_y / sum n_k e^z_k), Ren et al. (2020), equation 4.
    scaled = counts * logits.exp()
    expected = -(scaled[torch.arange(6), targets] / scaled.sum(dim=1)).log().mean()
    torch.testing.assert_close(policy.labeled_loss(logits, targets), expected)
    for plain in (make_policy("dpl", 3, 3, balanced_softmax=False), make_policy("dpl", 3, 3)):
        plain.join(RunFacts(10, 4, labeled_counts=counts if not plain.balanced_softmax else torch.tensor([2, 2, 2])))
        assert torch.equal(plain.labeled_loss(logits, targets), F.cross_entropy(logits, targets))


def test_a_checkpoint_of_before_an_average_was_kept_is_read() -> None:
    policy = make_policy("dpl", 3, 2, shares="estimated")
    state = {name: value for name, value in policy.state_dict().items() if name not in ("mass", "prior", "shares")}
    policy.load_state_dict(state)
    assert policy.prior.tolist() == policy.mass.tolist() == [0.5, 0.5]


def test_alignment_aims_at_the_shares_that_are_known_of_the_pool() -> None:
    policy = make_policy("dpl", 3, 2, shares=[30, 10])
    assert policy.alignment(0.0).tolist() == [1.5, 0.5]  # of two classes that the student says equally often
    policy = make_policy("dpl", 3, 2, shares="labels")
    policy.join(RunFacts(10, 4, labeled_counts=torch.tensor([5, 1])))
    assert policy.shares.tolist() == [1.5, 0.5]
    # A checkpoint has them: who labels by it knows no counts.
    other = make_policy("dpl", 3, 2, shares="labels")
    other.load_state_dict(policy.state_dict())
    other.join(RunFacts(10, 4))
    assert torch.equal(other.alignment(0.0), policy.alignment(0.0))


def test_a_class_with_much_weight_gives_it_away() -> None:
    policy = make_policy("dpl", 4, 2, balance=1.0, alignment=False, ema_decay=0.0)
    logits = torch.tensor([[9.0, 0.0]] * 3 + [[0.0, 9.0]])
    pseudo = observe(policy, randn(4, 4, seed=0), logits)
    assert policy.mass.tolist() == pytest.approx([0.75, 0.25])
    weights = policy.weights(pseudo)
    assert weights[:3].sum().item() == pytest.approx(weights[3].item())
    # A class that no sample has still counts as something, or it would silence the other.
    policy.mass.copy_(torch.tensor([1.0, 0.0]))
    assert policy.weights(pseudo)[0].item() == pytest.approx(weights[3].item() * 0.02 / 2)
