"""Networks: images to features to logits.

May import: store, config, torch.
"""

from dpl_ray.models.classifier import Classifier, build_model, check_model, count_forward_operations
from dpl_ray.models.libraries import library_of

__all__ = ["Classifier", "build_model", "check_model", "count_forward_operations", "library_of"]
