"""What copies mean for a training, in sentences: which of them make an accuracy false, and which cost nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from dpl_ray.checking.copies import Pairs, Rows
from dpl_ray.checking.findings import OWN, Finding, Level, conflict_findings
from dpl_ray.config.schema import DataConfig
from dpl_ray.data.dataset import Conflict, ImageSet

Parts = Mapping[str, ImageSet]


def copy_findings(
    found: Sequence[Pairs], parts: Parts, class_names: Sequence[str], data: DataConfig, *, is_streamed: bool
) -> Iterator[Finding]:
    """One for every two sets with copies, and one for images under two labels.

    Args:
        is_streamed: whether the pool is a sample of one that is streamed.
    """
    conflicts: list[Conflict] = []
    findings: list[Finding] = []
    for pairs in found:
        at_odds = _at_odds(pairs, parts, data)
        conflicts += [_conflict(pairs, parts, class_names, one, other) for one, other in pairs.exact[at_odds].tolist()]
        if not at_odds.all():
            level, remedy = _meaning(pairs, data, is_streamed=is_streamed)
            findings.append(Finding(level, _sentence(pairs, parts, pairs.exact[~at_odds], "copies"), remedy))
        if len(pairs.near):
            level = "warning" if pairs.second == "test" and pairs.first in ("labelled", "validation") else "note"
            findings.append(Finding(level, _sentence(pairs, parts, pairs.near, "near copies"), "the page shows some"))
    yield from conflict_findings(conflicts)
    yield from findings


def _at_odds(pairs: Pairs, parts: Parts, data: DataConfig) -> NDArray[np.bool_]:
    """(P,) whether exact copies have different labels, where these are of one field; the pool's are not used."""
    if pairs.second == "pool" or (pairs.second == "test" and pairs.first != "test" and data.test is not None):
        return np.zeros(len(pairs.exact), bool)
    ones, others = (parts[name].targets[pairs.exact[:, at]] for at, name in enumerate((pairs.first, pairs.second)))
    return ones != others


def _meaning(pairs: Pairs, data: DataConfig, *, is_streamed: bool) -> tuple[Level, str]:
    """How grave copies of the same pixels are, and what becomes of them or helps."""
    first, second = pairs.first, pairs.second
    on_test = second == "test" and first != "test"
    if data.name not in OWN:
        return ("warning" if on_test else "note"), "published splits are kept as they are"
    if second == "pool":
        if first == "pool":
            return "note", "they count as often as they are there"
        if is_streamed and data.name != "features":
            return "warning", "a streamed pool keeps them: take them out"
        return "note", "a training keeps them" if data.allow_overlap else "a training leaves them out"
    if second == "test" and data.test is not None:
        if first == "test":
            return "note", "each of them counts in the accuracy"
        if data.allow_overlap:
            return "warning", "data.allow_overlap=true: accuracy on them is false"
        return "error", "accuracy on them is false; remove them on one side, or set data.allow_overlap=true"
    return "note", "a training keeps them" if data.allow_overlap else "a training keeps one of each"


def _sentence(pairs: Pairs, parts: Parts, rows: Rows, what: str) -> str:
    one, other = rows[0].tolist()
    same = pairs.first == pairs.second
    if len(rows) == 1:
        number, verb = f"1 {_named(pairs.second, 'image')}", f"is a {what.replace('copies', 'copy')} of"
        of = f"{'another' if same else 'a'} {_named(pairs.first, 'image')}"
    else:
        number, verb = f"{len(rows):,} {_named(pairs.second, 'images')}", f"are {what} of"
        of = f"{'other ' if same else ''}{_named(pairs.first, 'images')}"
    return f"{number} {verb} {of}, as {parts[pairs.second].ids[other]} of {parts[pairs.first].ids[one]}"


def _named(part: str, noun: str) -> str:
    return f"{noun} of the pool" if part == "pool" else f"{part} {noun}"


def _conflict(pairs: Pairs, parts: Parts, class_names: Sequence[str], one: int, other: int) -> Conflict:
    first, second = parts[pairs.first], parts[pairs.second]
    classes = class_names[first.targets[one]], class_names[second.targets[other]]
    return Conflict(str(first.ids[one]), classes[0], str(second.ids[other]), classes[1])


def flat_finding(parts: Parts) -> Iterator[Finding]:
    """Images that have one colour alone."""
    flat = [
        str(sample_id)
        for part in parts.values()
        for sample_id in part.ids[np.flatnonzero((part.images == part.images[:, :, :1, :1]).all(axis=(1, 2, 3)))]
    ]
    if flat:
        noun = "image is" if len(flat) == 1 else "images are"
        yield Finding("note", f"{len(flat):,} {noun} of one colour alone, as {flat[0]}", "remove what shows nothing")
