"""The final model in MLflow's format."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dpl_ray import fit, load_checkpoint, load_config
from dpl_ray.config.schema import RegistryConfig
from dpl_ray.store.storage import Storage
from dpl_ray.tracking.server import make_client
from tests.recordings import (
    QUIET,
    new_tracker,
)


def test_the_final_model_answers_without_this_package_and_without_pickle(tmp_path: Path, mlflow_uri: str) -> None:
    overrides = ["scale.num_workers=0", "train.num_steps=4", "train.log_every=2", "model.width=1", "train.batch_size=4"]
    overrides += [f"run.storage_path={tmp_path}", "run.name=tiny", "train.baseline=false", "registry.name=digits"]
    result = fit(load_config([*overrides, f"tracking.uri={mlflow_uri}", "registry.alias=best"]))
    assert result.registered == "models:/digits/1"
    images = np.random.default_rng(0).integers(0, 256, (5, 1, 8, 8), dtype=np.uint8)
    np.save(tmp_path / "images.npy", images)
    code = f"""
import json, sys
import mlflow, numpy as np
mlflow.set_tracking_uri({mlflow_uri!r})
images = np.load({str(tmp_path / "images.npy")!r})
answers = []
for place in ("models:/digits@best", "runs:/{result.run_id}/model", {result.model!r}):
    model = mlflow.pyfunc.load_model(place)
    assert str(model.metadata.signature.inputs) == "[Tensor('uint8', (-1, 1, 8, 8))]", model.metadata.signature
    assert str(model.metadata.signature.outputs) == "[Tensor('float32', (-1, 10))]"
    assert model.input_example.dtype == np.uint8 and model.predict(model.input_example).shape == (2, 10)
    answers.append(model.predict(images).tolist())
assert not [name for name in sys.modules if name.startswith("dpl_ray")]
print(json.dumps(answers + [model.metadata.metadata["class_names"]]))
"""
    environment = {"MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    *answers, class_names = json.loads(found.stdout.splitlines()[-1])
    predictor = load_checkpoint(result.checkpoint)
    assert class_names == list(predictor.class_names)
    for answer in answers:
        assert np.array(answer) == pytest.approx(predictor.predict(images).numpy(), abs=1e-5)


def test_a_model_that_cannot_be_exported_costs_a_warning(tmp_path: Path, mlflow_uri: str) -> None:
    from dpl_ray.inference.exported_model import record_model

    tracker = new_tracker(tmp_path, mlflow_uri)
    with pytest.warns(UserWarning, match="the model was not exported for MLflow: ValueError: checkpoint="):
        record_model(tracker, RegistryConfig(), Storage(str(tmp_path)) / "step-00000004", Storage(str(tmp_path)))
    tracker.finish("FINISHED", QUIET)
    assert tracker.run_id


def test_an_export_leaves_mlflow_as_quiet_as_a_tracker_has_made_it(tmp_path: Path, mlflow_uri: str) -> None:
    """Else a database that is locked later prints a stack beside the line that tells of it."""
    from dpl_ray.inference.exported_model import export_model

    make_client(mlflow_uri)
    with pytest.raises(ValueError, match="checkpoint="):
        export_model(Storage(str(tmp_path)) / "step-00000004", Storage(str(tmp_path)))
    assert logging.getLogger("mlflow").level == logging.CRITICAL
