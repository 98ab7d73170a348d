"""Label a pool of images with a trained model, every image once: `python -m pipelines.label --help`."""

from __future__ import annotations

from rich.console import Console

from dpl_ray.labeling_config import LabelConfig, load_labeling
from pipelines.cli import main_guard


def job(config: LabelConfig, console: Console) -> None:
    """One labelling, its table and its paths."""
    from dpl_ray.labeling import label_pool

    result = label_pool(config, console=console)
    paths = {
        "labels": result.output,
        "summary": result.summary,
        "figure": result.figure,
        "unreadable": result.bad,
        "MLflow run": result.run_id,
    }
    for label, value in paths.items():
        if value:
            console.print(f"{label:<11} {value}", highlight=False, soft_wrap=True)
    if result.run_id:
        console.print(
            f"look at it: mlflow ui --backend-store-uri {result.tracking_uri}", highlight=False, soft_wrap=True
        )


if __name__ == "__main__":
    main_guard(job, __doc__, load=load_labeling, only=LabelConfig)
