"""`dpl-ray explain`."""

from __future__ import annotations

from rich.console import Console

from dpl_ray.commands.command import Command
from dpl_ray.jobs.explain_config import ExplainConfig
from dpl_ray.page.console import console_table, show


def job(config: ExplainConfig, console: Console) -> None:
    """One explanation as a table, and the path of its page."""
    from dpl_ray.jobs.explain import explain

    found = explain(config.checkpoint, config.sample, image_column=config.image_column, output=config.output)
    rows = {"pseudo-label": found.pseudo_label, "confidence": f"{found.confidence:.4f}"}
    rows |= {"entropy": f"{found.entropy:.4f} nats"}
    rows |= {f"{name} head": f"{label}, {value:.4f}" for name, (label, value) in found.heads.items()}
    rows |= {f"threshold {name}": f"{value:.4f}" for name, value in found.thresholds.items()}
    rows |= {"weight": f"{found.weight:.4f}", "FixMatch's 0.95": f"{found.fixmatch_weight:.0f}"}
    name = f"{found.sample} (image {config.sample} of the pool)" if config.sample.isdecimal() else found.sample
    title = f"{name}, as {found.policy} weighs it, read by the student"
    console.print(console_table(title, ["", ""], rows.items(), num_text_columns=2))
    show(console, found.reason)
    show(console, f"page        {found.page}")


COMMAND = Command(
    "explain",
    job,
    "Explain why one image gets its weight in training.",
    "checkpoint=runs/NAME sample=photos/1.jpg",
    only=ExplainConfig,
    goes_on=False,
)
