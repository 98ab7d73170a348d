"""open_set.py against loops over lists of floats.

Legend: U unlabelled, B labelled images, C classes, D features.
"""

from __future__ import annotations

import math
from statistics import NormalDist

import pytest
import torch

from dpl_ray.algorithm.open_set import ForeignImages
from tests.algorithm.test_dpl import Reference, Row


def unit(row: Row) -> Row:
    length = max(math.sqrt(sum(value * value for value in row)), 1e-12)
    return [value / length for value in row]


class OpenState:
    """Moving sums: lists in place of tensors."""

    def __init__(self, num_features: int, num_classes: int, decay: float) -> None:
        self.decay = decay
        self.num_pool, self.pool = 0.0, [0.0] * num_features
        self.classes = [[0.0] * num_features for _ in range(num_classes)]
        self.near = [0.0] * 3

    def centred(self, row: Row) -> Row:
        return unit([value - total / max(self.num_pool, 1) for value, total in zip(row, self.pool, strict=True)])

    def nearness(self, row: Row) -> float:
        mine = self.centred(row)
        cosines = [sum(a * b for a, b in zip(mine, unit(mean), strict=True)) for mean in self.classes]
        return 0.5 * math.log(sum(math.exp(cosine / 0.5) for cosine in cosines) / len(cosines))

    def see(self, features: list[Row], labeled: list[Row], targets: list[int]) -> None:
        near, d = [self.nearness(row) for row in features], self.decay
        centred = [self.centred(row) for row in labeled]
        self.near = [d * total + sum(s**power for s in near) for power, total in enumerate(self.near)]
        self.classes = [[d * value for value in row] for row in self.classes]
        for row, target in zip(centred, targets, strict=True):
            self.classes[target] = [a + b for a, b in zip(self.classes[target], row, strict=True)]
        self.num_pool = d * self.num_pool + len(features)
        self.pool = [d * total + sum(row[k] for row in features) for k, total in enumerate(self.pool)]

    def rank(self, row: Row) -> float:
        number, total, squares = self.near
        mean = total / max(number, 1)
        deviation = math.sqrt(max(squares / max(number, 1) - mean**2, 0)) + 1e-6
        return NormalDist().cdf((mean - self.nearness(row)) / deviation)


class OpenReference(Reference):
    """The method with `open_set`: an image that looks foreign counts less."""

    labeled: tuple[list[Row], list[int]]
    open: OpenState | None = None

    def see(self, features: list[Row]) -> None:
        self.open = self.open or OpenState(len(features[0]), self.num_classes, self.decay)
        self.open.see(features, *self.labeled)

    def weight(self, features: Row, label: int, confidence: float) -> float:
        state = self.open or OpenState(len(features), self.num_classes, self.decay)
        return super().weight(features, label, confidence) * (1 - state.rank(features)) ** 2


def test_foreign_images_look_more_foreign_than_all_others() -> None:
    """Three classes lie along three axes, foreign images along others."""
    generator, images, expected = torch.Generator().manual_seed(0), ForeignImages(6, 3), OpenState(6, 3, 0.9)
    targets, rows = torch.arange(12) % 3, torch.arange(100) % 6
    for _ in range(5):
        pool = 2 * torch.eye(6)[rows] + torch.randn(100, 6, generator=generator) / 4
        labeled = 2 * torch.eye(6)[targets] + torch.randn(12, 6, generator=generator) / 4
        expected.see(pool.tolist(), labeled.tolist(), targets.tolist())
        images.update(images.statistics(pool, labeled, targets), 0.9)
    found = images.rank(pool)
    assert found.tolist() == pytest.approx([expected.rank(row) for row in pool.tolist()], abs=1e-6)
    assert found[rows >= 3].min() > found[rows < 3].max()
