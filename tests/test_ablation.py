"""The variants of dpl that were tried: each still trains, and changes of dpl what its docstring says."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from benchmarks import ablation, tables
from benchmarks.dpl_variants import VARIANTS
from dpl_ray.algorithm.dpl import DynamicPseudoLabels
from dpl_ray.algorithm.policies import POLICIES
from dpl_ray.algorithm.policy import RunFacts
from dpl_ray.algorithm.pseudo_labels import PseudoLabels, StepFacts, pseudo_labels
from dpl_ray.config.policies import DplConfig
from dpl_ray.studies.comparison.cells import CellResult
from dpl_ray.training.distributed import Workers
from dpl_ray.training.state import build_state
from dpl_ray.training.step import train_step
from tests.builders import answers_of, tiny_config, tiny_feed, tiny_splits

NUM_CLASSES = 3
DEFAULTS = DplConfig().model_dump(exclude={"name"})


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_trains(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(POLICIES, "dpl", VARIANTS[name])
    config, splits = tiny_config(), tiny_splits()
    state = build_state(config, 3, NUM_CLASSES, Workers(), pool_size=len(splits.unlabeled))
    feed = tiny_feed(config, splits)
    before = torch.cat([parameter.detach().flatten() for parameter in state.student.parameters()])
    for _ in range(3):
        assert train_step(state, feed(state.step), config, Workers()).isfinite().all()
    after = torch.cat([parameter.detach().flatten() for parameter in state.student.parameters()])
    assert 0 < (after - before).norm() < before.norm()


def pair(name: str) -> tuple[DynamicPseudoLabels, DynamicPseudoLabels]:
    """A variant and dpl in the same state, after a while."""
    torch.manual_seed(0)
    policies = [kind(2, NUM_CLASSES, **DEFAULTS) for kind in (VARIANTS[name], DynamicPseudoLabels)]
    for policy in policies:
        policy.states.copy_(torch.tensor([[0.9, 0.8, 0.7], [0.6, 0.5, 0.4]]))
        policy.boundary.copy_(torch.tensor([[0.3, 0.4, 0.5], [0.3, 0.4, 0.5]]))
        policy.mean_probs.copy_(torch.tensor([0.6, 0.3, 0.1]))
    policies[1].heads.load_state_dict(policies[0].heads.state_dict())
    return policies


def answers(policy: DynamicPseudoLabels, progress: float = 0.25) -> PseudoLabels:
    """Twenty samples, sure and unsure ones."""
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(20, 2, generator=generator)
    logits = torch.randn(20, NUM_CLASSES, generator=generator) * torch.linspace(0.5, 6, 20)[:, None]
    facts = StepFacts(progress, torch.arange(20), torch.zeros(4, dtype=torch.int64), torch.arange(4))
    return pseudo_labels(features, logits, policy.alignment(progress), facts)


def check_entropy_cut(variant: DynamicPseudoLabels, dpl: DynamicPseudoLabels) -> None:
    pseudo = answers(dpl)
    expected = [-sum(p * math.log(p) for p in row) / math.log(3) for row in pseudo.logits.softmax(dim=1).tolist()]
    sizes = variant._sizes(pseudo.logits, dpl.heads(pseudo.features), pseudo.labels)
    torch.testing.assert_close(sizes, torch.tensor([expected, expected]))


def check_median_boundary(variant: DynamicPseudoLabels, dpl: DynamicPseudoLabels) -> None:
    pseudo = answers(dpl)
    sizes = 1 - pseudo.logits.softmax(dim=1)[torch.arange(20), pseudo.labels]
    before = variant.boundary.clone()
    variant.update(variant.statistics(pseudo))
    for k in range(NUM_CLASSES):
        mine = sizes[pseudo.labels == k]
        for head in range(2):
            share = float((mine <= before[head, k]).double().mean())
            assert float(variant.boundary[head, k]) == pytest.approx(float(before[head, k]) + 0.05 * (0.5 - share))


def check_warmed_states(variant: DynamicPseudoLabels, dpl: DynamicPseudoLabels) -> None:
    pseudo = answers(dpl)
    warmed = DynamicPseudoLabels(2, NUM_CLASSES, **DEFAULTS | {"ema_decay": 0.1})  # (1 + 0) / (10 + 0)
    warmed.load_state_dict(dpl.state_dict())
    for policy in (variant, warmed):
        policy.update(policy.statistics(pseudo))
    torch.testing.assert_close(variant.states, warmed.states)
    torch.testing.assert_close(variant.mean_probs, warmed.mean_probs)


def auxiliary_losses(variant: DynamicPseudoLabels, dpl: DynamicPseudoLabels) -> tuple[float, Tensor, PseudoLabels]:
    """What the variant's loss has more than dpl's, the strong logits, and the samples; all of them are kept."""
    pseudo = answers(dpl)
    strong = torch.randn(20, NUM_CLASSES, generator=torch.Generator().manual_seed(2))
    labeled = torch.zeros(4, 2), torch.zeros(4, NUM_CLASSES), torch.zeros(4, dtype=torch.int64)
    found = answers_of(*labeled, logits_strong=strong)
    losses = [policy.auxiliary_loss(pseudo, found) for policy in (variant, dpl)]
    return float(losses[0] - losses[1]), strong, pseudo


def check_label_sets(variant: DynamicPseudoLabels, dpl: DynamicPseudoLabels) -> None:
    more, strong, pseudo = auxiliary_losses(variant, dpl)
    over, weights, expected = dpl.thresholds()["over"].tolist(), dpl.weights(pseudo).tolist(), 0.0
    for row, strong_row, label, weight in zip(
        pseudo.probs.tolist(), strong.softmax(dim=1).tolist(), pseudo.labels.tolist(), weights, strict=True
    ):
        total = reached = 0.0
        for k in sorted(range(NUM_CLASSES), key=lambda k, row=row: -row[k]):  # type: ignore[misc]
            if reached < over[label]:
                reached, total = reached + row[k], total + strong_row[k]
        expected -= (1 - weight) * math.log(total) / 20
    assert more == pytest.approx(expected, abs=1e-5)
    assert variant.min_weight < 0, "samples of no weight are taken in"


def check_fairness(variant: DynamicPseudoLabels, dpl: DynamicPseudoLabels) -> None:
    more, strong, pseudo = auxiliary_losses(variant, dpl)
    probs = strong.double().softmax(dim=1)

    def shares(values: list[float]) -> list[float]:
        return [value / sum(values) for value in values]

    labels = probs.argmax(dim=1).tolist()
    left = shares([p * NUM_CLASSES for p in dpl.mean_probs.tolist()])  # the histogram is uniform yet
    right = shares([float(probs[:, k].mean()) / (labels.count(k) / 20) for k in range(NUM_CLASSES)])
    assert more == pytest.approx(0.05 * sum(a * math.log(b) for a, b in zip(left, right, strict=True)), abs=1e-5)
    variant.update(variant.statistics(pseudo))
    counts = torch.bincount(pseudo.labels, minlength=NUM_CLASSES) / 20
    torch.testing.assert_close(variant.get_buffer("histogram"), 0.99 / NUM_CLASSES + 0.01 * counts.double())


def check_soft_targets(variant: DynamicPseudoLabels, dpl: DynamicPseudoLabels) -> None:
    pseudo = answers(dpl)
    for row, probs, label in zip(variant.targets(pseudo), pseudo.probs, pseudo.labels.tolist(), strict=True):
        sure = float(probs[label]) >= [0.9, 0.8, 0.7][label]
        assert row.tolist() == ([float(k == label) for k in range(NUM_CLASSES)] if sure else probs.tolist())


def check_fixed_start(variant: DynamicPseudoLabels, dpl: DynamicPseudoLabels) -> None:
    early, later = answers(dpl, progress=0.09), answers(dpl, progress=0.1)
    assert variant.weights(early).tolist() == [float(c >= 0.95) for c in early.confidence.tolist()]
    assert torch.equal(variant.weights(later), dpl.weights(later))


def check_second_difference(variant: DynamicPseudoLabels, dpl: DynamicPseudoLabels) -> None:
    before, pseudo = variant.states.clone(), answers(dpl)
    variant.update(variant.statistics(pseudo))
    moved = 0.01 * (variant.states - before)  # an average that began at 0
    under = variant.states.amin(dim=0) - 100 * (moved[0] - moved[1]).abs()
    torch.testing.assert_close(variant.thresholds()["under"], under.clamp(min=0))
    torch.testing.assert_close(variant.thresholds()["over"], variant.states.amax(dim=0))


def check_heads_must_agree(variant: DynamicPseudoLabels, dpl: DynamicPseudoLabels) -> None:
    pseudo = answers(dpl)
    said = [[int(row.argmax()) for row in head] for head in dpl.heads(pseudo.features)]
    for index, (mine, kept) in enumerate(zip(variant.weights(pseudo), dpl.weights(pseudo), strict=True)):
        agreed = said[0][index] == said[1][index] == int(pseudo.labels[index])
        assert float(mine) == (float(kept) if agreed else 0)


def check_no_exploration(variant: DynamicPseudoLabels, dpl: DynamicPseudoLabels) -> None:
    pseudo = answers(dpl)
    over = [[0.9, 0.8, 0.7][label] for label in pseudo.labels.tolist()]
    expected = [float(c >= threshold) for c, threshold in zip(pseudo.confidence.tolist(), over, strict=True)]
    assert variant.weights(pseudo).tolist() == expected


def check_unaligned_labels(variant: DynamicPseudoLabels, dpl: DynamicPseudoLabels) -> None:
    pseudo = answers(dpl)
    assert variant.targets(pseudo).tolist() == [max(range(3), key=row.__getitem__) for row in pseudo.logits.tolist()]
    assert variant.targets(pseudo).tolist() != pseudo.labels.tolist(), "alignment has moved some of these"


def check_fold_heads(variant: DynamicPseudoLabels, dpl: DynamicPseudoLabels) -> None:
    pseudo = answers(dpl)
    features = torch.tensor([[0.0, 1.0], [1.0, 0.0], [2.0, 0.5], [3.0, 0.5]])
    labeled, targets = torch.tensor([[0.0, 2.0, 0.0]] * 4), torch.tensor([0, 0, 1, 2])
    found = answers_of(features, labeled, targets)
    expected = 0.0
    for index, head in enumerate((dpl.heads.low, dpl.heads.high)):
        samples = [
            *((features[row], labeled[row], int(targets[row])) for row in range(4) if row % 2 == index),
            *zip(pseudo.features, pseudo.logits, pseudo.labels.tolist(), strict=True),
        ]
        for feature, logits, label in samples:
            size, limit = 1 - float(logits.softmax(dim=0)[label]), float(dpl.cut[index, label])
            if size <= limit if index == 0 else size >= limit:
                expected -= float(head(feature).log_softmax(dim=0)[label]) / 24
    assert float(variant.auxiliary_loss(pseudo, found)) == pytest.approx(expected, abs=1e-5)

    variant.update(variant.statistics(pseudo))
    low, high = (head.argmax(dim=1) for head in dpl.heads(pseudo.features))
    states = variant.states
    for k in range(NUM_CLASSES):
        mine = pseudo.labels == k
        apart = 0.01 * float((low != high)[mine].double().mean())
        assert float(variant.get_buffer("apart")[k]) == pytest.approx(apart)
        width = (1 - apart) * float(states[:, k].amax() - states[:, k].amin())
        assert float(variant.thresholds()["under"][k]) == pytest.approx(float(states[:, k].amax()) - width)


def check_graded_hand_over(variant: DynamicPseudoLabels, dpl: DynamicPseudoLabels) -> None:
    pseudo, features = answers(dpl), torch.randn(20, 2, generator=torch.Generator().manual_seed(2))
    apart, main = [0.1, 0.6, 0.0], nn.Linear(2, NUM_CLASSES)
    variant.start_as(main)
    variant.heads.load_state_dict(dpl.heads.state_dict())
    variant.get_buffer("apart").copy_(torch.tensor(apart))
    folds = VARIANTS["fold_heads"](2, NUM_CLASSES, **DEFAULTS)
    folds.load_state_dict(variant.state_dict())
    labeled = torch.zeros(4, 2), torch.zeros(4, NUM_CLASSES), torch.zeros(4, dtype=torch.int64)
    found = answers_of(*labeled, logits_strong=main(features), features_strong=features)
    expected, weights = 0.0, variant.weights(pseudo).tolist()
    for feature, label, weight in zip(features, pseudo.labels.tolist(), weights, strict=True):
        share = max(1 - 2 * apart[label], 0)
        expected -= share * weight * float(main(feature).log_softmax(dim=0)[label]) / 20
    more = variant.auxiliary_loss(pseudo, found) - folds.auxiliary_loss(pseudo, found)
    assert float(more) == pytest.approx(expected, abs=1e-5)
    assert variant.trains_classifier(0.9) is False, "the other loss leaves the classifier alone"


def check_calibrated_band(variant: DynamicPseudoLabels, dpl: DynamicPseudoLabels) -> None:
    pseudo, over, under = answers(dpl), dpl.thresholds()["over"].tolist(), dpl.thresholds()["under"].tolist()
    _, high = dpl.heads(pseudo.features)
    for row, said, label, confidence in zip(
        variant.weights(pseudo).tolist(),
        high.softmax(dim=1),
        pseudo.labels.tolist(),
        pseudo.confidence.tolist(),
        strict=True,
    ):
        told = min(float(said[label]) / (1 - 0.3 * 2 / 3), 1) if confidence < over[label] else 1.0
        width = over[label] - under[label]
        assert row == pytest.approx(math.exp(-(min(told - over[label], 0) ** 2) / (2 * width**2)), abs=1e-5)
    features = torch.randn(20, 2, generator=torch.Generator().manual_seed(2))
    labeled = torch.zeros(4, 2), torch.zeros(4, NUM_CLASSES), torch.zeros(4, dtype=torch.int64)
    found = answers_of(*labeled, logits_strong=torch.zeros(20, NUM_CLASSES), features_strong=features)
    expected = 0.0
    for feature, label in [*zip(labeled[0], [0] * 4, strict=True), *zip(features, pseudo.labels.tolist(), strict=True)]:
        log_probs = dpl.heads.high(feature).log_softmax(dim=0)
        expected -= (0.7 * float(log_probs[label]) + 0.1 * float(log_probs.sum())) / 24
    low = [*zip(*labeled, strict=True), *zip(pseudo.features, pseudo.logits, pseudo.labels, strict=True)]
    for feature, logits, target in low:
        if 1 - float(logits.softmax(dim=0)[target]) <= float(dpl.cut[0, target]):
            expected -= float(dpl.heads.low(feature).log_softmax(dim=0)[target]) / 24
    assert float(variant.auxiliary_loss(pseudo, found)) == pytest.approx(expected, abs=1e-5)


def check_stable_band(variant: DynamicPseudoLabels, dpl: DynamicPseudoLabels) -> None:
    pseudo, strong = answers(dpl), torch.randn(20, NUM_CLASSES, generator=torch.Generator().manual_seed(2))
    variant.join(RunFacts(30, 20))
    last = pseudo.labels.clone()
    last[::2] = (last[::2] + 1) % NUM_CLASSES
    variant.get_buffer("last")[:20] = last
    variant.statistics(pseudo)
    assert torch.equal(variant.get_buffer("last")[:20], pseudo.labels)
    rows, over = torch.arange(20).flip(0)[:15], dpl.thresholds()["over"].tolist()
    found = variant.unlabeled_losses(strong[rows], pseudo.labels[rows], rows, pseudo)
    kinds = set()
    for loss, index in zip(found.tolist(), rows.tolist(), strict=True):
        label = int(pseudo.labels[index])
        prob, is_unstable = float(strong[index].softmax(dim=0)[label]), index % 2 == 0
        is_unstable &= float(pseudo.confidence[index]) < over[label]
        assert loss == pytest.approx((1 - prob**0.7) / 0.7 if is_unstable else -math.log(prob), abs=1e-5)
        kinds.add(is_unstable)
    assert len(kinds) == 2
    assert torch.equal(variant.weights(pseudo), dpl.weights(pseudo))


def check_bounded_negatives(variant: DynamicPseudoLabels, dpl: DynamicPseudoLabels) -> None:
    for policy in (variant, dpl):  # so sure that it rules classes out
        policy.heads.high.weight.mul_(20)
    more, strong, pseudo = auxiliary_losses(variant, dpl)
    weights, (_, high), expected = dpl.weights(pseudo).tolist(), dpl.heads(pseudo.features), 0.0
    for row, said, weight, probs in zip(
        strong.softmax(dim=1).tolist(), high.softmax(dim=1).tolist(), weights, pseudo.probs.tolist(), strict=True
    ):
        least = probs.index(min(probs))  # of three classes two are the top ones
        if said[least] < 1 / 6:
            expected -= (1 - weight) * math.log(1 - row[least]) / 20
    assert expected > 0
    assert more == pytest.approx(expected, abs=1e-5)
    assert variant.min_weight < 0, "samples of no weight are taken in"


def check_anchored_mixing(variant: DynamicPseudoLabels, dpl: DynamicPseudoLabels) -> None:
    pseudo, rows = answers(dpl), torch.arange(20).flip(0)
    plain, labeled = torch.zeros(20, 1, 8, 8), torch.ones(4, 1, 8, 8)
    targets = pseudo.labels[rows]
    assert dpl.mix(plain, targets, rows, labeled, pseudo) == (plain, targets), "dpl mixes nothing"
    for images, anchors in ((plain, labeled), (torch.zeros(20, 1, 1, 8), torch.ones(4, 1, 1, 8))):
        mixed, soft = variant.mix(images, targets, rows, anchors, pseudo)
        assert not images.any(), "the views themselves are left alone"
        over, num_mixed = dpl.thresholds()["over"].tolist(), 0
        for view, target, row in zip(mixed, soft, rows.tolist(), strict=True):
            label, share = int(pseudo.labels[row]), float(view.mean())
            rivals = pseudo.probs[row].topk(2).indices.tolist()
            of_label = 1.0 if label == 0 else 1 - share  # all labelled images are of class 0
            assert float(target[label]) == pytest.approx(of_label, abs=1e-6)
            assert float(target.sum()) == pytest.approx(1, abs=1e-6)
            num_mixed += share > 0
            if share > 0:
                assert float(pseudo.confidence[row]) < over[label]
                assert 0 in rivals
        assert num_mixed


CHECKS: dict[str, Callable[[DynamicPseudoLabels, DynamicPseudoLabels], None]] = {
    "entropy_cut": check_entropy_cut,
    "median_boundary": check_median_boundary,
    "warmed_states": check_warmed_states,
    "label_sets": check_label_sets,
    "soft_targets": check_soft_targets,
    "fairness": check_fairness,
    "fixed_start": check_fixed_start,
    "second_difference": check_second_difference,
    "heads_must_agree": check_heads_must_agree,
    "no_exploration": check_no_exploration,
    "unaligned_labels": check_unaligned_labels,
    "fold_heads": check_fold_heads,
    "graded_hand_over": check_graded_hand_over,
    "calibrated_band": check_calibrated_band,
    "stable_band": check_stable_band,
    "bounded_negatives": check_bounded_negatives,
    "anchored_mixing": check_anchored_mixing,
}


def test_rows_of_an_ablation_take_the_place_of_those_of_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "FOLDER", tmp_path)
    facts = {"device": "CPU", "commit": "abc"}

    def trained(label: str, seed: int, accuracy: float) -> CellResult:
        return CellResult(label, {}, seed, 10, 1.0, {"eval/accuracy": accuracy}, [], "", facts=facts)

    ablation.save("tiny", [trained("dpl", 0, 0.5), trained("soft_targets", 0, 0.7), trained("soft_targets", 1, 0.8)])
    ablation.save("tiny", [trained("dpl", 0, 0.5), trained("soft_targets", 0, 0.6), trained("fairness", 0, 0.4)])
    found = tables.read("dpl_ablation")
    assert [(row["variant"], row["seed"], row["accuracy"]) for row in found] == [
        ("soft_targets", "0", "0.6000"),
        ("fairness", "0", "0.4000"),
    ]
    assert all(row["setting"] == "tiny" and row["accuracy_of_the_base"] == "0.5000" for row in found)
    assert {row["commit"] for row in found} == {"abc"}


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_changes_of_dpl_what_it_says(name: str) -> None:
    with torch.no_grad():
        CHECKS[name](*pair(name))
