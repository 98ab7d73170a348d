"""`dpl-ray export`."""

from __future__ import annotations

from rich.console import Console

from dpl_ray.commands.command import Command
from dpl_ray.jobs.predict_config import ExportConfig
from dpl_ray.page.console import show


def job(config: ExportConfig, console: Console) -> None:
    """One model, what it takes and what it gives."""
    from dpl_ray.inference.predictor import load_checkpoint

    predictor = load_checkpoint(config.checkpoint, temperature=config.temperature)
    predictor.to_onnx(config.output)
    height, width = predictor.image_size
    show(console, f"takes images (N, {predictor.channels}, {height}, {width}) uint8")
    show(console, f"gives probabilities (N, {len(predictor.class_names)}) float32, as onnxruntime has confirmed")
    show(console, f"model       {config.output}")


COMMAND = Command(
    "export",
    job,
    "Write a trained model as ONNX.",
    "checkpoint=runs/NAME output=model.onnx",
    only=ExportConfig,
    goes_on=False,
)
