"""Candidates for a suggestion: a bounded draw from the labels of a pool of any size, by the numbers that they carry.

At most some MAX_ROWS labels are looked at: those of parts that are drawn at random, of which only a few columns are
read. Of these, images are drawn by their worth (dpl_ray/reviewing/choice.py).

Legend: N candidates, M labels of the parts.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dpl_ray.reviewing.choice import balance, draw_keys, mass, unsure, worth
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
        ValueError: a part cannot be read, or has no label.
    """
    random = np.random.default_rng(seed)
    order = random.permutation(len(labels.num_rows))
    ends = np.cumsum(labels.num_rows[order])
    num_parts = int(np.searchsorted(ends, MAX_ROWS)) + 1
    parts = [labels.part_name(place) for place in np.sort(order[:num_parts]).tolist()]
    with ThreadPoolExecutor(_NUM_THREADS) as executor:
        found = list(executor.map(lambda part: _look(labels, part), parts))
        if not any(len(rows) for rows, *_ in found):
            raise labels.location.error("has no label: every image is unreadable")
        row, classes, doubts = map(np.concatenate, zip(*found, strict=True))
        place = np.repeat(np.arange(len(parts)), [len(rows) for rows, *_ in found])
        worths = worth(doubts)
        keys = draw_keys(worths, random)
        best = np.argsort(-keys, kind="stable")
        drawn, left = np.sort(best[:number]), best[number:]
        of_parts = np.split(drawn, np.flatnonzero(np.diff(place[drawn])) + 1)
        ids = executor.map(lambda some: _ids(labels, parts[place[some[0]]], row[some]), of_parts)
        totals = np.bincount(classes, worths, len(labels.class_names))
        return Candidates(
            sample_ids=[sample_id for some in ids for sample_id in some],
            masses=balance(mass(worths[drawn], keys[left[0]] if len(left) else -np.inf), classes[drawn], totals),
            num_seen=len(row),
            num_labels=int(labels.counts.sum()),
        )


def _look(labels: Labels, part: str) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.floating]]:
    """The rows of a part that have labels, their classes, and how unsure the model is of each."""
    table = labels.read(part, _COLUMNS)
    rows = np.flatnonzero(table["pseudo_label"].is_valid().to_numpy())
    table = table.take(rows)
    known = {name: table[name].to_numpy() for name in table.column_names if not table[name].null_count}
    # Labels of older versions have no runners-up, those of most policies no such thresholds.
    second = known.get("second_confidence", np.zeros(len(rows), np.float32))
    return rows, known["pseudo_label"], unsure(known["confidence"], second, known.get("threshold_over"))


def _ids(labels: Labels, part: str, rows: NDArray[np.int64]) -> list[str]:
    ids: list[str] = labels.read(part, ["sample_id"])["sample_id"].take(rows).to_pylist()
    return ids
