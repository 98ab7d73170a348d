"""The model of a checkpoint as ONNX, checked against the model by onnxruntime.

Legend: N images, C classes.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence

import numpy as np
import torch

from dpl_ray.inference.exported_model import Probabilities, example_images
from dpl_ray.models import Classifier

TOLERANCE = 1e-4  # of a probability, between the two


def export_onnx(model: Classifier, class_names: Sequence[str], shape: tuple[int, int, int]) -> bytes:
    """`images` (N, *shape) uint8 -> `probabilities` (N, C) float32, N free; `Predictor.to_onnx` says more.

    Args:
        shape: channels, H, W.

    Raises:
        ValueError: a package is not installed.
        RuntimeError: the network cannot be exported, or onnxruntime answers otherwise than torch.
    """
    try:
        import onnxruntime
        import onnxscript  # noqa: F401 - what torch.onnx needs
    except ImportError as error:
        raise ValueError(f"ONNX needs {error.name}, which is not installed: pip install 'dpl_ray[onnx]'") from None
    network = Probabilities(copy.deepcopy(model).cpu()).eval()
    images = torch.from_numpy(example_images(shape))
    program = torch.onnx.export(
        network,
        (images,),
        dynamo=True,
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        input_names=["images"],
        output_names=["probabilities"],
        verbose=False,
    )
    assert program is not None
    described = program.model_proto
    described.metadata_props.add(key="class_names", value=json.dumps(list(class_names)))
    encoded = described.SerializeToString()
    images = torch.cat([images, images.flip(0, 3)[:1]])  # of another number than the example's
    session = onnxruntime.InferenceSession(encoded, providers=["CPUExecutionProvider"])
    with torch.inference_mode():
        expected = network(images).numpy()
    found = session.run(["probabilities"], {"images": images.numpy()})[0]
    if not np.allclose(found, expected, rtol=0, atol=TOLERANCE):
        difference = np.abs(found - expected).max()
        raise RuntimeError(f"onnxruntime answers otherwise than torch: a probability differs by {difference:.2g}")
    return encoded
