"""What a quick start leaves: predictions of the unlabelled images, and the commands that come next."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console

from dpl_ray.config.schema import Config, DataConfig
from dpl_ray.config.section import shown
from dpl_ray.data.dataset import ImageSet
from dpl_ray.data.splits.sources import load_splits
from dpl_ray.inference.predictions import Predictions
from dpl_ray.jobs.fit import FitResult
from dpl_ray.page.console import show
from dpl_ray.quickstart.layout import Layout
from dpl_ray.quickstart.work import unlabelled
from dpl_ray.runs.kept_config import CONFIG_FILE
from dpl_ray.store.storage import Storage

if TYPE_CHECKING:
    from dpl_ray.inference.predictor import Predictor

PREDICTIONS_FILE = "predictions.csv"


def predict(config: Config, images: DataConfig, checkpoint: Storage, storage: Storage, console: Console) -> str:
    """The CSV of predictions of the images that have no label, with those that cannot be read.

    Args:
        config: of the training, on images or on features of them.
        images: the places of the images.
        checkpoint: one, or a folder of several, of which the newest is taken.
    """
    from dpl_ray.inference.predictor import load_checkpoint

    parts, target, model = unlabelled(images), storage / PREDICTIONS_FILE, load_checkpoint(str(checkpoint))
    if config.data.name == "features":
        predictions = _of_features(config, [row[0] for part in parts for row in part.read_all()], model)
    else:
        found = [model.predict(part) for part in parts]
        predictions = Predictions(
            [sample_id for part in found for sample_id in part.ids],
            np.concatenate([part.probabilities for part in found]),
            model.class_names,
            {sample_id: reason for part in found for sample_id, reason in part.bad.items()},
        )
    predictions.write(str(target))
    show(console, repr(predictions))
    return str(target)


def _of_features(config: Config, ids: list[str], model: Predictor) -> Predictions:
    from dpl_ray.training.evaluation import predict_probs

    # Copies, which the training left out, are predicted, too.
    data = config.data.changed(allow_overlap=True, pool={"mode": "memory"})
    splits = load_splits(data, seed=config.train.seed)
    assert isinstance(splits.unlabeled, ImageSet), "in memory"
    probabilities = predict_probs(model.model, splits.unlabeled.images).numpy()
    found = dict(zip(splits.unlabeled.ids.tolist(), probabilities, strict=True))
    bad = {image.id: image.reason for image in splits.bad}
    nothing = np.full(len(splits.class_names), np.nan, np.float32)
    rows = [found.get(each, nothing) for each in ids]
    return Predictions(ids, np.stack(rows), splits.class_names, {each: bad[each] for each in ids if each not in found})


def next_commands(config: Config, run: FitResult, storage: Storage, layout: Layout) -> tuple[str, ...]:
    """The three that a user is most likely to want."""
    chosen = shlex.quote(f"config={storage / CONFIG_FILE}")
    longer = f"dpl-ray train {chosen} train.num_steps={4 * config.train.num_steps} run.name={run.name}-longer"
    policies = f"'policies=[supervised,{config.policy.name},fixmatch]'"
    compare = f"dpl-ray compare {chosen} {policies} seeds=3 run.name={run.name}-compared"
    pool = layout.fields.get("unlabeled") or (layout.fields["train"] if layout.has_unlabelled_rows else None)
    predict = shlex.join(["dpl-ray", "predict", f"checkpoint={run.checkpoint}", "images=photo.jpg"])
    if pool is None:
        return (f"dpl-ray check {chosen}", longer, predict)
    label = shlex.join(
        ["dpl-ray", "label", f"checkpoint={run.checkpoint}", f"pool={shown(pool)}", f"output={run.name}-labels"]
    )
    if any(found.blocks for found in run.health):  # `label` would refuse such a model
        return (f"dpl-ray check {chosen}", longer, compare)
    # On features the steps suffice: more of them bring nothing.
    return (label, compare, predict if config.data.name == "features" else longer)
