"""Every policy against a loop that says what its samples count: one row each, and what holds for all of them.

A new policy is a new row in ROWS.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dpl_ray.algorithm.fixed_threshold import FixMatch
from dpl_ray.algorithm.policies import POLICIES
from dpl_ray.algorithm.policy import Policy, RunFacts
from dpl_ray.algorithm.pseudo_labels import Answers, PseudoLabels, StepFacts, pseudo_labels
from dpl_ray.config.compose import load_config
from dpl_ray.config.describe import CONF_FOLDER, describe_policies
from dpl_ray.config.parse import parse_policy
from dpl_ray.config.policies import POLICY_CONFIGS
from dpl_ray.training.distributed import Workers
from dpl_ray.training.state import build_state
from dpl_ray.training.step import train_step
from tests.algorithm import policy_references as references
from tests.builders import answers_of, make_policy, tiny_config, tiny_feed, tiny_splits

NUM_FEATURES, NUM_CLASSES, NUM_UNLABELED, NUM_LABELED, NUM_STEPS = 4, 3, 24, 6, 5


@dataclass(frozen=True)
class Row:
    """A policy and its loop in tests/algorithm/policy_references.py."""

    reference: Callable[..., Iterator[references.Answer]]
    #: Parameters other than the defaults, each to be tested too.
    variants: tuple[dict[str, Any], ...] = ()
    #: Values that are refused.
    wrong: tuple[tuple[str, Any], ...] = ()
    uses_unlabeled: bool = field(default=True)
    trains_features: bool = False  # whether its auxiliary loss does


OUT_OF_SHARE = (-0.1, 1.1, math.nan)

ROWS = {
    "abc": Row(
        references.abc,
        variants=({"ema_decay": 0.5, "threshold": 0.6},),
        wrong=(("ema_decay", 1.0), *(("threshold", value) for value in OUT_OF_SHARE)),
        trains_features=True,
    ),
    "adamatch": Row(
        references.adamatch,
        variants=({"ema_decay": 0.5}, {"threshold": 0.7}),
        wrong=(("ema_decay", 1.0), *(("threshold", value) for value in OUT_OF_SHARE)),
    ),
    "dash": Row(references.dash, variants=({"warmup": 0.5}, {"warmup": 0.0}), wrong=(("warmup", 0.6),)),
    "debiaspl": Row(
        references.debiaspl,
        variants=({"ema_decay": 0.5, "threshold": 0.6}, {"ema_decay": 0.5, "threshold": 0.6, "debias": 1.0}),
        wrong=(("ema_decay", 1.0), ("debias", -0.1), *(("threshold", value) for value in OUT_OF_SHARE)),
    ),
    "dpl": Row(
        references.dpl,
        variants=(
            {"ema_decay": 0.5, "rule": "band", "epsilon": 0.1},
            {"ema_decay": 0.5, "cut": "own", "alignment": False},
            {"rule": "agreement", "classifier_from": 1.0},
            {"ema_decay": 0.5, "cut": "none"},
            {"ema_decay": 0.5, "open_set": True},
            {"ema_decay": 0.5, "shares": "equal", "balance": 0.5},
            {"ema_decay": 0.5, "shares": "estimated", "balance": 0.5, "pace": 2.0},
        ),
        wrong=(("ema_decay", 1.0), ("rule", "none"), ("cut", "head"), ("epsilon", 0.0), ("classifier_from", 1.1)),
    ),
    "fixmatch": Row(
        references.fixmatch,
        variants=({"threshold": 0.6}, {"threshold": 0.0}, {"threshold": 1.0}),
        wrong=tuple(("threshold", value) for value in OUT_OF_SHARE),
    ),
    "flexmatch": Row(
        references.flexmatch,
        variants=({"threshold": 0.6}, {"threshold": 0.0}),
        wrong=tuple(("threshold", value) for value in OUT_OF_SHARE),
    ),
    "freematch": Row(
        references.freematch,
        variants=({"ema_decay": 0.5}, {"ema_decay": 0.0, "fairness_weight": 0.0}),
        wrong=(("ema_decay", 1.0), ("fairness_weight", -0.1)),
    ),
    "iomatch": Row(
        references.iomatch,
        variants=({"threshold": 0.6},),
        wrong=(("open_weight", -0.1), *(("open_threshold", value) for value in OUT_OF_SHARE)),
        trains_features=True,
    ),
    "openmatch": Row(
        references.openmatch,
        variants=({"threshold": 0.6, "warmup": 0.5},),
        wrong=(("entropy_weight", -0.1), *(("warmup", value) for value in OUT_OF_SHARE)),
        trains_features=True,
    ),
    "pseudolabel": Row(
        references.fixmatch, variants=({"threshold": 0.6},), wrong=tuple(("threshold", v) for v in OUT_OF_SHARE)
    ),
    "simpro": Row(
        references.simpro,
        variants=({"ema_decay": 0.5, "threshold": 0.6},),
        wrong=(("ema_decay", 1.0), *(("threshold", value) for value in OUT_OF_SHARE)),
    ),
    "softmatch": Row(
        references.softmatch,
        variants=({"ema_decay": 0.5}, {"ema_decay": 0.5, "num_sigmas": 4.0, "alignment": False}),
        wrong=(("ema_decay", 1.0), ("num_sigmas", 0.0)),
    ),
    "supervised": Row(references.supervised, uses_unlabeled=False),
    "uda": Row(
        references.uda,
        variants=({"threshold": 0.5, "temperature": 2.0},),
        wrong=(("temperature", 0.0), *(("threshold", value) for value in OUT_OF_SHARE)),
    ),
}

VARIANTS = [{"name": name} | variant for name, row in ROWS.items() for variant in ({}, *row.variants)]
FEW, WORLD_SIZES = (0, 1), (2, 3, 6)
_every_policy = pytest.mark.parametrize("name", POLICIES)
_every_variant = pytest.mark.parametrize(
    "parameters", VARIANTS, ids=[" ".join(str(value) for value in variant.values()) for variant in VARIANTS]
)
_MARKS = {
    "policy": [_every_policy],
    "variant": [_every_variant],
    "variant, samples": [pytest.mark.parametrize("num_samples", FEW), _every_variant],
    "variant, workers": [pytest.mark.parametrize("world_size", WORLD_SIZES), _every_variant],
    "wrong": [
        pytest.mark.parametrize(
            ("name", "key", "value"), [(name, key, value) for name, row in ROWS.items() for key, value in row.wrong]
        )
    ],
}
#: What is tested -> the tests of it, which the example of docs/policies.md has to pass too.
CHECKS: dict[str, list[Callable[..., None]]] = {kind: [] for kind in _MARKS}


def every(kind: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A test of every policy, of every variant of one, or of every parameter that is refused."""

    def add(test: Callable[..., None]) -> Callable[..., None]:
        CHECKS[kind].append(test)
        for mark in _MARKS[kind]:
            test = mark(test)
        return test

    return add


def grid(*shape: int, seed: int) -> Tensor:
    """Multiples of 1/8: products and their sums are exact, whatever the order a library takes them in."""
    return torch.randint(-16, 17, shape, generator=torch.Generator().manual_seed(seed)) / 8


def main_classifier() -> nn.Linear:
    classifier = nn.Linear(NUM_FEATURES, NUM_CLASSES)
    with torch.no_grad():
        classifier.weight.copy_(grid(NUM_CLASSES, NUM_FEATURES, seed=100) / 2)
        classifier.bias.copy_(grid(NUM_CLASSES, seed=101))
    return classifier


def build(parameters: dict[str, Any], rank: int = 0, world_size: int = 1) -> Policy:
    torch.manual_seed(0)  # as references.start has it
    policy = make_policy(num_features=NUM_FEATURES, num_classes=NUM_CLASSES, **parameters)
    policy.start_as(main_classifier())
    policy.join(RunFacts(references.POOL_SIZE, NUM_UNLABELED, rank, world_size))
    return policy


def read(policy: Policy, step: int, rank: int = 0, world_size: int = 1, num_samples: int | None = None) -> PseudoLabels:
    """What a worker sees of the global batch of a step; `num_samples` shows it only so many of its samples."""
    seed = 10 * step
    features = grid(NUM_UNLABELED, NUM_FEATURES, seed=seed)
    # Every pool sample comes round several times, in another order each time, and some twice in one batch.
    ids = torch.randint(references.POOL_SIZE, (NUM_UNLABELED,), generator=torch.Generator().manual_seed(seed + 1))
    labeled = grid(NUM_LABELED, NUM_FEATURES, seed=seed + 2)
    targets = torch.randint(NUM_CLASSES, (NUM_LABELED,), generator=torch.Generator().manual_seed(seed + 3))
    share, share_labeled = NUM_UNLABELED // world_size, NUM_LABELED // world_size
    mine = slice(rank * share, rank * share + (share if num_samples is None else num_samples))
    mine_labeled = slice(rank * share_labeled, (rank + 1) * share_labeled)
    ids_labeled = torch.arange(NUM_LABELED)[mine_labeled]
    facts = StepFacts(step / NUM_STEPS, ids[mine], targets[mine_labeled], ids_labeled)
    rows = torch.cat([features[mine], labeled[mine_labeled]] if policy.reads_labeled else [features[mine]])
    return pseudo_labels(rows, main_classifier()(rows).detach(), policy.alignment(facts.progress), facts)


def observe(policy: Policy, step: int) -> PseudoLabels:
    pseudo = read(policy, step)
    policy.update(policy.statistics(pseudo))
    return pseudo


def observe_together(workers: list[Policy], step: int) -> list[PseudoLabels]:
    """One step of several workers; the statistics of each of them is the sum over all."""
    seen = [read(policy, step, rank, len(workers)) for rank, policy in enumerate(workers)]
    total = torch.stack([policy.statistics(mine) for policy, mine in zip(workers, seen, strict=True)]).sum(dim=0)
    for policy in workers:
        policy.update(total.clone())
    return seen


def as_lists(pseudo: PseudoLabels, labeled: PseudoLabels) -> references.Step:
    assert pseudo.facts is not None
    assert labeled.logits_labeled is not None
    assert labeled.features_labeled is not None
    return references.Step(
        features=pseudo.features.tolist(),
        features_labeled=labeled.features_labeled.tolist(),
        logits=pseudo.logits.tolist(),
        ids=pseudo.facts.ids.tolist(),
        logits_labeled=labeled.logits_labeled.tolist(),
        targets_labeled=pseudo.facts.targets_labeled.tolist(),
        progress=pseudo.facts.progress,
    )


def snapshot(policy: Policy) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in policy.state_dict().items()}


def assert_same(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def test_every_policy_has_a_row_parameters_and_a_yaml_file() -> None:
    assert set(ROWS) == set(POLICIES) == set(POLICY_CONFIGS)
    assert {path.stem for path in (CONF_FOLDER / "policy").glob("*.yaml")} == set(POLICIES)


@every("policy")
def test_every_parameter_of_the_constructor_is_configured_and_described(name: str) -> None:
    signature = inspect.signature(POLICIES[name]).parameters.values()
    parameters = [parameter.name for parameter in signature if parameter.kind is parameter.KEYWORD_ONLY]
    rows = describe_policies()[name]
    assert [row[0] for row in rows] == [f"policy.{parameter}" for parameter in parameters]
    assert all(meaning for *_, meaning in rows)
    assert load_config([f"policy={name}"]).policy == POLICY_CONFIGS[name](), "its file repeats no default"


@every("variant")
def test_weights_and_targets_are_those_of_the_loop(parameters: dict[str, Any]) -> None:
    own = {key: value for key, value in parameters.items() if key != "name"}
    policy, reader = build(parameters), build({"name": "dash"})
    steps = [as_lists(read(policy, step), read(reader, step)) for step in range(NUM_STEPS)]
    expected = ROWS[parameters["name"]].reference(steps, main_classifier(), **own)
    for step, (weights, targets) in enumerate(expected):
        pseudo = observe(policy, step)
        assert policy.weights(pseudo).tolist() == pytest.approx(weights, abs=1e-5)
        torch.testing.assert_close(policy.targets(pseudo), torch.tensor(targets), rtol=0, atol=1e-5)


@every("variant")
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


@every("variant, samples")
def test_hardly_any_images_are_as_good_as_many(parameters: dict[str, Any], num_samples: int) -> None:
    policy = build(parameters)
    many = policy.statistics(read(policy, 0))
    pseudo = read(policy, 0, num_samples=num_samples)
    statistics = policy.statistics(pseudo)
    assert statistics.shape == many.shape
    policy.update(statistics)
    assert policy.weights(pseudo).shape == (num_samples,)
    assert all(value.isfinite().all() for value in policy.state_dict().values())


@every("variant, workers")
def test_workers_hold_together_the_state_of_one_and_weigh_as_it_does(
    parameters: dict[str, Any], world_size: int
) -> None:
    alone, workers = build(parameters), [build(parameters, rank, world_size) for rank in range(world_size)]
    for step in range(NUM_STEPS):
        pseudo, seen = observe(alone, step), observe_together(workers, step)
        weights = torch.cat([policy.weights(mine) for policy, mine in zip(workers, seen, strict=True)])
        torch.testing.assert_close(weights, alone.weights(pseudo), rtol=0, atol=1e-6)
    for name, whole in alone.state_dict().items():
        for rank, policy in enumerate(workers):
            mine = whole[rank::world_size] if name in policy.sharded else whole
            torch.testing.assert_close(policy.state_dict()[name], mine, rtol=0, atol=1e-12)


@every("variant")
@settings(max_examples=15)
@given(data=st.data())
def test_statistics_of_shards_sum_to_those_of_the_batch(parameters: dict[str, Any], data: st.DataObject) -> None:
    world_size = data.draw(st.sampled_from([1, 2, 3, 6]))
    num_steps = data.draw(st.integers(0, 3))
    alone, workers = build(parameters), [build(parameters, rank, world_size) for rank in range(world_size)]
    for step in range(num_steps):
        observe(alone, step)
        observe_together(workers, step)
    whole = alone.statistics(read(alone, num_steps))
    shards = [policy.statistics(read(policy, num_steps, rank, world_size)) for rank, policy in enumerate(workers)]
    assert whole.dtype == torch.float64
    torch.testing.assert_close(torch.stack(shards).sum(dim=0), whole, rtol=0, atol=1e-12)


@every("variant")
def test_only_an_update_changes_the_state(parameters: dict[str, Any]) -> None:
    policy = build(parameters)
    pseudo = observe(policy, 0)
    before = snapshot(policy)
    asked = (policy.statistics(pseudo), policy.weights(pseudo), policy.alignment(0.0), policy.thresholds())
    policy.targets(pseudo)
    labeled = torch.zeros(2, NUM_FEATURES), torch.zeros(2, NUM_CLASSES), torch.tensor([0, 1])
    policy.auxiliary_loss(pseudo, answers_of(*labeled))
    assert_same(snapshot(policy), before)
    assert torch.equal(policy.statistics(pseudo), asked[0])
    assert torch.equal(policy.weights(pseudo), asked[1])


@every("variant")
def test_the_state_dict_holds_all_that_later_steps_depend_on(parameters: dict[str, Any]) -> None:
    policy = build(parameters)
    restored = make_policy(num_features=NUM_FEATURES, num_classes=NUM_CLASSES, **parameters)
    restored.join(RunFacts(references.POOL_SIZE, NUM_UNLABELED))
    for step in range(3):
        observe(policy, step)
    restored.load_state_dict(snapshot(policy))
    for step in range(3, 6):
        weights, weights_restored = (each.weights(observe(each, step)) for each in (policy, restored))
        assert torch.equal(weights, weights_restored)
        assert_same(snapshot(policy), snapshot(restored))
        assert_same(policy.thresholds(), restored.thresholds())


@every("variant")
def test_the_heads_loss_is_one_number_without_a_gradient_for_the_student(parameters: dict[str, Any]) -> None:
    policy = build(parameters)
    features = grid(4, NUM_FEATURES, seed=50).requires_grad_()
    logits = grid(4, NUM_CLASSES, seed=51).requires_grad_()
    loss = policy.auxiliary_loss(observe(policy, 0), answers_of(features, logits, torch.tensor([0, 1, 2, 0])))
    assert loss.shape == ()
    (loss + 0 * (features.sum() + logits.sum())).backward()
    assert features.grad.any() == ROWS[parameters["name"]].trains_features
    assert not logits.grad.any()


@every("wrong")
def test_a_parameter_out_of_bounds_is_named(name: str, key: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"^policy.{key}={value}: must be"):
        parse_policy({"name": name, key: value})


@every("policy")
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

    def auxiliary_loss(self, pseudo: Any, answers: Answers) -> Tensor:
        self.seen["answers"] = answers
        return 0.0 * answers.logits_strong.sum()


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
    train_step(state, batch, config, Workers())
    pseudo = policy.seen["pseudo"]
    assert torch.equal(pseudo.facts.ids, torch.from_numpy(feed.ids(0)[1]))
    assert (splits.unlabeled.images[pseudo.facts.ids] == batch.images_unlabeled.numpy()).all()
    assert torch.equal(pseudo.facts.targets_labeled, batch.targets)
    assert pseudo.facts.progress == 0
    assert pseudo.logits_labeled.shape == (4, 3)
    assert len(pseudo.logits) == 12
    answers = policy.seen["answers"]
    assert answers.kept.tolist() == list(range(1, 12, 2))
    assert answers.logits_strong.shape == (6, 3)
    assert answers.features_strong.shape == (6, policy.num_features)
    # The images that the loss is computed on: those of the pass without gradient, or other views of them.
    assert torch.equal(forwarded[1][4:], forwarded[0][answers.kept]) == (view == "weak")
