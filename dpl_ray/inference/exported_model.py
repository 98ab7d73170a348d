"""The model of a checkpoint in MLflow's format: a traced graph (pt2), settings (JSON), and the code that reads images.

What loads it needs mlflow, torch, NumPy and Pillow, but neither this package nor pickle. What runs is that code alone:
a copy of CODE, which lies in the model to be read. The graph by itself, for `mlflow.pytorch.load_model`, holds no code.

Legend: N images, C classes.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import io
import json
import logging
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import numpy as np
import yaml
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from dpl_ray.config.schema import RegistryConfig
from dpl_ray.inference.served import GRAPH, SETTINGS
from dpl_ray.models import Classifier
from dpl_ray.runs.folder import MODEL_FOLDER
from dpl_ray.store.storage import Storage
from dpl_ray.tracking.server import first_line
from dpl_ray.tracking.tracker import Tracker
from dpl_ray.training.checkpoint import load_classifier

#: Below dpl_ray/.
CODE = ("data/images/convert.py", "data/images/decode.py", "inference/prepare.py", "inference/served.py")
NUM_EXAMPLES = 2  # images of the input example: with one, the graph would take one image at a time


class Probabilities(nn.Module):
    """What is exported of a classifier."""

    def __init__(self, model: Classifier) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """(N, channels, H, W) uint8 -> class probabilities (N, C) float32."""
        return self.model(images)[1].softmax(dim=1)


def example_images(shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Images of this shape (channels, H, W) in which every value of a pixel occurs, so that one sees their range."""
    return np.resize(np.arange(256, dtype=np.uint8), (NUM_EXAMPLES, *shape))


def load_libraries() -> None:
    """Those of an export, which take seconds; they may be loaded while others compute."""
    with _root_logger_as_it_is():
        import mlflow.pyfunc
        import mlflow.pytorch  # noqa: F401
    import torch._dynamo  # noqa: F401  (by torch.export)


def export_model(checkpoint: Storage, folder: Storage) -> None:
    """Write the teacher of a checkpoint into a folder that `mlflow models serve` and `mlflow.pyfunc.load_model` take.

    `ServedModel.predict` says what it takes and answers. Its folder data/graph is a model of MLflow's too: images (N,
    channels, H, W) uint8 of the size of training -> probabilities (N, C) float32. `metadata` in the MLmodel has the
    names of the classes in their order.

    Raises:
        ValueError: the checkpoint is damaged.
        RuntimeError: torch.export cannot trace the network.
    """
    load_libraries()
    import mlflow.pyfunc
    import mlflow.pytorch
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema, TensorSpec
    from mlflow.types.schema import Map

    for logger in map(logging.getLogger, ("mlflow", "torch.export", "torch._export")):
        logger.setLevel(max(logging.ERROR, logger.level))  # a tracker may have made it quieter
    model, config, info = load_classifier(checkpoint)
    shape, class_names = (info.channels, *info.image_size), list(info.class_names)
    tensors = ModelSignature(
        inputs=Schema([TensorSpec(np.dtype(np.uint8), (-1, *shape))]),
        outputs=Schema([TensorSpec(np.dtype(np.float32), (-1, len(class_names)))]),
    )
    # No schema of MLflow's has encoded images beside arrays of any size: the code itself says what it does not take.
    columns = {"label": "string", "confidence": "double", "probabilities": Map("double"), "error": "string"}
    answers = ModelSignature(outputs=Schema([ColSpec(kind, name, required=False) for name, kind in columns.items()]))
    settings = {
        "class_names": class_names,
        "image_size": info.image_size,
        "decoding": dataclasses.asdict(info.decode_settings(config.data)),
    }
    example = example_images(shape)
    requirements = [f"{package}=={version(package).partition('+')[0]}" for package in ("torch", "numpy", "pillow")]
    with tempfile.TemporaryDirectory() as temporary, _unchecked_versions():
        path, graph = Path(temporary) / MODEL_FOLDER, Path(temporary) / GRAPH
        mlflow.pytorch.save_model(
            Probabilities(model).eval(),
            str(graph),
            signature=tensors,
            input_example=example,
            serialization_format="pt2",
            pip_requirements=requirements,
        )
        (graph / SETTINGS).write_text(json.dumps(settings, indent=1))
        package = _copy_code(Path(temporary))
        mlflow.pyfunc.save_model(
            str(path),
            loader_module=f"{package.name}.inference.served",
            code_paths=[str(package)],
            data_path=str(graph),
            signature=answers,
            input_example=[base64.b64encode(_png(image)).decode() for image in example],
            pip_requirements=requirements,
            metadata={"class_names": class_names, "checkpoint": str(checkpoint)},
        )
        for file in sorted(path.rglob("*")):
            if file.is_file():
                (folder / file.relative_to(path).as_posix()).write(file.read_bytes())


def _copy_code(folder: Path) -> Path:
    """CODE as a package, whose name says which code it is: Python loads a module once, and models may differ in it."""
    texts = {name: (Path(__file__).parents[1] / name).read_bytes() for name in CODE}
    package = folder / f"dpl_ray_model_{hashlib.sha256(b''.join(texts.values())).hexdigest()[:8]}"
    for name, text in texts.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_bytes(text)
    return package


def _png(image: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0).copy()).save(buffer, "png")
    return buffer.getvalue()


@contextmanager
def _unchecked_versions() -> Iterator[None]:
    """MLflow would read what is installed, file by file, to see whether it has the versions that were taken from it."""
    from mlflow.utils import environment

    name = "warn_dependency_requirement_mismatches"
    check = getattr(environment, name, None)
    setattr(environment, name, lambda _: None)
    try:
        yield
    finally:
        setattr(environment, name, check)


@contextmanager
def _root_logger_as_it_is() -> Iterator[None]:
    """The root logger is the program's that calls this; mlflow.pytorch configures it when it is imported."""
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    yield
    root.setLevel(level)
    root.handlers[:] = handlers


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
