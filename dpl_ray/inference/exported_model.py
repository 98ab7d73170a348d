"""The model of a checkpoint in MLflow's format, as a traced graph (pt2): what loads it needs neither this package nor
pickle, and executes nothing that is in the file.

Legend: N images, C classes.
"""

from __future__ import annotations

import logging
import tempfile
import warnings
from importlib.metadata import version
from pathlib import Path

import numpy as np
import yaml
from torch import Tensor, nn

from dpl_ray.config.schema import RegistryConfig
from dpl_ray.models import Classifier
from dpl_ray.runs.folder import MODEL_FOLDER
from dpl_ray.store.storage import Storage
from dpl_ray.tracking.server import first_line
from dpl_ray.tracking.tracker import Tracker
from dpl_ray.training.checkpoint import load_classifier

NUM_EXAMPLES = 2  # images of the input example: with one, the graph would take one image at a time


class Probabilities(nn.Module):
    """What is exported of a classifier."""

    def __init__(self, model: Classifier) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """(N, channels, H, W) uint8 -> class probabilities (N, C) float32."""
        return self.model(images)[1].softmax(dim=1)


def export_model(checkpoint: Storage, folder: Storage) -> None:
    """Write the teacher of a checkpoint into a folder that `mlflow models serve` and `mlflow.pyfunc.load_model` take.

    It answers images (N, channels, H, W) uint8, of the size that it was trained with, by probabilities (N, C) float32;
    `metadata` in its MLmodel has the names of the classes in their order.

    Raises:
        ValueError: the checkpoint is damaged.
        RuntimeError: torch.export cannot trace the network.
    """
    import mlflow.pytorch
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    for logger in map(logging.getLogger, ("mlflow", "torch.export", "torch._export")):
        logger.setLevel(max(logging.ERROR, logger.level))  # a tracker may have made it quieter
    model, _, info = load_classifier(checkpoint)
    shape = (info.channels, *info.image_size)
    signature = ModelSignature(
        inputs=Schema([TensorSpec(np.dtype(np.uint8), (-1, *shape))]),
        outputs=Schema([TensorSpec(np.dtype(np.float32), (-1, len(info.class_names)))]),
    )
    # Every value of a pixel occurs, so that one who reads the example sees their range.
    example = np.resize(np.arange(256, dtype=np.uint8), (NUM_EXAMPLES, *shape))
    requirements = [f"{package}=={version(package).partition('+')[0]}" for package in ("torch", "numpy")]
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / MODEL_FOLDER
        mlflow.pytorch.save_model(
            Probabilities(model).eval(),
            str(path),
            signature=signature,
            input_example=example,
            serialization_format="pt2",
            pip_requirements=requirements,
            metadata={"class_names": list(info.class_names), "checkpoint": str(checkpoint)},
        )
        for file in sorted(path.rglob("*")):
            if file.is_file():
                (folder / file.relative_to(path).as_posix()).write(file.read_bytes())


def record_model(tracker: Tracker, registry: RegistryConfig, checkpoint: Storage, folder: Storage) -> None:
    """Export the teacher of a checkpoint into the folder of its run, and record it, where anything is recorded.

    What cannot be exported costs a warning: the checkpoint has the model too.
    """
    if not tracker.is_recording:
        return
    try:
        # A start that was killed after it had told of the model: the same one, not another version of it.
        if _exported_from(folder / MODEL_FOLDER) != str(checkpoint):
            export_model(checkpoint, folder / MODEL_FOLDER)
    except Exception as error:  # whatever torch.export meets in a network that it cannot trace
        warnings.warn(f"the model was not exported for MLflow: {first_line(error)}", stacklevel=2)
    else:
        tracker.log_model(MODEL_FOLDER, int(checkpoint.name.removeprefix("step-")), registry)


def _exported_from(folder: Storage) -> str | None:
    """The checkpoint of a model that is there."""
    described = folder / "MLmodel"
    return yaml.safe_load(described.read())["metadata"]["checkpoint"] if described.exists() else None
