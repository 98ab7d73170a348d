"""The held-out labels that certify a labelling (dpl_ray/labeling/certificate.py): where they are, what they certify.

They are the images that the run of the checkpoint has held out (data.validation_fraction), or an audit: images of the
pool that a person has labelled. No label of them may have been trained on.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dpl_ray.config.schema import Config
from dpl_ray.data.dataset import ImageSet
from dpl_ray.data.formats.rows import PoolFiles
from dpl_ray.data.images.convert import DecodeSettings
from dpl_ray.data.images.decode_many import decode_many
from dpl_ray.data.labeled.classes import find_targets
from dpl_ray.data.labeled.records import Records, check_of_a_person, csv_column, list_records
from dpl_ray.data.splits.sources import load_splits
from dpl_ray.labeling.certificate import Certificate, Scored, make_certificate
from dpl_ray.labeling.config import LabelConfig
from dpl_ray.labeling.plan import Plan
from dpl_ray.runs.folder import SEARCH_FILE, run_of
from dpl_ray.runs.splits import KnownSplit, read_splits
from dpl_ray.store.storage import Storage

NUM_SAMPLE, NUM_BLOCKS = 2048, 16  # images of the pool by which thresholds are chosen, and the blocks they are from
VALIDATION = "data.validation_fraction"

Score = Callable[[NDArray], tuple[NDArray[np.int64], NDArray[np.float32]]]
"""Images -> pseudo-labels and confidences, as the pool gets them."""


@dataclass(frozen=True)
class HeldOut:
    """Where held-out labels are; their images are not read yet."""

    what: str  # the field that asks for them, for messages
    checkpoint: Storage
    config: Config  # of the training
    class_names: tuple[str, ...]
    known: dict[str, KnownSplit]
    audit: Records | None
    source: str

    def digest(self) -> str:
        """Of an audit, the same for the same rows; of the run's own images their name: the checkpoint says which."""
        if self.audit is None:
            return VALIDATION
        rows = sorted(zip(self.audit.ids, map(str, self.audit.labels), strict=True))
        return hashlib.blake2b(repr(rows).encode(errors="surrogateescape"), digest_size=8).hexdigest()

    def read(self, pool: PoolFiles, settings: DecodeSettings) -> ImageSet:
        """The images, with target -1 where a person could not tell the class.

        Raises:
            ValueError: they are not those that the run held out, or not of the pool; or the model was trained on some.
        """
        found = self._read_audit(self.audit, pool, settings) if self.audit else self._read_validation()
        seen = self.known["labelled"].has(found)
        if seen.any():
            raise ValueError(
                f"{self.what}: the model was trained on {seen.sum():,} of its {len(seen):,} images, as "
                f"{found.ids[np.flatnonzero(seen)[0]]}, which certify nothing; remove them"
            )
        return found

    def _read_validation(self) -> ImageSet:
        data, seed = self.config.data, self.config.train.seed
        found = load_splits(data, seed=seed, uses_unlabeled=False, reads_unlabeled=False).validation
        if len(found) != len(self.known["validation"].ids) or not self.known["validation"].has(found).all():
            raise ValueError(f"{self.what}: the images that the run has held out have changed; give audit=answers.csv")
        return found

    def _read_audit(self, audit: Records, pool: PoolFiles, settings: DecodeSettings) -> ImageSet:
        rows = pool.rows(audit.ids)
        items = [row[:2] for file, of_file in rows.items() for row in pool.read_rows(file, np.array(of_file))]
        if missing := set(audit.ids).difference(sample_id for sample_id, _ in items):
            raise audit.location.error(
                f"{len(missing):,} of its {len(audit.ids):,} images are not in the pool, as {min(missing)}; an audit "
                "is drawn from the pool that is labelled"
            )
        images, kept, _ = decode_many(items, settings)
        if not len(images):
            raise audit.location.error(f"none of its {len(items):,} images can be read")
        targets = dict(zip(audit.ids, find_targets(audit, self.class_names).tolist(), strict=True))
        ids = [items[place][0] for place in kept]
        return ImageSet(images, np.array([targets[each] for each in ids], np.int64), np.array(ids, np.str_))


def open_held_out(config: LabelConfig, checkpoint: Storage, trained: Config, class_names: tuple[str, ...]) -> HeldOut:
    """Find the held-out labels of a labelling that is to be certified.

    Raises:
        ValueError: there are none, or the run says nothing of them, or they have chosen the model; or the audit has an
            image twice, or of a class that there is not.
    """
    run, what = run_of(checkpoint), f"max_error={config.max_error}"
    known = read_splits(run)
    if known is None:
        raise ValueError(
            f"{what}: the run of this checkpoint has not kept which images it was trained on, as older versions do "
            "not; start its training command again, which adds them"
        )
    if config.audit is not None:
        # Nothing is read where the audit says: its images are those of the pool.
        reach = {"train": None, "test": None, "unlabeled": config.pool, "allow_outside": True, "allowed_hosts": ()}
        data = trained.data.changed(name="image_folder", **reach)
        audit = list_records(data, "audit", config.audit, class_names)
        find_targets(audit, class_names)
        drawn = _equally_likely(audit)
        told = "" if drawn is audit else f" ({len(drawn.ids):,} of {len(audit.ids):,}, each as likely to be drawn)"
        source = f"{config.audit}{told}"
        return HeldOut(f"audit={config.audit}", checkpoint, trained, class_names, known, drawn, source)
    instead = "; give audit=answers.csv"
    if not len(known["validation"].ids):
        raise ValueError(
            f"{what}: the run has held out no labels; train with {VALIDATION}=0.3, or give audit=answers.csv"
        )
    if (run.parent / SEARCH_FILE).exists():
        raise ValueError(f"{what}: a search has chosen this model by the images that it held out{instead}")
    if trained.data.labels is not None and trained.data.train is None:
        raise ValueError(f"{what}: the images that the run has held out have pseudo-labels, not true ones{instead}")
    return HeldOut(what, checkpoint, trained, class_names, known, None, VALIDATION)


def _equally_likely(audit: Records) -> Records:
    """An audit whose images were drawn with the probabilities of its column `probability`, thinned.

    An image of probability p is kept with probability min(p) / p, so that each image of the pool was as likely to be
    drawn and kept as any other. What is kept is a function of the audit.

    Raises:
        ValueError: a probability is no number above 0 and at most 1.
    """
    import pandas as pd

    if audit.files is not None:  # no CSV
        return audit
    check_of_a_person(audit.location)
    if (column := csv_column(audit.location, "probability")) is None:
        return audit
    if not any(column):
        raise audit.location.error(
            "has images that were chosen, as those of `suggest`, not drawn at random; an audit is a draw: see `review`"
        )
    probability = pd.to_numeric(pd.Series(column), errors="coerce").to_numpy(float)
    if len(wrong := np.flatnonzero(~((probability > 0) & (probability <= 1)))):
        raise audit.location.error(
            f"row {wrong[0] + 1} has the probability {column[wrong[0]] or '(none)'}; write that with which its "
            "image was drawn, as 0.01"
        )
    order = np.argsort(audit.ids)
    uniforms = np.empty(len(order))
    uniforms[order] = np.random.default_rng(0).random(len(order))
    gone = uniforms * probability >= probability.min()
    return audit.without({sample_id for sample_id, is_gone in zip(audit.ids, gone.tolist(), strict=True) if is_gone})


def certify_pool(
    config: LabelConfig, held_out: HeldOut, listed: PoolFiles, plan: Plan, settings: DecodeSettings, score: Score
) -> Certificate:
    """What the held-out labels certify of the labels of a pool.

    Args:
        score: of images (N, channels, H, W) uint8, or of stored features.
    """
    assert config.max_error is not None, "it is to be certified"
    images = held_out.read(listed, settings)
    sample = _sample(plan, settings)
    scored = Scored(*score(images.images), images.targets)
    of_pool = Scored(*score(sample), np.full(len(sample), -1))
    return make_certificate(
        scored,
        of_pool,
        len(held_out.class_names),
        config.max_error,
        config.confidence,
        by_class=config.by_class,
        source=held_out.source,
    )


def _sample(plan: Plan, settings: DecodeSettings) -> NDArray:
    """Some NUM_SAMPLE images or features of a pool, evenly spread over some of its blocks."""
    blocks = np.unique(np.linspace(0, plan.num_blocks - 1, NUM_BLOCKS).round().astype(int)).tolist()
    step = {block: math.ceil(plan.num_rows(block) * len(blocks) / NUM_SAMPLE) for block in blocks}
    items = [row for block in blocks for row in plan.read(block)[:: step[block]]]
    return decode_many(items, settings)[0]
