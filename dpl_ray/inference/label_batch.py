"""What a trained model and its policy say of unlabelled images, and what each of them would count in training.

Legend: N images, C classes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dpl_ray.algorithm.dpl import DynamicPseudoLabels
from dpl_ray.algorithm.policy import Policy
from dpl_ray.algorithm.pseudo_labels import PseudoLabels, StepFacts, entropy, pseudo_labels
from dpl_ray.models import Classifier, answer_in_parts

#: Least confidence that counts where the policy is supervised, which gives every unlabelled image weight 0: FixMatch's.
SUPERVISED_THRESHOLD = 0.95


@torch.inference_mode()
def label_batch(
    model: Classifier, policy: Policy, images: Tensor, temperature: float = 1.0
) -> dict[str, Tensor | None]:
    """Pseudo-labels as training reads them off a batch, at the end of the run and without augmentation.

    The state of the policy is not moved: an answer depends on its image alone, not on the others of its batch.

    Args:
        model: in evaluation mode, on the device of the policy and of the images.
        images: (N, channels, H, W) uint8.
        temperature: of the probabilities that are answered (`calibrated`). Labels, weight and selection are by those
            without it, which the policy has known.

    Returns:
        Column -> (N,), None where the policy has no such thing:

        pseudo_label: int64, of `policy.targets`; of soft targets the most likely class.
        confidence: float32, max of the probabilities, aligned as the policy aligns them, then calibrated.
        second_label, third_label: int64, the likeliest classes besides the pseudo-label; of two classes, no third one.
        second_confidence, third_confidence: float32, their probabilities.
        entropy: float32, of the same probabilities, in nats.
        foreign: float32, of `policy.foreign`: how foreign the image looks, of none of the classes, from 0 to 1.
        confidence_lgp, confidence_hgp: float32, max of each head's softmax (dpl).
        threshold_over, threshold_under: float32, of the class of the pseudo-label (dpl); they are of confidences
            without a temperature, so with another one than 1 None.
        weight: float32, of `policy.weights`; of `supervised` 1 from SUPERVISED_THRESHOLD on, else 0.
        selected: bool, whether the weight is one that training does not skip (> policy.min_weight, > 0).

    Raises:
        ArithmeticError: some logits are not finite.
        ValueError: the model is in training mode.
    """
    features, logits = answer_in_parts(model, images)
    if not logits.isfinite().all():
        raise ArithmeticError("the model's logits are not finite: this checkpoint's weights are of no use")
    ids = torch.arange(len(logits), device=logits.device)
    facts = StepFacts(progress=1.0, ids=ids, targets_labeled=ids[:0], ids_labeled=ids[:0])
    pseudo = pseudo_labels(features, logits, policy.alignment(facts.progress), facts)
    targets = policy.targets(pseudo)
    labels = targets if targets.ndim == 1 else targets.argmax(dim=1)
    weights = _weights(policy, pseudo)
    low, high = _head_confidences(policy, pseudo)
    foreign = policy.foreign(pseudo)
    probs = calibrated(pseudo.probs, temperature)
    known = policy.thresholds().items() if temperature == 1 else ()
    thresholds = {name: values[labels].float() for name, values in known}
    return {
        "pseudo_label": labels,
        "confidence": probs.amax(dim=1),
        **_runners_up(probs, labels),
        "entropy": entropy(probs),
        "foreign": None if foreign is None else foreign.float(),
        "confidence_lgp": low,
        "confidence_hgp": high,
        "threshold_over": thresholds.get("over"),
        "threshold_under": thresholds.get("under"),
        "weight": weights,
        "selected": weights > max(policy.min_weight, 0.0),
    }


def calibrated(probs: Tensor, temperature: float) -> Tensor:
    """(N, C) softmax(log(probs) / temperature): softmax(logits / temperature), where the policy does not align."""
    return probs if temperature == 1 else (probs.log() / temperature).softmax(dim=1)


def _runners_up(probs: Tensor, labels: Tensor) -> dict[str, Tensor]:
    others = probs.scatter(1, labels[:, None], -1).topk(min(2, probs.shape[1] - 1))
    found: dict[str, Tensor] = {}
    for column, name in enumerate(("second", "third")[: others.indices.shape[1]]):
        found |= {f"{name}_label": others.indices[:, column], f"{name}_confidence": others.values[:, column].float()}
    return found


def _weights(policy: Policy, pseudo: PseudoLabels) -> Tensor:
    if not policy.uses_unlabeled:
        return (pseudo.confidence >= SUPERVISED_THRESHOLD).float()
    return policy.weights(pseudo).float()


def _head_confidences(policy: Policy, pseudo: PseudoLabels) -> tuple[Tensor | None, Tensor | None]:
    if not isinstance(policy, DynamicPseudoLabels):
        return None, None
    low, high = (head.softmax(dim=1).amax(dim=1) for head in policy.heads(pseudo.features))
    return low, high
