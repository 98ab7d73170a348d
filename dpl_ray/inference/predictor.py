"""A trained model for use: `load_checkpoint(path).predict("photo.jpg")`.

Legend: N images, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import islice
from os import PathLike, fspath
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from dpl_ray.config.schema import LEAST_TEMPERATURE, MOST_TEMPERATURE, Config
from dpl_ray.data.features.rows import FeatureFiles
from dpl_ray.data.images.decode import decode_or_reason
from dpl_ray.data.images.decode_many import count_threads
from dpl_ray.data.splits.arrays import as_array
from dpl_ray.inference.images import read_items
from dpl_ray.inference.predictions import Predictions
from dpl_ray.inference.prepare import Preparation
from dpl_ray.models import Classifier
from dpl_ray.store.storage import Storage
from dpl_ray.training.checkpoint import load_classifier
from dpl_ray.training.checkpoint_folder import ModelInfo, open_checkpoint
from dpl_ray.training.evaluation import predict_probs

if TYPE_CHECKING:
    from dpl_ray.inference.images import Images


class Predictor:
    """The teacher of a checkpoint, the names of its classes and the shape of its images."""

    def __init__(self, model: Classifier, config: Config, info: ModelInfo) -> None:
        self.model, self.config = model, config
        self.class_names, self.channels, self.image_size = info.class_names, info.channels, info.image_size
        self._preparation = Preparation(info.decode_settings(config.data), info.image_size)

    def predict(self, images: Images, *, batch_size: int = 256) -> Predictions:
        """Class names, confidences and probabilities of images, in the order in which they are given.

        Images are decoded, turned upright, cropped, resized and brought to grey or colour as training did.

        Args:
            images: a path, a folder, a glob or a URI of image or parquet files; encoded bytes; an image of Pillow; an
                array or a tensor, (N, C, H, W), (N, H, W, C) or (N, H, W), or one image (C, H, W), (H, W, C) or (H, W),
                uint8 or floats in [0, 1]; or a list of these.
            batch_size: images of a batch, which a CPU takes in smaller parts; so many are in memory, and as many
                are being read.

        Raises:
            ValueError: there is no such path, or an array has another shape, type or range.
        """
        parts = list(self.stream(images, batch_size=batch_size))
        return Predictions(
            [sample_id for part in parts for sample_id in part.ids],
            np.concatenate([np.empty((0, len(self.class_names)), np.float32), *(part.probabilities for part in parts)]),
            self.class_names,
            {sample_id: reason for part in parts for sample_id, reason in part.bad.items()},
        )

    def stream(self, images: Images, *, batch_size: int = 256) -> Iterator[Predictions]:
        """The same in parts of `batch_size` images, each as soon as it is known: the next is read meanwhile."""
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size}: must be at least 1")
        if (array := as_array(images)) is not None:
            prepared = self._preparation.many(array)
            for start in range(0, len(prepared), batch_size):
                part = prepared[start : start + batch_size]
                yield self._answer([str(start + place) for place in range(len(part))], list(part))
            return
        items = read_items(images, self.config.data.image_column)
        prepare: Callable[[Any], NDArray | str] = self._preparation.one
        if isinstance(images, FeatureFiles):  # `list_features` has seen that they are of this model's backbone
            prepare = partial(decode_or_reason, settings=self._preparation.decoding)
        ahead: tuple[list[str], list[Future[NDArray | str]]] | None = None
        with ThreadPoolExecutor(count_threads()) as executor:
            while (batch := list(islice(items, batch_size))) or ahead:
                futures = [executor.submit(prepare, image) for _, image in batch]
                if ahead:
                    yield self._answer(ahead[0], [future.result() for future in ahead[1]])
                ahead = ([sample_id for sample_id, _ in batch], futures) if batch else None

    def _answer(self, ids: list[str], images: list[NDArray | str]) -> Predictions:
        """Of images (C, H, W), or the reasons why there are none."""
        probabilities = np.full((len(ids), len(self.class_names)), np.nan, np.float32)
        good = [place for place, image in enumerate(images) if not isinstance(image, str)]
        if good:
            found = predict_probs(self.model, np.stack([images[place] for place in good]), len(good))
            if not torch.isfinite(found).all():
                raise ArithmeticError("the model's logits are not finite: this checkpoint's weights are of no use")
            probabilities[good] = found.numpy()
        bad = {sample_id: image for sample_id, image in zip(ids, images, strict=True) if isinstance(image, str)}
        return Predictions(ids, probabilities, self.class_names, bad)

    def to_onnx(self, path: str | PathLike[str]) -> None:
        """Write the model as ONNX, checked against this one by onnxruntime. A file that is there is replaced.

        It takes `images` (N, channels, H, W) uint8 of the size of training, and gives `probabilities` (N, C) float32;
        its metadata `class_names` has the names as a JSON list.

        Raises:
            ValueError: the packages are not there: `pip install 'dpl_ray[onnx]'`.
            RuntimeError: the network cannot be exported, or answers otherwise than this one.
        """
        from dpl_ray.inference.onnx_model import export_onnx

        shape = (self.channels, *self.image_size)
        Storage(fspath(path)).write(export_onnx(self.model, self.class_names, shape))


def load_checkpoint(path: str | PathLike[str], *, temperature: float = 1.0) -> Predictor:
    """The model of a checkpoint (`.../step-00000600`), or of the newest checkpoint in the folder of a run.

    Nothing in the files is executed.

    Args:
        temperature: T of softmax(logits / T), by which the confidences are calibrated; `evaluate` fits one. The last
            layer of the model is divided by it, so that what is exported is calibrated too.

    Raises:
        ValueError: there is no whole checkpoint, or the temperature is not in [0.01, 100].
    """
    if not LEAST_TEMPERATURE <= temperature <= MOST_TEMPERATURE:
        raise ValueError(f"temperature={temperature}: must be from {LEAST_TEMPERATURE:g} to {MOST_TEMPERATURE:g}")
    model, config, info = load_classifier(open_checkpoint(fspath(path)))
    with torch.no_grad():
        for values in model.classifier.parameters():
            values.div_(temperature)
    return Predictor(model, config, info)
