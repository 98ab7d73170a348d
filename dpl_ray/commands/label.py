"""`dpl-ray label`."""

from __future__ import annotations

from dpl_ray.commands.command import Command
from dpl_ray.labeling.config import LabelConfig

COMMAND = Command(
    "label",
    "label_pool",
    "Label a pool of images with a trained model, every image once.",
    "checkpoint=runs/NAME pool=/path/to/images output=/path/to/labels",
    only=LabelConfig,
    shows={"labels": "output", "summary": "summary", "figure": "figure", "unreadable": "bad", "certificate": "page"},
)
