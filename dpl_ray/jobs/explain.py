"""Why an image of a pool got its weight: what the student, the heads and the policy of a checkpoint say of it."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from os import PathLike, fspath
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dpl_ray.config.schema import Config, DataConfig
from dpl_ray.data.dataset import ImageSet
from dpl_ray.data.features.pictures import locate
from dpl_ray.data.features.rows import StreamedFeatures
from dpl_ray.data.files.location import open_location
from dpl_ray.data.files.reach import OutOfReachError, check_addresses
from dpl_ray.data.files.shards import is_shard, is_tar, split_id
from dpl_ray.data.formats.rows import Rows, list_pool
from dpl_ray.data.formats.samples import read_samples
from dpl_ray.data.images.convert import DecodeSettings
from dpl_ray.data.images.decode import decode_or_reason
from dpl_ray.data.pool.windows import StreamedPool
from dpl_ray.data.splits.sources import load_splits
from dpl_ray.page.html import Page, Section, Table, render_page
from dpl_ray.page.pictures import encode_png
from dpl_ray.page.result import Result
from dpl_ray.store.file_systems import split_options
from dpl_ray.store.outputs import open_output
from dpl_ray.store.storage import Storage
from dpl_ray.training.checkpoint_folder import ModelInfo, load_config_and_info, open_checkpoint

if TYPE_CHECKING:
    from torch import Tensor

    from dpl_ray.algorithm.policy import Policy

NUM_VIEWS = 6  # strong ones; of the weak ones one fewer, beside the image itself
NUM_CLASSES = 5  # most likely ones that are listed


@dataclass(frozen=True, repr=False)
class Explanation(Result):
    """Why one image gets its weight: what training reads of it at the end of the run, without augmentation."""

    sample: str
    policy: str
    pseudo_label: str
    confidence: float  # as the policy aligns it
    entropy: float  # nats
    probs: dict[str, float]  # of the most likely classes, as the classifier has them: not aligned
    heads: dict[str, tuple[str, float]]  # LGP, HGP -> class and confidence; empty where the policy has none
    thresholds: dict[str, float]  # of the class of the pseudo-label
    weight: float
    fixmatch_weight: float  # 1 from a confidence of 0.95 on
    reason: str
    page: str  # where it is written, with the views

    def _facts(self) -> dict[str, str | None]:
        return {
            "sample": self.sample,
            "pseudo-label": self.pseudo_label,
            "confidence": f"{self.confidence:.3f}",
            "weight": f"{self.weight:.3f}",
            "reason": self.reason,
            "page": self.page,
        }


def explain(
    checkpoint: str | PathLike[str],
    sample: str | PathLike[str] | int,
    *,
    image_column: str | None = None,
    output: str | PathLike[str] | None = None,
) -> Explanation:
    """Find out why one image gets its weight, and write a page with its weak and strong views.

    Args:
        checkpoint: folder step-N, or of a run, whose newest checkpoint is taken.
        sample: an image file, `file.parquet:row`, `file.tar:member`, or an image of the pool of the run: its
            index, or the end of its path. The latter two need the data where they were.
        image_column: of a parquet file; None: the one of training.
        output: file of the page; None: `explanation-SAMPLE.html` in the folder that holds the checkpoint.

    Raises:
        ValueError: there is no whole checkpoint, or no such image.
    """
    place = open_checkpoint(fspath(checkpoint))
    config, info = load_config_and_info(place)
    if image_column:
        config = config.changed(data={"image_column": image_column})
    slug = _slug(fspath(sample) if not isinstance(sample, int) else str(sample))
    file = open_output(fspath(output), "file") if output else place.parent / f"explanation-{slug}.html"
    image, sample_id, known = _read(str(sample) if isinstance(sample, int) else fspath(sample), config, info)
    found = _explain(place, image, sample_id, str(file))
    _page(found, image, known, config, info, str(place)).write(file)
    return found


def _slug(sample: str) -> str:
    """Of the name of a page: the sample's, without the options of its address."""
    path = split_options(sample)[0] if "://" in sample else sample
    return re.sub(r"[^A-Za-z0-9.]+", "-", path).strip("-")[-60:]


def _read(sample: str, config: Config, info: ModelInfo) -> tuple[NDArray[np.uint8], str, str | None]:
    """The decoded image, its id, and its class where it is known."""
    if sample.isdecimal():
        return _read_pool(int(sample), config, info)
    settings = info.decode_settings(config.data)
    path, row = split_id(sample)
    try:
        location = open_location("sample", path)
    except ValueError:  # a $ in the name of an image of the pool is no variable
        if found := _find_in_pool(sample, config, info):
            return found
        raise
    if row is None and is_shard(sample):
        kind, one = ("tar", f"{sample}:7.jpg") if is_tar(sample) else ("parquet file", f"{sample}:0")
        raise ValueError(f"sample={sample}: a {kind} has many images; name a row, as sample={one}")
    if not location.filesystem.get_file_info(location.path).is_file and (found := _find_in_pool(sample, config, info)):
        return found
    files = list_pool(location, image_column=config.data.image_column)
    if len(files.paths) > 1:
        raise ValueError(f"sample={sample}: {len(files.paths)} files are there; name one image")
    rows = files.rows([files.name(0) if row is None else f"{files.name(0)}:{row}"]).get(0)
    if not rows:
        right = "give one of its images" if is_tar(path) else f"give one of 0 to {len(files) - 1}"
        raise ValueError(f"sample={sample}: the file has {len(files)} rows; {right}")
    return _decode([*files.read_rows(0, np.array(rows))], settings, sample), sample, None


def _find_in_pool(sample: str, config: Config, info: ModelInfo) -> tuple[NDArray[np.uint8], str, str | None] | None:
    """The image of the run's pool whose id is this or ends so, after a /; None where there is none.

    Raises:
        ValueError: several end so, or the pool cannot be read.
    """
    try:
        pool: Any = load_splits(config.data, seed=config.train.seed).unlabeled
    except ValueError as error:
        raise ValueError(
            f"sample={sample}: there is no such file, and the run's pool, which may have it, cannot be read ({error})"
        ) from None
    ids = pool.ids.tolist() if isinstance(pool, ImageSet) else pool.ids_ending(sample)
    found = [sample_id for sample_id in ids if f"/{sample_id}".endswith(f"/{sample}")]
    if len(found) > 1:
        raise ValueError(
            f"sample={sample}: {len(found)} images of the pool end so, as {found[0]} and {found[1]}; give more of the "
            "path"
        )
    if not found:
        return None
    if isinstance(pool, ImageSet):
        return _of_set(pool, ids.index(found[0]), config, info)
    if isinstance(pool, StreamedFeatures):
        return _of_features(found[0], None, config, info)
    rows = next(part.read_rows(file, np.array(rows)) for part in pool.parts for file, rows in part.rows(found).items())
    return _decode([*rows], pool.settings, sample), found[0], None


def _read_pool(index: int, config: Config, info: ModelInfo) -> tuple[NDArray[np.uint8], str, str | None]:
    pool: Any = load_splits(config.data, seed=config.train.seed).unlabeled
    if not index < len(pool):
        raise ValueError(f"sample={index}: the pool of this run has {len(pool)} images; give 0 to {len(pool) - 1}")
    if isinstance(pool, ImageSet):
        return _of_set(pool, index, config, info)
    assert isinstance(pool, StreamedPool)
    if isinstance(pool, StreamedFeatures):
        return _of_features(pool.names(np.array([index]))[0], None, config, info)
    part, file, first, _, first_id = pool.span(int(pool.span_of(np.array([index]))[0]))
    rows = pool.parts[part].read(file, first + index - first_id, 1)
    return _decode(rows, pool.settings, str(index)), rows[0][0], None


def _of_set(pool: ImageSet, index: int, config: Config, info: ModelInfo) -> tuple[NDArray[np.uint8], str, str | None]:
    target = int(pool.targets[index])
    known = None if target < 0 else str(target)
    if pool.images.dtype != np.uint8:
        return _of_features(str(pool.ids[index]), known, config, info)
    return pool.images[index], str(pool.ids[index]), known


def _of_features(
    sample_id: str, known: str | None, config: Config, info: ModelInfo
) -> tuple[NDArray[np.uint8], str, str | None]:
    """The image that they were made of."""
    try:
        check_addresses([sample_id], open_location("data.train", config.data.train or ""), DataConfig())
    except OutOfReachError:
        raise ValueError(f"sample: the features say {sample_id}, of another host; give the image itself") from None
    payload = next(read_samples([sample_id], config.data.image_column, locate))
    return _decode([(sample_id, payload, None)], info.decode_settings(config.data), sample_id), sample_id, known


def _decode(rows: Rows, settings: DecodeSettings, sample: str) -> NDArray[np.uint8]:
    decoded = decode_or_reason(rows[0][1], settings)
    if isinstance(decoded, str):
        raise ValueError(f"sample={sample}: cannot be read ({decoded})")
    return decoded


def _explain(place: Storage, image: NDArray[np.uint8], sample_id: str, page: str) -> Explanation:
    import torch

    from dpl_ray.algorithm.dpl import DynamicPseudoLabels
    from dpl_ray.inference.label_batch import label_batch
    from dpl_ray.training.checkpoint import load_classifier, load_policy
    from dpl_ray.training.metrics import HIGH_ENTROPY_CONFIDENCE

    student, config, info = load_classifier(place, "student")
    policy = load_policy(place)
    images = torch.from_numpy(image[None].copy())
    found = {key: values for key, values in label_batch(student, policy, images).items() if values is not None}
    with torch.inference_mode():
        features, logits = student(images)
        probs = logits.softmax(dim=1)[0]
        heads: dict[str, tuple[str, float]] = {}
        if isinstance(policy, DynamicPseudoLabels):
            for name, head in zip(("LGP", "HGP"), policy.heads(features), strict=True):
                heads[name] = _top(head.softmax(dim=1)[0], info.class_names)
    label = int(found["pseudo_label"])
    confidence, weight = float(found["confidence"]), float(found["weight"])
    likely = probs.argsort(descending=True)[:NUM_CLASSES].tolist()
    thresholds = {name: float(values[label]) for name, values in policy.thresholds().items()}
    return Explanation(
        sample=sample_id,
        policy=config.policy.name,
        pseudo_label=info.class_names[label],
        confidence=confidence,
        entropy=float(found["entropy"]),
        probs={info.class_names[index]: float(probs[index]) for index in likely},
        heads=heads,
        thresholds=thresholds,
        weight=weight,
        fixmatch_weight=float(confidence >= HIGH_ENTROPY_CONFIDENCE),
        reason=_reason(policy, info.class_names[label], confidence, thresholds, heads),
        page=page,
    )


def _top(probs: Tensor, class_names: tuple[str, ...]) -> tuple[str, float]:
    confidence, label = probs.max(dim=0)
    return class_names[int(label)], float(confidence)


def _reason(
    policy: Policy, label: str, confidence: float, thresholds: dict[str, float], heads: dict[str, tuple[str, float]]
) -> str:
    """The rule as it was applied, in a sentence."""
    if not policy.uses_unlabeled:
        return "The policy is supervised and uses no pool; the weight is FixMatch's."
    rule = getattr(policy, "rule", None)
    if rule == "agreement":
        agree = "agree on" if all(name == label for name, _ in heads.values()) else "do not both say"
        return (
            f"The rule `agreement` counts a sample fully where both heads share its pseudo-label; they {agree} {label}."
        )
    if "over" not in thresholds:
        said = ", ".join(f"{name} {value:.3f}" for name, value in thresholds.items())
        return f"The policy's state for class {label}: {said}." if said else "The policy keeps no threshold of its own."
    over, under = thresholds["over"], thresholds["under"]
    if confidence >= over:
        return f"The confidence is at or above the over-confident threshold of class {label}: it counts fully."
    where = "between the thresholds" if confidence >= under else "below the under-confident threshold"
    width = max(over - under, float(getattr(policy, "epsilon", 0.0)))
    formula = (
        f"exp(-({confidence:.3f} - {over:.3f})² / (2 · {width:.3f}²))"
        if rule == "gaussian"
        else f"1 + ({confidence:.3f} - {over:.3f}) / {width:.3f}, from 0 to 1"
    )
    return f"The confidence lies {where} of class {label}, whose band is {width:.3f} wide: the weight is {formula}."


def _page(
    found: Explanation, image: NDArray[np.uint8], known: str | None, config: Config, info: ModelInfo, checkpoint: str
) -> Page:
    headline = f"Weight {found.weight:.3f}; FixMatch's 0.95 would give {found.fixmatch_weight:.0f}"
    values = {"pseudo-label": found.pseudo_label}
    values |= {"true class": info.class_names[int(known)]} if known is not None else {}
    values |= {
        "confidence": f"{found.confidence:.4f}",
        "entropy": f"{found.entropy:.4f} nats (at most {math.log(len(info.class_names)):.4f})",
    }
    names = {"LGP": "low gradient pass", "HGP": "high gradient pass"}
    values |= {names[name]: f"{label}, confidence {value:.4f}" for name, (label, value) in found.heads.items()}
    values |= {
        f"{name}-confident threshold" if name in ("over", "under") else name: f"{value:.4f}"
        for name, value in found.thresholds.items()
    }
    likely = Table("Most likely classes", ["class", "probability"], [(n, f"{p:.4f}") for n, p in found.probs.items()])
    sections = {
        "why": Section(title="Why this weight", headline=headline, reason=found.reason, facts=values, likely=likely),
        "views": Section(title="What training sees of it", views=_views(image, config)),
        "checkpoint": Section(title="The checkpoint", checkpoint=checkpoint),
    }
    return render_page("jobs/explanation.html", found.sample, f"One image, as {found.policy} weighs it", sections)


def _views(image: NDArray[np.uint8], config: Config) -> dict[str, list[bytes]]:
    """Kind -> PNGs: the image as it is decoded, weak and strong views."""
    import torch

    from dpl_ray.data.batches.augment import num_strong_uniforms, strong, weak

    settings = config.data.views
    images = torch.from_numpy(np.repeat(image[None], NUM_VIEWS, axis=0))
    uniforms = np.random.default_rng(0).random((NUM_VIEWS, num_strong_uniforms(settings)), dtype=np.float32)
    columns = torch.from_numpy(uniforms)
    views = {"weak": weak(images, columns, settings)[:-1], "strong": strong(images, columns, settings)}
    pngs = {kind: [encode_png(view) for view in found.numpy()] for kind, found in views.items()}
    return {"decoded": [encode_png(image)]} | pngs
