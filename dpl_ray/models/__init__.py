"""Networks: images to features to logits."""

from dpl_ray.models.classifier import Classifier, build_model, check_model, check_names

__all__ = ["Classifier", "build_model", "check_model", "check_names"]
