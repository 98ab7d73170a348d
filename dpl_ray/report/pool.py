"""What a report says of the pool: what the policy takes of it beyond FixMatch, by entropy.

Legend: N images of the sample, C classes.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dpl_ray.data.dataset import UNLABELED, ImageSet, Splits
from dpl_ray.data.pool.windows import StreamedPool
from dpl_ray.inference.label_batch import label_batch
from dpl_ray.page.html import MISSING, Section, Table
from dpl_ray.page.plots import draw, legend_above
from dpl_ray.report.verdict import wilson_interval
from dpl_ray.store.storage import Storage
from dpl_ray.training.checkpoint import load_classifier, load_policy
from dpl_ray.training.metrics import HIGH_ENTROPY_CONFIDENCE

MAX_IMAGES = 5000
MAX_BYTES = 2**28  # of them, decoded
MAX_SECONDS = 30.0  # of predicting: a large network on a small driver labels fewer images
BATCH_SIZE = 250
ROWS_PER_PIECE = 100  # that follow each other in a streamed pool's files
NUM_BINS = 24
MIN_KNOWN = 5  # images with a known label of a bar whose precision is drawn


@dataclass(frozen=True)
class PoolSample:
    """A random sample of the pool as the last student reads it, without augmentation."""

    pool_size: int
    num_classes: int
    entropy: NDArray[np.float32]  # (N,) nats
    confidence: NDArray[np.float32]  # (N,) as the policy aligns it
    weights: NDArray[np.float32]  # (N,)
    labels: NDArray[np.int64]  # (N,) pseudo-labels
    targets: NDArray[np.int64]  # (N,) UNLABELED where unknown, or FOREIGN
    num_crossed: int = 0  # dpl: how often in the training a class had its two states in the wrong order


def label_sample(checkpoint: str, splits: Splits, max_seconds: float = MAX_SECONDS) -> PoolSample | None:
    """Label at most MAX_IMAGES images of the pool on this machine's CPU, drawn at random with a fixed seed.

    None where not one image of a streamed pool can be read any more.
    """
    images, targets = _draw(splits.unlabeled, min(MAX_IMAGES, MAX_BYTES // splits.labeled.images[0].nbytes))
    if not len(images):
        return None
    student, _, _ = load_classifier(Storage(checkpoint), "student")
    policy = load_policy(Storage(checkpoint))
    student = student.to(memory_format=torch.channels_last)
    found: list[dict[str, Any]] = []
    began = time.monotonic()
    for start in range(0, len(images), BATCH_SIZE):
        batch = label_batch(student, policy, torch.from_numpy(images[start : start + BATCH_SIZE]))
        found.append({name: values.numpy() for name, values in batch.items() if values is not None})
        if time.monotonic() - began > max_seconds:
            break

    def column(name: str) -> NDArray:
        return np.concatenate([batch[name] for batch in found])

    labels = column("pseudo_label")
    return PoolSample(
        pool_size=len(splits.unlabeled),
        num_classes=len(splits.class_names),
        entropy=column("entropy"),
        confidence=column("confidence"),
        weights=column("weight"),
        labels=labels,
        targets=targets[: len(labels)],
        num_crossed=int(getattr(policy, "num_crossed", 0)),
    )


def _draw(pool: Any, size: int) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Images and targets in random order, so that the first ones are a random sample too."""
    random = np.random.default_rng(0)
    if isinstance(pool, ImageSet):
        rows = random.permutation(len(pool))[:size]
        return pool.images[rows], pool.targets[rows]
    assert isinstance(pool, StreamedPool)
    # Pieces, because a file is opened for each; those that overlap are drawn once.
    length = min(ROWS_PER_PIECE, len(pool))
    starts = random.permutation(len(pool) // length)[: max(1, size // length)] * length
    taken = [pool.take(int(start), length, seed=0) for start in starts]
    return np.concatenate([each.images for each in taken]), np.concatenate([each.targets for each in taken])


@dataclass(frozen=True)
class Part:
    """Samples and what they count."""

    weights: NDArray[np.float64]
    right: NDArray[np.bool_]
    known: NDArray[np.bool_]

    @property
    def counts(self) -> float:
        return float(self.weights.sum())

    @property
    def precision(self) -> float | None:
        """Weighted share of those with a known label that are right."""
        total = float(self.weights[self.known].sum())
        return float(self.weights[self.right].sum()) / total if total > 0 else None

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's for the precision, with Kish's effective number (sum w)^2 / sum w^2 as the number of trials."""
        weights = self.weights[self.known]
        number = float(weights.sum()) ** 2 / max(float((weights**2).sum()), 1e-12)
        return wilson_interval((self.precision or 0.0) * number, number)


def part(sample: PoolSample, mask: NDArray[np.bool_], *, fixmatch: bool) -> Part:
    """Some of the sample, as the policy counts it or as FixMatch would: 1 from a confidence of 0.95 on."""
    weights = sample.confidence >= HIGH_ENTROPY_CONFIDENCE if fixmatch else sample.weights
    known = sample.targets != UNLABELED
    return Part(weights[mask].astype(np.float64), (known & (sample.labels == sample.targets))[mask], known[mask])


def pool_section(sample: PoolSample, policy: str) -> Section:
    """The histogram of entropies, and its sums."""
    is_known = bool((sample.targets >= 0).any())
    heights, height = ((3, 2), 4.2) if is_known else ((1,), 3.0)
    drawing = draw(lambda *axes: _histogram(axes, sample, policy), height=height, width=4.6, heights=heights)
    return Section(
        title="What high-entropy exploration brings",
        drawings={"entropy": drawing},
        num_images=len(sample.labels),
        pool_size=sample.pool_size,
        policy=policy,
        limit=HIGH_ENTROPY_CONFIDENCE,
        num_known=int((sample.targets != UNLABELED).sum()),
        least_known=MIN_KNOWN,
        sums=_sums(sample, policy),
    )


def _sums(sample: PoolSample, policy: str) -> Table:
    above = sample.confidence >= HIGH_ENTROPY_CONFIDENCE
    masks = {f"{HIGH_ENTROPY_CONFIDENCE} and above": above, f"below {HIGH_ENTROPY_CONFIDENCE}": ~above}
    masks["all"] = np.ones_like(above)
    rows = [["images", *(f"{mask.sum():,}" for mask in masks.values())]]
    for name, fixmatch in (("FixMatch", True), (policy, False)):
        parts = [part(sample, mask, fixmatch=fixmatch) for mask in masks.values()]
        rows.append([f"{name} counts", *(f"{found.counts:,.0f}" for found in parts)])
        if (sample.targets >= 0).any():
            rows.append(["their precision", *map(_precision, parts)])
    return Table("What is counted of the sample, by confidence", ["", *masks], rows)


def _precision(found: Part) -> str:
    if found.precision is None:
        return MISSING
    low, high = found.interval
    return f"{100 * found.precision:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"


def _histogram(axes: Any, sample: PoolSample, policy: str) -> None:
    """Bars of entropy, and in a second drawing below, where there is one, the precision of each."""
    bars, *others = axes
    edges = np.linspace(0, math.log(sample.num_classes), NUM_BINS + 1)
    centres, width = (edges[:-1] + edges[1:]) / 2, edges[1]
    places = np.clip(np.digitize(sample.entropy, edges) - 1, 0, NUM_BINS - 1)
    above = sample.confidence >= HIGH_ENTROPY_CONFIDENCE
    heights = {
        "FixMatch takes these": np.bincount(places, above, NUM_BINS),
        f"{policy} takes in addition": np.bincount(places, ~above * sample.weights, NUM_BINS),
        "left out": np.bincount(places, ~above * (1 - sample.weights), NUM_BINS),
    }
    styles: tuple[dict[str, Any], ...] = ({"color": "0.25"}, {"color": "0.8", "hatch": "////"}, {"color": "white"})
    bottom = np.zeros(NUM_BINS)
    for (name, values), style in zip(heights.items(), styles, strict=True):
        bars.bar(centres, values, width, bottom=bottom, label=name, edgecolor="0.1", linewidth=0.7, **style)
        bottom += values
    _clip(bars, centres, bottom)
    bars.set_ylabel("images (by weight)")
    legend_above(bars)
    axes[-1].set_xlim(0, edges[-1])
    axes[-1].set_xlabel(f"entropy (nats; {edges[-1]:.2f} is that of {sample.num_classes} equal probabilities)")
    for below in others:
        _precisions(below, sample, policy, centres, places)


def _precisions(below: Any, sample: PoolSample, policy: str, centres: NDArray, places: NDArray) -> None:
    above = sample.confidence >= HIGH_ENTROPY_CONFIDENCE
    for mask, fixmatch, marker, face, name in (
        (above, True, "o", "0.25", "FixMatch's"),
        (~above, False, "^", "white", f"{policy}'s in addition"),
    ):
        found = [part(sample, mask & (places == place), fixmatch=fixmatch) for place in range(NUM_BINS)]
        shares = [bar.precision if bar.known.sum() >= MIN_KNOWN else None for bar in found]
        drawn = [(x, 100 * share) for x, share in zip(centres, shares, strict=True) if share is not None]
        if drawn:
            below.plot(*zip(*drawn, strict=True), marker, color="0.1", markerfacecolor=face, markersize=5, label=name)
    below.set_ylim(-4, 104)
    below.set_ylabel("precision (%)")
    if below.lines:
        legend_above(below)


def _clip(axes: Any, centres: NDArray, totals: NDArray) -> None:
    """Cut a bar that is so high that the others could not be seen, and write its height beside it."""
    highest, second = np.sort(totals)[[-1, -2]]
    if second and highest > 3 * second:
        place = int(np.argmax(totals))
        top = 1.6 * second
        axes.set_ylim(0, top)
        text = f" cut: {totals[place]:,.0f}"
        side = "left" if place < len(totals) / 2 else "right"
        x = centres[place] + (centres[1] - centres[0]) / 2 * (1 if side == "left" else -1)
        axes.text(x, top * 0.97, text, ha=side, va="top", fontsize=8.5)
