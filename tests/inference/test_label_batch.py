"""What a model and its policy say of a batch, against a slow reference, for every policy."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from dpl_ray.algorithm.dpl import DynamicPseudoLabels
from dpl_ray.algorithm.policies import POLICIES
from dpl_ray.inference.label_batch import SUPERVISED_THRESHOLD, label_batch
from dpl_ray.store.storage import Storage
from dpl_ray.training.checkpoint import load_classifier, load_policy
from tests.labeling.jobs import CLASSES, SIZE, make_checkpoint

OPEN = ("iomatch", "openmatch")  # dpl is one of them with open_set=true: tests/labeling/test_labeling.py


@pytest.fixture(params=sorted(POLICIES))
def policy_name(request: pytest.FixtureRequest) -> str:
    return request.param


def images(number: int = 13) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (number, 3, SIZE, SIZE), dtype=np.uint8))


def softmax(row: list[float]) -> list[float]:
    shares = [math.exp(value - max(row)) for value in row]
    return [share / sum(shares) for share in shares]


def test_every_policy_against_loops(policy_name: str, tmp_path: Path) -> None:
    place = Storage(make_checkpoint(tmp_path, policy_name))
    model, policy = load_classifier(place)[0], load_policy(place)
    batch = images()
    found = label_batch(model, policy, batch)
    with torch.no_grad():
        features, logits = model(batch)
    alignment = policy.alignment(1.0)
    factors = [1.0] * len(CLASSES) if alignment is None else alignment.tolist()
    thresholds = {name: values.tolist() for name, values in policy.thresholds().items()}
    for row in range(len(batch)):
        raw = softmax(logits[row].tolist())
        scaled = [share * factor for share, factor in zip(raw, factors, strict=True)]
        probs = [share / sum(scaled) for share in scaled]
        confidence, label = max(probs), probs.index(max(probs))
        if policy_name == "softmatch":
            label = raw.index(max(raw))
        assert found["pseudo_label"][row] == label
        assert float(found["confidence"][row]) == pytest.approx(confidence, abs=1e-5)
        others = sorted(({0, 1, 2} - {label}), key=lambda index: -probs[index])
        for name, index in zip(("second", "third"), others, strict=True):
            assert found[f"{name}_label"][row] == index
            assert float(found[f"{name}_confidence"][row]) == pytest.approx(probs[index], abs=1e-5)
        expected = -sum(share * math.log(share) for share in probs if share)
        assert float(found["entropy"][row]) == pytest.approx(expected, abs=1e-4)
        if isinstance(policy, DynamicPseudoLabels):
            low, high = policy.heads(features)
            assert float(found["confidence_lgp"][row]) == pytest.approx(max(softmax(low[row].tolist())), abs=1e-5)
            assert float(found["confidence_hgp"][row]) == pytest.approx(max(softmax(high[row].tolist())), abs=1e-5)
            over, under = thresholds["over"][label], thresholds["under"][label]
            assert float(found["threshold_over"][row]) == pytest.approx(over)
            assert float(found["threshold_under"][row]) == pytest.approx(under)
            width = 2 * max(over - under, policy.epsilon) ** 2
            weight = math.exp(-(min(confidence - over, 0) ** 2) / width)
            assert float(found["weight"][row]) == pytest.approx(weight, abs=1e-3)
        if policy_name in ("fixmatch", "pseudolabel", "supervised"):
            assert float(found["weight"][row]) == float(confidence >= 0.95)
        assert bool(found["selected"][row]) == (float(found["weight"][row]) > max(policy.min_weight, 0))
    own = {"confidence_lgp", "confidence_hgp", "threshold_over", "threshold_under"}
    expected = (set() if policy_name == "dpl" else own) | (set() if policy_name in OPEN else {"foreign"})
    assert {name for name, values in found.items() if values is None} == expected
    assert SUPERVISED_THRESHOLD == 0.95


def test_a_temperature_calibrates_confidences_and_changes_no_label_and_no_weight(
    policy_name: str, tmp_path: Path
) -> None:
    place = Storage(make_checkpoint(tmp_path, policy_name))
    model, policy = load_classifier(place)[0], load_policy(place)
    plain, found = label_batch(model, policy, images()), label_batch(model, policy, images(), 2.5)
    confidences = ("confidence", "second_confidence", "third_confidence")
    for name, values in plain.items():
        if name.startswith("threshold"):
            assert found[name] is None, "it is of confidences without the temperature"
        elif name not in (*confidences, "entropy") and values is not None:
            assert torch.equal(found[name], values), name
    before, after = (torch.stack([each[name] for name in confidences], dim=1).tolist() for each in (plain, found))
    for shares, calibrated in zip(before, after, strict=True):
        if sum(shares) == pytest.approx(1):  # softmatch's first may be that of the second label
            assert calibrated == pytest.approx(softmax([math.log(share) / 2.5 for share in shares]), abs=1e-5)


def test_an_answer_depends_on_its_image_alone_and_moves_nothing(policy_name: str, tmp_path: Path) -> None:
    place = Storage(make_checkpoint(tmp_path, policy_name))
    model, policy = load_classifier(place)[0], load_policy(place)
    before = {name: value.clone() for name, value in policy.state_dict().items()}
    whole = label_batch(model, policy, images())
    for name, values in whole.items():
        if values is not None:
            pieces = [label_batch(model, policy, images()[start : start + 5])[name] for start in (0, 5, 10)]
            torch.testing.assert_close(torch.cat(pieces), values, msg=name)  # type: ignore[arg-type]
    assert all(torch.equal(value, before[name]) for name, value in policy.state_dict().items())


def test_no_image_and_no_number(tmp_path: Path) -> None:
    place = Storage(make_checkpoint(tmp_path))
    model, policy = load_classifier(place)[0], load_policy(place)
    found = label_batch(model, policy, images(0))
    assert {len(values) for values in found.values() if values is not None} == {0}
    model.classifier.bias.data[1] = torch.nan
    with pytest.raises(ArithmeticError, match="logits are not finite"):
        label_batch(model, policy, images(2))
