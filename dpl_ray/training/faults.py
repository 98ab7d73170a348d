"""What is not finite in a step: found on the device, and named by an error on every worker.

On a CPU the error comes in the step. Where the host does not wait for the device (training/fixed_shapes.py), the
optimizer leaves the weights as they are from that step on, and the error comes before the next record or checkpoint.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dpl_ray.training.distributed import Workers
from dpl_ray.training.fixed_shapes import FixedShapes


class NonFiniteLossError(ArithmeticError):
    """Some worker's weak views, loss or gradient are not finite; no weight was updated."""


def stop_or_note(
    step: float | Tensor, weak: Tensor, sums: Tensor, terms: Tensor, norm: Tensor, fixed: FixedShapes | None,
    workers: Workers,
) -> Tensor | None:  # fmt: skip
    """Raise where the host reads the device; else note the first fault, and say whether there was one: () float32.

    Args:
        weak: (2,) float64 of this worker: number of logits of the weak views that are not finite, and whether its sums
            are. sums: of all workers, that number last but one.
        terms: (3,) loss terms of this worker. norm: () of the averaged gradient.

    Raises:
        NonFiniteLossError: naming step, worker and term, on every worker.
    """
    is_weak = (sums[-2] > 0) | sums.isfinite().all().logical_not()
    is_fault = is_weak | norm.isfinite().logical_not()
    number = torch.as_tensor(step + 1, dtype=torch.float64) * is_fault
    values = torch.cat([torch.stack([number, is_weak.double()]), weak, terms.detach().double()])
    if fixed is None:
        raise_fault(values, workers)
        return None
    fixed.faults.copy_(torch.where(fixed.faults[0] > 0, fixed.faults, values))
    return (fixed.faults[0] > 0).float()


def raise_fault(values: Tensor, workers: Workers) -> None:
    """Raise what `stop_or_note` has found, if anything; waits for the device.

    Args:
        values: (7,) 1 + step or 0, whether it is a fault of the weak views, their two values, three loss terms.

    Raises:
        NonFiniteLossError: naming step, worker and term, on every worker.
    """
    number, is_weak, num_bad, sums_finite, *terms = values.tolist()
    if not number:
        return
    mine = _weak_faults(int(num_bad), bool(sums_finite)) if is_weak else _loss_faults(terms)
    found = [f"worker {rank}: {', '.join(texts)}" for rank, texts in enumerate(workers.gather_json(mine)) if texts]
    raise NonFiniteLossError(
        f"step {int(number) - 1}: {'; '.join(found) or 'the losses are finite, their gradient is not'}. No weight was "
        "updated in this step; a smaller optim.learning_rate or train.precision=float32 are the usual remedies"
    )


def _weak_faults(num_bad: int, sums_finite: bool) -> list[str]:
    if num_bad:
        return [f"{num_bad} logits of the weak views are not finite"]
    return [] if sums_finite else ["the policy's sums over the weak views are not finite"]


def _loss_faults(terms: list[float]) -> list[str]:
    names = ("labelled loss", "unlabelled loss", "loss of the policy's heads")
    return [f"{name} is {term}" for name, term in zip(names, terms, strict=True) if not math.isfinite(term)]
