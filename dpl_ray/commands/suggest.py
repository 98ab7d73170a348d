"""`dpl-ray suggest`."""

from __future__ import annotations

from dpl_ray.commands.command import Command
from dpl_ray.reviewing.suggest_config import SuggestConfig

COMMAND = Command(
    "suggest",
    "suggest",
    "Choose the images of a labelled pool whose true labels would teach most.",
    "labels=labels budget=100",
    only=SuggestConfig,
    goes_on=False,
    shows={"page": "page", "table": "table"},
)
