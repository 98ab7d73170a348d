"""`dpl-ray import-labels`."""

from __future__ import annotations

from dpl_ray.commands.command import Command
from dpl_ray.exchange.config import ImportLabelsConfig

COMMAND = Command(
    "import-labels",
    "import_labels",
    "Read what people have annotated in another tool, as a CSV of labelled images.",
    "annotations=project-1.json output=answers.csv",
    only=ImportLabelsConfig,
    goes_on=False,
    shows={"answers": "output"},
)
