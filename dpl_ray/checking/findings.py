"""What is found in the data without reading any of it again: the short form of a check, before every training.

Legend: C classes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal
from unicodedata import normalize

import numpy as np
from rich.console import Console

from dpl_ray.config.schema import FILE_FORMS, Config
from dpl_ray.data.dataset import Conflict, Splits
from dpl_ray.data.splits.copies import describe_copies
from dpl_ray.page.console import show

Level = Literal["error", "warning", "note"]
UNEQUAL = 10  # times as many labelled images as of another class
MIN_SINGULAR = 3  # letters of a name that may have a plural
OWN = (*FILE_FORMS, "arrays", "features")


@dataclass(frozen=True)
class Finding:
    """Something about the data that a user should know, and what helps."""

    level: Level  # error: a training would stop
    text: str
    remedy: str = ""

    def __str__(self) -> str:
        return f"{self.level}: {self.text}" + (f"; {self.remedy}" if self.remedy else "")


def quick_findings(config: Config, splits: Splits) -> list[Finding]:
    """What a training says of its data before it begins; of published data sets nothing."""
    if config.data.name not in OWN:
        return []
    found = [*conflict_findings(splits.copies.conflicts), *data_findings(splits), *scoring_findings(config, splits)]
    if told := describe_copies(splits.copies, config.data):
        found.append(Finding("warning" if config.data.allow_overlap else "note", told))
    return found


def show_findings(console: Console, findings: Iterable[Finding]) -> None:
    """A line each."""
    for finding in findings:
        show(console, str(finding), wraps=True)


def data_findings(splits: Splits) -> list[Finding]:
    """Of names and shares."""
    return [*_names(splits.class_names), *_shares(splits)]


def conflict_findings(conflicts: Sequence[Conflict]) -> Iterator[Finding]:
    """One image under several labels."""
    if conflicts:
        first = conflicts[0]
        yield Finding(
            "warning",
            f"{_count(len(conflicts), 'image')} under two labels, as {first.first_id} ({first.first_class}) and "
            f"{first.second_id} ({first.second_class})",
            "remove the wrong one",
        )


def scoring_findings(config: Config, splits: Splits) -> Iterator[Finding]:
    """That nothing tells how good the model will be; where arrays are given, the program that gives them knows."""
    if not len(splits.test) and config.data.name != "arrays":
        remedy = "set data.test, or label two images of a class"
        yield Finding("note", "no test image: how good the model is will not be known", remedy)


def _names(class_names: Sequence[str]) -> Iterator[Finding]:
    """Names that nobody can tell apart but a computer."""
    for one, other, difference in similar_names(class_names):
        yield Finding(
            "warning",
            f"the classes {one} and {other} differ in {difference} alone",
            "give them one name if they are one",
        )


def similar_names(class_names: Sequence[str]) -> list[tuple[str, str, str]]:
    """Pairs of names, and what they differ in: case, blanks, Unicode form or plural."""
    found: list[tuple[str, str, str]] = []
    seen: dict[str, str] = {}
    for name in class_names:
        key = _key(name)
        if (other := seen.setdefault(key, name)) != name:
            found.append((other, name, _difference(other, name)))
    for key, name in seen.items():
        if len(key) >= MIN_SINGULAR and key.isalpha():
            plurals = [f"{key}s", f"{key}es", *([f"{key[:-1]}ies"] if key.endswith("y") else [])]
            found += [(name, seen[plural], "their plural") for plural in plurals if plural in seen]
    return found


def _key(name: str) -> str:
    return re.sub(r"[\s_-]+", "", normalize("NFKC", name).casefold()) or name


def _difference(one: str, other: str) -> str:
    if one.casefold() == other.casefold():
        return "their case"
    if normalize("NFKC", one) == normalize("NFKC", other):
        return "their Unicode form"
    return "blanks, hyphens, underscores or case"


def _shares(splits: Splits) -> Iterator[Finding]:
    true = splits.labeled.targets[: len(splits.labeled) - splits.num_pseudo_labeled]
    counts = np.bincount(true, minlength=len(splits.class_names))
    least, most = int(counts.argmin()), int(counts.argmax())
    if counts[most] >= max(1, UNEQUAL * counts[least]):
        yield Finding(
            "warning",
            f"{counts[most]:,} labelled images of {splits.class_names[most]}, but {counts[least]:,} of "
            f"{splits.class_names[least]}",
            "label more of the rare classes, and read the balanced accuracy",
        )
    without = set(range(len(counts))) - set(splits.test.targets.tolist())
    if without and len(splits.test):
        names = ", ".join(splits.class_names[index] for index in sorted(without)[:5])
        more = f" and {len(without) - 5} more" if len(without) > 5 else ""
        yield Finding("note", f"no test image of {names}{more}", "accuracy says nothing of them")


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"
