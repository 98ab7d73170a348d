"""Globs of paths: *, ?, [...], ** for folders at any depth, and ranges of numbers as `shard-{00000..09999}.tar`."""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from unicodedata import normalize

_RANGE = r"\{\d+\.\.\d+\}"
WILDCARD = re.compile(rf"[*?[]|{_RANGE}")
_TOKENS = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}


@dataclass(frozen=True)
class Glob:
    """What a path with wildcards matches, and all that lies below of it; of paths in Unicode's form NFC."""

    parts: tuple[str, ...]  # text and ranges by turns, where there are ranges alone
    pattern: re.Pattern[str]  # a group for each range
    ranges: tuple[tuple[int, int, int], ...]  # first, last, digits (0: as many as the number has)

    def matches(self, path: str) -> bool:
        found = self.pattern.fullmatch(normalize("NFC", path))
        return found is not None and all(
            first <= int(text) <= last for text, (first, last, _) in zip(found.groups(), self.ranges, strict=True)
        )

    def missing(self, paths: Collection[str]) -> str | None:
        """A path that the ranges name and that is not among these; None where other wildcards match what there is."""
        if not self.parts:
            return None
        there = {normalize("NFC", path) for path in paths}
        return next((path for path in self._named() if path not in there), None)

    def _named(self) -> Iterator[str]:
        choices = [range(first, last + 1) for first, last, _ in self.ranges]
        for numbers in itertools.product(*choices):
            texts = [f"{number:0{digits}d}" for number, (_, _, digits) in zip(numbers, self.ranges, strict=True)]
            yield "".join(itertools.chain(*itertools.zip_longest(self.parts, texts, fillvalue="")))


def is_glob(path: str) -> bool:
    return WILDCARD.search(path) is not None


def parse_glob(path: str) -> Glob:
    """`ValueError` for one that cannot be read."""
    path = normalize("NFC", path)
    ranges = []
    for first, last in (text[1:-1].split("..") for text in re.findall(_RANGE, path)):
        # As in a shell: 00..10 has two digits everywhere, 0..10 as many as the number needs.
        padded = any(text[0] == "0" and len(text) > 1 for text in (first, last))
        ranges.append((int(first), int(last), max(len(first), len(last)) if padded else 0))
    digits = iter([rf"(\d{{{width}}})" if width else r"(0|[1-9]\d*)" for _, _, width in ranges])
    regex = ""
    for index, part in enumerate(re.split(rf"(\*\*/|\*\*|\*|\?|\[!?[^]/]+\]|{_RANGE})", path)):
        if index % 2 and part[0] == "{":
            regex += next(digits)
        else:
            regex += _TOKENS.get(part) or (part.replace("[!", "[^") if index % 2 else re.escape(part))
    texts = re.split(_RANGE, path)
    alone = ranges and not any(map(is_glob, texts))
    try:
        return Glob(tuple(texts) if alone else (), re.compile(regex + "(?:/.*)?"), tuple(ranges))
    except re.error as error:
        raise ValueError(str(error)) from None
