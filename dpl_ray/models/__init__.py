"""Networks: images to features to logits.

May import: config, torch.
"""

from dpl_ray.models.classifier import Classifier, build_model, check_model, check_names

__all__ = ["Classifier", "build_model", "check_model", "check_names"]
