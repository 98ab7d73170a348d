"""What the form of the training step does to accuracy, on the settings of benchmarks/study.py.

    python -m benchmarks.plain_form --minutes 60                  train what is missing; the same command goes on
    python -m benchmarks.plain_form --minutes 60 --train-ours     our form too, also where the study has it

There are three forms:

    ours           as on a CPU: weak views pass the student without gradient, strong views without a weight are skipped
    one batch      the plain form, which the peers have: labelled, weak and strong views pass the student in one batch
                   with gradient, none is skipped, and the statistics of BatchNorm are of all of them
    fixed shapes   as on a GPU, but not on one: there is room for a share of the strong views, and what is beyond it has
                   no weight in that step (dpl_ray/training/fixed_shapes.py)

All else is as in the study: labelled images, initial weights, order of batches, views and learning rate. Our form is
the study's row where docs/results/study.csv has it. If the code has changed since, --train-ours trains it anew, and
that counts. Cells lie in FOLDER/plain-form/FORM/SETTING; one that has ended is never run again. The numbers go to
docs/results/plain_form.csv, from which `python -m benchmarks.results` makes the table.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor

from benchmarks import study, tables
from dpl_ray.algorithm.ema import update_teacher
from dpl_ray.algorithm.losses import mean_over_all
from dpl_ray.algorithm.policy import Policy
from dpl_ray.algorithm.pseudo_labels import Answers, StepFacts, pseudo_labels
from dpl_ray.config.schema import Config
from dpl_ray.data.batches.feed import Batch
from dpl_ray.data.batches.views import strong, weak
from dpl_ray.store.lock import sole_use
from dpl_ray.store.storage import Storage
from dpl_ray.studies.comparison.cells import CellResult, read_cell
from dpl_ray.training import loop
from dpl_ray.training.distributed import Workers
from dpl_ray.training.faults import NonFiniteLossError
from dpl_ray.training.fixed_shapes import FixedShapes
from dpl_ray.training.metrics import step_sums
from dpl_ray.training.state import TrainState, build_state, step_numbers

OURS, ONE_BATCH, FIXED = "ours", "one batch", "fixed shapes"
FILE, PLACE = "plain_form", "plain-form"  # of the numbers, of the cells
SETTINGS, SUBSETS, POLICIES = "digits-2,digits-4,fashion14-25", range(5, 10), "fixmatch,dpl"
COLUMNS = (
    "setting", "form", "policy", "subset", "seed", "steps", *tables.METRICS, "training_seconds", "device", "commit"
)  # fmt: skip
KEY = 5  # columns that say which training it is


def plain_step(state: TrainState, batch: Batch, config: Config, workers: Workers) -> Tensor:
    """`train_step` with one pass of all views, on one worker; only what passes the student together is another.

    Raises:
        NonFiniteLossError: before the optimizer moves.
    """
    student, policy, train, views = state.student, state.policy, config.train, config.data.views
    assert type(policy).mix is Policy.mix, "strong views that depend on the weak ones cannot be in one batch with them"
    numbers = step_numbers(state, config)
    num_labeled, num_unlabeled = len(batch.images), len(batch.images_unlabeled)

    images_weak = weak(batch.images_unlabeled, batch.uniforms_weak, views)
    images_strong = images_weak
    if policy.trains_on == "strong":
        images_strong = strong(batch.images_unlabeled, batch.uniforms_strong, views)
    images = torch.cat([weak(batch.images, batch.uniforms, views), images_weak, images_strong])
    with torch.autocast(workers.device.type, torch.bfloat16, enabled=train.precision == "bfloat16"):
        features, logits = student(images.contiguous(memory_format=torch.channels_last))
    logits = logits.float()
    features_labeled, features_weak, features_strong = features.split([num_labeled, num_unlabeled, num_unlabeled])
    logits_labeled, logits_weak, logits_strong = logits.split([num_labeled, num_unlabeled, num_unlabeled])

    facts = StepFacts(numbers.progress, batch.ids_unlabeled, batch.targets, batch.ids)
    features_read, logits_read = features_weak.detach(), logits_weak.detach()
    if policy.reads_labeled:
        features_read = torch.cat([features_read, features_labeled.detach()])
        logits_read = torch.cat([logits_read, logits_labeled.detach()])
    with torch.no_grad():
        pseudo = pseudo_labels(features_read, logits_read, policy.alignment(facts.progress), facts)
        policy.update(policy.statistics(pseudo))
        weights, targets = policy.weights(pseudo), policy.targets(pseudo)
        wanted, rows = weights > policy.min_weight, torch.arange(num_unlabeled, device=weights.device)

    loss_labeled = policy.labeled_loss(logits_labeled, batch.targets)
    trained = policy.trains_classifier(facts.progress)
    logits_strong = student.unless_frozen(features_strong, logits_strong, trained)
    losses = policy.unlabeled_losses(policy.unlabeled_logits(logits_strong), targets, rows, pseudo)
    loss_unlabeled = mean_over_all(losses, weights * wanted, num_unlabeled)
    kept = torch.where(wanted, rows, -1)
    answers = Answers(features_labeled, logits_labeled, batch.targets, features_strong, logits_strong, kept)
    loss_auxiliary = policy.auxiliary_loss(pseudo, answers)
    terms = torch.stack([loss_labeled, numbers.lambda_u * loss_unlabeled, loss_auxiliary])
    if not terms.isfinite().all():
        raise NonFiniteLossError(f"step {state.step}: the losses are {terms.tolist()}")
    state.optimizer.zero_grad(set_to_none=True)
    terms.sum().backward()
    for group in state.optimizer.param_groups:
        group["lr"] = group.get("scale", 1.0) * numbers.learning_rate
    state.optimizer.step()
    update_teacher(state.teacher, student, numbers.ema_decay)
    state.step += 1
    num_strong = torch.tensor(num_unlabeled, dtype=torch.float64, device=weights.device)
    return step_sums(terms, pseudo, weights, targets, batch.targets_unlabeled, num_strong)


def fixed_state(config: Config, *given: Any, **named: Any) -> TrainState:
    """`build_state`, with the fixed shapes of a GPU."""
    state = build_state(config, *given, **named)
    num_unlabeled = config.train.batch_size * config.train.mu * state.policy.uses_unlabeled
    state.fixed = FixedShapes(num_unlabeled, torch.device("cpu"))
    return state


#: Form -> what the training loop calls otherwise than it does by itself.
FORMS: dict[str, dict[str, Callable[..., Any]]] = {
    OURS: {},
    ONE_BATCH: {"train_step": plain_step},
    FIXED: {"build_state": fixed_state},
}


@contextmanager
def in_form(form: str) -> Iterator[None]:
    """In this block trainings of this process have the form."""
    before = {name: getattr(loop, name) for name in FORMS[form]}
    try:
        for name, other in FORMS[form].items():
            setattr(loop, name, other)
        yield
    finally:
        for name, own in before.items():
            setattr(loop, name, own)


@dataclass(frozen=True)
class Job(study.Job):
    """A training of a setting in a form."""

    form: str

    @property
    def name(self) -> str:
        return f"{self.setting}  {self.form}  {self.cell.name}"

    @property
    def key(self) -> list[str]:
        """The first columns of its row."""
        return [self.setting, self.form, self.cell.label, str(self.cell.subset), str(self.cell.seed)]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = study.make_parser(__doc__)
    study.add_run(parser, POLICIES)
    parser.add_argument("--train-ours", action="store_true", help="our form too where the study has it")
    parser.set_defaults(settings=SETTINGS, subsets=SUBSETS)
    given = parser.parse_args(arguments)
    train = partial(train_one, until=study.end_of(given))
    place = given.folder / PLACE
    with sole_use(f"--folder={given.folder}", Storage(str(place))):
        jobs = plan(given)
        for job in jobs:
            keep(job)
        return study.run(jobs, given.workers, train, keep)


def plan(given: argparse.Namespace) -> list[Job]:
    """The trainings that are meant, of all forms.

    Raises:
        ValueError: forms would differ in more than their names say, or as `study.plan` has it.
    """
    if given.gpu:
        raise ValueError("--gpu: a GPU has fixed shapes in every form")
    names = study.names_of(given)
    if uneven := [name for name in names if name.endswith(study.WEAK_BFLOAT16)]:
        raise ValueError(f"--settings={','.join(uneven)}: one batch has one precision")
    study.write_features(names, given)
    jobs = []
    for name, form in product(names, FORMS):
        folder = given.folder / PLACE / form.replace(" ", "-") / name
        config, found = study.plan(name, given.policies, given, folder)
        jobs += [Job(name, config, cell, str(folder), form) for cell in found.cells]
    of_study = [] if given.train_ours else ours_of_study()
    return [job for job in jobs if job.key not in of_study]


def ours_of_study() -> list[list[str]]:
    """The first columns of the rows that the study has."""
    return [[row["setting"], OURS, row["policy"], row["subset"], row["seed"]] for row in tables.read("study")]


def train_one(job: Job, until: float) -> CellResult | None:
    """As `study.run_one`, in the job's form."""
    with in_form(job.form):
        return study.run_one(job, until)


def keep(job: Job) -> None:
    """Put a job that has ended into the CSV, in place of what that has of it."""
    found = read_cell(Storage(job.folder) / job.cell.name)
    if found is None:
        return
    facts = [f"{found.seconds:.0f}", found.facts["device"], found.facts["commit"]]
    row = [*job.key, str(found.steps), *tables.rounded(found), *facts]
    before = tables.read(FILE) if (tables.FOLDER / f"{FILE}.csv").is_file() else []
    if dict(zip(COLUMNS, row, strict=True)) not in before:
        tables.write(FILE, COLUMNS, [row], replaces=dict(zip(COLUMNS[:KEY], job.key, strict=True)))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
