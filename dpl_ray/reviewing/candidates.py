"""Candidates for a suggestion: a bounded draw from the labels of a pool of any size, by the numbers that they carry.

At most some MAX_ROWS labels are looked at: those of parts that are drawn at random, of which only a few columns are
read. Of these, images are drawn by their worth (dpl_ray/reviewing/choice.py).

Legend: N candidates.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dpl_ray.labeling.ledger import Part
from dpl_ray.reviewing.choice import balance, draw_keys, mass, worth
from dpl_ray.reviewing.labels import Labels

MAX_ROWS = 2**21
_COLUMNS = ("pseudo_label", "confidence", "second_confidence", "threshold_over")
_NUM_THREADS = 16  # that read parts: they wait for the storage


@dataclass(frozen=True)
class Candidates:
    """What was drawn, and from how much."""

    sample_ids: list[str]  # (N,)
    masses: NDArray[np.float32]  # (N,) what each counts
    num_seen: int  # labels that were looked at
    num_labels: int  # of the pool


def draw_candidates(labels: Labels, number: int, seed: int) -> Candidates:
    """A function of the labels, the number and the seed.

    Raises:
        ValueError: a part cannot be read, or the model is sure of every image.
    """
    parts = labels.parts
    order = np.random.default_rng([seed, 0]).permutation(len(parts))
    sizes = np.array([part.num_rows for part in parts])[order]
    num_parts = int(np.searchsorted(np.cumsum(sizes), MAX_ROWS)) + 1
    places = np.sort(order[:num_parts])
    kept, totals = np.empty((0, 5)), np.zeros(len(labels.class_names))  # key, worth, class, part, row
    with ThreadPoolExecutor(_NUM_THREADS) as executor:
        for found in executor.map(lambda place: _rated(labels, parts[place], seed, place), places.tolist()):
            totals += np.bincount(found[:, 2].astype(np.int64), found[:, 1], len(totals))
            kept = np.concatenate([kept, found])
            kept = kept[np.argsort(-kept[:, 0], kind="stable")[: number + 1]]
        if not len(kept):
            raise labels.location.error("the model is sure of every image, or none can be read: nothing is suggested")
        left = kept[number, 0] if len(kept) > number else -np.inf
        drawn = kept[:number]
        drawn = drawn[np.lexsort((drawn[:, 4], drawn[:, 3]))]
        of_parts = np.split(drawn, np.flatnonzero(np.diff(drawn[:, 3])) + 1)
        ids = executor.map(lambda some: _ids(labels, parts[int(some[0, 3])], some[:, 4].astype(np.int64)), of_parts)
        return Candidates(
            sample_ids=[sample_id for some in ids for sample_id in some],
            masses=balance(mass(drawn[:, 1], left), drawn[:, 2].astype(np.int64), totals),
            num_seen=int(sizes[:num_parts].sum()),
            num_labels=int(sizes.sum()),
        )


def _rated(labels: Labels, part: Part, seed: int, place: int) -> NDArray[np.float64]:
    """(rows, 5) of the labels of a part that have a worth: key, worth, class, part, row."""
    table = labels.read(part.name, _COLUMNS)

    def column(name: str) -> NDArray[np.float32] | None:
        if name not in table.column_names or table[name].null_count == len(table):
            return None
        found: NDArray[np.float32] = table[name].cast(pa.float32()).fill_null(0).to_numpy()
        return found

    confidence, second, classes = (column(name) for name in ("confidence", "second_confidence", "pseudo_label"))
    if confidence is None or classes is None:
        return np.empty((0, 5))
    # Labels of older versions have no runners-up.
    worths = worth(confidence, np.zeros_like(confidence) if second is None else second, column("threshold_over"))
    worths = np.where(table["pseudo_label"].is_valid().to_numpy(), worths, 0)
    keys = draw_keys(worths, np.random.default_rng([seed, 1, place]))
    rows = np.flatnonzero(worths)
    return np.stack([keys[rows], worths[rows], classes[rows], np.full(len(rows), place), rows], axis=1)


def _ids(labels: Labels, part: Part, rows: NDArray[np.int64]) -> list[str]:
    ids: list[str] = labels.read(part.name, ["sample_id"])["sample_id"].take(rows).to_pylist()
    return ids
