"""A trained model for use: `load_checkpoint(path).predict(images)`.

Legend: N images, C classes.
"""

from __future__ import annotations

from os import PathLike, fspath

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dpl_ray.config.schema import Config
from dpl_ray.models import Classifier
from dpl_ray.store.storage import Storage
from dpl_ray.training.checkpoint import load_classifier
from dpl_ray.training.checkpoint_folder import ModelInfo, find_checkpoint
from dpl_ray.training.evaluation import predict_probs


class Predictor:
    """The teacher of a checkpoint, the names of its classes and the shape of its images."""

    def __init__(self, model: Classifier, config: Config, info: ModelInfo) -> None:
        self.model, self.config = model, config
        self.class_names, self.channels, self.image_size = info.class_names, info.channels, info.image_size

    def predict(self, images: Tensor | NDArray, batch_size: int = 256) -> Tensor:
        """Class probabilities.

        Args:
            images: (N, channels, H, W), uint8, or floats in [0, 1]; any H and W, best those of training.

        Returns:
            (N, C) float32 on the CPU, rows summing to one, columns in the order of `class_names`.

        Raises:
            ValueError: another shape, type or range.
        """
        images = torch.as_tensor(np.array(images) if isinstance(images, np.ndarray) else images)
        if images.ndim != 4 or images.shape[1] != self.channels:
            raise ValueError(
                f"images of shape {tuple(images.shape)}: must be (N, {self.channels}, H, W), "
                f"as (N, {self.channels}, {self.image_size[0]}, {self.image_size[1]})"
            )
        if images.is_floating_point():
            if len(images) and not (images.min() >= 0 and images.max() <= 1):
                raise ValueError(
                    f"images of floats from {images.min():.3g} to {images.max():.3g}: must be in [0, 1], or uint8"
                )
            images = images.float()
        elif images.dtype != torch.uint8:
            raise ValueError(f"images of type {images.dtype}: must be uint8 in 0..255, or floats in [0, 1]")
        return predict_probs(self.model, images, batch_size)


def load_checkpoint(path: str | PathLike[str]) -> Predictor:
    """The model of a checkpoint (`.../step-00000600`), or of the newest checkpoint in the folder of a run.

    Nothing in the files is executed.

    Raises:
        ValueError: there is no whole checkpoint.
    """
    return Predictor(*load_classifier(find_checkpoint(Storage(fspath(path)))))
