"""What a trained model sees in images, beside the pseudo-labels of `label_batch`.

Legend: N images, C classes, D features.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from dpl_ray.algorithm.dpl import DynamicPseudoLabels
from dpl_ray.algorithm.policy import Policy
from dpl_ray.algorithm.pseudo_labels import StepFacts, pseudo_labels
from dpl_ray.inference.label_batch import calibrated
from dpl_ray.models import Classifier, answer_in_parts


@dataclass(frozen=True)
class Looked:
    """Of N images."""

    features: NDArray[np.float32]  # (N, D)
    probs: NDArray[np.float32]  # (N, C) aligned as the policy aligns them
    over: NDArray[np.float32] | None  # (N,) over-confident threshold of the likeliest class; as of `label_batch`
    heads: NDArray[np.int64] | None  # (2, N) the classes that LGP and HGP say

    def disagree(self) -> NDArray[np.bool_]:
        """(N,) whether LGP and HGP say different classes."""
        return np.zeros(len(self.probs), bool) if self.heads is None else self.heads[0] != self.heads[1]


@torch.inference_mode()
def look(
    model: Classifier, policy: Policy, images: NDArray, temperature: float = 1.0, *, batch_size: int = 256
) -> Looked:
    """
    Args:
        model: in evaluation mode, as the policy on the CPU.
        images: (N, channels, H, W) uint8, or stored features.
        temperature: as of `label_batch`.
    """
    found = []
    for start in range(0, max(1, len(images)), batch_size):
        batch = torch.from_numpy(images[start : start + batch_size].copy())
        seen, logits = answer_in_parts(model, batch)
        ids = torch.arange(len(logits))
        pseudo = pseudo_labels(seen, logits, policy.alignment(1.0), StepFacts(1.0, ids, ids[:0], ids[:0]))
        heads = policy.heads(seen) if isinstance(policy, DynamicPseudoLabels) else ()
        found.append((seen.float(), calibrated(pseudo.probs, temperature), *(head.argmax(dim=1) for head in heads)))
    features, probs, *said = (torch.cat(part).numpy() for part in zip(*found, strict=True))
    over = policy.thresholds().get("over") if temperature == 1 else None
    return Looked(
        features=features,
        probs=probs,
        over=None if over is None else over.numpy().astype(np.float32)[probs.argmax(axis=1)],
        heads=np.stack(said) if said else None,
    )
