"""`dpl-ray review`."""

from __future__ import annotations

from rich.console import Console

from dpl_ray.commands.command import Command, print_results
from dpl_ray.reviewing.config import ReviewConfig


def job(config: ReviewConfig, console: Console) -> None:
    """One draw and its page, or what the answers say."""
    from dpl_ray.reviewing.job import review

    result = review(config, console=console)
    print_results(console, {"page": result.page, "true labels": result.true_labels}, None, None)


COMMAND = Command(
    "review",
    job,
    "Look at labels of a pool that are drawn at random, and estimate how many are wrong.",
    "labels=/path/to/labels num=200",
    only=ReviewConfig,
    goes_on=False,
)
