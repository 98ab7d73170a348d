"""`dpl-ray embed`."""

from __future__ import annotations

from dpl_ray.commands.command import Command
from dpl_ray.embedding.config import EmbedConfig

COMMAND = Command(
    "embed",
    "embed",
    "Write the features of a pool once, by a frozen backbone; data=features trains on them.",
    "model=timm model.architecture=convnext_atto model.weights=pretrained pool=photos output=features",
    only=EmbedConfig,
    shows={"features": "output", "unreadable": "bad"},
)
