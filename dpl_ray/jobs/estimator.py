"""A classifier in scikit-learn's form, for arrays: fit(X, y) with -1 for what is unlabelled.

Legend: n samples, H and W pixels, C channels, K classes.
"""

from __future__ import annotations

import shutil
import tempfile
import warnings
import weakref
from collections.abc import Sequence
from functools import cached_property
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import Tags, check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import (
    assert_all_finite,
    check_array,
    check_consistent_length,
    check_is_fitted,
    column_or_1d,
    validate_data,
)

from dpl_ray.config.given import as_overrides
from dpl_ray.data.images.convert import DecodeSettings, convert_arrays
from dpl_ray.data.splits.arrays import as_label, as_pixels
from dpl_ray.inference.predictor import Predictor, load_checkpoint
from dpl_ray.jobs.fit import run_training
from dpl_ray.jobs.fit_arrays import compose
from dpl_ray.page.console import open_console
from dpl_ray.training.evaluation import predict_probs


class SelfTrainingClassifier(ClassifierMixin, BaseEstimator):
    """An image classifier that learns from labelled and unlabelled rows of X.

    It trains in this process, without Ray, MLflow and a baseline; `fit_arrays` has all of these.

    Args:
        policy: pseudo-labelling policy; where no row is unlabelled, `supervised` is trained in its place.
        num_steps: training steps.
        batch_size: labelled images in a batch.
        mu: unlabelled images for each labelled one in a batch.
        depth: layers of the network, 6 n + 4: 10, 16, 22, 28.
        image_shape: (H, W), (H, W, C) or (C, H, W) of rows of X that are flattened, -1 for a length that follows from
            the others; None: X has images.
        image_size: side in pixels that images are resized to; None: as they are.
        random_state: seed of weights, order and views: an int, a `numpy.random.RandomState`, or None for another one
            at every fit.
        storage_path: folder of runs, in which every fit leaves a run with its page; None: a temporary folder, which
            lives as long as this estimator.
        overrides: further fields of the configuration, as `["model.width=1", "data.views.horizontal_flip=false"]`.
        console: where progress is shown, as in `fit`.

    Attributes:
        classes_: (K,) the labels, sorted.
        n_features_in_: number of features of X, where image_shape is given.
        value_range_: (low, high), what is black and white in X: (0, 255) of uint8; (0, 1) of other values in this
            range; else the least and the largest value of X.
        result_: `FitResult` of the run; its checkpoint is the model.
    """

    def __init__(
        self,
        policy: str = "dpl",
        *,
        num_steps: int = 600,
        batch_size: int = 16,
        mu: int = 7,
        depth: int = 10,
        image_shape: tuple[int, ...] | None = None,
        image_size: int | None = None,
        random_state: int | np.random.RandomState | None = 0,
        storage_path: str | None = None,
        overrides: Sequence[str] = (),
        console: Console | bool | None = None,
    ) -> None:
        self.policy = policy
        self.num_steps = num_steps
        self.batch_size = batch_size
        self.mu = mu
        self.depth = depth
        self.image_shape = image_shape
        self.image_size = image_size
        self.random_state = random_state
        self.storage_path = storage_path
        self.overrides = overrides
        self.console = console

    def fit(self, X: Any, y: Any) -> Self:  # noqa: N803
        """Train on the labelled rows, and by the policy on the unlabelled ones.

        Args:
            X: (n, features) with `image_shape`, else (n, H, W), (n, H, W, C) or (n, C, H, W) with C = 1 or 3.
            y: (n,) integers or names; -1, NaN and, among names, None mean unlabelled.

        Raises:
            ValueError: X, y or a parameter does not fit; before the first step.
        """
        images = self._images(X, reset=True)
        labels = self._labels(y, images)
        policy = self.policy
        if (labels >= 0).all() and policy != "supervised":
            warnings.warn(f"y has no unlabelled row: policy=supervised is trained, not {policy}", stacklevel=2)
            policy = "supervised"
        temporary = None if self.storage_path else tempfile.mkdtemp(prefix="dpl_ray-")
        folder = self.storage_path or temporary
        fields: dict[str, dict[str, Any]] = {
            "data": {"class_names": list(map(str, self.classes_)), "image_size": self.image_size},
            "model": {"depth": self.depth},
            "train": {"num_steps": self.num_steps, "batch_size": self.batch_size, "mu": self.mu, "seed": self._seed()},
            "run": {"storage_path": folder},
        }
        saved = _Saved(temporary)
        fixed = ["scale.num_workers=0", "tracking.enabled=false", "train.baseline=false", f"policy={policy}"]
        fixed += ["data.allow_overlap=true"]  # rows count as often as they are given
        overrides = [*fixed, *as_overrides(fields), *self.overrides]
        none = (images[:0], labels[:0])  # no test images: all labels are for training
        config, memory = compose(images, labels, None, none, overrides, {})
        has_page = temporary is None or config.tracking.enabled
        self.result_ = run_training(config, open_console(self.console), memory.read, has_page=has_page)
        saved.checkpoint = self.result_.checkpoint
        self._saved = saved
        return self

    def predict(self, X: Any) -> NDArray:  # noqa: N803
        """(n,) the most likely class of each row, of `classes_`."""
        labels = self.predict_proba(X).argmax(axis=1)
        return self.classes_[labels]

    def predict_proba(self, X: Any) -> NDArray[np.float32]:  # noqa: N803
        """(n, K) class probabilities, columns in the order of `classes_`."""
        check_is_fitted(self)
        predictor = self._saved.predictor
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that all of these rows are dark: the range of X is known
            images = as_pixels("X", self._images(X, reset=False))
        images = convert_arrays(images, DecodeSettings.from_config(predictor.config.data))
        if len(images) and images.shape[1:] != (shape := (predictor.channels, *predictor.image_size)):
            raise ValueError(f"X has images of {images.shape[1:]}, channels and pixels; the model takes {shape}")
        return predict_probs(predictor.model, images).numpy()

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = self.image_shape is not None
        tags.input_tags.three_d_array = self.image_shape is None
        return tags

    def _images(self, X: Any, *, reset: bool) -> NDArray:  # noqa: N803
        """X as images of uint8.

        Args:
            reset: whether the number of features and the range of the values are learned, or those known hold.
        """
        if self.image_shape is None:
            images = check_array(X, ensure_2d=False, allow_nd=True, dtype="numeric", input_name="X", estimator=self)
            if images.ndim < 3:
                raise ValueError(f"X of shape {images.shape}: of flattened images, image_shape=(H, W) says the shape")
        else:
            images = validate_data(self, X, reset=reset, dtype="numeric")
            try:
                images = images.reshape(len(images), *self.image_shape)
            except ValueError:
                raise ValueError(
                    f"image_shape={self.image_shape}: X has {images.shape[1]} features, which make no such images"
                ) from None
        if reset:
            low, high = float(images.min()), float(images.max())
            is_usual = images.dtype == np.uint8 or (low >= 0 and high <= 1)
            self.value_range_ = (0.0, 255.0 if images.dtype == np.uint8 else 1.0) if is_usual else (low, high)
        low, high = self.value_range_
        if images.dtype == np.uint8 and high == 255:
            return images
        return np.rint(255 * np.clip((images - low) / ((high - low) or 1.0), 0, 1)).astype(np.uint8)

    def _labels(self, y: Any, images: NDArray) -> NDArray[np.int64]:
        """(n,) places in `classes_`, which are found; -1 for unlabelled."""
        if y is None:
            raise ValueError(f"This {type(self).__name__} estimator requires y to be passed, but the target y is None.")
        y = column_or_1d(y, warn=True)
        check_consistent_length(images, y)
        if y.dtype.kind == "f":
            assert_all_finite(y, input_name="y", allow_nan=True)
            is_known = ~np.isnan(y) & (y != -1)
        else:
            is_known = np.array([as_label(label) is not None for label in y.tolist()], bool)
        known = np.array(y[is_known].tolist()) if y.dtype == object else y[is_known]
        check_classification_targets(known)
        self.classes_, targets = np.unique(known, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"y has {len(self.classes_)} class; training takes labels of at least 2 classes")
        labels = np.full(len(y), -1)
        labels[is_known] = targets
        return labels

    def _seed(self) -> int:
        if isinstance(self.random_state, int | np.integer):
            return int(self.random_state)
        return int(check_random_state(self.random_state).randint(2**31 - 1))


class _Saved:
    """The model of a checkpoint: loaded when it is first used, pickled as its path."""

    checkpoint: str

    def __init__(self, temporary: str | None) -> None:
        """
        Args:
            temporary: folder that is removed together with this.
        """
        if temporary:
            weakref.finalize(self, shutil.rmtree, temporary, ignore_errors=True)

    @cached_property
    def predictor(self) -> Predictor:
        try:
            return load_checkpoint(self.checkpoint)
        except ValueError as error:
            raise ValueError(
                f"{error}; a temporary one is gone with its estimator, storage_path=... keeps it"
            ) from None

    def __getstate__(self) -> dict[str, Any]:
        return {"checkpoint": self.checkpoint}

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self  # a copy of the estimator keeps the folder, too
