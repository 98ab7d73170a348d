"""The features of one decoded block of a pool, and its part.

Legend: N images, D features, V stored weak views and as many strong ones.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from dpl_ray.config.schema import ViewsConfig
from dpl_ray.data.batches.augment import WEAK_UNIFORMS, num_strong_uniforms, strong, weak
from dpl_ray.data.features.folder import Spec
from dpl_ray.data.formats.rows import ROWS_PER_SPAN
from dpl_ray.data.splits.copies import pixel_hashes
from dpl_ray.labeling.decoding import DecodedBlock
from dpl_ray.labeling.parts import COUNTS_KEY, Counts, write_part
from dpl_ray.labeling.writer import BlockWriter
from dpl_ray.models import Classifier, answer_in_parts
from dpl_ray.store.storage import Storage

_TEXTS = ("sample_id", "error", "label")


@dataclass(frozen=True)
class BlockEmbedder(BlockWriter):
    """A network, and how its views are made."""

    model: Classifier
    spec: Spec
    augment: ViewsConfig
    seed: int
    labels: Mapping[str, str]  # sample id -> class name, of those that have one
    output: Storage
    batch_size: int

    def to(self, device: torch.device) -> BlockEmbedder:
        """The same on another device; the layout of the weights is the one that training found faster."""
        model = copy.deepcopy(self.model).to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        return replace(self, model=model.eval())

    def write(self, block: DecodedBlock) -> tuple[Counts, int]:
        """Write the part of a block; returns its counts and its bytes."""
        found = self._features(block)
        ids = self.plan.sample_ids(block.number)
        counts = Counts.none(1)
        counts.selected = [len(block.kept)]
        reasons = list(block.errors.values())
        counts.unreadable = {reason: reasons.count(reason) for reason in sorted(set(reasons))}
        hashes = np.zeros(len(ids), np.uint64)
        hashes[block.kept] = pixel_hashes(block.images)
        columns = {
            "sample_id": pa.array(ids, pa.string()),
            "error": pa.array([block.errors.get(row) for row in range(len(ids))], pa.string()),
            "label": pa.array([self.labels.get(sample_id) for sample_id in ids], pa.string()),
            "pixels": pa.array(hashes),
        }
        columns |= {name: as_lists(rows, block.kept, len(ids)) for name, rows in found.items() if rows.shape[1]}
        metadata = {COUNTS_KEY: json.dumps(asdict(counts)).encode()}
        return counts, write_features(self.output / self.plan.part_name(block.number), columns, metadata)

    @torch.inference_mode()
    def _features(self, block: DecodedBlock) -> dict[str, NDArray[np.float16]]:
        """Column -> (N, D), or (N, V D) of the views: a function of seed, block and row."""
        device, views = self.model.classifier.weight.device, range(self.spec.num_views)
        num_uniforms = max(WEAK_UNIFORMS, num_strong_uniforms(self.augment))
        shape = (len(block.images), len(views), 2, num_uniforms)
        uniforms = torch.from_numpy(np.random.default_rng([self.seed, block.number]).random(shape, np.float32))
        rows: dict[str, list[NDArray[np.float16]]] = {name: [] for name in ("features", "weak", "strong")}
        for start in range(0, len(block.images), self.batch_size):
            # A copy: arrays from the object store are read-only, which torch warns of.
            images = torch.from_numpy(block.images[start : start + self.batch_size].copy()).to(device)
            drawn = uniforms[start : start + self.batch_size].to(device)
            rows["features"].append(self._embed(images))
            for place, (name, make) in enumerate((("weak", weak), ("strong", strong))):
                made = [self._embed(make(images, drawn[:, view, place], self.augment)) for view in views]
                rows[name].append(np.concatenate(made, axis=1) if made else np.zeros((len(images), 0), np.float16))
        widths = {"features": 1, "weak": len(views), "strong": len(views)}
        return {
            name: np.concatenate([np.zeros((0, width * self.spec.num_features), np.float16), *rows[name]])
            for name, width in widths.items()
        }

    def _embed(self, images: Tensor) -> NDArray[np.float16]:
        features, _ = answer_in_parts(self.model, images)
        if not features.isfinite().all():
            raise ArithmeticError("the features are not finite: these weights are of no use")
        # float16 ends at 65504, beyond which nothing useful lies.
        found: NDArray[np.float16] = features.float().clamp(-65504, 65504).half().cpu().numpy()
        return found


def write_features(part: Storage, columns: Mapping[str, pa.Array], metadata: Mapping[bytes, bytes]) -> int:
    """Write a part so that it is read fast: it is read in every pass of every training. Returns its bytes.

    Features hardly become smaller by compression. Lists without nulls are read at several times the rate.
    """
    fields = [pa.field(name, column.type, nullable=name in _TEXTS) for name, column in columns.items()]
    table = pa.table(dict(columns), schema=pa.schema(fields, metadata))
    compression = dict.fromkeys(_TEXTS, "zstd")
    return write_part(part, table, compression=compression, use_dictionary=_TEXTS[1:], row_group_size=ROWS_PER_SPAN)


def as_lists(rows: NDArray[np.float16], kept: NDArray[np.int64], num_rows: int) -> pa.Array:
    """(N, L) as lists of L numbers; zeros for the rows that are not kept, whose error says why."""
    whole = np.zeros((num_rows, rows.shape[1]), np.float16)
    whole[kept] = rows
    number = pa.field("element", pa.float16(), nullable=False)
    return pa.FixedSizeListArray.from_arrays(pa.array(whole.ravel()), type=pa.list_(number, rows.shape[1]))
