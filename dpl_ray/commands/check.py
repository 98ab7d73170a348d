"""`dpl-ray check`."""

from __future__ import annotations

from rich.console import Console

from dpl_ray.checking.config import CheckConfig, load_checking
from dpl_ray.commands.command import Command
from dpl_ray.config.schema import Config
from dpl_ray.page.console import show


def job(loaded: tuple[Config, CheckConfig], console: Console) -> None:
    """A check, and the path of its page; errors, at which a training would stop, end it as a mistake does."""
    from dpl_ray.checking.job import check

    config, options = loaded
    result = check(config, console=console, output=options.output)
    show(console, f"page        {result.page}")
    if result.errors:
        number = "1 error" if len(result.errors) == 1 else f"{len(result.errors)} errors"
        raise ValueError(f"a training would stop at {number}, as shown above")


COMMAND = Command(
    "check",
    job,
    "Check images and settings before a training: copies, classes, files, views, time.",
    "data=image_folder data.train=photos/labelled data.unlabeled=photos/rest data.image_size=64",
    compose=load_checking,
    own=CheckConfig,
)
