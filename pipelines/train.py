"""Train a classifier on a few labelled and many unlabelled images: `python -m pipelines.train --help`."""

from __future__ import annotations

from rich.console import Console

from dpl_ray.config import Config
from pipelines.cli import main_guard


def job(config: Config, console: Console) -> None:
    """One training run, its table and its paths."""
    from dpl_ray.launch import fit

    result = fit(config, console=console)
    for label, value in (("checkpoint", result.checkpoint), ("MLflow run", result.run_id), ("report", result.report)):
        console.print(f"{label:<11} {value}", highlight=False, soft_wrap=True)
    if result.run_id:
        console.print(
            f"look at it: mlflow ui --backend-store-uri {result.tracking_uri}", highlight=False, soft_wrap=True
        )


if __name__ == "__main__":
    main_guard(job, __doc__)
