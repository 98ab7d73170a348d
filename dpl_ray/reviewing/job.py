"""Review the labels of a pool: draw some and write a page that asks for them; and what the answers say.

<output>/
  review.html        the page
  draw.json          what was drawn, of how many: the answers are checked and weighed by it
  certificate.json   of the answers: how many labels are wrong, with intervals
  errors.html        the same as a page
  true_labels.csv    of the answers: path, label and probability, as data.train and audit take them
  class_names.txt    beside it, in the order of the labels' class indices
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pydantic import ValidationError
from rich.console import Console

from dpl_ray.config.given import read_given
from dpl_ray.page.console import console_table, open_console, program, show
from dpl_ray.page.result import Result
from dpl_ray.reviewing.answers import UNKNOWN, read_answers
from dpl_ray.reviewing.config import ReviewConfig
from dpl_ray.reviewing.draw import Draw, draw_labels
from dpl_ray.reviewing.findings import (
    COLUMNS,
    CONFUSION_COLUMNS,
    Findings,
    confusion_rows,
    judge,
    make_page,
    rows,
    told,
)
from dpl_ray.reviewing.images import read_pictures
from dpl_ray.reviewing.labels import Labels, open_labels
from dpl_ray.reviewing.page import Item, write_review
from dpl_ray.runs.provenance import describe_code
from dpl_ray.store.file_systems import one_line
from dpl_ray.store.outputs import check_free, open_output
from dpl_ray.store.records import csv_text, read_json, write_json
from dpl_ray.store.storage import Storage

PAGE_FILE, DRAW_FILE, CERTIFICATE_FILE = "review.html", "draw.json", "certificate.json"
SUGGEST_FILE = "suggest.html"  # in place of PAGE_FILE where images were chosen
ERRORS_FILE, TRAIN_FILE, NAMES_FILE = "errors.html", "true_labels.csv", "class_names.txt"
MAX_ROWS = 24  # of a table on the console


@dataclass(frozen=True, repr=False)
class ReviewResult(Result):
    """The result of `review`."""

    output: str
    page: str  # that asks; with answers, that says how many labels are wrong
    num_drawn: int
    certificate: dict[str, Any] | None = None  # with answers, as in certificate.json: error, classes, confusions, ...
    true_labels: str | None = None  # with answers: CSV for data.train and audit

    def _facts(self) -> dict[str, str | None]:
        error = (self.certificate or {}).get("error", {}).get("before")
        share = (
            f"{100 * error['estimate']:.1f} % [{100 * error['low']:.1f}, {100 * error['high']:.1f}]" if error else None
        )
        return {"drawn": f"{self.num_drawn:,}", "wrong": share, "page": self.page}


def review(
    config: ReviewConfig | Sequence[str] = (), *, console: Console | bool | None = None, **keywords: Any
) -> ReviewResult:
    """Draw labels of a pool and write a page that asks a person for them; or read the answers.

    Args:
        config: a configuration, or overrides as on the command line.
        console: where it is shown what was drawn or found, as in `fit`.
        keywords: fields, as `labels="labels", answers="answers.csv"`.

    Raises:
        ValueError: a field, the labels, the pool or the output do not fit, or the answers are to something else.
    """
    config, console = read_given(config, keywords, ReviewConfig.load, ReviewConfig), open_console(console)
    labels = open_labels("labels", config.labels)
    output = open_output(config.output or str(labels.storage.parent / f"{labels.storage.name}-review"))
    check_free(output, DRAW_FILE, "review")
    if config.answers is None:
        return _draw(config, labels, output, _read_draw(output), console)
    return _judge(config, labels, output, open_draw("output", output, labels), console)


def open_draw(field: str, folder: Storage, labels: Labels) -> Draw:
    """The draw that `review` or `suggest` has written; `ValueError` where there is none, or one from other labels."""
    kept = _read_draw(folder)
    if kept is None:
        raise ValueError(f"{field}={folder}: holds no draw; run review without answers first, and answer its page")
    if kept.review.partition("-")[0] != labels.identity:
        raise ValueError(f"{field}={folder}: is a draw from other labels than labels={labels.storage}")
    return kept


def _read_draw(output: Storage) -> Draw | None:
    try:
        return read_json(output / DRAW_FILE, Draw)
    except ValidationError as error:
        raise ValueError(f"output={output}: {DRAW_FILE} is damaged ({one_line(error)}); take another folder") from None


def _draw(config: ReviewConfig, labels: Labels, output: Storage, kept: Draw | None, console: Console) -> ReviewResult:
    made = draw_labels(labels, config.num, config.seed)
    if kept is not None and kept.review != made.review:
        raise ValueError(
            f"output={output}: has a draw of num={kept.num}, seed={kept.seed} from "
            f"{sum(kept.cells):,} labels already, whose answers would be lost; take another folder"
        )
    pool = labels.open_pool(config.pool)
    column = config.image_column or labels.image_column
    pictures = read_pictures(pool, [item.sample_id for item in made.items], column)
    reasons = [picture for picture in pictures if isinstance(picture, str)]
    if len(reasons) == len(pictures):
        first = f"{made.items[0].sample_id} ({reasons[0]})"
        raise pool.error(f"none of the {len(pictures):,} drawn images can be read, as {first}")
    items = [
        Item(item.sample_id, picture, item.label, item.confidence, item.runners_up, made.probability)
        for item, picture in zip(made.items, pictures, strict=True)
    ]
    again = [f"labels={config.labels}", *([f"output={config.output}"] if config.output else []), "answers=answers.csv"]
    command = f"{program('review')} {shlex.join(again)}"
    title = f"Review of {labels.storage.name}"
    write_json(output / DRAW_FILE, made)
    write_review(output / PAGE_FILE, items, made.class_names, title=title, review=made.review, command=command)
    strata = f", from {made.num_strata:,} strata of class and confidence" if made.num_strata > 1 else ""
    show(
        console,
        f"{labels.storage}: {len(made.items):,} of {sum(made.cells):,} labels are drawn at random{strata}\n"
        f"open the page, answer, save answers.csv; then: {command}",
    )
    return ReviewResult(str(output), str(output / PAGE_FILE), len(made.items))


def _judge(config: ReviewConfig, labels: Labels, output: Storage, draw: Draw, console: Console) -> ReviewResult:
    assert config.answers is not None
    answers = read_answers("answers", config.answers, draw)
    if not draw.is_random:
        _write_labels(draw, answers, output)
        show(
            console,
            f"{len(answers):,} answers, {answers.count(UNKNOWN):,} of them cannot tell; the images were chosen, not "
            "drawn at random, so that they say nothing of the other labels",
        )
        asked = str(output / SUGGEST_FILE)
        return ReviewResult(str(output), asked, len(draw.items), true_labels=str(output / TRAIN_FILE))
    findings = judge(draw, answers, config.confidence)
    certificate = _certificate(config, draw, findings)
    page = make_page(findings, f"Review of {labels.storage.name}", shlex.join(_command(config)))
    _write_labels(draw, answers, output)
    page.write(output / ERRORS_FILE)
    write_json(output / CERTIFICATE_FILE, certificate)
    _show(console, labels, draw, findings)
    return ReviewResult(
        output=str(output),
        page=str(output / ERRORS_FILE),
        num_drawn=len(draw.items),
        certificate=certificate,
        true_labels=str(output / TRAIN_FILE),
    )


def _command(config: ReviewConfig) -> list[str]:
    given = config.model_dump(exclude_defaults=True)
    return ["dpl-ray", "review", *(f"{name}={value}" for name, value in given.items())]


def _certificate(config: ReviewConfig, draw: Draw, findings: Findings) -> dict[str, Any]:
    """What certificate.json has."""
    tree = asdict(findings)
    return {
        "labels": config.labels,
        "review": draw.review,
        "num_drawn": len(draw.items),
        "confidence": findings.confidence,
        "num_cannot_tell": findings.num_unknown,
        "error": tree["whole"],
        **tree["parts"],
        "classes": tree["classes"],
        "confusions": tree["confusions"],
        "code": describe_code(),
    }


def _write_labels(draw: Draw, answers: Sequence[int], output: Storage) -> None:
    """Each answered image, with the probability that it was drawn at random and answered; empty where it was chosen."""
    table: list[tuple[Any, ...]] = [("path", "label", "probability")]
    for item, answer in zip(draw.items, answers, strict=False):
        name = draw.class_names[answer] if answer >= 0 else ""
        table.append((item.sample_id, name, len(answers) / sum(draw.cells) if draw.is_random else ""))
    text = csv_text(table)
    (output / TRAIN_FILE).write(text.encode(errors="surrogateescape"))
    (output / NAMES_FILE).write("".join(f"{name}\n" for name in draw.class_names).encode())


def _show(console: Console, labels: Labels, draw: Draw, findings: Findings) -> None:
    whole, level = findings.whole, f"{100 * findings.confidence:g} %"
    left = len(draw.items) - whole.num_answered
    now = int(labels.counts.sum())
    text = f"{whole.num_answered:,} answers to {whole.num_images:,} labels" + (f", {left:,} are left" if left else "")
    if now != whole.num_images:
        text += f"; since the draw, the labels have become {now:,}, and nothing is said of the new ones"
    show(console, text)
    shown = rows(findings)
    console.print(console_table(f"Wrong labels, with intervals of {level}", COLUMNS, shown[:MAX_ROWS]))
    if findings.confusions:
        confusions = confusion_rows(findings)[:MAX_ROWS]
        console.print(console_table("What was confused", CONFUSION_COLUMNS, confusions, num_text_columns=2))
    show(
        console,
        f"{told(whole.before)} of the labels are wrong, with a confidence of {level} at most "
        f"{100 * whole.at_most:.1f} %; {told(whole.after)} where the answers replace the labels",
    )
