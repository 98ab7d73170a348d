"""Scores of the teacher on the images held out, by all workers."""

from __future__ import annotations

import numpy as np
import torch

from dpl_ray.data.dataset import ImageSet, Splits
from dpl_ray.training.distributed import Workers
from dpl_ray.training.evaluation import classification_metrics, evaluate_split, predict_split
from dpl_ray.training.predictions import Predictions
from dpl_ray.training.state import TrainState


class Scores:
    """Of one training; every worker asks for the same ones in the same order."""

    def __init__(self, state: TrainState, splits: Splits, num_curve_images: int, workers: Workers) -> None:
        """
        Args:
            num_curve_images: most test images that a point of the curve is made of; 0: no curve.
        """
        self.state, self.splits, self.workers = state, splits, workers
        self.curve_split = draw_curve_split(splits.test, num_curve_images)
        self._validated: tuple[int, dict[str, float]] | None = None

    def validation(self) -> dict[str, float]:
        """`validation/...` at this step, computed once; empty without a validation split."""
        if not len(self.splits.validation):
            return {}
        if self._validated is None or self._validated[0] != self.state.step:
            found = evaluate_split(self.state.teacher, self.splits.validation, self.workers)
            renamed = {key.replace("eval/", "validation/"): value for key, value in found.items()}
            self._validated = (self.state.step, renamed)
        return self._validated[1]

    def curve(self) -> dict[str, float]:
        """`curve/accuracy`, and `curve/seconds` of training up to it; empty without test images to draw from."""
        if not len(self.curve_split):
            return {}
        found = evaluate_split(self.state.teacher, self.curve_split, self.workers)
        return {"curve/accuracy": found["eval/accuracy"], "curve/seconds": self.state.seconds}

    def final(self) -> tuple[dict[str, float], Predictions | None]:
        """`validation/...`, `eval/...`, and what the teacher says of the test split (None without one)."""
        if not len(self.splits.test):
            return self.validation(), None
        probs = predict_split(self.state.teacher, self.splits.test, self.workers)
        found = classification_metrics(probs, torch.from_numpy(self.splits.test.targets))
        return self.validation() | found, Predictions.from_probs(probs)


def draw_curve_split(test: ImageSet, num_images: int) -> ImageSet:
    """The same test images for every run: drawn, because a test split may be sorted by class."""
    return test.subset(np.sort(np.random.default_rng(0).permutation(len(test))[:num_images]))
