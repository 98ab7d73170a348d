"""`dpl-ray train`."""

from __future__ import annotations

from dpl_ray.commands.command import Command

COMMAND = Command(
    "train",
    "fit",
    "Train a classifier on a few labelled and many unlabelled images.",
    "data=image_folder data.train=photos/labelled data.unlabeled=photos/rest data.image_size=64",
    shows={"checkpoint": "checkpoint", "report": "report", "model": "model", "registered": "registered"},
)
