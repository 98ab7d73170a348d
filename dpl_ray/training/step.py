"""The training step, top to bottom.

Legend: B labelled, U = mu * B unlabelled images of this worker, K <= U strong views with a weight, C classes,
D features. Losses are means over this worker's share; the average over workers that the gradient pass takes
makes them means over the global batch, because every worker has the same B and U.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.profiler import record_function

from dpl_ray.algorithm.ema import update_teacher, warmed_decay
from dpl_ray.algorithm.losses import consistency, ramp
from dpl_ray.algorithm.pseudo_labels import StepFacts, pseudo_labels
from dpl_ray.config.schema import Config
from dpl_ray.data.batches import Batch
from dpl_ray.data.views import strong, weak
from dpl_ray.models import Classifier
from dpl_ray.training.distributed import Workers
from dpl_ray.training.metrics import step_sums
from dpl_ray.training.schedule import Wish
from dpl_ray.training.state import TrainState, learning_rate


class NonFiniteLossError(ArithmeticError):
    """Some worker's weak views, loss or gradient are not finite; no weight was updated."""


def train_step(state: TrainState, batch: Batch, config: Config, workers: Workers) -> Tensor:
    """Move the state by one global batch and return its sums, (len(SUMS),) float64.

    Raises:
        NonFiniteLossError: naming step, worker and term, on every worker, before the optimizer moves.
    """
    student, policy = state.student, state.policy
    train, views = config.train, config.data.views
    autocast = _autocast(workers, train.precision)
    autocast_weak = _autocast(workers, train.weak_precision or train.precision)

    with record_function("weak view"):
        images = weak(batch.images, batch.uniforms, views)
        images_weak = weak(batch.images_unlabeled, batch.uniforms_weak, views)
        if policy.reads_labeled:
            images_weak = torch.cat([images_weak, images])
        images_weak = images_weak.contiguous(memory_format=torch.channels_last)
    with record_function("weak forward"), torch.no_grad(), autocast_weak:
        features_weak, logits_weak = _weak_forward(student, images_weak)
    with record_function("heads and policy"):
        facts = StepFacts(state.step / train.num_steps, batch.ids_unlabeled, batch.targets)
        pseudo = pseudo_labels(features_weak, logits_weak, policy.alignment(), facts)
        num_bad = logits_weak.isfinite().logical_not().sum().double()
        wish = torch.full_like(num_bad, state.wish if workers.rank == 0 else Wish.NOTHING)
        sums = torch.cat([policy.statistics(pseudo), torch.stack([num_bad, wish])])
        mine_finite = sums.isfinite().all()
    with record_function("collective"):
        workers.all_reduce_sum(sums)
    with record_function("heads and policy"):
        if sums[-2] > 0 or not sums.isfinite().all():
            raise _non_finite(state.step, _weak_faults(num_bad, mine_finite), workers)
        state.wish = Wish(int(sums[-1]))
        policy.update(sums[:-2])
        weights, targets = policy.weights(pseudo), policy.targets(pseudo)
        kept = (weights > policy.min_weight).nonzero().squeeze(1)

    with record_function("strong view"):
        if policy.trains_on == "strong":
            images_strong = strong(batch.images_unlabeled[kept], batch.uniforms_strong[kept], views)
        else:
            images_strong = weak(batch.images_unlabeled[kept], batch.uniforms_weak[kept], views)
        images = torch.cat([images, images_strong]).contiguous(memory_format=torch.channels_last)
    with record_function("forward and backward"), autocast:
        features, logits = student(images)
    with record_function("forward and backward"):
        num_labeled = len(batch.targets)
        logits = logits.float()
        loss_labeled = F.cross_entropy(logits[:num_labeled], batch.targets)
        features_strong, logits_strong = features[num_labeled:], logits[num_labeled:]
        if not policy.trains_classifier(facts.progress):
            logits_strong = student.frozen_logits(features_strong)
        loss_unlabeled = consistency(logits_strong, targets[kept], weights[kept], len(weights))
    with record_function("heads and policy"):
        loss_auxiliary = policy.auxiliary_loss(
            pseudo, features[:num_labeled], logits[:num_labeled], batch.targets, logits_strong, kept
        )
    with record_function("forward and backward"):
        lambda_u = train.lambda_u * ramp(facts.progress, train.lambda_u_ramp)
        terms = torch.stack([loss_labeled, lambda_u * loss_unlabeled, loss_auxiliary])
        # A loss that is not finite becomes NaN in every gradient, so that after the average all workers see it.
        loss = terms.sum() * torch.where(terms.detach().isfinite().all(), 1.0, torch.nan)
        state.optimizer.zero_grad(set_to_none=True)
        loss.backward()
    with record_function("gradient average"):
        trained = list(state.learner.parameters())
        workers.average_gradients(trained)
    with record_function("optimizer and EMA"):
        gradients = [parameter.grad for parameter in trained if parameter.grad is not None]
        if not torch.nn.utils.get_total_norm(gradients).isfinite():
            raise _non_finite(state.step, _loss_faults(terms), workers)

        for group in state.optimizer.param_groups:
            group["lr"] = group.get("scale", 1.0) * learning_rate(config.optim, state.step, train.num_steps)
        state.optimizer.step()
        update_teacher(state.teacher, student, warmed_decay(train.ema_decay, state.step))
    state.step += 1
    return step_sums(terms, pseudo, weights, targets, batch.targets_unlabeled, len(kept))


def _autocast(workers: Workers, precision: str) -> torch.autocast:
    return torch.autocast(workers.device.type, torch.bfloat16, enabled=precision == "bfloat16")


def _weak_forward(student: Classifier, images: Tensor) -> tuple[Tensor, Tensor]:
    """Features and logits without gradient; BatchNorm refuses an empty batch, a supervised step has nothing else."""
    if len(images):
        return student(images)
    weight = student.classifier.weight
    return weight.new_zeros(0, weight.shape[1]), weight.new_zeros(0, weight.shape[0])


def _weak_faults(num_bad: Tensor, mine_finite: Tensor) -> list[str]:
    if num_bad > 0:
        return [f"{int(num_bad)} logits of the weak views are not finite"]
    return [] if mine_finite else ["the policy's sums over the weak views are not finite"]


def _loss_faults(terms: Tensor) -> list[str]:
    names = ("labelled loss", "unlabelled loss", "loss of the policy's heads")
    return [f"{name} is {term}" for name, term in zip(names, terms.tolist(), strict=True) if not math.isfinite(term)]


def _non_finite(step: int, mine: list[str], workers: Workers) -> NonFiniteLossError:
    """The error that names every worker's faults; all workers come here in the same step."""
    found = [f"worker {rank}: {', '.join(texts)}" for rank, texts in enumerate(workers.gather(mine)) if texts]
    return NonFiniteLossError(
        f"step {step}: {'; '.join(found) or 'the losses are finite, their gradient is not'}. No weight was updated "
        "in this step; a smaller optim.learning_rate or train.precision=float32 are the usual remedies"
    )
