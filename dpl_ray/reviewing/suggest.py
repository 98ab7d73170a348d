"""The images of a labelled pool whose labels would teach most, as a page that asks a person for them.

<output>/
  suggest.html       the page
  suggestions.csv    path, why, and the numbers behind it, the most useful image first
  draw.json          what the answers are checked by
"""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from dpl_ray.config.given import read_given
from dpl_ray.config.schema import Config
from dpl_ray.data.dataset import UNLABELED, ImageSet, Splits
from dpl_ray.data.files.location import Location
from dpl_ray.data.files.reach import place_of
from dpl_ray.data.formats.samples import read_samples
from dpl_ray.data.images.decode_many import decode_many
from dpl_ray.data.splits.pseudo_labels import read_job
from dpl_ray.data.splits.sources import load_splits
from dpl_ray.page.console import open_console, program, show
from dpl_ray.page.result import Result
from dpl_ray.reviewing.candidates import Candidates, draw_candidates
from dpl_ray.reviewing.choice import cover
from dpl_ray.reviewing.draw import Draw, Drawn
from dpl_ray.reviewing.images import read_pictures
from dpl_ray.reviewing.job import DRAW_FILE, SUGGEST_FILE
from dpl_ray.reviewing.labels import Labels, digest, open_labels
from dpl_ray.reviewing.page import Item, write_review
from dpl_ray.reviewing.suggest_config import SuggestConfig
from dpl_ray.runs.folder import run_of
from dpl_ray.runs.splits import read_splits
from dpl_ray.store.outputs import check_free, open_output
from dpl_ray.store.records import csv_text, write_json
from dpl_ray.store.storage import Storage
from dpl_ray.training.checkpoint_folder import MANIFEST, load_config_and_info, open_checkpoint

TABLE_FILE = "suggestions.csv"
MIN_CANDIDATES, CANDIDATES_EACH = 2_000, 4  # images that are read: at least, and for each that is suggested
MAX_KNOWN = 5_000  # labelled images that these are compared with
COLUMNS = (
    "path", "why", "proposed", "confidence", "second", "second_confidence", "lgp", "hgp", "threshold_over", "gain",
)  # fmt: skip


@dataclass(frozen=True, repr=False)
class SuggestResult(Result):
    """The result of `suggest`."""

    output: str
    page: str
    table: str  # CSV: path, why, and the numbers behind it
    num_suggested: int
    num_candidates: int  # images that were read
    num_seen: int  # labels that were looked at

    def _facts(self) -> dict[str, str | None]:
        return {"suggested": f"{self.num_suggested:,}", "of labels": f"{self.num_seen:,}", "page": self.page}


@dataclass(frozen=True)
class _Suggestion:
    """An image, and what speaks for it."""

    sample_id: str
    likeliest: list[tuple[int, float]]  # class index and probability, of up to three
    heads: tuple[int, int] | None  # what LGP and HGP say
    over: float | None  # over-confident threshold of the likeliest class
    gain: float  # of `choice.cover`

    def why(self, names: Sequence[str]) -> str:
        said = [" or ".join(f"{names[label]} ({probability:.2f})" for label, probability in self.likeliest[:2])]
        if self.heads and self.heads[0] != self.heads[1]:
            said.append(f"LGP says {names[self.heads[0]]}, HGP says {names[self.heads[1]]}")
        return "; ".join([*said, f"covers {100 * self.gain:.1f} % more of the pool"])

    def row(self, names: Sequence[str]) -> list[str]:
        """Of suggestions.csv."""
        likely = [cell for label, probability in self.likeliest[:2] for cell in (names[label], f"{probability:.4f}")]
        heads = [names[label] for label in self.heads] if self.heads else ["", ""]
        over = "" if self.over is None else f"{self.over:.4f}"
        return [self.sample_id, self.why(names), *likely, *heads, over, f"{self.gain:.4f}"]


def suggest(
    config: SuggestConfig | Sequence[str] = (), *, console: Console | bool | None = None, **keywords: Any
) -> SuggestResult:
    """Choose the images of a labelled pool whose labels would teach most, and write a page that asks for them.

    Args:
        config: a configuration, or overrides as on the command line.
        console: where it is shown what was chosen, as in `fit`.
        keywords: fields, as `labels="labels", budget=50`.

    Raises:
        ValueError: a field, the labels, the checkpoint, the pool or the output do not fit; the output is not empty; or
            no image is left that the model is unsure of.
    """
    config, console = read_given(config, keywords, SuggestConfig.load, SuggestConfig), open_console(console)
    labels = open_labels("labels", config.labels)
    output = open_output(config.output or str(labels.storage.parent / f"{labels.storage.name}-suggestions"))
    check_free(output)
    checkpoint = _open_checkpoint(config, labels)
    pool = labels.open_pool(config.pool)
    drawn = draw_candidates(labels, max(MIN_CANDIDATES, CANDIDATES_EACH * config.budget), config.seed)
    trained, _ = load_config_and_info(checkpoint)
    splits = _splits(trained)
    images, masses = _read(drawn, labels, pool, checkpoint, splits)
    show(console, f"{labels.storage}: {drawn.num_seen:,} of {drawn.num_labels:,} labels, {len(images):,} candidates")
    temperature = read_job(labels.location).get("temperature", 1.0)
    chosen = _choose(images, masses, checkpoint, splits, config.budget, temperature)
    pictures = read_pictures(pool, [each.sample_id for each in chosen], labels.image_column)
    command = _write(chosen, pictures, config, labels, output)
    show(console, f"{len(chosen):,} images are suggested; open the page, answer, save answers.csv; then: {command}")
    return SuggestResult(
        output=str(output),
        page=str(output / SUGGEST_FILE),
        table=str(output / TABLE_FILE),
        num_suggested=len(chosen),
        num_candidates=len(images),
        num_seen=drawn.num_seen,
    )


def _open_checkpoint(config: SuggestConfig, labels: Labels) -> Storage:
    """The one that made the labels; `ValueError` where it is not there any more, or is another one."""
    given = config.checkpoint or labels.checkpoint()
    found = open_checkpoint(given)
    if hashlib.sha256((found / MANIFEST).read()).hexdigest()[:16] != read_job(labels.location).get("checkpoint"):
        raise ValueError(f"checkpoint={given}: is not the one that made labels={config.labels}; give that one")
    return found


def _splits(config: Config) -> Splits | None:
    """What the model was trained and judged on; None where it is not where it was."""
    try:
        return load_splits(config.data, seed=config.train.seed, uses_unlabeled=False, reads_unlabeled=False)
    except (ValueError, OSError):
        return None


def _read(
    drawn: Candidates, labels: Labels, pool: Location, checkpoint: Storage, splits: Splits | None
) -> tuple[ImageSet, NDArray[np.float32]]:
    """Candidates that can be read and whose labels the run does not know, and the mass of each."""
    trained, info = load_config_and_info(checkpoint)
    ids = drawn.sample_ids
    payloads = read_samples(ids, labels.image_column, partial(place_of, pool))
    images, kept, bad = decode_many(zip(ids, payloads, strict=True), info.decode_settings(trained.data))
    if not kept:
        raise pool.error(f"none of the {len(ids):,} candidates can be read, as {bad[0].id} ({bad[0].reason})")
    found = ImageSet(images, np.full(len(kept), UNLABELED), np.array([ids[place] for place in kept], np.str_))
    is_known = np.zeros(len(found), bool)
    for split in (read_splits(run_of(checkpoint)) or {}).values():
        is_known |= split.has(found)
    for part in (splits.labeled, splits.validation, splits.test) if splits else ():
        is_known |= np.isin(found.ids, part.ids)
    if is_known.all():
        raise labels.location.error("every image that the model is unsure of has a true label already")
    new = np.flatnonzero(~is_known)
    return found.subset(new), drawn.masses[kept][new]


def _choose(
    images: ImageSet,
    masses: NDArray[np.float32],
    checkpoint: Storage,
    splits: Splits | None,
    budget: int,
    temperature: float,
) -> list[_Suggestion]:
    from dpl_ray.inference.look import look  # late, with torch: a mistake is answered before
    from dpl_ray.training.checkpoint import load_classifier, load_policy

    (model, *_), policy = load_classifier(checkpoint), load_policy(checkpoint)
    looked = look(model, policy, images.images, temperature)
    known = looked.features[:0]
    if splits:
        labelled = splits.labeled.images[: len(splits.labeled) - splits.num_pseudo_labeled]
        some = np.random.default_rng(0).permutation(len(labelled))[:MAX_KNOWN]
        known = look(model, policy, labelled[some]).features
    order = np.argsort(-looked.probs, axis=1, kind="stable")[:, :3]
    return [
        _Suggestion(
            sample_id=str(images.ids[place]),
            likeliest=[(label, float(looked.probs[place, label])) for label in order[place].tolist()],
            heads=None if looked.heads is None else tuple(looked.heads[:, place].tolist()),
            over=None if looked.over is None else float(looked.over[place]),
            gain=gain,
        )
        for place, gain in cover(looked.features, known, masses * (1 + looked.disagree()), budget)
    ]


def _write(
    chosen: Sequence[_Suggestion], pictures: Sequence[Any], config: SuggestConfig, labels: Labels, output: Storage
) -> str:
    """Page, table and draw; returns the command that reads the answers."""
    names = labels.class_names
    items = [Drawn(each.sample_id, *each.likeliest[0], tuple(each.likeliest[1:]), 0) for each in chosen]
    review = f"{labels.identity}-{digest([each.sample_id for each in chosen])}"
    num_labels = int(labels.counts.sum())
    draw = Draw(
        review=review,
        class_names=names,
        num=config.budget,
        seed=config.seed,
        cells=(num_labels,),
        num_strata=1,
        items=tuple(items),
        is_random=False,
    )
    given = shlex.join([f"labels={config.labels}", f"output={output}", "answers=answers.csv"])
    command = f"{program('review')} {given}"
    shown = [
        Item(item.sample_id, picture, item.label, item.confidence, item.runners_up, note=each.why(names))
        for item, picture, each in zip(items, pictures, chosen, strict=True)
    ]
    write_json(output / DRAW_FILE, draw)
    table = csv_text([COLUMNS, *(each.row(names) for each in chosen)])
    (output / TABLE_FILE).write(table.encode(errors="surrogateescape"))
    title = f"What to label next of {labels.storage.name}"
    write_review(output / SUGGEST_FILE, shown, names, title=title, review=review, command=command)
    return command
