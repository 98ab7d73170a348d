"""What each policy answers, written from its formula as loops over lists of floats.

A reference takes the steps of a run, the main classifier (which made the logits and does not move) and the policy's
parameters, whose defaults it knows by itself, and yields for every step (weights, targets): a number a sample, and a
label or a row of probabilities a sample.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tests.algorithm.test_dpl import Reference, argmax, softmax
from tests.algorithm.test_open_set import OpenReference
from tests.builders import make_policy

Row = list[float]
Answer = tuple[Row, list[Any]]

POOL_SIZE = 30


@dataclass(frozen=True)
class Step:
    """What a policy sees of one step."""

    features: list[Row]
    features_labeled: list[Row]
    logits: list[Row]
    ids: list[int]
    logits_labeled: list[Row]
    targets_labeled: list[int]
    progress: float


def labels_of(rows: list[Row]) -> list[int]:
    return [argmax(row) for row in rows]


def mean_row(rows: list[Row]) -> Row:
    return [sum(column) / len(rows) for column in zip(*rows, strict=True)]


def moved(state: Row, value: Row, decay: float) -> Row:
    return [decay * old + (1 - decay) * new for old, new in zip(state, value, strict=True)]


def shares(row: Row) -> Row:
    return [value / sum(row) for value in row]


def scaled(probs: list[Row], factors: Row) -> list[Row]:
    return [shares([p * factor for p, factor in zip(row, factors, strict=True)]) for row in probs]


def supervised(steps: list[Step], classifier: nn.Linear) -> Iterator[Answer]:
    for step in steps:
        yield [0.0] * len(step.logits), labels_of(step.logits)


def fixmatch(steps: list[Step], classifier: nn.Linear, threshold: float = 0.95) -> Iterator[Answer]:
    for step in steps:
        yield [float(max(softmax(row)) >= threshold) for row in step.logits], labels_of(step.logits)


def uda(steps: list[Step], classifier: nn.Linear, threshold: float = 0.8, temperature: float = 0.4) -> Iterator[Answer]:
    for step in steps:
        weights = [float(max(softmax(row)) >= threshold) for row in step.logits]
        yield weights, [softmax([value / temperature for value in row]) for row in step.logits]


def flexmatch(steps: list[Step], classifier: nn.Linear, threshold: float = 0.95) -> Iterator[Answer]:
    num_classes = len(classifier.bias)
    last_label: dict[int, int] = {}
    for step in steps:
        counts = Counter(last_label.values())
        most = max([counts[k] for k in range(num_classes)] + [POOL_SIZE - len(last_label)])
        beta = [counts[k] / most for k in range(num_classes)]
        weights, labels = [], labels_of(step.logits)
        for row, label in zip(step.logits, labels, strict=True):
            weights.append(float(max(softmax(row)) >= threshold * beta[label] / (2 - beta[label])))
        yield weights, labels
        for sample, row, label in zip(step.ids, step.logits, labels, strict=True):
            if max(softmax(row)) >= threshold:
                last_label[sample] = label


def freematch(
    steps: list[Step], classifier: nn.Linear, ema_decay: float = 0.99, fairness_weight: float = 0.01
) -> Iterator[Answer]:
    num_classes = len(classifier.bias)
    tau, mean_probs = 1 / num_classes, [1 / num_classes] * num_classes
    for step in steps:
        probs = [softmax(row) for row in step.logits]
        tau = ema_decay * tau + (1 - ema_decay) * statistics.mean(max(row) for row in probs)
        mean_probs = moved(mean_probs, mean_row(probs), ema_decay)
        labels = labels_of(probs)
        yield (
            [
                float(max(row) >= tau * mean_probs[label] / max(mean_probs))
                for row, label in zip(probs, labels, strict=True)
            ],
            labels,
        )


def softmatch(
    steps: list[Step], classifier: nn.Linear, ema_decay: float = 0.99, num_sigmas: float = 2.0, alignment: bool = True
) -> Iterator[Answer]:
    num_classes = len(classifier.bias)
    mean, variance, mean_probs = 1 / num_classes, 1.0, [1 / num_classes] * num_classes
    for step in steps:
        unaligned = [softmax(row) for row in step.logits]
        aligned = scaled(unaligned, [1 / num_classes / p for p in mean_probs]) if alignment else unaligned
        confidences = [max(row) for row in aligned]
        mean = ema_decay * mean + (1 - ema_decay) * statistics.mean(confidences)
        variance = ema_decay * variance + (1 - ema_decay) * statistics.variance(confidences)
        mean_probs = moved(mean_probs, mean_row(unaligned), ema_decay)
        yield (
            [math.exp(-(min(c - mean, 0) ** 2) / (2 * variance / num_sigmas**2)) for c in confidences],
            labels_of(unaligned),
        )


def debiaspl(
    steps: list[Step], classifier: nn.Linear, threshold: float = 0.95, debias: float = 0.4, ema_decay: float = 0.99
) -> Iterator[Answer]:
    num_classes = len(classifier.bias)
    mean_probs = [1 / num_classes] * num_classes
    for step in steps:
        debiased = [
            softmax([z - debias * math.log(m) for z, m in zip(row, mean_probs, strict=True)]) for row in step.logits
        ]
        mean_probs = moved(mean_probs, mean_row([softmax(row) for row in step.logits]), ema_decay)
        yield [float(max(row) >= threshold) for row in debiased], labels_of(debiased)


def simpro(
    steps: list[Step], classifier: nn.Linear, threshold: float = 0.95, ema_decay: float = 0.99
) -> Iterator[Answer]:
    num_classes = len(classifier.bias)
    prior = [1 / num_classes] * num_classes
    for step in steps:
        targets = scaled([softmax(row) for row in step.logits], prior)
        confident = [row for row in targets if max(row) >= threshold]
        if confident:
            prior = moved(prior, mean_row(confident), ema_decay)
        yield [float(max(row) >= threshold) for row in targets], targets


def abc(steps: list[Step], classifier: nn.Linear, threshold: float = 0.95, ema_decay: float = 0.99) -> Iterator[Answer]:
    num_classes = len(classifier.bias)
    found = [1 / num_classes] * num_classes
    for step in steps:
        targets = [softmax(row) for row in step.logits]
        confident = [argmax(row) for row in targets if max(row) >= threshold]
        if confident:
            counts = Counter(confident)
            found = moved(found, [counts[k] / len(confident) for k in range(num_classes)], ema_decay)
        least = [max(n, 0.01 / num_classes) for n in found]
        kept = [min(least) / n for n in least]
        weights = [(max(row) >= threshold) * (1 - step.progress * (1 - kept[argmax(row)])) for row in targets]
        yield weights, targets


def start(name: str, classifier: nn.Linear) -> dict[str, Any]:
    """Weights of a policy's own classifiers as the tests build it: lists of rows, by name."""
    torch.manual_seed(0)
    policy = make_policy(name, classifier.in_features, classifier.out_features)
    return {name: value.tolist() for name, value in policy.state_dict().items()}


def linear(weight: list[Row], bias: Row, row: Row) -> Row:
    return [sum(w * x for w, x in zip(weights, row, strict=True)) + b for weights, b in zip(weight, bias, strict=True)]


def out_probs(logits: Row) -> Row:
    """Of each class, the probability that an image is not of it: the first half says no, the second yes."""
    half = len(logits) // 2
    return [softmax([no, yes])[0] for no, yes in zip(logits[:half], logits[half:], strict=True)]


def iomatch(steps: list[Step], classifier: nn.Linear, threshold: float = 0.95) -> Iterator[Answer]:
    own, none = start("iomatch", classifier), [0.0] * 128
    for step in steps:
        weights, targets = [], [softmax(row) for row in step.logits]
        for features, probs in zip(step.features, targets, strict=True):
            hidden = [max(0, x) for x in linear(own["projection.0.weight"], own["projection.0.bias"], features)]
            projected = linear(own["projection.2.weight"], own["projection.2.bias"], hidden)
            out = out_probs(linear(own["one_vs_all.weight"], none[: 2 * len(probs)], projected))
            foreign = sum(p * o for p, o in zip(probs, out, strict=True))
            weights.append(float(max(probs) >= threshold and foreign < 0.5))
        yield weights, targets


def openmatch(
    steps: list[Step], classifier: nn.Linear, threshold: float = 0.0, warmup: float = 0.02
) -> Iterator[Answer]:
    own = start("openmatch", classifier)["one_vs_all.weight"]
    for step in steps:
        weights, labels = [], labels_of(step.logits)
        for features, logits, label in zip(step.features, step.logits, labels, strict=True):
            out = out_probs(linear(own, [0.0] * len(own), features))
            counts = max(softmax(logits)) >= threshold and out[label] < 0.5 and step.progress >= warmup
            weights.append(float(counts))
        yield weights, labels


def adamatch(
    steps: list[Step], classifier: nn.Linear, threshold: float = 0.95, ema_decay: float = 0.99
) -> Iterator[Answer]:
    num_classes = len(classifier.bias)
    mean_probs = mean_labeled = [1 / num_classes] * num_classes
    for step in steps:
        unaligned, labeled = ([softmax(row) for row in rows] for rows in (step.logits, step.logits_labeled))
        aligned = scaled(unaligned, [of / over for of, over in zip(mean_labeled, mean_probs, strict=True)])
        needed = threshold * statistics.mean(max(row) for row in labeled)
        mean_probs = moved(mean_probs, mean_row(unaligned), ema_decay)
        mean_labeled = moved(mean_labeled, mean_row(labeled), ema_decay)
        yield [float(max(row) >= needed) for row in aligned], labels_of(aligned)


def dash(steps: list[Step], classifier: nn.Linear, warmup: float = 0.05) -> Iterator[Answer]:
    losses: Row = []
    for step in steps:
        if warmup / 2 <= step.progress < warmup:
            rows = zip(step.logits_labeled, step.targets_labeled, strict=True)
            losses += [-math.log(softmax(row)[target]) for row, target in rows]
        first = statistics.mean(losses) if losses else math.log(len(classifier.bias))
        num_falls = math.floor(max(step.progress - warmup, 0) * 1024 / 10)
        limit = max(1.0001 * 1.27**-num_falls * first, 0.05)
        trains = step.progress >= warmup
        yield [float(trains and -math.log(max(softmax(row))) <= limit) for row in step.logits], labels_of(step.logits)


def dpl(steps: list[Step], main_classifier: nn.Linear, /, **parameters: Any) -> Iterator[Answer]:
    defaults = {"ema_decay": 0.99, "rule": "gaussian", "cut": "confidence", "epsilon": 0.02, "alignment": True}
    chosen = defaults | parameters
    chosen.pop("classifier_from", None)  # says what the loss moves, not what a sample counts
    kind = OpenReference if chosen.pop("open_set", False) else Reference
    reference = kind(main_classifier, decay=chosen.pop("ema_decay"), **chosen)
    for number, step in enumerate(steps):
        if isinstance(reference, OpenReference):
            reference.labeled = step.features_labeled, step.targets_labeled
        weights = reference.weights(step.features, step.logits, number / len(steps))
        yield weights, reference.labels
