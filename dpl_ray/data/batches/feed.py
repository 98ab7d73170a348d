"""Batches: each worker's slice of the global batch of a step, with the parameters of its views.

Legend: B labelled images of this worker (global batch_size / workers), U = mu * B unlabelled ones.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dpl_ray.config.schema import Config
from dpl_ray.data.batches.augment import WEAK_UNIFORMS, num_strong_uniforms
from dpl_ray.data.dataset import ImageSet
from dpl_ray.data.order import RandomStream, sample_order, view_uniforms
from dpl_ray.data.pool.windows import PoolFeed


@dataclass(frozen=True)
class Batch:
    """One worker's share of a global batch. Images are uint8 and not yet augmented."""

    images: Tensor  # (B, channels, H, W) uint8
    targets: Tensor  # (B,) int64
    ids: Tensor  # (B,) int64, index among the labelled images
    uniforms: Tensor  # (B, WEAK_UNIFORMS) parameters of the labelled weak views
    images_unlabeled: Tensor  # (U, channels, H, W) uint8
    ids_unlabeled: Tensor  # (U,) int64, index in the pool
    targets_unlabeled: Tensor  # (U,) int64, -1 where unknown, -2 of no class: read for the records, never for training
    uniforms_weak: Tensor  # (U, WEAK_UNIFORMS)
    uniforms_strong: Tensor  # (U, num_strong_uniforms)

    def __len__(self) -> int:
        """Images, labelled and unlabelled."""
        return len(self.images) + len(self.images_unlabeled)

    def to(self, device: torch.device) -> Batch:
        """On the device; towards a GPU through pinned memory, without waiting for the copy."""
        if device.type == "cpu":
            return self
        moved = {
            field.name: getattr(self, field.name).pin_memory().to(device, non_blocking=True) for field in fields(self)
        }
        return replace(self, **moved)


class BatchFeed:
    """`feed(step)` is this worker's share of the global batch of that step.

    It holds no position; a pool that is streamed does, so its steps are asked for in order.
    """

    def __init__(
        self, config: Config, labeled: ImageSet, unlabeled: ImageSet | PoolFeed | None, rank: int, world_size: int
    ) -> None:
        """
        Args:
            unlabeled: the pool; None feeds labelled images alone (U = 0).
        """
        train = config.train
        assert train.batch_size % world_size == 0, "checked by the configuration"
        self.labeled, self.unlabeled = labeled, unlabeled
        self.batch_size, self.mu, self.seed, self.views = train.batch_size, train.mu, train.seed, config.data.views
        self.rank, self.world_size = rank, world_size

    def ids(self, step: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Indices of the whole global batch: labelled (batch_size,), unlabelled in memory (mu * batch_size,)."""
        labeled = sample_order(len(self.labeled), self.batch_size, step, self.seed, RandomStream.ORDER_LABELED)
        if not isinstance(self.unlabeled, ImageSet):
            return labeled, np.zeros(0, dtype=np.int64)
        size = self.batch_size * self.mu
        return labeled, sample_order(len(self.unlabeled), size, step, self.seed, RandomStream.ORDER_UNLABELED)

    def __call__(self, step: int) -> Batch:
        labeled, unlabeled = (self._mine(rows) for rows in self.ids(step))
        if isinstance(self.unlabeled, PoolFeed):
            images_unlabeled, ids_unlabeled, targets_unlabeled = self.unlabeled(step)
        else:
            pool = self.labeled if self.unlabeled is None else self.unlabeled
            images_unlabeled, ids_unlabeled, targets_unlabeled = (
                pool.images[unlabeled],
                unlabeled,
                pool.targets[unlabeled],
            )
        num_unlabeled, num_strong = self.world_size * len(ids_unlabeled), num_strong_uniforms(self.views)
        return Batch(
            images=torch.from_numpy(self.labeled.images[labeled]),
            targets=torch.from_numpy(self.labeled.targets[labeled]),
            ids=torch.from_numpy(labeled),
            uniforms=self._uniforms(self.batch_size, WEAK_UNIFORMS, step, RandomStream.VIEWS_LABELED),
            images_unlabeled=torch.from_numpy(images_unlabeled),
            ids_unlabeled=torch.from_numpy(ids_unlabeled),
            targets_unlabeled=torch.from_numpy(targets_unlabeled),
            uniforms_weak=self._uniforms(num_unlabeled, WEAK_UNIFORMS, step, RandomStream.VIEWS_UNLABELED),
            uniforms_strong=self._uniforms(num_unlabeled, num_strong, step, RandomStream.VIEWS_STRONG),
        )

    def close(self) -> None:
        """Stop reading a streamed pool."""
        if isinstance(self.unlabeled, PoolFeed):
            self.unlabeled.close()

    def _mine(self, rows: NDArray) -> NDArray:
        share = len(rows) // self.world_size
        return rows[self.rank * share : (self.rank + 1) * share]

    def _uniforms(self, num_rows: int, num_columns: int, step: int, stream: RandomStream) -> Tensor:
        # Drawn for the global batch and sliced: an image's view does not depend on which worker makes it.
        return torch.from_numpy(self._mine(view_uniforms(num_rows, num_columns, step, self.seed, stream)))
