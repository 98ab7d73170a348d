"""FlexMatch (Zhang 2021): a threshold per class, lower where fewer pool samples were ever confident.

Legend: U unlabelled images of the global batch, C classes, P samples in the pool, N workers.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dpl_ray.algorithm.gradient_cut import class_sums
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

    def _mine(self) -> tuple[Tensor, Tensor, Tensor]:
        """What `recent` changes in `last_labels`, (U,) each: rows, new values, and which places hold such a change."""
        said = self.recent - 1
        mine = (said >= 0) & (said // self.num_classes % self.run.world_size == self.run.rank)
        ids = torch.where(mine, said // self.num_classes, -1)
        # A batch may hold a sample twice, at the end of one pass and the beginning of the next: the later one counts.
        ids, order = ids.sort(stable=True)
        is_last = torch.cat([ids[1:] != ids[:-1], torch.ones_like(mine[:1])])
        changed = (ids >= 0) & is_last
        return (ids // self.run.world_size).clamp(min=0), said[order] % self.num_classes + 1, changed

    @torch.no_grad()
    def statistics(self, pseudo: PseudoLabels) -> Tensor:
        """(C + U,): change of the counts by the step before, and the confident labels, each worker in its places."""
        assert pseudo.facts is not None
        change = self.counts.new_zeros(self.num_classes + 1)
        if len(self.last_labels):  # a worker may have no sample
            rows, new, changed = self._mine()
            old = self.last_labels[rows].long()
            for labels, sign in ((new, 1), (old, -1)):
                change += class_sums(sign * changed, labels, self.num_classes + 1)
        said = self.counts.new_zeros(self.run.num_unlabeled)
        start = self.run.rank * (self.run.num_unlabeled // self.run.world_size)
        labels = (1 + pseudo.facts.ids * self.num_classes + pseudo.labels) * self._confident(pseudo)
        said[start : start + len(labels)] = labels.double()  # exact up to 2^53
        return torch.cat([change[1:], said])

    @torch.no_grad()
    def update(self, statistics: Tensor) -> None:
        change, labels = statistics.tensor_split([self.num_classes])
        self.counts += change
        if len(self.last_labels):
            rows, new, changed = self._mine()
            difference = torch.where(changed, new - self.last_labels[rows], 0)
            self.last_labels.index_add_(0, rows, difference.to(self.last_labels.dtype))  # bytes wrap around
        self.recent.copy_(labels)

    def thresholds(self) -> dict[str, Tensor]:
        most = torch.maximum(self.counts.max(), self.run.pool_size - self.counts.sum())
        beta = self.counts / most.clamp(min=1)
        return {"threshold": self.threshold * beta / (2 - beta)}

    def weights(self, pseudo: PseudoLabels) -> Tensor:
        needed = self.thresholds()["threshold"][pseudo.labels]
        return (pseudo.confidence >= needed).to(pseudo.confidence.dtype)
