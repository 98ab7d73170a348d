"""What the checks of a run's health are made of: its records, its outcome, its splits and a sample of its pool."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dpl_ray.config.schema import Config
from dpl_ray.data.dataset import Splits
from dpl_ray.report.curves import History
from dpl_ray.report.health import Measured

if TYPE_CHECKING:
    from dpl_ray.report.pool import PoolSample
    from dpl_ray.report.verdict import Verdict
    from dpl_ray.training.records import Outcome


def measure(
    config: Config,
    splits: Splits,
    rows: Iterable[dict[str, Any]],
    outcome: Outcome,
    sample: PoolSample | None,
    verdict: Verdict | None = None,
) -> Measured:
    """
    Args:
        rows: of the history.
        outcome: of the policy, not of the baseline.
        sample: of the pool, where there is one.
        verdict: on the policy and the baseline, where there is one.
    """
    num_classes, history = len(splits.class_names), History(rows, outcome.phase)
    split = "test" if len(splits.test) else "validation" if len(splits.validation) else ""
    held_out = splits.test if split == "test" else splits.validation
    key, num_curve = "curve/accuracy", min(config.train.curve_images, len(splits.test))
    if split == "validation":
        key, num_curve = "validation/accuracy", len(held_out)
    found = outcome.test
    right = found.labels[found.labels == held_out.targets] if found else None
    return Measured(
        policy=outcome.phase,
        num_steps=config.train.num_steps,
        learning_rate=config.optim.learning_rate,
        labels=_count(splits.labeled.targets, num_classes),
        passes=config.train.num_steps * config.train.batch_size / len(splits.labeled),
        class_names=list(splits.class_names),
        split=split,
        accuracy=outcome.metrics.get("eval/accuracy" if split == "test" else "validation/accuracy", 0.0),
        targets=_count(held_out.targets, num_classes),
        said=_count(found.labels, num_classes) if found else None,
        hits=_count(right, num_classes) if right is not None else None,
        curve=history.points(key),
        num_curve=num_curve,
        loss=history.points("train/loss_labeled"),
        coverage=history.points("pseudo/coverage"),
        pool=_count(sample.labels, num_classes) if sample else None,
        crossed=sample.num_crossed / (config.train.num_steps * num_classes) if sample else None,
        wait=_wait(history),
        ece=outcome.metrics.get("eval/ece"),
        lead=[verdict.difference, verdict.low, verdict.high] if verdict else None,
    )


def _count(labels: NDArray[np.int64], num_classes: int) -> list[int]:
    return np.bincount(labels, minlength=num_classes).tolist()


def _wait(history: History) -> float | None:
    """The share of the steps' time that is waiting for batches; the first record has the start of all reading."""
    steps, waits = ([value for _, value in history.points(key)][1:] for key in ("time/step", "time/data_wait"))
    return sum(waits) / sum(steps) if steps else None
