"""FlexMatch (Zhang 2021): a threshold per class, lower where fewer pool samples were ever confident.

Legend: U unlabelled images of the global batch, C classes, P samples in the pool, N workers.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dpl_ray.algorithm.policy import Policy, RunFacts
from dpl_ray.algorithm.pseudo_labels import PseudoLabels


class FlexMatch(Policy):
    """w = 1[c >= threshold * b(label)], b(k) = beta_k / (2 - beta_k), beta_k = n_k / max(n_1..n_C, n_unused).

    n_k counts the pool samples whose last confident (c >= threshold) label is k, n_unused those never confident yet.

    The last labels are one byte a pool sample (two from 256 classes on), and each worker holds its share of them. The
    counts are C numbers that every worker holds: a step sends the confident labels of its batch with the one vector
    that is summed; their owners find what they replace, and send the difference with the next step's.
    """

    sharded = ("last_labels",)

    counts: Tensor  # (C,) float64 n_k before the labels in `recent`
    recent: Tensor  # (U,) int64, 1 + id * C + label of the samples of the step before that were confident, else 0
    last_labels: Tensor  # (ceil((P - rank) / N),) 1 + label, 0 for never confident; sample id is row id // N

    def __init__(self, num_features: int, num_classes: int, *, threshold: float) -> None:
        super().__init__(num_features, num_classes)
        self.threshold = threshold
        self.register_buffer("counts", torch.zeros(num_classes, dtype=torch.float64))

    def join(self, run: RunFacts) -> None:
        self.run = run
        device = self.counts.device
        size = len(range(run.rank, run.pool_size, run.world_size))
        dtype = torch.uint8 if self.num_classes < 256 else torch.int16
        self.register_buffer("last_labels", torch.zeros(size, dtype=dtype, device=device))
        self.register_buffer("recent", torch.zeros(run.num_unlabeled, dtype=torch.int64, device=device))

    def _confident(self, pseudo: PseudoLabels) -> Tensor:
        return pseudo.confidence >= self.threshold

    def _mine(self) -> tuple[Tensor, Tensor]:
        """Rows of `last_labels` that `recent` changes, (R,) each once, and their new values."""
        said = self.recent[self.recent > 0] - 1
        ids, values = said // self.num_classes, said % self.num_classes + 1
        mine = ids % self.run.world_size == self.run.rank
        rows, inverse = torch.unique(ids[mine] // self.run.world_size, return_inverse=True)
        # A batch may hold a sample twice, at the end of one pass and the beginning of the next: the later one counts.
        places = torch.arange(len(inverse), device=rows.device)
        last = torch.zeros_like(rows).scatter_reduce_(0, inverse, places, "amax", include_self=False)
        return rows, values[mine][last]

    @torch.no_grad()
    def statistics(self, pseudo: PseudoLabels) -> Tensor:
        """(C + U,): change of the counts by the step before, and the confident labels, each worker in its places."""
        assert pseudo.facts is not None
        rows, new = self._mine()
        old = self.last_labels[rows].long()
        change = new.bincount(minlength=self.num_classes + 1) - old.bincount(minlength=self.num_classes + 1)
        labels = torch.zeros(self.run.num_unlabeled, dtype=torch.float64, device=change.device)
        said = (1 + pseudo.facts.ids * self.num_classes + pseudo.labels) * self._confident(pseudo)
        start = self.run.rank * (self.run.num_unlabeled // self.run.world_size)
        labels[start : start + len(said)] = said.double()  # exact up to 2^53
        return torch.cat([change[1:].double(), labels])

    @torch.no_grad()
    def update(self, statistics: Tensor) -> None:
        change, labels = statistics.tensor_split([self.num_classes])
        self.counts += change
        rows, new = self._mine()
        self.last_labels[rows] = new.to(self.last_labels.dtype)
        self.recent.copy_(labels)

    def thresholds(self) -> dict[str, Tensor]:
        most = torch.maximum(self.counts.max(), self.run.pool_size - self.counts.sum())
        beta = self.counts / most.clamp(min=1)
        return {"threshold": self.threshold * beta / (2 - beta)}

    def weights(self, pseudo: PseudoLabels) -> Tensor:
        needed = self.thresholds()["threshold"][pseudo.labels]
        return (pseudo.confidence >= needed).to(pseudo.confidence.dtype)
