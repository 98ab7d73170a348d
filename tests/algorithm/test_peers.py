"""What a single peer's policy has beside its weights: FreeMatch's fairness, FlexMatch's bytes, Dash's warm-up."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dpl_ray.algorithm.freematch import fairness
from dpl_ray.algorithm.policy import RunFacts
from dpl_ray.algorithm.pseudo_labels import StepFacts, pseudo_labels
from dpl_ray.store.storage import Storage
from dpl_ray.training.checkpoint import ModelInfo, load_state, save_checkpoint
from dpl_ray.training.distributed import Workers
from dpl_ray.training.state import TrainState, build_state
from dpl_ray.training.step import train_step
from tests.algorithm.policy_references import out_probs
from tests.builders import answers_of, make_policy, tiny_config, tiny_feed, tiny_splits

NUM_CLASSES = 4


def slow_fairness(mean_probs: list[float], histogram: list[float], strong: list[list[float]]) -> float:
    """sum over the classes of Norm(p / h) log Norm(q / h_q), with 0 for a class that a histogram has not."""
    mean = [sum(column) / len(strong) for column in zip(*strong, strict=True)]
    labels = [row.index(max(row)) for row in strong]
    strong_histogram = [labels.count(k) / len(labels) for k in range(NUM_CLASSES)]

    def shares(probs: list[float], counts: list[float]) -> list[float]:
        quotients = [p / h if h else 0.0 for p, h in zip(probs, counts, strict=True)]
        return [value / sum(quotients) for value in quotients]

    pairs = zip(shares(mean_probs, histogram), shares(mean, strong_histogram), strict=True)
    return sum(p * math.log(q + 1e-12) for p, q in pairs)


@settings(max_examples=30)
@given(seed=st.integers(0, 10_000), num_strong=st.integers(1, 12))
def test_fairness_is_the_loop(seed: int, num_strong: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    strong = torch.randn(num_strong, NUM_CLASSES, generator=generator).double().softmax(dim=1)
    mean_probs, histogram = (torch.rand(NUM_CLASSES, generator=generator).double() for _ in range(2))
    histogram[seed % NUM_CLASSES] = 0
    labels = strong.argmax(dim=1).bincount(minlength=NUM_CLASSES) / num_strong
    found = fairness(mean_probs, histogram, strong.mean(dim=0), labels.double())
    assert found.item() == pytest.approx(slow_fairness(mean_probs.tolist(), histogram.tolist(), strong.tolist()))


def fairness_loss(logits: torch.Tensor, weight: float = 0.5) -> torch.Tensor:
    policy = make_policy("freematch", 2, NUM_CLASSES, fairness_weight=weight)
    pseudo = pseudo_labels(torch.zeros(3, 2), torch.zeros(3, NUM_CLASSES))
    labeled = torch.zeros(1, 2), torch.zeros(1, NUM_CLASSES), torch.zeros(1, dtype=torch.int64)
    return policy.auxiliary_loss(pseudo, answers_of(*labeled, logits_strong=logits))


def test_fairness_reaches_the_strong_logits_and_is_nothing_without_them() -> None:
    logits = torch.randn(5, NUM_CLASSES, generator=torch.Generator().manual_seed(0)).requires_grad_()
    fairness_loss(logits).backward()
    assert logits.grad is not None
    assert logits.grad.abs().sum() > 0
    assert fairness_loss(torch.zeros(0, NUM_CLASSES)) == 0
    assert fairness_loss(logits, weight=0.0) == 0


def test_the_gradients_of_two_workers_average_to_that_of_one() -> None:
    logits = torch.randn(6, NUM_CLASSES, generator=torch.Generator().manual_seed(1))
    whole = logits.clone().requires_grad_()
    fairness_loss(whole).backward()
    halves = [part.clone().requires_grad_() for part in logits.chunk(2)]
    sums = [
        torch.cat([half.detach().double().softmax(1).sum(0), half.argmax(1).bincount(minlength=NUM_CLASSES).double()])
        for half in halves
    ]
    for rank, half in enumerate(halves):
        policy = make_policy("freematch", 2, NUM_CLASSES, fairness_weight=0.5)
        policy.join(RunFacts(0, 6, rank, 2, lambda _: sums[0] + sums[1]))
        pseudo = pseudo_labels(torch.zeros(3, 2), torch.zeros(3, NUM_CLASSES))
        labeled = torch.zeros(1, 2), torch.zeros(1, 4), torch.zeros(1)
        loss = policy.auxiliary_loss(pseudo, answers_of(*labeled, logits_strong=half))
        assert loss.item() == pytest.approx(fairness_loss(logits).item())
        loss.backward()
    averaged = torch.cat([half.grad for half in halves if half.grad is not None]) / 2
    torch.testing.assert_close(averaged, whole.grad)


@pytest.mark.parametrize(("num_classes", "bytes_each"), [(10, 1), (255, 1), (256, 2), (1000, 2)])
def test_flexmatch_keeps_a_byte_or_two_of_its_share_of_the_pool(num_classes: int, bytes_each: int) -> None:
    policy = make_policy("flexmatch", 2, num_classes)
    policy.join(RunFacts(pool_size=1001, num_unlabeled=8, rank=1, world_size=4))
    labels = policy.get_buffer("last_labels")
    assert labels.nbytes == 250 * bytes_each
    assert sum(buffer.nbytes for buffer in policy.buffers()) == labels.nbytes + 8 * (num_classes + 8)


def test_flexmatch_counts_the_last_class_of_many() -> None:
    policy = make_policy("flexmatch", 2, 300)
    policy.join(RunFacts(pool_size=5, num_unlabeled=2))
    logits = torch.zeros(2, 300)
    logits[:, 299] = 50
    for step in range(2):
        facts = StepFacts(step / 2, torch.tensor([3, 4]), *torch.zeros(2, 1, dtype=torch.int64))
        policy.update(policy.statistics(pseudo_labels(torch.zeros(2, 2), logits, facts=facts)))
    assert policy.get_buffer("last_labels").tolist() == [0, 0, 0, 300, 300]
    assert policy.get_buffer("counts")[299] == 2


def test_dash_trains_on_labels_alone_until_its_threshold_is_measured() -> None:
    policy = make_policy("dash", 2, NUM_CLASSES, warmup=0.5)
    sure = 50 * torch.eye(NUM_CLASSES)
    weights = []
    for step in range(10):
        facts = StepFacts(step / 10, torch.arange(NUM_CLASSES), *torch.zeros(2, 2, dtype=torch.int64))
        rows = torch.cat([sure, torch.zeros(2, NUM_CLASSES)])
        pseudo = pseudo_labels(torch.zeros(len(rows), 2), rows, facts=facts)
        policy.update(policy.statistics(pseudo))
        weights.append(policy.weights(pseudo).sum().item())
    assert weights == [0] * 5 + [NUM_CLASSES] * 5
    # Steps 3 and 4 lie in the second half of the warm-up; a guess among four classes costs log 4.
    assert policy.get_buffer("loss_count") == 4
    assert policy.get_buffer("loss_sum").item() == pytest.approx(4 * math.log(NUM_CLASSES))


def test_flexmatch_goes_on_with_another_number_of_workers(tmp_path: Path) -> None:
    config = tiny_config(policy={"name": "flexmatch", "threshold": 0.3})
    splits, folder = tiny_splits(), Storage(str(tmp_path))
    feed = tiny_feed(config, splits)

    def build(workers: Workers) -> TrainState:
        return build_state(config, 3, 3, workers, pool_size=len(splits.unlabeled))

    alone = build(Workers())
    for _ in range(4):
        train_step(alone, feed(alone.step), config, Workers())
    save_checkpoint(folder, alone, config, ModelInfo(("a", "b", "c"), 3, (8, 8)), Workers(), keep=1)
    whole = alone.policy.get_buffer("last_labels")
    assert whole.count_nonzero() > 10
    for rank in range(3):
        workers = Workers(rank, 3)
        state = build(workers)
        load_state(folder / "step-00000004", state, workers)
        assert torch.equal(state.policy.get_buffer("last_labels"), whole[rank::3])
        assert torch.equal(state.policy.get_buffer("counts"), alone.policy.get_buffer("counts"))


def test_simpro_trains_on_logits_of_pool_and_labelled_images_together() -> None:
    policy = make_policy("simpro", 2, 2, ema_decay=0.0)
    # The pool's confident targets are of class 0, and one labelled image of each class came with them.
    facts = StepFacts(0.0, torch.arange(2), torch.tensor([0, 1]), torch.arange(2))
    policy.update(policy.statistics(pseudo_labels(torch.zeros(2, 2), torch.tensor([[50.0, 0], [50, 0]]), facts=facts)))
    assert policy.get_buffer("prior").tolist() == pytest.approx([1, 0])
    assert policy.get_buffer("joint").tolist() == pytest.approx([0.75, 0.25])
    logits = torch.tensor([[0.0, 0.0], [1.0, 3.0]])
    expected = -math.log(0.25), -math.log(0.75 * math.e / (0.75 * math.e + 0.25 * math.e**3))
    assert policy.labeled_loss(logits, torch.tensor([1, 0])).item() == pytest.approx(sum(expected) / 2)
    assert policy.unlabeled_logits(logits)[0].tolist() == pytest.approx([math.log(0.75), math.log(0.25)])


def test_abc_trains_its_base_classifier_by_fixmatch_and_balances_its_labels() -> None:
    policy = make_policy("abc", 2, 2, threshold=0.8)
    policy.join(RunFacts(3, 3, labeled_counts=torch.tensor([8, 2])))
    logits, targets = torch.tensor([[1.0, 0.0], [0.0, 0.0]]), torch.tensor([0, 1])
    losses = [math.log(1 + math.exp(-1)), math.log(2)]
    assert policy.labeled_loss(logits, targets).item() == pytest.approx((losses[0] / 4 + losses[1]) / 2)
    base = torch.nn.Linear(2, 2)
    base.load_state_dict({"weight": torch.eye(2), "bias": torch.zeros(2)})
    policy.start_as(base)
    # The base classifier is sure of the first and third image (class 0, class 1); the main one's logits do not count.
    pseudo = pseudo_labels(torch.tensor([[2.0, 0.0], [1.0, 0.9], [0.0, 3.0]]), torch.zeros(3, 2))
    strong = torch.tensor([[0.0, 1.0], [5.0, 5.0], [0.0, 2.0], [7.0, 7.0]])
    kept = torch.tensor([0, 1, 2, -1])
    loss = policy.auxiliary_loss(pseudo, answers_of(torch.zeros(2, 2), logits, targets, strong, kept=kept))
    expected = math.log(2) + (math.log(1 + math.e) + math.log(1 + math.exp(-2))) / 3
    assert loss.item() == pytest.approx(expected)


def test_iomatch_trains_one_vs_all_classifiers_on_labels_and_the_open_one_on_all_strong_views() -> None:
    torch.manual_seed(0)
    policy = make_policy("iomatch", 2, 2, threshold=0.6, open_threshold=0.42, one_vs_all_weight=0.5, open_weight=2.0)
    labeled, targets = torch.tensor([[1.0, 0.0], [0.5, 2.0]]), torch.tensor([0, 1])
    pseudo = pseudo_labels(torch.tensor([[2.0, 0.0], [1.0, 0.9], [0.0, 3.0]]), torch.tensor([[2.0, 0], [0, 1], [0, 0]]))
    strong, kept = torch.tensor([[0.0, 1.0], [5.0, 5.0], [0.0, 2.0], [7.0, 7.0]]), torch.tensor([0, 1, 2, -1])

    def out_of(features: torch.Tensor) -> list[float]:
        return out_probs(policy.one_vs_all(policy.projection(features)).tolist())

    expected = num_counted = 0.0
    for features, target in zip(labeled, targets.tolist(), strict=True):
        out = out_of(features)
        expected += 0.5 * (-math.log(1 - out[target]) - math.log(out[1 - target])) / 2
    for features, view, probs in zip(pseudo.features, strong, pseudo.probs.tolist(), strict=False):
        out = out_of(features)
        q = [p * (1 - o) for p, o in zip(probs, out, strict=True)]
        q.append(1 - sum(q))
        said = policy.open(policy.projection(view)).log_softmax(dim=0).tolist()
        num_counted += max(q) >= 0.42
        expected += 2.0 * (max(q) >= 0.42) * -sum(a * b for a, b in zip(q, said, strict=True)) / 3
    assert 0 < num_counted < 3
    loss = policy.auxiliary_loss(pseudo, answers_of(labeled, labeled, targets, strong, kept=kept))
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_openmatch_trains_its_classifiers_by_labels_entropy_and_consistency() -> None:
    torch.manual_seed(0)
    policy = make_policy("openmatch", 2, 2, entropy_weight=0.2, consistency_weight=0.7)
    labeled, targets = torch.tensor([[1.0, 0.0], [0.5, 2.0]]), torch.tensor([0, 1])
    pseudo = pseudo_labels(torch.tensor([[2.0, 0.0], [1.0, 0.9], [0.0, 3.0]]), torch.zeros(3, 2))
    strong, kept = torch.tensor([[0.0, 1.0], [5.0, 5.0], [7.0, 7.0]]), torch.tensor([0, 2, -1])
    expected = 0.0
    for features, target in zip(labeled, targets.tolist(), strict=True):
        out = out_probs(policy.one_vs_all(features).tolist())
        expected += (-math.log(1 - out[target]) - math.log(out[1 - target])) / 2
    for row, view in ((0, strong[0]), (2, strong[1])):
        weak = out_probs(policy.one_vs_all(pseudo.features[row]).tolist())
        for before, after in zip(weak, out_probs(policy.one_vs_all(view).tolist()), strict=True):
            entropy = -after * math.log(after) - (1 - after) * math.log(1 - after)
            expected += (0.2 * entropy / 2 + 0.7 * 2 * (before - after) ** 2) / 3
    loss = policy.auxiliary_loss(pseudo, answers_of(labeled, labeled, targets, strong, kept=kept))
    assert loss.item() == pytest.approx(expected, rel=1e-5)
