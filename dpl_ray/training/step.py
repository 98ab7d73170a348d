"""The training step, top to bottom.

Legend: B labelled, U = mu * B unlabelled images of this worker, K <= U strong views with a weight, C classes,
D features. Losses are means over this worker's share; the average over workers that the gradient pass takes
makes them means over the global batch, because every worker has the same B and U.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.profiler import record_function

from dpl_ray.algorithm.ema import update_teacher
from dpl_ray.algorithm.losses import mean_over_all
from dpl_ray.algorithm.pseudo_labels import Answers, StepFacts, pseudo_labels
from dpl_ray.config.schema import Config
from dpl_ray.data.batches.feed import Batch
from dpl_ray.data.batches.views import strong, weak
from dpl_ray.models import Classifier
from dpl_ray.models.batch_norm import counting
from dpl_ray.training.distributed import Workers
from dpl_ray.training.faults import stop_or_note
from dpl_ray.training.fixed_shapes import choose
from dpl_ray.training.metrics import step_sums
from dpl_ray.training.schedule import Wish
from dpl_ray.training.state import TrainState, step_numbers


def train_step(state: TrainState, batch: Batch, config: Config, workers: Workers) -> Tensor:
    """Move the state by one global batch and return its sums, (len(SUMS),) float64.

    On a CPU it computes the strong views that have a weight and no others. With `state.fixed`, as on a GPU, the host
    waits for nothing, and a fault is noted for the next record.

    Raises:
        NonFiniteLossError: naming step, worker and term, on every worker, before the optimizer moves.
    """
    student, policy, fixed = state.student, state.policy, state.fixed
    train, views = config.train, config.data.views
    autocast = _autocast(workers, train.precision)
    autocast_weak = _autocast(workers, train.weak_precision or train.precision)
    numbers = step_numbers(state, config)

    with record_function("weak view"):
        images = weak(batch.images, batch.uniforms, views)
        images_weak = weak(batch.images_unlabeled, batch.uniforms_weak, views)
        if policy.reads_labeled:
            images_weak = torch.cat([images_weak, images])
        images_weak = images_weak.contiguous(memory_format=torch.channels_last)
    with record_function("weak forward"), torch.no_grad(), autocast_weak:
        features_weak, logits_weak = _weak_forward(student, images_weak)
    with record_function("heads and policy"):
        facts = StepFacts(numbers.progress, batch.ids_unlabeled, batch.targets, batch.ids)
        pseudo = pseudo_labels(features_weak, logits_weak, policy.alignment(facts.progress), facts)
        num_bad = logits_weak.isfinite().logical_not().sum().double()
        wish = torch.full_like(num_bad, state.wish if workers.rank == 0 else Wish.NOTHING)
        sums = torch.cat([policy.statistics(pseudo), torch.stack([num_bad, wish])])
        faults_weak = torch.stack([num_bad, sums.isfinite().all().double()])
    with record_function("collective"):
        workers.all_reduce_sum(sums)
    with record_function("heads and policy"):
        state.hear(sums[-1])
        policy.update(sums[:-2])
        weights, targets = policy.weights(pseudo), policy.targets(pseudo)
        chosen = choose(weights, policy.min_weight, fixed)
        rows = chosen.rows

    with record_function("strong view"):
        if policy.trains_on == "strong":
            images_strong = strong(batch.images_unlabeled, batch.uniforms_strong, views, rows)
        else:
            images_strong = weak(batch.images_unlabeled, batch.uniforms_weak, views, rows)
        images_strong, targets_strong = policy.mix(images_strong, targets[rows], rows, images, pseudo)
        images = torch.cat([images, images_strong]).contiguous(memory_format=torch.channels_last)
    with record_function("forward and backward"), autocast, counting(student, chosen.counted, len(batch.targets)):
        features, logits = student(images)
    with record_function("forward and backward"):
        num_labeled = len(batch.targets)
        logits = logits.float()
        loss_labeled = policy.labeled_loss(logits[:num_labeled], batch.targets)
        features_strong, logits_strong = features[num_labeled:], logits[num_labeled:]
        trained = policy.trains_classifier(facts.progress)
        logits_strong = student.unless_frozen(features_strong, logits_strong, trained)
        losses = policy.unlabeled_losses(policy.unlabeled_logits(logits_strong), targets_strong, rows, pseudo)
        loss_unlabeled = mean_over_all(losses, chosen.weights, len(weights))
    with record_function("heads and policy"):
        labeled = features[:num_labeled], logits[:num_labeled], batch.targets
        answers = Answers(*labeled, features_strong, logits_strong, chosen.kept)
        loss_auxiliary = policy.auxiliary_loss(pseudo, answers)
    with record_function("forward and backward"):
        terms = torch.stack([loss_labeled, numbers.lambda_u * loss_unlabeled, loss_auxiliary])
        # A loss that is not finite becomes NaN in every gradient, so that after the average all workers see it.
        loss = terms.sum() * torch.where(terms.detach().isfinite().all(), 1.0, torch.nan)
        state.optimizer.zero_grad(set_to_none=True)
        loss.backward()
    with record_function("gradient average"):
        state.average_gradients()
    with record_function("optimizer and EMA"):
        gradients = [parameter.grad for parameter in state.learner.parameters() if parameter.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        # With a fault the fused optimizer leaves its weights alone.
        found = stop_or_note(numbers.step, faults_weak, sums, terms, norm, fixed, workers)
        state.optimizer.found_inf = found  # type: ignore[attr-defined]
        for group in state.optimizer.param_groups:
            group["lr"] = group.get("scale", 1.0) * numbers.learning_rate
        state.optimizer.step()
        update_teacher(state.teacher, student, numbers.ema_decay)
    state.step += 1
    return step_sums(terms, pseudo, chosen.weights_used, targets, batch.targets_unlabeled, chosen.number)


def _autocast(workers: Workers, precision: str) -> torch.autocast:
    return torch.autocast(workers.device.type, torch.bfloat16, enabled=precision == "bfloat16")


def _weak_forward(student: Classifier, images: Tensor) -> tuple[Tensor, Tensor]:
    """Features and logits without gradient; BatchNorm refuses an empty batch, a supervised step has nothing else."""
    if len(images):
        return student(images)
    weight = student.classifier.weight
    return weight.new_zeros(0, weight.shape[1]), weight.new_zeros(0, weight.shape[0])
