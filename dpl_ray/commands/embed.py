"""`dpl-ray embed`."""

from __future__ import annotations

from rich.console import Console

from dpl_ray.commands.command import Command, print_results
from dpl_ray.embedding.config import EmbedConfig


def job(config: EmbedConfig, console: Console) -> None:
    """One embedding, and where it is."""
    from dpl_ray.embedding.job import embed

    result = embed(config, console=console)
    print_results(console, {"features": result.output, "unreadable": result.bad}, None, None)


COMMAND = Command(
    "embed",
    job,
    "Write the features of a pool once, by a frozen backbone; data=features trains on them.",
    "model=timm model.architecture=convnext_atto model.weights=pretrained pool=photos output=features",
    only=EmbedConfig,
)
