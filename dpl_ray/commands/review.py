"""`dpl-ray review`."""

from __future__ import annotations

from dpl_ray.commands.command import Command
from dpl_ray.reviewing.config import ReviewConfig

COMMAND = Command(
    "review",
    "review",
    "Look at labels of a pool that are drawn at random, and estimate how many are wrong.",
    "labels=/path/to/labels num=200",
    only=ReviewConfig,
    goes_on=False,
    shows={"page": "page", "true labels": "true_labels"},
)
