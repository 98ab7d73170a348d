"""Training on images in memory, by `fit_arrays` and by the estimator in scikit-learn's form."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV
from sklearn.utils.estimator_checks import check_classifiers_train, check_estimator

from dpl_ray import FitResult, SelfTrainingClassifier, fit, fit_arrays, load_checkpoint

DIGITS = load_digits()
IMAGES = (DIGITS.images[:200] * (255 / 16)).astype(np.uint8)
LABELS = np.where(np.arange(200) < 60, DIGITS.target[:200], -1)
TINY = {"model": {"depth": 10, "width": 1}, "train": {"num_steps": 2, "batch_size": 4, "mu": 2, "baseline": False}}


def train(folder: Path, images: Any = IMAGES, **changed: Any) -> FitResult:
    here = {"scale": {"num_workers": 0}, "tracking": {"enabled": False}}
    run = {"run": {"storage_path": folder, "name": "tiny"}}
    return fit_arrays(images, LABELS, **{**TINY, **here, **run, **changed})


def test_a_run_on_arrays_goes_on_with_the_same_arrays_alone(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    result = train(tmp_path)
    assert capfd.readouterr() == ("", "")
    assert result.report
    model = load_checkpoint(result.checkpoint)
    assert model.class_names == tuple("0123456789")
    assert (model.channels, model.image_size) == (1, (8, 8))
    assert model.config.data.name == "arrays"
    assert train(tmp_path) == result
    other = IMAGES.copy()
    other[150, 0, 0] += 1
    with pytest.raises(ValueError, match=r"^run\.name=tiny: this run exists with other data"):
        train(tmp_path, other)
    with pytest.raises(ValueError, match=r"^data=arrays: those images were in memory"):
        fit([f"config={tmp_path}/tiny/config.yaml"])
    config = load_checkpoint(result.checkpoint).config
    assert fit_arrays(IMAGES, LABELS, config=config) == result


def test_other_data_sets_and_an_empty_pool_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^data=digits: the images are those that are given"):
        fit_arrays(IMAGES, LABELS, data="digits")
    with pytest.raises(ValueError, match=r"^unlabeled=None: there is no unlabelled image to learn from"):
        fit_arrays(IMAGES, DIGITS.target[:200], scale={"num_workers": 0}, tracking={"enabled": False})


def test_test_images_that_are_labelled_ones_too_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"the test images: 5 of its 5 images are copies of labelled ones, as test/0 of"
    ):
        fit_arrays(IMAGES, LABELS, test=(IMAGES[:5], LABELS[:5]), scale={"num_workers": 0}, tracking={"enabled": False})


def classifier(**parameters: Any) -> SelfTrainingClassifier:
    fixed: dict[str, Any] = {"num_steps": 2, "batch_size": 4, "mu": 2, "overrides": ("model.width=1",)}
    return SelfTrainingClassifier(**fixed | parameters)


def test_the_estimator_predicts_what_its_checkpoint_does(tmp_path: Path) -> None:
    model = classifier(storage_path=str(tmp_path)).fit(IMAGES, LABELS)
    assert model.classes_.tolist() == list(range(10))
    probs = model.predict_proba(IMAGES)
    assert np.array_equal(model.predict(IMAGES), probs.argmax(axis=1))
    assert model.score(IMAGES, DIGITS.target[:200]) == (probs.argmax(axis=1) == DIGITS.target[:200]).mean()
    assert Path(model.result_.report).exists()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert model.predict(IMAGES[:1] // 16).shape == (1,), "dark rows are nothing to warn of"
    flat = classifier(image_shape=(8, 8)).fit(IMAGES.reshape(200, 64), LABELS)
    assert np.array_equal(flat.predict_proba(IMAGES.reshape(200, 64)), probs)
    assert flat.n_features_in_ == 64
    assert flat.result_.report is None
    as_floats = classifier(image_shape=(8, 8)).fit(DIGITS.data[:200], LABELS)
    assert as_floats.value_range_ == (0, 16)
    assert np.abs(as_floats.predict_proba(DIGITS.data[:200]) - probs).max() < 0.05, "to one level of grey"


def test_an_estimator_trains_on_every_row_it_is_given() -> None:
    output = io.StringIO()
    twice = np.concatenate([IMAGES, IMAGES]), np.concatenate([LABELS, LABELS])
    classifier(console=Console(file=output)).fit(*twice)
    assert "120 labelled images of 10 classes, 280 in the pool, 0 validation, 0 test" in " ".join(
        output.getvalue().split()
    )


def test_names_and_missing_labels() -> None:
    names = [None if label < 0 else f"digit {label}" for label in LABELS]
    model = classifier().fit(IMAGES, names)
    assert model.classes_.tolist() == [f"digit {label}" for label in range(10)]
    assert set(model.predict(IMAGES)) <= set(model.classes_)
    bools = [None if label < 0 else label > 4 for label in LABELS]
    assert classifier().fit(IMAGES, bools).predict(IMAGES).dtype == bool
    with_nan = np.where(LABELS < 0, np.nan, LABELS)
    assert np.array_equal(classifier().fit(IMAGES, with_nan).predict_proba(IMAGES), model.predict_proba(IMAGES))


def test_a_pickle_is_the_path_of_the_checkpoint(tmp_path: Path) -> None:
    model = classifier().fit(IMAGES, LABELS)
    saved = pickle.dumps(model)
    assert len(saved) < 10_000, "no weights"
    loaded = pickle.loads(saved)
    assert np.array_equal(loaded.predict_proba(IMAGES), model.predict_proba(IMAGES))
    folder = Path(model.result_.checkpoint).parents[1]
    assert folder.exists()
    copied = copy.deepcopy(model)
    model.fit(IMAGES, LABELS)
    gc.collect()
    assert np.array_equal(copied.predict(IMAGES), loaded.predict(IMAGES))
    del copied
    gc.collect()
    assert not folder.exists(), "another fit, another folder, and no copy is left that needs the first"
    with pytest.raises(
        ValueError, match=r"no such folder; .*; a temporary one is gone with its estimator, storage_path="
    ):
        pickle.loads(saved).predict(IMAGES)
    folder = Path(model.result_.checkpoint).parents[1]
    del model
    gc.collect()
    assert not folder.exists()


@pytest.mark.filterwarnings("ignore:y has no unlabelled row")
def test_it_is_searched_over_and_cloned() -> None:
    search = GridSearchCV(classifier(), {"policy": ["fixmatch", "supervised"]}, cv=2, error_score="raise")
    search.fit(IMAGES[:60], DIGITS.target[:60] % 2)
    assert search.best_estimator_.predict(IMAGES[:5]).shape == (5,)
    assert clone(search.best_estimator_).get_params() == search.best_estimator_.get_params()


def test_mistakes_are_named() -> None:
    for parameters, data, labels, message in (
        ({}, DIGITS.data[:200], LABELS, r"X of shape \(200, 64\): of flattened images, image_shape=\(H, W\) says"),
        ({"image_shape": (7, 8)}, DIGITS.data[:200], LABELS, r"image_shape=\(7, 8\): X has 64 features, which make no"),
        ({}, IMAGES, np.full(200, -1), "y has 0 class; training takes labels of at least 2 classes"),
        ({"policy": "fixmach"}, IMAGES, LABELS, "policy=fixmach: there is no such policy"),
        ({"num_steps": 0}, IMAGES, LABELS, "train.num_steps=0: must be"),
        ({}, IMAGES, LABELS[:5], "inconsistent numbers of samples"),
    ):
        with pytest.raises(ValueError, match=message):
            classifier(**parameters).fit(data, labels)
    model = classifier().fit(IMAGES, LABELS)
    with pytest.raises(
        ValueError, match=r"X has images of \(1, 9, 9\), channels and pixels; the model takes \(1, 8, 8\)"
    ):
        model.predict(np.zeros((2, 9, 9), np.uint8))
    with pytest.warns(UserWarning, match="y has no unlabelled row: policy=supervised is trained, not dpl"):
        classifier().fit(IMAGES[:60], LABELS[:60])


def rows(num_steps: int) -> SelfTrainingClassifier:
    """Reads a row of any number of features as an image one pixel high."""
    overrides = ("model.width=1", "data.fit=squash", "data.views.horizontal_flip=false")
    return classifier(image_shape=(1, -1), image_size=4, num_steps=num_steps, batch_size=8, mu=1, overrides=overrides)


@pytest.mark.filterwarnings("ignore:y has no unlabelled row", "ignore:.*SCIPY_ARRAY_API")
def test_the_checks_of_scikit_learn() -> None:
    untrained = {"check_classifiers_train": "takes more than one step; the test below does"}
    found = check_estimator(rows(1), expected_failed_checks=untrained, on_fail=None)
    assert {each["check_name"]: each["exception"] for each in found if each["status"] == "failed"} == {}
    assert {each["check_name"] for each in found if each["status"] == "skipped"} == {"check_array_api_input"}


@pytest.mark.filterwarnings("ignore:y has no unlabelled row")
def test_a_few_steps_learn_what_scikit_learn_asks_of_a_classifier() -> None:
    check_classifiers_train("SelfTrainingClassifier", rows(30))
