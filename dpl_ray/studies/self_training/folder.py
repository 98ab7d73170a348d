"""What self-training keeps of a round, and whether there is another one to do.

<run.storage_path>/<run.name>/
  self_train.json  configuration, the numbers of each finished round
  round-0/training/  the training run, as dpl-ray train writes it     round-0/labels/  the pool's labels
  round-1/...
  self_train.csv   a row per round          self_train.png  the figure
"""

from __future__ import annotations

from dataclasses import dataclass

from dpl_ray.studies.self_training.config import SelfTrainConfig


@dataclass(frozen=True)
class Round:
    """A finished round. Shares are of the samples of the pool that could be read."""

    number: int
    checkpoint: str
    labels: str  # the output that it has written
    num_pseudo_labeled: int  # images that its student was trained on with pseudo-labels of the round before
    num_samples: int  # of the pool
    num_unreadable: int
    num_selected: int
    metrics: dict[str, float]  # round/accuracy, round/selected_share, ...: docs/metrics.md

    @property
    def changed_share(self) -> float | None:
        """Share whose pseudo-label is another one than in the round before; None in round 0."""
        return self.metrics.get("round/changed_share")


def stop_reason(rounds: list[Round], options: SelfTrainConfig) -> str | None:
    """Why there is no further round; None where there is one."""
    if not rounds:
        return None
    last = rounds[-1]
    if not last.num_selected:
        return f"round {last.number} selected no sample to train on"
    if last.changed_share is not None and last.changed_share < options.min_change:
        return (
            f"the pseudo-labels no longer change: {last.changed_share:.2%} of them in round {last.number}, less than "
            f"min_change={options.min_change:g}"
        )
    if last.number >= options.rounds:
        return f"rounds={options.rounds} is reached"
    return None
