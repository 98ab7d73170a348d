"""What the console shows of a run: how far it is, and then its numbers."""

from __future__ import annotations

from rich.table import Table

from dpl_ray.page.console import console_table


def training_state(metrics: dict[str, float]) -> str:
    """What the newest values of a training's metrics say, in a line."""
    parts = {"curve/accuracy": "test {:.1%}", "validation/accuracy": "validation {:.1%}"}
    parts |= {"train/loss_labeled": "loss {:.3f}", "pseudo/coverage": "coverage {:.2f}"}
    parts |= {"pseudo/precision": "precision {:.2f}"}
    return "  ".join(part.format(metrics[key]).replace("%", " %") for key, part in parts.items() if key in metrics)


def result_tables(
    phase: str, metrics: dict[str, float], baseline: dict[str, float] | None, thresholds: dict[str, dict[str, float]]
) -> list[Table]:
    """The headline numbers, and the thresholds of every class."""
    names = (
        ("accuracy", "eval/accuracy", True),
        ("balanced accuracy", "eval/balanced_accuracy", True),
        ("calibration error (ECE)", "eval/ece", True),
        ("accuracy on the validation split", "validation/accuracy", True),
        ("coverage of the pool (mean weight)", "pseudo/coverage", False),
        ("precision of the pseudo-labels", "pseudo/precision", False),
        ("share of high-entropy samples in it", "pseudo/high_entropy_share", False),
    )
    rows = []
    for name, key, is_of_both in names:
        if key in metrics:
            rows.append([name, f"{100 * metrics[key]:.1f} %"])
            if baseline is not None:
                rows[-1].append(f"{100 * baseline[key]:.1f} %" if is_of_both and key in baseline else "")
    columns = ["", phase, *(["supervised"] if baseline is not None else [])]
    tables = [console_table("Last teacher" + " on the test split" * ("eval/accuracy" in metrics), columns, rows)]
    if thresholds:
        columns = ["class", *(f"{name}-confident" if name in ("over", "under") else name for name in thresholds)]
        classes = next(iter(thresholds.values()))
        rows = [[name, *(f"{values[name]:.3f}" for values in thresholds.values())] for name in classes]
        tables.append(console_table("Thresholds of every class (confidence)", columns, rows))
    return tables
