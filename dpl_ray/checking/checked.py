"""Everything that a check in full looks at: the data as they are, and the first steps of the training."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from dpl_ray.checking.copies import Pairs, find_copies
from dpl_ray.checking.copies_found import copy_findings, flat_finding
from dpl_ray.checking.files import Header, file_findings, read_headers
from dpl_ray.checking.findings import OWN, Finding, data_findings, scoring_findings
from dpl_ray.checking.settings import check_network, check_pool_use, settle_model
from dpl_ray.checking.timing import Timing, measure_steps
from dpl_ray.config.schema import Config
from dpl_ray.data.dataset import ImageSet, Splits
from dpl_ray.data.files.kinds import as_text
from dpl_ray.data.pool.windows import StreamedPool
from dpl_ray.data.splits.bad_images import most_bad
from dpl_ray.data.splits.feature_splits import stored_hashes
from dpl_ray.data.splits.sources import load_splits
from dpl_ray.data.splits.split import check_pool

MAX_STREAMED = 4096  # images of a streamed pool that are read
_ROWS_AT_A_TIME = 512  # whose encoded images are in memory
_ORDER = ("error", "warning", "note")


@dataclass(frozen=True)
class Checked:
    """All that a check has found; the page and the console show it."""

    config: Config
    splits: Splits  # with a sample of the pool where it is streamed
    pool_size: int
    headers: dict[str, list[Header]]
    copies: list[Pairs]
    findings: tuple[Finding, ...]
    timing: Timing | None

    @property
    def parts(self) -> dict[str, ImageSet]:
        """Name -> images, of the four sets."""
        return _parts(self.splits)

    @property
    def class_counts(self) -> list[tuple[str, int, int, int]]:
        """Class, and its labelled, validation and test images."""
        names = self.splits.class_names
        labels = [part.targets for part in (self.splits.labeled, self.splits.validation, self.splits.test)]
        counts = [np.bincount(targets, minlength=len(names)).tolist() for targets in labels]
        return list(zip(names, *counts, strict=True))


def run_checks(config: Config) -> Checked:
    """Read everything and look at it.

    Raises:
        ValueError: a field, path, column or label is wrong, so that there is nothing to look at.
    """
    config = settle_model(config)
    # As it is, with what a training would refuse or leave out.
    data = config.data.changed(allow_overlap=True, max_bad_fraction=1.0)
    uses_unlabeled = config.policy.name != "supervised"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        splits = load_splits(data, seed=config.train.seed, uses_unlabeled=False, reads_unlabeled=uses_unlabeled)
        of_features = config.data.name == "features"
        headers = read_headers(config.data) if config.data.name in OWN and not of_features else {}
    pool_size, pool = len(splits.unlabeled), splits.unlabeled
    is_streamed = isinstance(pool, StreamedPool)
    if isinstance(pool, StreamedPool):
        splits = replace(splits, unlabeled=read_sample(pool, MAX_STREAMED))
    parts = _parts(splits)
    found = _copies_of_features(config, parts, is_streamed=is_streamed) if of_features else find_copies(parts)
    findings = [*_errors(config, splits, pool_size, uses_unlabeled=uses_unlabeled)]
    stops = bool(findings)
    findings += copy_findings(found, parts, splits.class_names, config.data, is_streamed=is_streamed)
    told = dict.fromkeys(str(warning.message) for warning in caught if warning.category is UserWarning)
    findings += [Finding("warning", text) for text in told]
    findings += [*data_findings(splits), *scoring_findings(config, splits)]
    findings += [*_unread(config, splits, pool_size), *(() if of_features else flat_finding(parts))]
    findings += file_findings([header for some in headers.values() for header in some], config.data)
    findings.sort(key=lambda finding: _ORDER.index(finding.level))
    timing = None if stops else measure_steps(config, splits)
    return Checked(config, splits, pool_size, headers, found, tuple(findings), timing)


def _parts(splits: Splits) -> dict[str, ImageSet]:
    assert isinstance(splits.unlabeled, ImageSet), "or a sample of it"
    parts = {"labelled": splits.labeled, "validation": splits.validation, "test": splits.test}
    return parts | {"pool": splits.unlabeled}


def _copies_of_features(config: Config, parts: dict[str, ImageSet], *, is_streamed: bool) -> list[Pairs]:
    """By what is stored of the images; a training leaves those of a streamed pool out, and they are not looked for."""
    stored = stored_hashes(config.data, with_pool=not is_streamed)
    compared = {name: part for name, part in parts.items() if name != "pool" or not is_streamed}
    return [] if stored is None else find_copies(compared, stored)


def read_sample(pool: StreamedPool, number: int) -> ImageSet:
    """The first images of the order in which a training with seed 0 reads the pool, decoded."""
    number = min(number, len(pool))
    taken = [
        pool.take(start, min(_ROWS_AT_A_TIME, number - start), seed=0) for start in range(0, number, _ROWS_AT_A_TIME)
    ]
    names = [name for each in taken for name in pool.names(each.ids)]
    images, targets = (np.concatenate([each[column] for each in taken]) for column in (0, 2))
    return ImageSet(images, targets, np.array(names, np.str_))


def _errors(config: Config, splits: Splits, pool_size: int, *, uses_unlabeled: bool) -> Iterator[Finding]:
    """What stops a training after its data are read."""
    try:
        check_network(config, splits)
    except ValueError as error:
        yield Finding("error", str(error))
    if uses_unlabeled:
        try:
            check_pool(pool_size, config.data, f"data={config.data.name}")
            check_pool_use(config, splits)
        except ValueError as error:
            yield Finding("error", str(error))


def _unread(config: Config, splits: Splits, pool_size: int) -> Iterator[Finding]:
    """Images that cannot be read, and files that are none."""
    if splits.bad:
        first, limit = splits.bad[0], config.data.max_bad_fraction
        number = sum(map(len, (splits.labeled, splits.validation, splits.test))) + pool_size + len(splits.bad)
        yield Finding(
            "error" if len(splits.bad) > most_bad(limit, number) else "warning",
            f"{len(splits.bad):,} of {number:,} images cannot be read, as {first.id} ({first.reason})",
            f"repair or remove them; the limit is data.max_bad_fraction={limit:g}",
        )
    if splits.left_out:
        yield Finding("note", f"files that are left out: {as_text(splits.left_out)}")
