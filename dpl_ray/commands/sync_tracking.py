"""`dpl-ray sync-tracking`."""

from __future__ import annotations

from rich.console import Console

from dpl_ray.commands.command import Command
from dpl_ray.page.console import show
from dpl_ray.tracking.sync import SyncConfig


def job(config: SyncConfig, console: Console) -> None:
    """How much was sent of which folder, and where it can be looked at."""
    from dpl_ray.tracking.sync import sync_tracking

    result = sync_tracking(config.run, config.uri)
    for folder, count in result.num_entries.items():
        text = f"{folder}: {count:,} entries sent to run {result.run_ids[folder]}"
        if refused := result.num_refused[folder]:
            text += f", {refused:,} of which it does not take: tracking-refused.jsonl"
        show(console, text)
    if not result.num_entries:
        show(console, f"{config.run}: nothing is left to send")


COMMAND = Command(
    "sync-tracking",
    job,
    "Send MLflow what a run could not send while the server was down.",
    "run=runs/NAME",
    only=SyncConfig,
)
