"""How good a classifier is on labelled images.

Legend: N images, C classes.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dpl_ray.data.dataset import ImageSet
from dpl_ray.models import Classifier, answer_in_parts
from dpl_ray.training.distributed import Workers
from dpl_ray.training.predictions import NUM_BINS, Predictions, confidence_bins


@torch.inference_mode()
def predict_logits(model: Classifier, images: NDArray[np.uint8] | Tensor, batch_size: int = 256) -> Tensor:
    """(N, C) float32 on the CPU, of images (N, channels, H, W) uint8 or float in [0, 1]."""
    model.eval()
    device = model.classifier.weight.device
    if not len(images):
        return torch.zeros(0, model.classifier.out_features)
    rows = []
    for start in range(0, len(images), batch_size):
        batch = images[start : start + batch_size]
        # A copy: arrays from the object store are read-only, which torch warns of.
        batch = torch.from_numpy(np.array(batch)) if isinstance(batch, np.ndarray) else batch
        batch = batch.to(device)
        rows.append(answer_in_parts(model, batch)[1].float().cpu())
    return torch.cat(rows)


def predict_probs(model: Classifier, images: NDArray[np.uint8] | Tensor, batch_size: int = 256) -> Tensor:
    """(N, C) float32 probabilities of them."""
    return predict_logits(model, images, batch_size).softmax(dim=1)


def classification_metrics(probs: Tensor, targets: Tensor) -> dict[str, float]:
    """`eval/accuracy`, `eval/balanced_accuracy` (mean recall of the classes that occur) and `eval/ece`.

    The expected calibration error (Guo 2017) is the sum over the bins of confidence of the bin's share of the images
    times the distance of its accuracy from its mean confidence.

    Args:
        probs: (N, C). targets: (N,) int64.
    """
    said = Predictions.from_probs(probs)
    right = said.labels == targets.numpy()
    bins = confidence_bins(said.confidence)
    gaps = np.bincount(bins, right.astype(np.float64) - said.confidence, NUM_BINS)
    found = np.bincount(targets, minlength=probs.shape[1])
    hits = np.bincount(targets[right], minlength=probs.shape[1])
    return {
        "eval/accuracy": float(right.mean()),
        "eval/balanced_accuracy": float((hits[found > 0] / found[found > 0]).mean()),
        "eval/ece": float(np.abs(gaps).sum() / len(right)),
    }


def predict_split(model: Classifier, split: ImageSet, workers: Workers | None = None) -> Tensor:
    """(N, C) float32 probabilities of a split, each worker predicting its share; the same on every worker.

    The model becomes worker 0's: BatchNorm's running statistics are each worker's own until then.
    """
    workers = workers or Workers()
    workers.broadcast(list(model.buffers()))
    mine = predict_probs(model, split.images[workers.rank :: workers.world_size])
    probs = torch.empty(len(split), mine.shape[1])
    for rank, rows in enumerate(workers.gather(mine)):
        probs[rank :: workers.world_size] = rows
    return probs


def evaluate_split(model: Classifier, split: ImageSet, workers: Workers | None = None) -> dict[str, float]:
    """`classification_metrics` of a model on a labelled split, by all workers as in `predict_split`."""
    return classification_metrics(predict_split(model, split, workers), torch.from_numpy(split.targets))
