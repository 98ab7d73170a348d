"""The page of a check: what was found, and the pictures by which a user sees the rest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np

from dpl_ray.checking.checked import Checked
from dpl_ray.checking.console import described_time, told_timing
from dpl_ray.checking.copies import LEAST_SIDE, MAX_COMPARED, Pairs, with_copies
from dpl_ray.checking.files import MAX_FILES, kinds, sizes
from dpl_ray.checking.findings import UNEQUAL, Finding
from dpl_ray.checking.sheets import MAX_CLASSES, class_sheets, view_rows
from dpl_ray.data.dataset import BadImage, ImageSet
from dpl_ray.data.features.pictures import read_pictures
from dpl_ray.page.html import MISSING, Page, Section, Table, render_page
from dpl_ray.page.pictures import MAX_PIXELS, encode_sheet

MAX_EXAMPLES = 3  # of copies that are shown, of two sets and a kind
_SIGNS = {"error": "✕", "warning": "!", "note": "✓"}


def make_page(checked: Checked) -> Page:
    """All sections that these data have something for."""
    config, splits = checked.config, checked.splits
    sections = {"findings": _findings_section(checked), "classes": _classes_section(checked)}
    if checked.headers or splits.left_out or splits.bad:
        sections["files"] = _files_section(checked)
    sections["copies"] = _copies_section(checked)
    if config.data.name != "features":  # views of which are stored, not made
        sections["views"] = Section(
            title="What training does to the images",
            rows=[
                (splits.class_names[index], pictures)
                for index, pictures in view_rows(splits.labeled, config.data.views)
            ],
            flips=config.data.views.horizontal_flip,
        )
    if checked.timing:
        sections["time"] = _time_section(checked)
    subtitle = (
        f"{config.policy.name} on {config.data.name}: {len(splits.labeled):,} labelled images of "
        f"{len(splits.class_names)} classes, {checked.pool_size:,} in the pool, {config.train.num_steps:,} steps"
    )
    return render_page("checking/check.html", "Check before a training", subtitle, sections)


def _findings_section(checked: Checked) -> Section:
    splits, timing = checked.splits, checked.timing
    numbers = [
        ("labelled", f"{len(splits.labeled):,}", f"{len(splits.class_names):,} classes"),
        ("pool", f"{checked.pool_size:,}", "unlabelled images"),
        ("test", f"{len(splits.test):,}", f"{len(splits.validation):,} for validation"),
        _shape(checked),
    ]
    if timing:
        numbers += [("training", described_time(timing.seconds), f"{timing.num_steps:,} steps")]
    levels = Counter(finding.level for finding in checked.findings)
    worst = next((level for level in _SIGNS if levels[level]), "note")  # type: ignore[index]
    return Section(
        title="What was found",
        sign=_SIGNS[worst],
        headline=headline(checked.findings),
        findings=checked.findings,
        numbers=numbers,
    )


def _shape(checked: Checked) -> tuple[str, str, str]:
    """Of an image, or of its features."""
    channels, height, width = checked.splits.labeled.images.shape[1:]
    if checked.config.data.name == "features":
        return "features", f"{width:,}", f"{channels // 2} weak and as many strong views"
    return "image size", f"{width} x {height}", f"pixels, {'grey' if channels == 1 else 'RGB'}"


def headline(findings: tuple[Finding, ...]) -> str:
    """Whether a training can start, in a sentence."""
    levels = Counter(finding.level for finding in findings)
    told = [f"{levels[level]} {level}{'' if levels[level] == 1 else 's'}" for level in _SIGNS if levels[level]]  # type: ignore[index]
    if levels["error"]:
        return f"A training would stop: {', '.join(told)}"
    return f"A training can start: {', '.join(told) or 'nothing is wrong with these data'}"


def _classes_section(checked: Checked) -> Section:
    splits = checked.splits
    counts = checked.class_counts
    total = max(1, len(splits.labeled))
    rows = [
        [name, *(f"{number:,}" for number in numbers), f"{100 * numbers[0] / total:.1f} %"] for name, *numbers in counts
    ]
    sheets = [
        (splits.class_names[index], number, png)
        for index, number, png in class_sheets(splits.labeled, len(counts), checked.config.data)
    ]
    return Section(
        title="Classes",
        table=Table("Images a class", ["class", "labelled", "validation", "test", "of the labelled"], rows),
        is_long=len(rows) > MAX_CLASSES,
        sheets=sheets,
        num_classes=len(counts),
        unequal=UNEQUAL,
    )


def _files_section(checked: Checked) -> Section:
    tables = []
    if checked.headers:
        all_kinds = {field: kinds(headers) for field, headers in checked.headers.items() if headers}
        names = sorted({name for found in all_kinds.values() for name in found})
        rows = [[name, *(f"{found[name]:,}" for found in all_kinds.values())] for name in names]
        tables.append(Table("Formats and modes", ["", *all_kinds], rows))
        all_sizes = {field: sizes(headers) for field, headers in checked.headers.items() if headers}
        rows = [[name, *(found[name] for found in all_sizes.values())] for name in ("smallest", "median", "largest")]
        turned = [f"{sum(header.is_turned for header in checked.headers[field]):,}" for field in all_sizes]
        tables.append(Table("Sizes (pixels)", ["", *all_sizes], [*rows, ["turned by the camera", *turned]]))
    if checked.splits.left_out:
        rows = [[kind, _why(kind), f"{number:,}"] for kind, number in sorted(checked.splits.left_out.items())]
        tables.append(Table("Files that are left out", ["extension", "why", "files"], rows, num_text_columns=2))
    if checked.splits.bad:
        tables.append(_bad_table(checked.splits.bad))
    return Section(title="Files", tables=[table for table in tables if table.rows], max_files=MAX_FILES)


def _why(kind: str) -> str:
    return "a folder whose name begins with _" if kind.endswith("/") else "no image by its extension, name or content"


def _bad_table(bad: tuple[BadImage, ...]) -> Table:
    reasons = Counter(image.reason for image in bad)
    first = {image.reason: image.id for image in reversed(bad)}
    rows = [[reason, first[reason], f"{number:,}"] for reason, number in reasons.most_common()]
    return Table("Images that cannot be read", ["why", "as", "images"], rows, num_text_columns=2)


def _copies_section(checked: Checked) -> Section:
    found = [*with_copies(checked.copies)]
    rows = [[_names(pairs), f"{len(pairs.exact):,}", f"{len(pairs.near):,}"] for pairs in found]
    size = len(checked.splits.unlabeled)
    return Section(
        title="Copies",
        table=Table("Images that are there more than once", ["", "exact copies", "near copies"], rows),
        examples=[*_examples(checked, found)],
        of_features=checked.config.data.name == "features",
        is_small=min(checked.splits.labeled.images.shape[2:]) < LEAST_SIDE,
        least_side=LEAST_SIDE,
        most=MAX_COMPARED,
        num_read=size if size < checked.pool_size else None,
    )


def _names(pairs: Pairs) -> str:
    return f"within {pairs.first}" if pairs.first == pairs.second else f"{pairs.first} and {pairs.second}"


def _examples(checked: Checked, found: list[Pairs]) -> Iterator[tuple[str, bytes, list[tuple[str, str]]]]:
    """What two images are to each other, both side by side, and class and id of each."""
    for pairs in found:
        first, second = checked.parts[pairs.first], checked.parts[pairs.second]
        for kind, rows in (("Exact", pairs.exact), ("Near", pairs.near)):
            for one, other in rows[:MAX_EXAMPLES].tolist():
                data = checked.config.data
                both = [read_pictures(part, np.array([row]), data) for part, row in ((first, one), (second, other))]
                images = [each for each in both if each is not None]
                if len(images) < len(both):
                    continue
                sheet = encode_sheet(np.concatenate(images), num_columns=2, max_pixels=MAX_PIXELS)
                names = [_class_and_id(checked, first, one), _class_and_id(checked, second, other)]
                yield f"{kind}: {_names(pairs)}", sheet, names


def _class_and_id(checked: Checked, part: ImageSet, row: int) -> tuple[str, str]:
    target = int(part.targets[row])
    is_pool = part is checked.splits.unlabeled
    name = "pool" if is_pool else checked.splits.class_names[target] if target >= 0 else MISSING
    return name, str(part.ids[row])


def _time_section(checked: Checked) -> Section:
    timing = checked.timing
    assert timing is not None, "asked for where there is one"
    facts = {"whole run": described_time(timing.seconds), "steps": f"{timing.num_steps:,}"}
    facts[f"a step of {checked.config.policy.name}"] = f"{1000 * timing.seconds_per_step:,.1f} ms"
    if timing.seconds_per_baseline_step is not None:
        facts["a step of the baseline"] = f"{1000 * timing.seconds_per_baseline_step:,.1f} ms"
    facts["memory"] = f"{timing.peak_bytes / 1e9:.1f} GB"
    facts["measured on"] = f"{timing.place}, {timing.num_measured} steps"
    return Section(title="Time and memory", facts=facts, told=told_timing(timing))
