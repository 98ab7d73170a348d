"""The code of a model in MLflow's format: it reads images as training did, and asks the graph that lies beside it.

The model carries a copy of this file, of prepare.py, decode.py and convert.py (exported_model.py); with mlflow, torch,
NumPy and Pillow they are all that it needs. They are also all of it that runs: the graph and the settings hold no code.

Legend: N images, C classes.
"""

from __future__ import annotations

import base64
import binascii
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..data.images.convert import DecodeSettings, eight_bits
from .prepare import Preparation

GRAPH, SETTINGS = "graph", "settings.json"  # the folder of the graph, a model of MLflow's too, and what lies in it
NOT_BASE64 = "not base64"
BATCH_SIZE = 32  # images that pass through the graph at once; a CPU takes longer for more (benchmarks/parts.py)


class ServedModel:
    """Class names and probabilities of images."""

    def __init__(self, graph: Any, class_names: list[str], preparation: Preparation) -> None:
        """
        Args:
            graph: (N, channels, H, W) uint8 -> probabilities (N, C).
        """
        self._graph, self._class_names, self._preparation = graph, class_names, preparation

    def predict(self, images: Any, params: dict[str, Any] | None = None) -> list[dict[str, Any]]:  # noqa: ARG002
        """The answers, in the order of the images.

        Args:
            images: encoded images, as bytes or base64, in a list, an array or the only column of a DataFrame; or
                arrays as `as_images` takes them, of uint8, of whole numbers in 0..255 as JSON has them, or of floats.

        Returns:
            N dicts: label, confidence, probabilities (class name -> probability), error. Where an image cannot be read,
            error says why and the others are None.
        """
        if hasattr(images, "columns"):
            if len(images.columns) != 1:
                raise ValueError(f"a table of {len(images.columns)} columns: give one, of images in base64")
            images = list(images.iloc[:, 0])
        if isinstance(images, str | bytes):
            images = [images]
        if isinstance(images, np.ndarray) and images.dtype.kind in "OSU":
            images = images.ravel().tolist()
        if isinstance(images, np.ndarray):
            return self._answer(list(eight_bits(self._preparation.many(_as_pixels(images)))))
        return self._answer([self._read(image) for image in images])

    def _read(self, image: Any) -> NDArray | str:
        if isinstance(image, str):
            try:
                image = base64.b64decode(image.partition("base64,")[2] or image, validate=True)
            except (binascii.Error, ValueError):
                return NOT_BASE64
        return self._preparation.one(image if isinstance(image, bytes) else _as_pixels(np.asarray(image)))

    def _answer(self, images: list[NDArray | str]) -> list[dict[str, Any]]:
        """Of images (channels, H, W), or the reasons why there are none."""
        import torch

        good = [image for image in images if not isinstance(image, str)]
        probs: list[list[float]] = []
        with torch.inference_mode():
            for start in range(0, len(good), BATCH_SIZE):
                batch = torch.from_numpy(np.stack(good[start : start + BATCH_SIZE]))
                probs += self._graph(batch).tolist()
        found = iter(probs)
        return [_unread(image) if isinstance(image, str) else self._said(next(found)) for image in images]

    def _said(self, probs: list[float]) -> dict[str, Any]:
        named = dict(zip(self._class_names, probs, strict=True))
        label = max(named, key=named.__getitem__)
        return {"label": label, "confidence": named[label], "probabilities": named, "error": None}


def _unread(reason: str) -> dict[str, Any]:
    return {"label": None, "confidence": None, "probabilities": None, "error": reason}


def _as_pixels(array: NDArray) -> NDArray:
    """Whole numbers in 0..255 as uint8: JSON has no other whole numbers."""
    is_pixels = array.dtype.kind in "iu" and array.size and array.min() >= 0 and array.max() <= 255
    return array.astype(np.uint8) if is_pixels else array


def _load_pyfunc(path: str) -> ServedModel:
    """What `mlflow.pyfunc.load_model` calls, with the folder of the graph."""
    import mlflow.pytorch

    settings = json.loads((Path(path) / SETTINGS).read_text())
    decoding = DecodeSettings(**settings["decoding"])
    graph = mlflow.pytorch.load_model(path)
    return ServedModel(graph, settings["class_names"], Preparation(decoding, tuple(settings["image_size"])))
