"""The folder of self-training: its rounds, what each has come to, and whether there is another one to do.

<run.storage_path>/<run.name>/
  self_train.json  configuration, the numbers of each finished round
  round-0/training/  the training run, as pipelines.train writes it     round-0/labels/  the pool's labels
  round-1/...
  self_train.csv   a row per round          self_train.png  the figure
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

from dpl_ray.config.schema import Config
from dpl_ray.runs.folder import SELF_TRAINING_FILE, check_kind, check_same, writable_folder
from dpl_ray.store.storage import Storage
from dpl_ray.studies.self_training.config import SelfTrainConfig, self_training_name, self_training_tree


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


class SelfTrainFolder:
    """Opens the folder of self-training; nothing is written until `begin`."""

    def __init__(self, config: Config, options: SelfTrainConfig) -> None:
        """
        Raises:
            ValueError: it cannot be written, or something else of this name exists, or self-training with another
                configuration.
        """
        self.name = self_training_name(config, options)
        self.storage = writable_folder(config.run.storage_path, self.name)
        check_kind(self.storage, SELF_TRAINING_FILE)
        tree = self_training_tree(config, options)
        self.info: dict[str, Any] = {
            "command": None,
            "config": tree,
            "rounds": [],
            "without_pool": [],  # rounds whose student had no unlabelled image left, and so learned without the policy
            "finished": None,  # why it has ended, once all is written
        }
        self.resumed = (self.storage / SELF_TRAINING_FILE).exists()
        if self.resumed:
            self.info |= json.loads((self.storage / SELF_TRAINING_FILE).read())
            check_same(self.name, "self-training", self.info["config"], tree)
        self.rounds = [Round(**each) for each in self.info["rounds"]]

    def begin(self, command: str | None) -> None:
        self.info["command"] = command or self.info["command"]
        self.info["finished"] = None
        self.save_info()

    def round_storage(self, number: int) -> Storage:
        return self.storage / f"round-{number}"

    def add(self, finished: Round) -> None:
        """Keep what a round has come to: it will not be done again."""
        self.rounds.append(finished)
        self.info["rounds"] = [dataclasses.asdict(each) for each in self.rounds]
        self.save_info()

    def finish(self, reason: str) -> None:
        self.info["finished"] = reason
        self.save_info()

    def save_info(self) -> None:
        (self.storage / SELF_TRAINING_FILE).write(json.dumps(self.info, indent=1).encode())


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
