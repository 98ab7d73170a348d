"""step.py and metrics.py: one step against a slow one that skips nothing, and what a step must never do."""

from __future__ import annotations

import builtins
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import dpl_ray.training.step as step_module
from dpl_ray.algorithm.policies import POLICIES
from dpl_ray.algorithm.pseudo_labels import Answers, PseudoLabels, StepFacts, pseudo_labels
from dpl_ray.config.schema import Config
from dpl_ray.data.batches.feed import Batch, BatchFeed
from dpl_ray.data.batches.views import strong, weak
from dpl_ray.training.distributed import Workers
from dpl_ray.training.faults import NonFiniteLossError
from dpl_ray.training.metrics import HIGH_ENTROPY_CONFIDENCE, SUMS, mean_metrics, step_sums
from dpl_ray.training.state import TrainState, build_state, learning_rate, step_numbers
from dpl_ray.training.step import train_step
from tests.builders import tiny_config, tiny_feed, tiny_splits

NUM_CLASSES = 3


class Run:
    """A run of single steps, in this process."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.views = config.data.views
        splits = tiny_splits(NUM_CLASSES)
        self.state: TrainState = build_state(config, 3, NUM_CLASSES, Workers(), pool_size=len(splits.unlabeled))
        self.feed: BatchFeed = tiny_feed(config, splits)
        if config.policy.name == "dpl":
            # As after a while: a fresh policy takes every sample in.
            self.state.policy.states.copy_(torch.tensor([[0.55], [0.52]]).expand(2, NUM_CLASSES))

    def step(self, batch: Batch | None = None) -> dict[str, float]:
        batch = self.feed(self.state.step) if batch is None else batch
        sums = train_step(self.state, batch, self.config, Workers())
        return dict(zip(SUMS, sums.tolist(), strict=True))


def run_of(policy: str | dict[str, Any] = "dpl", **groups: dict[str, Any]) -> Run:
    parameters = {"name": policy} if isinstance(policy, str) else policy
    return Run(tiny_config(policy=parameters, **groups))


def everything(state: TrainState) -> dict[str, Tensor]:
    """Every tensor that training moves, by name; the policy's buffers too."""
    found = {
        f"{name}.{key}": value.clone()
        for name in ("student", "teacher", "policy")
        for key, value in getattr(state, name).state_dict().items()
    }
    for index, values in state.optimizer.state_dict()["state"].items():
        found |= {f"optimizer.{index}.{key}": value.clone() for key, value in values.items() if value is not None}
    return found


def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Of one sample; the target is a class or probabilities of all classes."""
    log_probs = logits - logits.logsumexp(dim=0)
    return -log_probs[target] if target.ndim == 0 else -(target * log_probs).sum()


class SlowRun(Run):
    """The step as METHOD part 2 says it, image by image: no view is skipped, SGD and the teacher are written out."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.velocity: dict[str, Tensor] = {}
        self.weights_seen: list[float] = []

    def named_parameters(self) -> dict[str, torch.nn.Parameter]:
        return dict([*self.state.student.named_parameters(), *self.state.policy.named_parameters()])

    def step(self, batch: Batch | None = None) -> dict[str, float]:
        batch = self.feed(self.state.step) if batch is None else batch
        state, policy, config = self.state, self.state.policy, self.config
        num_unlabeled = len(batch.images_unlabeled)
        with torch.no_grad():
            images_weak = weak(batch.images_unlabeled, batch.uniforms_weak, self.views)
            outputs = [state.student(image[None]) for image in images_weak]
        width = state.student.classifier.in_features
        features_weak = torch.cat([features for features, _ in outputs]) if outputs else torch.zeros(0, width)
        logits_weak = torch.cat([logits for _, logits in outputs]) if outputs else torch.zeros(0, NUM_CLASSES)
        labeled = [state.student(image[None]) for image in weak(batch.images, batch.uniforms, self.views)]
        features, logits = (torch.cat(parts) for parts in zip(*labeled, strict=True))
        facts = StepFacts(state.step / config.train.num_steps, batch.ids_unlabeled, batch.targets, batch.ids)
        pseudo = pseudo_labels(features_weak, logits_weak, policy.alignment(facts.progress), facts)
        pseudo = replace(pseudo, logits_labeled=logits.detach(), features_labeled=features.detach())
        policy.update(policy.statistics(pseudo))
        weights, targets = policy.weights(pseudo), policy.targets(pseudo)
        self.weights_seen += weights.tolist()

        read = logits + policy.joint.log().float() if config.policy.name == "simpro" else logits
        loss_labeled = sum(cross_entropy(*pair) for pair in zip(read, batch.targets, strict=True)) / len(logits)
        loss_unlabeled = torch.zeros(())
        features_kept, logits_kept = [torch.zeros(0, width)], [torch.zeros(0, NUM_CLASSES)]
        view, uniforms = (
            (strong, batch.uniforms_strong) if policy.trains_on == "strong" else (weak, batch.uniforms_weak)
        )
        for image, row, weight, target in zip(batch.images_unlabeled, uniforms, weights, targets, strict=True):
            features_strong, logits_strong = state.student(view(image[None], row[None], self.views))
            if config.policy.name == "dpl" and facts.progress < config.policy.classifier_from:
                main = state.student.classifier
                logits_strong = features_strong @ main.weight.detach().T + main.bias.detach()
            counts = weight if weight > policy.min_weight else 0.0 * weight
            read = logits_strong[0]
            if config.policy.name == "debiaspl":
                read = read + config.policy.debias * policy.mean_probs.log().float()
            if config.policy.name == "simpro":
                read = read + policy.joint.log().float()
            if getattr(config.policy, "shares", None) == "estimated":
                read = read + policy.prior.log().float()
            loss_unlabeled = loss_unlabeled + counts * cross_entropy(read, target) / num_unlabeled
            if weight > policy.min_weight:
                features_kept, logits_kept = [*features_kept, features_strong], [*logits_kept, logits_strong]
        kept = (weights > policy.min_weight).nonzero().squeeze(1)
        loss_unlabeled = config.train.lambda_u * loss_unlabeled
        strong_rows = torch.cat(features_kept), torch.cat(logits_kept), kept
        loss_auxiliary = policy.auxiliary_loss(pseudo, Answers(features, logits, batch.targets, *strong_rows))

        parameters = self.named_parameters()
        loss = loss_labeled + loss_unlabeled + loss_auxiliary
        gradients = torch.autograd.grad(loss, list(parameters.values()))
        rate = learning_rate(config.optim, state.step, config.train.num_steps)
        decay = min(config.train.ema_decay, (1 + state.step) / (10 + state.step))
        with torch.no_grad():
            for (name, parameter), gradient in zip(parameters.items(), gradients, strict=True):
                slope = gradient + config.optim.weight_decay * parameter if parameter.ndim >= 2 else gradient
                before = self.velocity.get(name)
                self.velocity[name] = slope if before is None else config.optim.momentum * before + slope
                parameter -= rate * (slope + config.optim.momentum * self.velocity[name])
            for mine, theirs in zip(state.teacher.parameters(), state.student.parameters(), strict=True):
                mine.copy_(decay * mine + (1 - decay) * theirs)
        state.step += 1
        terms = {"loss_labeled": loss_labeled, "loss_unlabeled": loss_unlabeled, "loss_auxiliary": loss_auxiliary}
        return {name: term.item() for name, term in terms.items()}


CASES: dict[str, dict[str, Any]] = {
    **{name: {"name": name} for name in POLICIES},
    "dpl own band": {"name": "dpl", "cut": "own", "rule": "band", "alignment": False},
    "dpl open set": {"name": "dpl", "open_set": True, "ema_decay": 0.5},
    "dpl that estimates the shares": {"name": "dpl", "shares": "estimated", "ema_decay": 0.5},
    "dpl agreement": {"name": "dpl", "rule": "agreement"},
    "dpl that never moves the classifier": {"name": "dpl", "classifier_from": 1.0},
    "dpl that moves the classifier later": {"name": "dpl", "classifier_from": 0.1},
    "fixmatch that takes some": {"name": "fixmatch", "threshold": 0.5},
    "debiaspl that takes some": {"name": "debiaspl", "threshold": 0.4, "debias": 1.0, "ema_decay": 0.5},
    "simpro that takes some": {"name": "simpro", "threshold": 0.4, "ema_decay": 0.5},
    "iomatch that takes some": {"name": "iomatch", "threshold": 0.4, "open_threshold": 0.3},
    "openmatch that takes all": {"name": "openmatch", "warmup": 0.0},
    "abc that takes some": {"name": "abc", "threshold": 0.4, "ema_decay": 0.5},
    "pseudolabel that takes some": {"name": "pseudolabel", "threshold": 0.5},
    "uda that takes some": {"name": "uda", "threshold": 0.5},
    "flexmatch that takes some": {"name": "flexmatch", "threshold": 0.5},
    "dash that takes some": {"name": "dash", "warmup": 0.0},
}


@pytest.mark.parametrize("case", CASES)
def test_a_step_is_the_slow_step_that_skips_nothing(case: str) -> None:
    config = tiny_config(
        policy=CASES[case],
        train={"mu": 3, "lambda_u": 0.5, "ema_decay": 0.15},
        optim={"num_warmup_steps": 1, "learning_rate": 0.02, "weight_decay": 0.01},
    )
    fast, slow = Run(config), SlowRun(config)
    before = {name: value.clone() for name, value in fast.state.student.named_parameters()}
    for _ in range(3):
        sums, expected = fast.step(), slow.step()
        for name, value in expected.items():
            assert sums[name] == pytest.approx(value, abs=1e-5), name
        for module in ("student", "teacher", "policy"):
            mine, theirs = (getattr(each.state, module).state_dict() for each in (fast, slow))
            for name, value in theirs.items():
                torch.testing.assert_close(mine[name], value, rtol=0, atol=1e-5, msg=f"{module}.{name}")
    assert fast.state.step == slow.state.step == 3
    assert all((value != before[name]).any() for name, value in fast.state.student.named_parameters())
    if case in ("dpl", "dpl own band", "fixmatch that takes some"):
        skipped = [weight <= fast.state.policy.min_weight for weight in slow.weights_seen]
        assert any(skipped)
        assert not all(skipped)


@pytest.mark.parametrize(("classifier_from", "moves"), [(0.0, True), (0.1, True), (0.11, False), (1.0, False)])
def test_pseudo_labels_move_the_main_classifier_from_their_share_of_the_run_on(
    classifier_from: float, moves: bool
) -> None:
    after = []
    for lambda_u in (0.0, 1.0):
        run = run_of({"name": "dpl", "classifier_from": classifier_from}, train={"lambda_u": lambda_u})
        run.state.step = 2  # of 20
        run.step()
        after.append(run.state.student.state_dict())
    without, with_pseudo_labels = after
    moved = {name for name, value in without.items() if not torch.equal(value, with_pseudo_labels[name])}
    assert any(name.startswith("backbone.") for name in moved)
    assert ("classifier.weight" in moved, "classifier.bias" in moved) == (moves, moves)


def count_strong_views(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    counted: list[int] = []

    def counting(*arguments: Any) -> Tensor:
        views = strong(*arguments)
        counted.append(len(views))
        return views

    monkeypatch.setattr(step_module, "strong", counting)
    return counted


def see_weights(run: Run, monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    seen: list[Tensor] = []
    weigh = run.state.policy.weights

    def seeing(pseudo: PseudoLabels) -> Tensor:
        seen.append(weigh(pseudo))
        return seen[-1]

    monkeypatch.setattr(run.state.policy, "weights", seeing)
    return seen


@pytest.mark.parametrize(
    "policy", [{"name": "dpl"}, {"name": "dpl", "rule": "band"}, {"name": "fixmatch", "threshold": 0.5}]
)
def test_only_strong_views_with_a_weight_are_computed(policy: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_of(policy)
    counted, seen = count_strong_views(monkeypatch), see_weights(run, monkeypatch)
    forwarded: list[int] = []
    run.state.student.register_forward_pre_hook(
        lambda _module, inputs: forwarded.append(len(inputs[0])) if torch.is_grad_enabled() else None
    )
    views = [run.step()["strong_views"] for _ in range(4)]
    expected = [int((weights > run.state.policy.min_weight).sum()) for weights in seen]
    assert counted == views == expected
    assert forwarded == [4 + number for number in expected]
    assert 0 < sum(expected) < 4 * 12


def test_a_policy_changes_the_strong_views_and_their_targets(monkeypatch: pytest.MonkeyPatch) -> None:
    def other(targets: Tensor) -> Tensor:
        return (targets + 1) % NUM_CLASSES

    def mix(images_strong: Tensor, targets: Tensor, rows: Tensor, images: Tensor, pseudo: PseudoLabels) -> Any:
        assert len(images_strong) == len(targets) == len(rows) > 0
        assert torch.equal(targets, pseudo.labels[rows])
        assert (images.dtype, images.shape[1:]) == (images_strong.dtype, images_strong.shape[1:])
        return torch.zeros_like(images_strong), other(targets)

    plain, mixed, expected = (run_of({"name": "fixmatch", "threshold": 0.0}) for _ in range(3))
    monkeypatch.setattr(mixed.state.policy, "mix", mix)
    plain.step()
    mixed.step()
    monkeypatch.setattr(step_module, "strong", lambda *given: torch.zeros_like(strong(*given)))
    monkeypatch.setattr(expected.state.policy, "targets", lambda pseudo: other(pseudo.labels))
    expected.step()
    found = everything(mixed.state)
    torch.testing.assert_close(found, everything(expected.state), rtol=0, atol=0)
    assert any(not torch.equal(value, found[name]) for name, value in everything(plain.state).items())


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("normalization", ["batch", "group"])
def test_a_step_without_any_strong_view_learns_from_the_labels(
    normalization: str, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_of(
        {"name": "fixmatch", "threshold": 1.0},
        model={"normalization": normalization},
        train={"precision": precision},
    )
    counted, before = count_strong_views(monkeypatch), everything(run.state)
    sums = run.step()
    assert sum(counted) == sums["strong_views"] == sums["loss_unlabeled"] == sums["weight"] == 0
    assert sums["unlabeled"] == 12
    assert all(torch.isfinite(value).all() for value in everything(run.state).values())
    assert (run.state.student.classifier.weight != before["student.classifier.weight"]).any()


def test_supervised_steps_have_no_unlabelled_images() -> None:
    run = run_of("supervised")
    before = everything(run.state)
    sums = run.step()
    assert sums["unlabeled"] == sums["strong_views"] == sums["loss_unlabeled"] == sums["loss_auxiliary"] == 0
    assert sums["loss_labeled"] > 0
    for name, parameter in run.state.student.named_parameters():
        assert (parameter != before[f"student.{name}"]).any(), name


def test_the_weak_views_pass_has_no_gradient_and_the_labelled_ones_have() -> None:
    run = run_of("dpl")
    seen: list[bool] = []
    run.state.student.register_forward_hook(lambda _module, _inputs, outputs: seen.append(outputs[1].requires_grad))
    run.step()
    assert seen == [False, True]


@pytest.mark.parametrize("policy", POLICIES)
def test_true_targets_of_unlabelled_images_never_reach_training(policy: str) -> None:
    honest, lied_to, told_nothing = run_of(policy), run_of(policy), run_of(policy)
    rights: list[tuple[float, float]] = []
    for step in range(2):
        batch = honest.feed(step)
        metrics = [
            honest.step(batch),
            lied_to.step(replace(batch, targets_unlabeled=(batch.targets_unlabeled + 1) % NUM_CLASSES)),
            told_nothing.step(replace(batch, targets_unlabeled=torch.full_like(batch.targets_unlabeled, -1))),
        ]
        rights.append((metrics[0]["weight_right"], metrics[1]["weight_right"]))
        if metrics[0]["weight"]:
            assert metrics[2]["weight_known"] == metrics[2]["weight_right"] == 0
    assert any(said != true for true, said in rights) or not any(true + said for true, said in rights)
    expected = everything(honest.state)
    for run in (lied_to, told_nothing):
        for name, value in everything(run.state).items():
            assert torch.equal(value, expected[name]), name


@pytest.mark.parametrize("name", ["SGD", "AdamW"])
def test_the_optimizer_moves_as_torchs_and_does_not_import_its_compiler(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(f"dpl_ray.training.state._{name}", getattr(torch.optim, name))
        expected = run_of(optim={"name": name.lower()})
        for _ in range(2):
            expected.step()
    imported, plain_import = [], builtins.__import__

    def noted_import(module: str, *given: Any, **named: Any) -> Any:
        imported.append(module)
        return plain_import(module, *given, **named)

    monkeypatch.setattr(builtins, "__import__", noted_import)
    run = run_of(optim={"name": name.lower()})
    for _ in range(2):
        run.step()
    assert "torch._dynamo" not in imported
    for key, value in everything(expected.state).items():
        assert torch.equal(value, everything(run.state)[key]), key


# A loss that is not finite.


def poison_weight(run: Run) -> None:
    with torch.no_grad():
        run.state.student.classifier.weight[0, 0] = math.nan


def poison_output(run: Run, rows: slice, value: float | Tensor, *, with_gradient: bool = True) -> None:
    """The given images' logits become `value`, in the pass with gradient; or, with their features, in the other."""

    def poison(_module: Any, _inputs: Any, outputs: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor] | None:
        features, logits = outputs
        if logits.requires_grad != with_gradient:
            return None
        logits = logits.clone()
        logits[rows] = value
        if not with_gradient:
            features = features.clone()
            features[rows] = value
        return features, logits

    run.state.student.register_forward_hook(poison)


def poison_head(run: Run) -> None:
    with torch.no_grad():
        run.state.policy.heads.low.weight[0, 0] = math.inf


#: What is poisoned, the policy's parameters, and what the message says.
POISONS: dict[str, tuple[Callable[[Run], None], dict[str, Any], str]] = {
    "a weight": (poison_weight, {}, "worker 0: 12 logits of the weak views are not finite"),
    "a labelled image": (
        lambda run: poison_output(run, slice(0, 1), math.nan),
        {},
        "worker 0: labelled loss is nan",
    ),
    "an infinite logit": (
        lambda run: poison_output(run, slice(1, 2), torch.tensor([math.inf, 0, 0])),
        {},
        "worker 0: labelled loss is (nan|inf)",
    ),
    "a strong view": (
        lambda run: poison_output(run, slice(-1, None), math.nan),
        {},
        "worker 0: unlabelled loss is nan",
    ),
    "a head": (poison_head, {}, "worker 0: the policy's sums over the weak views are not finite"),
    "a head whose own gradient is cut": (poison_head, {"cut": "own"}, "worker 0: the policy's sums"),
    "a weak view": (
        lambda run: poison_output(run, slice(0, 1), math.nan, with_gradient=False),
        {},
        "worker 0: 3 logits of the weak",
    ),
    "a weak view, own cut": (
        lambda run: poison_output(run, slice(0, 1), math.nan, with_gradient=False),
        {"cut": "own"},
        "worker 0: 3 logits of the weak views",
    ),
}


@pytest.mark.parametrize("poison", POISONS)
def test_a_loss_that_is_not_finite_stops_before_anything_is_trained(poison: str) -> None:
    do, parameters, text = POISONS[poison]
    run = run_of({"name": "dpl"} | parameters)
    for _ in range(2):  # so that the optimizer has a momentum to spoil
        run.step()
    do(run)
    before = everything(run.state)
    rates = [group["lr"] for group in run.state.optimizer.param_groups]
    with pytest.raises(NonFiniteLossError, match=f"^step 2: {text}"):
        run.step()
    assert run.state.step == 2
    assert [group["lr"] for group in run.state.optimizer.param_groups] == rates
    after = everything(run.state)
    assert after.keys() == before.keys()
    policy_buffers = {f"policy.{name}" for name, _ in run.state.policy.named_buffers()}
    for name in after.keys() - policy_buffers:
        assert torch.equal(after[name].nan_to_num(7), before[name].nan_to_num(7)), name


def test_the_error_names_the_terms_that_are_not_finite_and_no_others() -> None:
    run = run_of("dpl")
    poison_output(run, slice(0, 1), math.nan)
    with pytest.raises(NonFiniteLossError) as caught:
        run.step()
    assert "unlabelled loss" not in str(caught.value)
    assert "heads" not in str(caught.value)


@pytest.mark.parametrize("place", [0, 1], ids=["of the features", "of the logits"])
def test_a_gradient_that_is_not_finite_stops_too(place: int) -> None:
    run = run_of("fixmatch")
    before = everything(run.state)

    def spoil(_module: Any, _inputs: Any, outputs: tuple[Tensor, Tensor]) -> None:
        if outputs[place].requires_grad:
            outputs[place].register_hook(lambda gradient: gradient * math.inf)

    run.state.student.register_forward_hook(spoil)
    with pytest.raises(NonFiniteLossError, match=r"^step 0: the losses are finite, their gradient is not"):
        run.step()
    for name, value in everything(run.state).items():
        assert torch.equal(value, before[name]), name


def test_the_unlabelled_loss_counts_less_from_step_to_step() -> None:
    run = run_of("fixmatch", train={"num_steps": 10, "lambda_u": 2.0, "lambda_u_half": 3.0, "lambda_u_ramp": 0.6})
    found = []
    for step in (3, 6, 9):
        run.state.step = step
        found.append(step_numbers(run.state, run.config).lambda_u)
    assert found == pytest.approx([2 * 0.5 / 2, 2 / 3, 2 / 4])


# Precision.


@pytest.mark.parametrize("normalization", ["batch", "group"])
@pytest.mark.parametrize("weak_precision", [None, "float32", "bfloat16"])
def test_autocast_moves_every_layer_and_leaves_weights_in_float32(
    weak_precision: str | None, normalization: str
) -> None:
    run = run_of(
        "dpl",
        model={"normalization": normalization},
        train={"precision": "bfloat16", "weak_precision": weak_precision},
        optim={"weight_decay": 0.0},  # or decay alone would move a layer without a gradient
    )
    before = everything(run.state)
    sums = run.step()
    assert all(math.isfinite(value) for value in sums.values())
    for module in ("student", "policy"):
        for name, parameter in getattr(run.state, module).named_parameters():
            assert (parameter != before[f"{module}.{name}"]).any(), name
    for name, value in everything(run.state).items():
        assert value.dtype == before.get(name, torch.zeros(())).dtype, name


def test_weights_cast_without_gradient_are_not_found_by_the_pass_with_gradient() -> None:
    # One autocast around both passes keeps its cache of cast weights from the first to the second.
    run = run_of("dpl", train={"precision": "bfloat16"}, optim={"weight_decay": 0.0})
    before = everything(run.state)
    with torch.autocast("cpu", torch.bfloat16):
        run.step()
    for name, parameter in run.state.student.named_parameters():
        assert (parameter != before[f"student.{name}"]).any(), name


def test_autocast_trains_nearly_the_step_of_float32() -> None:
    runs = [run_of("dpl", train={"precision": precision}) for precision in ("float32", "bfloat16")]
    exact, rough = (run.step() for run in runs)
    assert rough["loss_labeled"] == pytest.approx(exact["loss_labeled"], rel=0.05)
    assert rough["loss_labeled"] != exact["loss_labeled"]
    weights = [run.state.student.classifier.weight for run in runs]
    torch.testing.assert_close(weights[1], weights[0], rtol=0, atol=0.01)


@pytest.mark.parametrize(
    ("precision", "weak_precision", "expected"),
    [
        ("float32", None, (torch.float32, torch.float32)),
        ("bfloat16", None, (torch.bfloat16, torch.bfloat16)),
        ("float32", "bfloat16", (torch.bfloat16, torch.float32)),
        ("bfloat16", "float32", (torch.float32, torch.bfloat16)),
    ],
)
def test_each_pass_has_its_own_precision(
    precision: str, weak_precision: str | None, expected: tuple[torch.dtype, torch.dtype]
) -> None:
    run = run_of("dpl", train={"precision": precision, "weak_precision": weak_precision})
    seen: list[torch.dtype] = []
    run.state.student.register_forward_hook(lambda _module, _inputs, outputs: seen.append(outputs[1].dtype))
    run.step()
    assert tuple(seen) == expected


# Metrics.


def random_sums(num_samples: int, seed: int) -> tuple[Tensor, list[tuple[float, float, int, int]], list[float], int]:
    """A step's sums, and what went in: (weight, confidence, pseudo-label, true target) of every sample."""
    generator = torch.Generator().manual_seed(seed)
    logits = 4 * torch.randn(num_samples, NUM_CLASSES, generator=generator)
    pseudo = pseudo_labels(torch.zeros(num_samples, 2), logits)
    weights = torch.rand(num_samples, generator=generator)
    weights = torch.where(weights < 0.3, 0.0, weights)
    targets = torch.randint(-1, NUM_CLASSES, (num_samples,), generator=generator)
    terms, num_strong = torch.rand(3, generator=generator), int((weights > 0).sum())
    sums = step_sums(terms, pseudo, weights, pseudo.labels, targets, torch.tensor(float(num_strong)).double())
    columns = (weights, pseudo.confidence, pseudo.labels, targets)
    samples = list(zip(*(column.tolist() for column in columns), strict=True))
    return sums, samples, terms.tolist(), num_strong


@pytest.mark.parametrize("num_samples", [[40], [40, 3, 0], [0]])
def test_metrics_are_those_of_a_loop_over_all_samples_of_all_steps(num_samples: list[int]) -> None:
    steps = [random_sums(number, seed) for seed, number in enumerate(num_samples)]
    metrics = mean_metrics(torch.stack([sums for sums, *_ in steps]).sum(dim=0))
    expected = {
        f"train/{name}": sum(terms[index] for _, _, terms, _ in steps) / len(steps)
        for index, name in enumerate(("loss_labeled", "loss_unlabeled", "loss_auxiliary"))
    }
    weight = high = known = right = high_known = high_right = 0.0
    for _, samples, _, _ in steps:
        for w, confidence, label, target in samples:
            doubtful = confidence < HIGH_ENTROPY_CONFIDENCE
            weight += w
            high += w * doubtful
            if target != -1:
                known += w
                right += w * (label == target)
                high_known += w * doubtful
                high_right += w * doubtful * (label == target)
    if sum(num_samples):
        assert 0 < high_right < high_known < known < weight
        expected["pseudo/coverage"] = weight / sum(num_samples)
        expected["pseudo/strong_view_share"] = sum(number for *_, number in steps) / sum(num_samples)
        expected["pseudo/high_entropy_share"] = high / weight
        expected["pseudo/precision"] = right / known
        expected["pseudo/high_entropy_precision"] = high_right / high_known
    assert metrics == pytest.approx(expected, abs=1e-6)


def test_metrics_that_have_nothing_to_be_a_mean_of_are_left_out() -> None:
    pseudo = pseudo_labels(torch.zeros(4, 2), torch.zeros(4, NUM_CLASSES))
    unknown = torch.full((4,), -1)
    none = mean_metrics(step_sums(torch.ones(3), pseudo, torch.zeros(4), pseudo.labels, unknown, torch.zeros(())))
    assert {key for key in none if key.startswith("pseudo/")} == {"pseudo/coverage", "pseudo/strong_view_share"}
    some = mean_metrics(step_sums(torch.ones(3), pseudo, torch.ones(4), pseudo.labels, unknown, torch.tensor(4.0)))
    assert "pseudo/precision" not in some
    assert some["pseudo/high_entropy_share"] == 1


def test_sums_are_float64_and_have_a_name_each() -> None:
    sums, *_ = random_sums(5, 0)
    assert sums.dtype == torch.float64
    assert sums.shape == (len(SUMS),)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_steps_sums_count_its_images(policy: str) -> None:
    sums = run_of(policy).step()
    assert sums["worker_steps"] == 1
    assert sums["unlabeled"] == (12 if POLICIES[policy].uses_unlabeled else 0)
    assert sums["strong_views"] <= sums["unlabeled"]
    assert 0 <= sums["weight"] <= sums["unlabeled"]
