"""What a pool is worth at most: its true labels in place of pseudo-labels, on the settings of benchmarks/study.py.

    python -m benchmarks.ceiling --settings 'frozen-*' --subsets 5-9 --cifar10 cifar10

Every unlabelled image has weight 1 and its true label. The logits of its strong view get the log of the true class
shares, as in logit adjustment (Menon 2021), so that a long tail does not move the decision. The weight of the loss does
not fall over the steps, since there are no mistakes to be learnt late. All else is as in the study: labelled images,
steps, order of batches and learning rate. A rule for pseudo-labels can hardly be above that.
The numbers go to docs/results/ceiling.csv, from which `python -m benchmarks.results` makes the table.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from benchmarks import study
from benchmarks.tables import write
from dpl_ray.algorithm.fixed_threshold import FixMatch
from dpl_ray.algorithm.policies import POLICIES
from dpl_ray.algorithm.pseudo_labels import PseudoLabels
from dpl_ray.config.schema import Config
from dpl_ray.data.dataset import ImageSet
from dpl_ray.studies.comparison.cells import Cell, CellResult, run_cell

LABEL = "true-labels"
COLUMNS = ("setting", "subset", "accuracy", "commit")


class TrueLabels(FixMatch):
    """What the pool's labels would give, if they were known."""

    truth: ClassVar[Tensor]  # (N,) int64 true class of every image of the pool

    def weights(self, pseudo: PseudoLabels) -> Tensor:
        return torch.ones_like(pseudo.confidence)

    def targets(self, pseudo: PseudoLabels) -> Tensor:
        assert pseudo.facts is not None
        return self.truth[pseudo.facts.ids]

    def unlabeled_logits(self, logits_strong: Tensor) -> Tensor:
        counts = torch.bincount(self.truth, minlength=self.num_classes).clamp(min=1)
        return logits_strong + (counts / counts.sum()).log()


def train(config: Config, cell: Cell, folder: str) -> CellResult:
    """One training, in this process.

    Raises:
        ValueError: the pool is streamed, or has images of no class.
    """
    splits = study.load(config.data, cell.subset or 0)
    pool = splits.unlabeled
    if not isinstance(pool, ImageSet) or (pool.targets < 0).any():
        raise ValueError("--settings: the pool has to be in memory, and each image of it has to have a known class")
    TrueLabels.truth = torch.from_numpy(pool.targets)
    config = config.changed(train={"lambda_u_half": None})  # there are no mistakes to be learnt late in the run
    before, POLICIES["fixmatch"] = POLICIES["fixmatch"], TrueLabels
    try:
        return run_cell(config, replace(cell, label=LABEL), splits, folder)
    finally:
        POLICIES["fixmatch"] = before


def main(arguments: Sequence[str] | None = None) -> None:
    given = study.make_parser(__doc__).parse_args(arguments)
    names = study.names_of(given)
    study.write_features(names, given)
    for setting in names:
        config, plan = study.plan(setting, "fixmatch", given)
        for cell in plan.cells:
            result = train(config, cell, str(given.folder / "ceiling" / setting))
            accuracy, commit = f"{result.metrics['eval/accuracy']:.4f}", result.facts["commit"]
            own = {"setting": setting, "subset": str(result.key[0])}
            write("ceiling", COLUMNS, [[*own.values(), accuracy, commit]], replaces=own)
            print(*own.values(), accuracy, flush=True)


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
