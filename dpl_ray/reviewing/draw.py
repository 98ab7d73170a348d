"""Which labels of a pool a person looks at: a random draw, stratified by class and confidence.

A stratum is a cell of the labels (dpl_ray/reviewing/labels.py): a class and a bin of confidence. A small one is taken
together with the next classes of the same bin, so that some MIN_IMAGES are drawn of each. The images are shared out in
proportion to the labels and rounded at random, by the pivotal method (J.-C. Deville and Y. Tille, Biometrika 85, 1998,
pp. 89-101). Within a stratum the draw is simple, without replacement. So every label has the same probability.

The images stand in a random order, so that the first ones, too, are such a draw.

Legend: S strata, M cells, I inputs.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpl_ray.labeling.parts import read_counts
from dpl_ray.reviewing.labels import Labels, digest

MIN_IMAGES = 4  # of a stratum
_NUM_THREADS = 16  # that read parts: they wait for the storage
_Ranks = dict[int, list[int]]  # stratum -> places in it


@dataclass(frozen=True)
class Drawn:
    """A label that was drawn."""

    sample_id: str
    label: int
    confidence: float
    runners_up: tuple[tuple[int, float | None], ...]  # class index and probability
    cell: int


@dataclass(frozen=True)
class Draw:
    """What was drawn, and of how many."""

    review: str  # names the labels, and the draw
    class_names: tuple[str, ...]
    num: int  # asked for
    seed: int
    cells: tuple[int, ...]  # (M,) labels of each cell
    num_strata: int
    items: tuple[Drawn, ...]
    is_random: bool = True  # false of images that `suggest` has chosen: they say nothing of the other labels

    @property
    def probability(self) -> float:
        """With which each label was drawn."""
        return len(self.items) / sum(self.cells)


def draw_labels(labels: Labels, num: int, seed: int) -> Draw:
    """Draw so many labels, or all where there are no more; a function of the labels, the number and the seed.

    Of the labels, only the manifests and the parts with drawn rows are read, and the counts in the footers of the other
    parts of the same inputs.

    Raises:
        ValueError: there is no label, or a part does not hold what the manifests say.
    """
    cells = labels.counts.sum(axis=0)
    if not cells.any():
        raise labels.location.error("has no label: every image is unreadable")
    strata = choose_strata(cells, labels.num_bins, num)
    inputs = np.stack([_sum_by(strata, each) for each in labels.counts])  # (I, S)
    sizes = inputs.sum(axis=0)
    random = np.random.default_rng(seed)
    numbers = allocate(sizes, num, random)
    ranks = [
        np.sort(random.choice(size, number, replace=False))
        for size, number in zip(sizes.tolist(), numbers.tolist(), strict=True)
    ]
    parts = [
        found
        for number, wanted in _locate(inputs, ranks)
        for found in _find_parts(labels, labels.parts_of(number), strata, wanted)
    ]
    with ThreadPoolExecutor(_NUM_THREADS) as executor:
        read = executor.map(lambda found: _read_rows(labels, found[0], strata, found[1]), parts)
        items = [item for of_part in read for item in of_part]
    items = [items[place] for place in random.permutation(len(items))]
    given = {"num": num, "seed": seed, "cells": cells.tolist(), "items": [asdict(item) for item in items]}
    return Draw(
        review=f"{labels.identity}-{digest(given)}",
        class_names=labels.class_names,
        num=num,
        seed=seed,
        cells=tuple(cells.tolist()),
        num_strata=len(sizes),
        items=tuple(items),
    )


def choose_strata(cells: NDArray[np.int64], num_bins: int, num: int) -> NDArray[np.int64]:
    """(M,) stratum of each cell, -1 of an empty one, for a draw of so many labels.

    Args:
        cells: (M,) labels of each.
    """
    made = np.full(len(cells), -1)
    if num >= cells.sum():  # nothing is left to chance
        made[cells > 0] = 0
        return made
    least, count = MIN_IMAGES * cells.sum() / num, 0
    places = np.arange(len(cells)).reshape(2, -1, num_bins).transpose(0, 2, 1).reshape(2, -1)
    for half in places:  # selected, rejected: by confidence and then by class
        first, size = count, 0
        for place in half[cells[half] > 0]:
            made[place], size = count, size + cells[place]
            if size >= least:
                count, size = count + 1, 0
        if size and count > first:
            made[half[made[half] == count]] = count - 1
        elif size:
            count += 1
    return made


def allocate(sizes: NDArray[np.int64], num: int, random: np.random.Generator) -> NDArray[np.int64]:
    """(S,) images to draw of each stratum, of num: in proportion to its labels (S,) on average, and rounded."""
    shares = min(1.0, num / sizes.sum()) * sizes
    numbers = np.floor(shares).astype(np.int64)
    open_, left = 0, 0.0  # a stratum that may get one more, and the probability of that
    for place, part in enumerate((shares - numbers).tolist()):
        whole = left + part
        if whole < 1:  # one of both is out
            if random.random() * whole >= left:
                open_ = place
            left = whole
        else:  # one of both gets one more
            gets = open_ if random.random() * (2 - whole) < 1 - part else place
            numbers[gets] += 1
            open_, left = open_ + place - gets, whole - 1
    numbers[open_] += round(left)
    return numbers


def _sum_by(strata: NDArray[np.int64], cells: NDArray[np.int64]) -> NDArray[np.int64]:
    """(S,) labels of each stratum."""
    sums = np.zeros(strata.max() + 1, np.int64)
    np.add.at(sums, strata[strata >= 0], cells[strata >= 0])
    return sums


def _locate(counts: NDArray[np.int64], ranks: Any) -> Iterator[tuple[int, _Ranks]]:
    """Of places in whole strata, the pieces that they are in, and the places in those.

    Args:
        counts: (pieces, S) labels of each. ranks: stratum -> places, as a list or a dict.
    """
    found: dict[int, _Ranks] = {}
    for stratum, wanted in ranks.items() if isinstance(ranks, dict) else enumerate(ranks):
        ends = np.cumsum(counts[:, stratum])
        for rank in np.asarray(wanted).tolist():
            piece = int(np.searchsorted(ends, rank, side="right"))
            before = int(ends[piece] - counts[piece, stratum])
            found.setdefault(piece, {}).setdefault(stratum, []).append(rank - before)
    yield from sorted(found.items())


def _find_parts(labels: Labels, parts: range, strata: NDArray[np.int64], ranks: _Ranks) -> Iterator[tuple[str, _Ranks]]:
    """The parts of an input that places of strata are in, and the places in those parts."""
    if len(parts) == 1:
        yield labels.part_name(parts[0]), ranks
        return
    names = [labels.part_name(part) for part in parts]
    rows = labels.num_rows[parts.start : parts.stop].tolist()
    with ThreadPoolExecutor(_NUM_THREADS) as executor:
        counts = list(executor.map(lambda name, num_rows: read_counts(labels.storage / name, num_rows), names, rows))
    if None in counts:
        raise labels.location.error(f"{names[counts.index(None)]} is missing or damaged")
    sums = np.stack([_sum_by(strata, labels.cells(each)) for each in counts if each])
    yield from ((names[number], wanted) for number, wanted in _locate(sums, ranks))


def _read_rows(labels: Labels, part: str, strata: NDArray[np.int64], ranks: _Ranks) -> list[Drawn]:
    table, cells = labels.rows(part)
    of_rows = np.where(cells < 0, -1, strata[cells])
    items = []
    for stratum, wanted in ranks.items():
        places = np.flatnonzero(of_rows == stratum)
        if wanted[-1] >= len(places):
            raise labels.location.error(f"{part} does not hold the labels that were counted")
        rows = places[wanted]
        for place, row in zip(rows.tolist(), table.take(rows).to_pylist(), strict=True):
            others = [(row.get(f"{name}_label"), row.get(f"{name}_confidence")) for name in ("second", "third")]
            runners_up = tuple((label, share) for label, share in others if label is not None)
            cell = int(cells[place])
            items.append(Drawn(row["sample_id"], row["pseudo_label"], row["confidence"], runners_up, cell))
    return items
