"""The command `explain`: `python -m pipelines.explain --help`."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from dpl_ray.jobs.explain_config import ExplainConfig, load_explaining
from pipelines.cli import Command, main_guard


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
    made = Table(
        title=Text(f"{name}, as {found.policy} weighs it, read by the student"), title_justify="left", show_header=False
    )
    for name, value in rows.items():
        made.add_row(Text(name), Text(value))
    console.print(made)
    console.print(Text(found.reason), soft_wrap=True)
    console.print(f"page        {found.page}", highlight=False, soft_wrap=True, markup=False)


COMMAND = Command(
    job,
    "Explain why one image gets its weight in training.",
    "checkpoint=runs/NAME sample=photos/1.jpg",
    load=load_explaining,
    only=ExplainConfig,
)

if __name__ == "__main__":
    main_guard(COMMAND)
