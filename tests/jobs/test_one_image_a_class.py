"""The fewest labels there are: one image a class, without another one to test on."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from dpl_ray import CompareConfig, compare, fit
from dpl_ray.algorithm.policies import POLICIES
from dpl_ray.config.schema import Config, DataConfig
from dpl_ray.data.splits.sources import load_splits
from dpl_ray.store.storage import Storage
from dpl_ray.training.distributed import Workers
from dpl_ray.training.loop import train
from tests.builders import tiny_config, tiny_splits


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of one image each, and a pool."""
    root = tmp_path_factory.mktemp("photos")
    random = np.random.default_rng(0)
    for name in ("labelled/ant", "labelled/bee", "labelled/cat", *("rest",) * 8):
        (root / name).mkdir(parents=True, exist_ok=True)
        number = len(list((root / name).iterdir()))
        Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(root / name / f"{number}.png")
    return root


def configure(folder: Path, runs: Path, **groups: dict[str, Any]) -> Config:
    fields = {
        "data": {"name": "image_folder", "train": f"{folder}/labelled", "unlabeled": f"{folder}/rest"},
        "train": {"batch_size": 4, "mu": 1, "num_steps": 2},
        "run": {"storage_path": str(runs), "name": "one"},
        "tracking": {"enabled": False},
    }
    return tiny_config(**{name: fields.get(name, {}) | groups.get(name, {}) for name in fields | groups})


@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_trains(policy: str, tmp_path: Path) -> None:
    config = tiny_config(policy={"name": policy}, train={"num_steps": 3})
    splits = tiny_splits(num_labeled=3, num_test=0)
    outcome = train(config, splits, Workers(), Storage(str(tmp_path)), lambda record: None)
    assert np.isfinite(outcome.metrics["train/loss_labeled"])
    assert "eval/accuracy" not in outcome.metrics


def test_a_training_says_that_it_cannot_tell_how_good_the_model_is(folder: Path, tmp_path: Path) -> None:
    output = io.StringIO()
    result = fit(configure(folder, tmp_path), console=Console(file=output, width=200))
    assert "note: no test image: how good the model is will not be known; set data.test, or label" in output.getvalue()
    assert "on the test split" not in output.getvalue()
    assert result.metrics.keys().isdisjoint({"eval/accuracy", "validation/accuracy"})


def test_a_comparison_needs_a_test_image(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^data\.test=null: there is no test image to compare on, .*set data\.test"):
        compare(configure(folder, tmp_path), CompareConfig(policies=("supervised", "dpl")))
    assert not list(tmp_path.glob("*/*/step-*")), "no cell has begun"


def test_nothing_can_be_held_out_to_choose_by() -> None:
    message = r"^data\.validation_fraction=0\.5: every class has one label only.*have two labels of a class"
    with pytest.raises(ValueError, match=message):
        load_splits(DataConfig(num_labels_per_class=1, validation_fraction=0.5), seed=0)
