"""Networks: images to features to logits.

May import: store, config, torch.
"""

from dpl_ray.models.classifier import Classifier, build_model, check_model, count_forward_operations
from dpl_ray.models.in_parts import answer_in_parts
from dpl_ray.models.libraries import library_of

__all__ = ["Classifier", "answer_in_parts", "build_model", "check_model", "count_forward_operations", "library_of"]
