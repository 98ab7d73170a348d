"""How often a certified labelling is wrong, on simulated pools: `python -m benchmarks.certificate --save`.

The images have ten classes. Those of five hard classes are wrong three times as often, at the same confidence, as those
of five easy ones. Held-out labels are drawn again and again; each time the thresholds of
dpl_ray/labeling/certificate.py select from the pool, of which the true error is known.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.figures import Figure, add_save, report
from dpl_ray.labeling.certificate import choose_thresholds, compare_shares, num_passed
from dpl_ray.labeling.certificate_page import LEVEL
from dpl_ray.labeling.held_out import NUM_SAMPLE

NUM_CLASSES, NUM_HARD = 10, 5
POOL_SIZE = 400_000
EVEN = np.full(NUM_CLASSES, 1 / NUM_CLASSES)
MORE_HARD = np.where(np.arange(NUM_CLASSES) < NUM_HARD, 0.18, 0.02)


@dataclass(frozen=True)
class World:
    """What a model says of images, and how often it is wrong."""

    sharpness: float  # of the confidence: with 1 it is calibrated, and above it too high
    top_wrong: float = 0.0  # probability that an image of the highest confidence is wrong all the same
    shares: NDArray[np.float64] | None = None  # (C,) of the pool's classes, where they are not even

    def draw(
        self, number: int, shares: NDArray[np.float64], random: np.random.Generator
    ) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.bool_]]:
        """(N,) pseudo-labels, confidences, and whether they are wrong."""
        labels = random.choice(NUM_CLASSES, number, p=shares)
        confidence = 1 - 0.9 * random.beta(0.5, 4, number)
        factor = np.where(labels < NUM_HARD, 1.5, 0.5)
        wrong = ((1 - confidence) * factor).clip(0, 1) ** (1 / self.sharpness)
        wrong = np.where(confidence > 0.995, np.maximum(wrong, self.top_wrong), wrong)
        return labels, confidence.astype(np.float32), random.random(number) < wrong


WORLDS = {
    "calibrated": World(1),
    "overconfident": World(1.5),
    "most confident ones wrong": World(1, top_wrong=0.1),
    "pool of other classes": World(1, shares=MORE_HARD),
}


@dataclass(frozen=True)
class Repeated:
    """What came of R repetitions."""

    coverage: NDArray[np.float64]  # (R,) selected share of the pool
    error: NDArray[np.float64]  # (R,) of the selected labels, the largest of the classes with a threshold each
    warned: NDArray[np.bool_]  # of the first 100, whether the classes of held-out labels and pool were found to differ


def repeat(
    world: World, num_labels: int, max_error: float, confidence: float, num_times: int, *, by_class: bool = False
) -> Repeated:
    """Draw held-out labels so often, and certify the pool by each draw."""
    random = np.random.default_rng(0)
    shares = EVEN if world.shares is None else world.shares
    labels, scores, wrong = world.draw(POOL_SIZE, shares, random)
    all_drawn: Any = [each.reshape(num_times, -1) for each in world.draw(num_times * num_labels, EVEN, random)]
    held_labels, held_scores, held_wrong = all_drawn  # (R, N) each
    groups = range(NUM_CLASSES) if by_class else [None]
    level = 1 - (1 - confidence) / len(groups)
    selected, errors = np.zeros(num_times), np.zeros(num_times)
    for group in groups:
        mine = np.ones(POOL_SIZE, bool) if group is None else labels == group
        held = np.ones_like(held_wrong) if group is None else held_labels == group
        thresholds = choose_thresholds(
            scores[:NUM_SAMPLE][mine[:NUM_SAMPLE]], int(held.sum(1).mean()), max_error, level
        )
        if not len(thresholds):
            continue
        counts = _by_threshold(thresholds, held_scores, held)
        bad = _by_threshold(thresholds, held_scores, held & held_wrong)
        passed = num_passed(counts, bad, max_error, level)
        of_pool = _by_threshold(thresholds, scores[None], mine[None])
        bad_of_pool = _by_threshold(thresholds, scores[None], (mine & wrong)[None])
        place = np.maximum(passed - 1, 0)
        chosen = np.where(passed > 0, of_pool[0][place], 0)
        selected += chosen
        errors = np.maximum(errors, np.where(chosen > 0, bad_of_pool[0][place] / np.maximum(chosen, 1), 0))
    pool = np.bincount(labels, minlength=NUM_CLASSES).tolist()
    warned = [
        compare_shares(np.bincount(row, minlength=NUM_CLASSES).tolist(), pool)[1] < LEVEL for row in held_labels[:100]
    ]
    return Repeated(selected / POOL_SIZE, errors, np.array(warned))


def _by_threshold(
    thresholds: NDArray[np.float32], scores: NDArray[np.float32], counted: NDArray[np.bool_]
) -> NDArray[np.int64]:
    """(R, J) how many of (R, N) scores, of those that are counted, each threshold selects."""
    first = np.searchsorted(-thresholds, -scores, side="left")  # the strictest threshold that selects it
    rows, num_thresholds = len(scores), len(thresholds)
    cells = np.arange(rows)[:, None] * num_thresholds + first
    counts = np.bincount(cells[counted], minlength=rows * num_thresholds).reshape(rows, num_thresholds)
    return counts.cumsum(axis=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labels", type=int, default=1000, help="held-out labels of each draw")
    parser.add_argument("--max-error", type=float, default=0.05)
    parser.add_argument("--confidence", type=float, default=0.95)
    parser.add_argument("--times", type=int, default=2000, help="draws")
    add_save(parser, "certificate")
    given = parser.parse_args()
    figures: dict[str, dict[str, Figure]] = {}
    for by_class in (False, True):
        # Each class has as many labels as all have otherwise, so fewer draws are made.
        num_labels, times = given.labels * (NUM_CLASSES if by_class else 1), given.times // (10 if by_class else 1)
        for name, world in WORLDS.items():
            found = repeat(world, num_labels, given.max_error, given.confidence, times, by_class=by_class)
            figures[f"{name}{', by class' if by_class else ''}"] = {
                "labels": Figure(num_labels),
                "draws": Figure(times),
                "true error above the bound": Figure(100 * float((found.error > given.max_error).mean()), "%"),
                "true error in 95 % of the draws": Figure(100 * float(np.quantile(found.error, 0.95)), "%"),
                "coverage": Figure(100 * float(found.coverage.mean()), "%"),
                "nothing certified": Figure(100 * float((found.coverage == 0).mean()), "%"),
                "warned": Figure(100 * float(found.warned.mean()), "%"),
            }
    report("certificate", figures, given.save)


if __name__ == "__main__":
    main()
