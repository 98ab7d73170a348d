"""Everything a training run changes: student, teacher, policy, optimizer, step."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dpl_ray.algorithm.ema import warmed_decay
from dpl_ray.algorithm.losses import annealed, ramp
from dpl_ray.algorithm.policies import build_policy
from dpl_ray.algorithm.policy import Policy, RunFacts
from dpl_ray.config.schema import Config, OptimConfig
from dpl_ray.models import Classifier, build_model
from dpl_ray.models.feature_head import FeatureHead
from dpl_ray.models.layers import learning_rate_scales, share_frozen
from dpl_ray.training.distributed import GradientBuckets, Workers
from dpl_ray.training.fixed_shapes import FixedShapes, StepNumbers
from dpl_ray.training.metrics import SUMS
from dpl_ray.training.schedule import Wish


class Learner(nn.Module):
    """What the optimizer trains: the student, and what the policy trains beside it."""

    def __init__(self, student: Classifier, policy: Policy) -> None:
        super().__init__()
        self.student, self.policy = student, policy


@dataclass
class TrainState:
    """Changed in place by the training step, saved and loaded by checkpoints."""

    student: Classifier
    teacher: Classifier
    policy: Policy
    optimizer: torch.optim.Optimizer
    learner: Learner
    sums: Tensor  # (len(SUMS),) float64 of this worker's steps since the last record
    step: int = 0
    seconds: float = 0.0  # in training steps so far, over all processes that trained; evaluation is not in it
    wish: Wish = Wish.NOTHING  # before a step worker 0's own, after it what all workers do
    fixed: FixedShapes | None = None  # on a GPU: what lets the host go on without waiting for it

    buckets: GradientBuckets | None = None  # with several workers

    def average_gradients(self) -> None:
        """After backward: make every gradient the mean over all workers."""
        if self.buckets is not None:
            self.buckets.finish()

    def hear(self, wish: Tensor) -> None:
        """Take over worker 0's wish, () of the step's sums, where the host reads the device."""
        if self.fixed is None:
            self.wish = Wish(int(wish))


def build_state(
    config: Config,
    channels: int,
    num_classes: int,
    workers: Workers,
    *,
    pool_size: int = 0,
    labeled_counts: Tensor | None = None,
) -> TrainState:
    """The state at step 0: a function of train.seed, the same on every worker.

    Args:
        labeled_counts: (C,) int64, labelled images of each class; None counts as equally many.
    """
    torch.manual_seed(config.train.seed)
    student = build_model(config.model, channels, num_classes)
    num_features = student.classifier.in_features
    policy = build_policy(config.policy.model_dump(), num_features, num_classes)
    policy.start_as(student.classifier)
    # Channels last is the faster layout of convolutions, on GPUs and on CPUs.
    student = student.to(memory_format=torch.channels_last)
    learner = Learner(student, policy).to(workers.device)
    num_unlabeled = config.train.batch_size * config.train.mu
    run = RunFacts(
        pool_size,
        num_unlabeled,
        workers.rank,
        workers.world_size,
        workers.all_reduce_sum,
        labeled_counts,
        frozen=config.model.name == "head",
    )
    policy.join(run)
    teacher = copy.deepcopy(student).requires_grad_(False).eval()
    share_frozen(teacher, student)
    sums = torch.zeros(len(SUMS), dtype=torch.float64, device=workers.device)
    state = TrainState(student, teacher, policy, build_optimizer(learner, config.optim), learner, sums)
    if workers.world_size > 1:
        state.buckets = GradientBuckets(learner.parameters(), workers)
    if workers.device.type == "cuda":
        mine = num_unlabeled // workers.world_size if policy.uses_unlabeled else 0
        state.fixed = FixedShapes(mine, workers.device)
    return state


def standardize(state: TrainState, parts: Sequence[NDArray[Any]]) -> None:
    """Let student and teacher scale stored features by what they are in the data; networks of images have no need."""
    for model in (state.student, state.teacher):
        if isinstance(model.backbone, FeatureHead):
            model.backbone.standardize([torch.from_numpy(part) for part in parts if len(part)])


def build_optimizer(learner: Learner, config: OptimConfig) -> torch.optim.Optimizer:
    """SGD with Nesterov momentum or AdamW, of what is not frozen; weight decay on 2 or more dimensions only.

    A group's `scale` is a factor on the learning rate, of the layers of the backbone where optim.layer_decay is not 1.
    """
    named = [(name, parameter) for name, parameter in learner.named_parameters() if parameter.requires_grad]
    scales: dict[str, float] = {}
    if config.layer_decay < 1:
        found = learning_rate_scales(learner.student.backbone, config.layer_decay)
        scales = {f"student.backbone.{name}": scale for name, scale in found.items()}
    groups: list[dict[str, Any]] = []
    for scale in sorted({scales.get(name, 1.0) for name, _ in named}, reverse=True):
        alike = [parameter for name, parameter in named if scales.get(name, 1.0) == scale]
        groups += [
            {"params": [p for p in alike if p.ndim >= 2], "weight_decay": config.weight_decay, "scale": scale},
            {"params": [p for p in alike if p.ndim < 2], "weight_decay": 0.0, "scale": scale},
        ]
    if config.name == "sgd":
        nesterov = config.momentum > 0
        return _SGD(groups, lr=config.learning_rate, momentum=config.momentum, nesterov=nesterov, fused=True)
    return _AdamW(groups, lr=config.learning_rate, betas=(config.momentum, 0.999), fused=True)


T = TypeVar("T", bound=torch.optim.Optimizer)


def _plain(optimizer: type[T]) -> type[T]:
    """The same without torch's wrappers for torch.compile, which import its compiler: a second of every start."""
    wrapped = ("add_param_group", "zero_grad", "state_dict", "load_state_dict")
    methods = {name: inspect.unwrap(getattr(optimizer, name)) for name in wrapped}
    methods["step"] = torch.no_grad()(inspect.unwrap(optimizer.step))
    return type(optimizer.__name__, (optimizer,), methods)


_SGD, _AdamW = _plain(torch.optim.SGD), _plain(torch.optim.AdamW)


def learning_rate(config: OptimConfig, step: int, num_steps: int) -> float:
    """lr * cos(c pi t / 16 T), c = 7 in FixMatch (Sohn 2020), after a linear warm-up; a function of the step alone."""
    if step < config.num_warmup_steps:
        return config.learning_rate * (step + 1) / config.num_warmup_steps
    progress = (step - config.num_warmup_steps) / (num_steps - config.num_warmup_steps)
    return config.learning_rate * math.cos(config.cosine * math.pi * progress / 16)


def step_numbers(state: TrainState, config: Config) -> StepNumbers:
    """What the next step reads of its number: on the device where shapes are fixed, without waiting for it."""
    train, progress = config.train, state.step / config.train.num_steps
    numbers = StepNumbers(
        step=float(state.step),
        progress=progress,
        learning_rate=learning_rate(config.optim, state.step, train.num_steps),
        ema_decay=warmed_decay(train.ema_decay, state.step),
        lambda_u=train.lambda_u * ramp(progress, train.lambda_u_ramp) * annealed(state.step, train.lambda_u_half),
    )
    return numbers if state.fixed is None else state.fixed.on_device(numbers)
