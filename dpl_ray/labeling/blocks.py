"""Labelling one decoded block of a pool, and writing its part."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dpl_ray.algorithm.policy import Policy
from dpl_ray.inference.label_batch import label_batch
from dpl_ray.labeling.decoding import DecodedBlock
from dpl_ray.labeling.parts import Counts, make_part, write_part
from dpl_ray.labeling.writer import BlockWriter
from dpl_ray.models import Classifier
from dpl_ray.store.storage import Storage


@dataclass(frozen=True)
class BlockLabeler(BlockWriter):
    """A model and its policy."""

    model: Classifier
    policy: Policy
    class_names: tuple[str, ...]
    output: Storage
    batch_size: int
    thresholds: NDArray[np.float32] | None = None  # (C,) of certified confidence; None: the policy selects
    temperature: float = 1.0

    def to(self, device: torch.device) -> BlockLabeler:
        """The same on another device; the layout of the weights is the one that training found faster."""
        model = copy.deepcopy(self.model).to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        return replace(self, model=model.eval(), policy=copy.deepcopy(self.policy).to(device))

    def score(self, images: NDArray) -> dict[str, NDArray[Any] | None]:
        """The columns of `label_batch` of images (N, channels, H, W) uint8, or of stored features."""
        if not len(images):  # transformers take no empty batch
            some = self.score(np.zeros((1, *images.shape[1:]), images.dtype))
            return {name: None if values is None else values[:0] for name, values in some.items()}
        device = self.model.classifier.weight.device
        rows: list[dict[str, Any]] = []
        for start in range(0, len(images), self.batch_size):
            # A copy: arrays from the object store are read-only, which torch warns of.
            batch = torch.from_numpy(images[start : start + self.batch_size].copy())
            found = label_batch(self.model, self.policy, batch.to(device), self.temperature)
            rows.append({name: None if values is None else values.cpu().numpy() for name, values in found.items()})
        return {
            name: None if first is None else np.concatenate([row[name] for row in rows])
            for name, first in rows[0].items()
        }

    def write(self, block: DecodedBlock) -> tuple[Counts, int]:
        """Write the part of a block; returns its counts and its bytes."""
        columns = self.score(block.images)
        if self.thresholds is not None:
            columns["selected"] = columns["confidence"] >= self.thresholds[columns["pseudo_label"]]  # type: ignore[operator]
        sample_ids = self.plan.sample_ids(block.number)
        table, counts = make_part(sample_ids, block.kept, block.errors, columns, self.class_names)
        return counts, write_part(self.output / self.plan.part_name(block.number), table)
