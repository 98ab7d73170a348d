"""Every policy against a loop that says what its samples count: one row each, and what holds for all of them.

A new policy is a new row in ROWS.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn

from dpl_ray.algorithm.peers import FixMatch
from dpl_ray.algorithm.policies import POLICIES, build_policy
from dpl_ray.algorithm.policy import Policy
from dpl_ray.algorithm.pseudo_labels import PseudoLabels, pseudo_labels
from dpl_ray.compose import CONF_FOLDER, check_policy, describe_policies
from dpl_ray.training.distributed import Workers
from dpl_ray.training.state import build_state
from dpl_ray.training.step import train_step
from tests.builders import tiny_config, tiny_feed, tiny_splits
from tests.test_dpl import Reference, softmax

NUM_FEATURES, NUM_CLASSES, NUM_UNLABELED, NUM_STEPS = 4, 3, 20, 5

#: Of one step: features (U, D) and logits (U, C), as lists.
Step = tuple[list[list[float]], list[list[float]]]


def supervised(steps: list[Step], classifier: nn.Linear) -> list[list[float]]:
    return [[0.0 for _ in logits] for _, logits in steps]


def fixmatch(steps: list[Step], classifier: nn.Linear, threshold: float = 0.95) -> list[list[float]]:
    return [[float(max(softmax(row)) >= threshold) for row in logits] for _, logits in steps]


def dpl(steps: list[Step], classifier: nn.Linear, **parameters: Any) -> list[list[float]]:
    defaults = {"ema_decay": 0.99, "rule": "gaussian", "cut": "confidence", "epsilon": 0.02, "alignment": True}
    chosen = defaults | parameters
    reference = Reference(classifier, decay=chosen.pop("ema_decay"), **chosen)
    return [reference.weights(*step) for step in steps]


@dataclass(frozen=True)
class Row:
    """A policy, and its weights of every sample in several steps one after the other, worked out with loops.

    `reference(steps, classifier, **parameters)` knows the policy's defaults by itself. The classifier is the main
    one, which made the logits and does not move.
    """

    reference: Callable[..., list[list[float]]]
    #: Parameters other than the defaults, each to be tested too.
    variants: tuple[dict[str, Any], ...] = ()
    #: Values that the constructor refuses.
    wrong: tuple[tuple[str, Any], ...] = ()
    uses_unlabeled: bool = field(default=True)


ROWS = {
    "dpl": Row(
        dpl,
        variants=(
            {"ema_decay": 0.5, "rule": "band", "epsilon": 0.1},
            {"ema_decay": 0.5, "cut": "own", "alignment": False},
            {"rule": "agreement"},
        ),
        wrong=(("ema_decay", 1.0), ("rule", "none"), ("cut", "none"), ("epsilon", 0.0)),
    ),
    "fixmatch": Row(
        fixmatch,
        variants=({"threshold": 0.6}, {"threshold": 0.0}, {"threshold": 1.0}),
        wrong=(("threshold", -0.1), ("threshold", 1.1), ("threshold", math.nan)),
    ),
    "supervised": Row(supervised, uses_unlabeled=False),
}

VARIANTS = [{"name": name} | variant for name, row in ROWS.items() for variant in ({}, *row.variants)]
every_variant = pytest.mark.parametrize(
    "parameters", VARIANTS, ids=[" ".join(str(value) for value in variant.values()) for variant in VARIANTS]
)


def grid(*shape: int, seed: int) -> Tensor:
    """Multiples of 1/8: products and their sums are exact, whatever the order a library takes them in."""
    return torch.randint(-16, 17, shape, generator=torch.Generator().manual_seed(seed)) / 8


def main_classifier() -> nn.Linear:
    classifier = nn.Linear(NUM_FEATURES, NUM_CLASSES)
    with torch.no_grad():
        classifier.weight.copy_(grid(NUM_CLASSES, NUM_FEATURES, seed=100) / 2)
        classifier.bias.copy_(grid(NUM_CLASSES, seed=101))
    return classifier


def build(parameters: dict[str, Any]) -> Policy:
    policy = build_policy(parameters, NUM_FEATURES, NUM_CLASSES)
    policy.start_as(main_classifier())
    return policy


def tensors(step: int, num_samples: int = NUM_UNLABELED) -> tuple[Tensor, Tensor]:
    features = grid(num_samples, NUM_FEATURES, seed=step)
    return features, main_classifier()(features).detach()


def read(policy: Policy, features: Tensor, logits: Tensor) -> PseudoLabels:
    return pseudo_labels(features, logits, policy.alignment())


def observe(policy: Policy, step: int) -> PseudoLabels:
    pseudo = read(policy, *tensors(step))
    policy.update(policy.statistics(pseudo))
    return pseudo


def snapshot(policy: Policy) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in policy.state_dict().items()}


def assert_same(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def defaults_of(policy: type[Policy]) -> dict[str, Any]:
    signature = inspect.signature(policy).parameters.values()
    return {parameter.name: parameter.default for parameter in signature if parameter.kind is parameter.KEYWORD_ONLY}


def test_every_policy_has_a_row_and_a_yaml_file() -> None:
    assert set(ROWS) == set(POLICIES)
    assert {path.stem for path in (CONF_FOLDER / "policy").glob("*.yaml")} == set(POLICIES)


@pytest.mark.parametrize("name", POLICIES)
def test_yaml_says_the_constructors_parameters_and_defaults(name: str) -> None:
    said = yaml.safe_load((CONF_FOLDER / "policy" / f"{name}.yaml").read_text())
    assert said.pop("name") == name
    defaults = defaults_of(POLICIES[name])
    assert said == defaults
    assert {key: type(value) for key, value in said.items()} == {key: type(value) for key, value in defaults.items()}


@pytest.mark.parametrize("name", POLICIES)
def test_every_parameter_is_described(name: str) -> None:
    rows = describe_policies()[name]
    assert [row[0] for row in rows] == [f"policy.{key}" for key in defaults_of(POLICIES[name])]
    assert all(meaning for *_, meaning in rows)


@every_variant
def test_weights_are_those_of_the_loop(parameters: dict[str, Any]) -> None:
    own = {key: value for key, value in parameters.items() if key != "name"}
    steps = [tensors(step) for step in range(NUM_STEPS)]
    as_lists = [(features.tolist(), logits.tolist()) for features, logits in steps]
    expected = ROWS[parameters["name"]].reference(as_lists, main_classifier(), **own)
    policy = build(parameters)
    for step in range(NUM_STEPS):
        assert policy.weights(observe(policy, step)).tolist() == pytest.approx(expected[step], abs=1e-5)


@every_variant
def test_weights_lie_between_zero_and_one_and_every_sample_has_a_target(parameters: dict[str, Any]) -> None:
    policy = build(parameters)
    for step in range(NUM_STEPS):
        pseudo = observe(policy, step)
        weights, targets = policy.weights(pseudo), policy.targets(pseudo)
        assert weights.shape == (NUM_UNLABELED,)
        assert weights.is_floating_point()
        assert ((weights >= 0) & (weights <= 1)).all()
        assert not weights.requires_grad
        assert not targets.requires_grad
        if targets.dtype == torch.int64:
            assert targets.shape == (NUM_UNLABELED,)
        else:
            torch.testing.assert_close(targets.sum(dim=1), torch.ones(NUM_UNLABELED))
        for values in policy.thresholds().values():
            assert values.shape == (NUM_CLASSES,)
            assert values.isfinite().all()


@every_variant
@pytest.mark.parametrize("num_samples", [0, 1])
def test_hardly_any_images_are_as_good_as_many(parameters: dict[str, Any], num_samples: int) -> None:
    policy = build(parameters)
    many = policy.statistics(read(policy, *tensors(0)))
    pseudo = read(policy, *tensors(0, num_samples))
    statistics = policy.statistics(pseudo)
    assert statistics.shape == many.shape
    policy.update(statistics)
    assert policy.weights(pseudo).shape == (num_samples,)
    assert all(value.isfinite().all() for value in policy.state_dict().values())


@every_variant
def test_statistics_of_shards_sum_to_those_of_the_batch(parameters: dict[str, Any]) -> None:
    policy = build(parameters)
    for step in range(3):  # away from the symmetric start
        observe(policy, step)
    features, logits = tensors(NUM_STEPS)
    whole = policy.statistics(read(policy, features, logits))
    edges = [0, 3, 3, 11, NUM_UNLABELED]
    shards = [
        policy.statistics(read(policy, features[start:stop], logits[start:stop])) for start, stop in pairwise(edges)
    ]
    assert whole.dtype == torch.float64
    torch.testing.assert_close(torch.stack(shards).sum(dim=0), whole, rtol=0, atol=1e-12)


@every_variant
def test_only_an_update_changes_the_state(parameters: dict[str, Any]) -> None:
    policy = build(parameters)
    pseudo = observe(policy, 0)
    before = snapshot(policy)
    asked = (policy.statistics(pseudo), policy.weights(pseudo), policy.alignment(), policy.thresholds())
    policy.targets(pseudo)
    policy.auxiliary_loss(pseudo, torch.zeros(2, NUM_FEATURES), torch.zeros(2, NUM_CLASSES), torch.tensor([0, 1]))
    assert_same(snapshot(policy), before)
    assert torch.equal(policy.statistics(pseudo), asked[0])
    assert torch.equal(policy.weights(pseudo), asked[1])


@every_variant
def test_the_state_dict_holds_all_that_later_steps_depend_on(parameters: dict[str, Any]) -> None:
    policy, restored = build(parameters), build_policy(parameters, NUM_FEATURES, NUM_CLASSES)
    for step in range(3):
        observe(policy, step)
    restored.load_state_dict(snapshot(policy))
    for step in range(3, 6):
        weights, weights_restored = (each.weights(observe(each, step)) for each in (policy, restored))
        assert torch.equal(weights, weights_restored)
        assert_same(snapshot(policy), snapshot(restored))


@every_variant
def test_the_heads_loss_is_one_number_without_a_gradient_for_the_student(parameters: dict[str, Any]) -> None:
    policy = build(parameters)
    features = grid(4, NUM_FEATURES, seed=50).requires_grad_()
    logits = grid(4, NUM_CLASSES, seed=51).requires_grad_()
    loss = policy.auxiliary_loss(observe(policy, 0), features, logits, torch.tensor([0, 1, 2, 0]))
    assert loss.shape == ()
    (loss + 0 * (features.sum() + logits.sum())).backward()
    assert not features.grad.any()
    assert not logits.grad.any()


@pytest.mark.parametrize(
    ("name", "key", "value"), [(name, key, value) for name, row in ROWS.items() for key, value in row.wrong]
)
def test_a_parameter_out_of_bounds_is_named(name: str, key: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"^{key}={value}: must be"):
        build({"name": name, key: value})
    with pytest.raises(ValueError, match=f"^policy.{key}={value}: must be"):
        check_policy({"name": name, key: value})


@pytest.mark.parametrize("name", POLICIES)
def test_only_supervised_does_without_unlabelled_images(name: str) -> None:
    assert POLICIES[name].uses_unlabeled == ROWS[name].uses_unlabeled == (name != "supervised")


def test_fixmatch_takes_a_sample_at_exactly_the_threshold_and_none_below() -> None:
    policy = build({"name": "fixmatch", "threshold": 0.75})
    confidence = torch.tensor([0.75, 0.75, 0.75]).nextafter(torch.tensor([0.0, 0.75, 1.0]))
    none = torch.zeros(3, 0)
    pseudo = PseudoLabels(none, none, none, torch.zeros(3, dtype=torch.int64), confidence)
    assert policy.weights(pseudo).tolist() == [0, 1, 1]


def test_supervised_weighs_nothing_however_certain() -> None:
    policy = build({"name": "supervised"})
    pseudo = pseudo_labels(torch.zeros(3, NUM_FEATURES), 1000 * torch.eye(3))
    assert policy.weights(pseudo).tolist() == [0, 0, 0]
    assert policy.statistics(pseudo).numel() == 0


class ReadsAll(FixMatch):
    """Asks for all that a policy may read, as the peers' do, and keeps what it was given."""

    reads_labeled = True

    def __init__(self, num_features: int, num_classes: int) -> None:
        super().__init__(num_features, num_classes, threshold=0.0)
        self.seen: dict[str, Any] = {}

    def weights(self, pseudo: PseudoLabels) -> Tensor:
        self.seen["pseudo"] = pseudo
        return (torch.arange(len(pseudo.labels)) % 2).float()

    def auxiliary_loss(self, pseudo: Any, features: Any, logits: Tensor, targets: Any, *strong: Any) -> Tensor:
        self.seen["strong"] = strong
        return 0.0 * strong[0].sum()


@pytest.mark.parametrize("view", ["strong", "weak"])
def test_a_policy_may_read_pool_indices_progress_labelled_answers_and_strong_logits(
    view: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, splits = tiny_config(), tiny_splits()
    state = build_state(config, 3, 3, Workers())
    policy = ReadsAll(state.policy.num_features, 3)
    monkeypatch.setattr(ReadsAll, "trains_on", view)
    state.policy = policy
    feed = tiny_feed(config, splits)
    forwarded: list[Tensor] = []
    state.student.register_forward_pre_hook(lambda _module, inputs: forwarded.append(inputs[0]))
    batch = feed(0)
    train_step(state, batch, config, feed.views, Workers())
    pseudo = policy.seen["pseudo"]
    assert torch.equal(pseudo.facts.ids, torch.from_numpy(feed.ids(0)[1]))
    assert (splits.unlabeled.images[pseudo.facts.ids] == batch.images_unlabeled.numpy()).all()
    assert torch.equal(pseudo.facts.targets_labeled, batch.targets)
    assert pseudo.facts.progress == 0
    assert pseudo.logits_labeled.shape == (4, 3)
    assert len(pseudo.logits) == 12
    logits_strong, kept = policy.seen["strong"]
    assert kept.tolist() == list(range(1, 12, 2))
    assert logits_strong.shape == (6, 3)
    # The images that the loss is computed on: those of the pass without gradient, or other views of them.
    assert torch.equal(forwarded[1][4:], forwarded[0][kept]) == (view == "weak")
