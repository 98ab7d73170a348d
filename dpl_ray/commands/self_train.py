"""`dpl-ray self-train`."""

from __future__ import annotations

from rich.console import Console

from dpl_ray.commands.command import Command, command_line, print_results
from dpl_ray.config.schema import Config
from dpl_ray.studies.self_training.config import SelfTrainConfig, load_self_training


def job(loaded: tuple[Config, SelfTrainConfig], console: Console) -> None:
    """Self-training, its table and its paths."""
    from dpl_ray.studies.self_training.job import self_train

    config, options = loaded
    command = command_line("self-train")
    result = self_train(config, options, console=console, command=command)
    places: dict[str, str | None] = {
        "checkpoint": result.checkpoint,
        "labels": result.labels,
        "rounds": result.csv,
        "figure": result.figure,
        "model": result.model,
        "registered": result.registered,
    }
    print_results(console, places, result.run_id, result.tracking_uri)


COMMAND = Command(
    "self-train",
    job,
    "Train and label in rounds until the pseudo-labels no longer change.",
    "data=parquet data.train=labelled.parquet data.unlabeled=pool data.image_size=32 rounds=3",
    compose=load_self_training,
    own=SelfTrainConfig,
)
