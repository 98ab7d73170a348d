"""The cells of a comparison: one policy trained once, and what is kept of it.

<run.storage_path>/<name of the comparison>/
  <cell>/            a run's folder: configuration, records, checkpoints
  <cell>/cell.json   written last; a cell that has it is finished, and is never run again

`run_cell` needs neither Ray nor MLflow: a Ray task calls it, or any other process.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from dpl_ray.config.parse import parse_policy
from dpl_ray.config.policies import PolicyConfig
from dpl_ray.config.schema import CURVE_POINTS, Config
from dpl_ray.config.section import shown
from dpl_ray.data.dataset import Splits
from dpl_ray.runs.folder import RunFolder, check_run, largest_class, run_storage
from dpl_ray.runs.history_writer import HistoryWriter
from dpl_ray.runs.kept_config import read_kept
from dpl_ray.runs.provenance import describe_run
from dpl_ray.store.records import read_json, write_json
from dpl_ray.store.storage import Storage

if TYPE_CHECKING:
    from dpl_ray.training.records import Record

CELL_FILE = "cell.json"


@dataclass(frozen=True)
class Cell:
    """What is to be trained: a policy with all its parameters, the labelled subset, and a seed of all else."""

    label: str  # of the policy in tables: fixmatch, or dpl(rule=band,cut=own)
    policy: dict[str, Any]  # its name and parameters, as Config.policy
    seed: int  # of initial weights, order and views
    subset: int | None = None  # seed of the labelled subset; None: data.subset_seed, else `seed`

    @property
    def name(self) -> str:
        """Of its folder: a function of label and seed, in the characters of run.name."""
        return f"{re.sub(r'[^A-Za-z0-9.]+', '-', self.label).strip('-')}-seed-{self.seed}"


@dataclass(frozen=True)
class CellResult:
    """What a finished cell leaves."""

    label: str
    policy: dict[str, Any]
    seed: int
    steps: int
    seconds: float  # in training steps
    metrics: dict[str, float]  # of the last teacher and of the last record: eval/..., pseudo/..., train/...
    curve: list[tuple[int, float, float]]  # step, accuracy, seconds in training steps
    checkpoint: str
    facts: dict[str, str] = field(default_factory=dict)  # commit, versions, hardware, data
    subset: int | None = None  # seed of the labelled subset; None: `seed`

    @property
    def cell(self) -> Cell:
        return Cell(self.label, self.policy, self.seed, self.subset)

    @property
    def key(self) -> tuple[int, int]:
        """Subset and seed: what policies of a pair have in common."""
        return (self.seed if self.subset is None else self.subset), self.seed


def policy_label(policy: PolicyConfig) -> str:
    """The policy's name, with the parameters that are not its defaults: the same however it was written."""
    different = [f"{key}={shown(value)}" for key, value in policy.model_dump(exclude_defaults=True).items()]
    return policy.name + (f"({','.join(different)})" if different else "")


def cell_config(config: Config, cell: Cell, folder: str) -> Config:
    """The configuration of a cell: everything but policy, subset, seed and place is the comparison's."""
    train = {"seed": cell.seed, "baseline": False}
    if config.train.curve_every is None:
        train["curve_every"] = max(1, config.train.num_steps // CURVE_POINTS)
    subset = data_seed(config, cell)
    if subset != data_seed(config, replace(cell, subset=None)):
        config = config.changed(data={"subset_seed": subset})
    return config.changed(
        policy=parse_policy(cell.policy),
        train=train,
        scale={"num_workers": 0},
        run={"storage_path": folder, "name": cell.name},
    )


def data_seed(config: Config, cell: Cell) -> int:
    """Of the labelled subset that a cell learns from, and of the validation split."""
    if cell.subset is not None:
        return cell.subset
    return cell.seed if config.data.subset_seed is None else config.data.subset_seed


def run_cell(
    config: Config,
    cell: Cell,
    splits: Splits,
    folder: str,
    on_step: Callable[[str, int], None] = lambda name, step: None,  # noqa: ARG005
    stop: threading.Event | None = None,
) -> CellResult:
    """Train a cell in this process, from its newest checkpoint where it has one; nothing if it has finished.

    Args:
        config: of the comparison; scale.use_gpu and scale.threads_per_worker are the cell's.
        splits: load_splits(config.data, seed=data_seed(config, cell)).
        folder: of the comparison.
        on_step: called now and then with the cell's name and the step that it has come to.
        stop: set where the cell is to save a checkpoint after its step and end.

    Raises:
        Interrupted: it was asked to end.
        ValueError: the cell was begun with another configuration or other data.
        NonFiniteLossError: naming step and term.
    """
    subset, config = data_seed(config, cell), cell_config(config, cell, folder)
    check_run(config)
    run = RunFolder(run_storage(config), config, splits)
    if finished := read_cell(run.storage):
        return finished
    import torch

    from dpl_ray.training.distributed import Workers
    from dpl_ray.training.loop import train

    history = HistoryWriter(run.storage)

    def receive(record: Record) -> None:
        on_step(cell.name, record.step)
        if record.metrics:
            history.add(record)

    workers = Workers.alone(config.scale, stop)
    outcome = train(config, splits, workers, run.storage, receive, save_history=history.save)
    history.save()
    result = CellResult(
        label=cell.label,
        policy=cell.policy,
        seed=cell.seed,
        steps=config.train.num_steps,
        seconds=outcome.training_seconds,
        metrics=run.last_metrics(outcome.phase) | outcome.metrics,
        curve=_curve(run.history),
        checkpoint=outcome.checkpoint,
        facts=describe_run(splits)
        | {"device": torch.cuda.get_device_name() if config.scale.use_gpu else "CPU"}
        | {"data.num_test": str(len(splits.test)), "data.num_classes": str(len(splits.class_names))}
        | {"data.largest_test_share": f"{largest_class(splits.test.targets) / max(1, len(splits.test)):.4f}"},
        subset=subset,
    )
    write_json(run.storage / CELL_FILE, result)
    return result


def read_cells(folder: str) -> list[CellResult]:
    """The finished cells of a comparison, by policy, subset and seed."""
    place = Storage(folder)
    found = [read_cell(place / name) for name in place.list() if "-seed-" in name]
    return sorted((cell for cell in found if cell), key=lambda cell: (cell.label, cell.key))


def read_cell(place: Storage) -> CellResult | None:
    """What the cell of a folder has left, with its subset; None where it has not finished."""
    found = read_json(place / CELL_FILE, CellResult)
    if found is None or found.subset is not None:
        return found
    # An older version kept the subset's seed in the configuration alone.
    subset = read_kept(place)["data"].get("subset_seed")
    return replace(found, subset=found.seed if subset is None else subset)


def _curve(history: list[dict[str, Any]]) -> list[tuple[int, float, float]]:
    """What was told twice, before and after an interruption, counts as it was told last."""
    points = {row["step"]: row["metrics"] for row in history if "curve/accuracy" in row["metrics"]}
    return [(step, points[step]["curve/accuracy"], points[step]["curve/seconds"]) for step in sorted(points)]
