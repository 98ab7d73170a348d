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
from tests.labeling.jobs import encode, picture
from tests.recordings import (
    QUIET,
    new_tracker,
)


def test_the_final_model_answers_without_this_package_and_without_pickle(tmp_path: Path, mlflow_uri: str) -> None:
    overrides = ["scale.num_workers=0", "train.num_steps=4", "train.log_every=2", "model.width=1", "train.batch_size=4"]
    overrides += [f"run.storage_path={tmp_path}", "run.name=tiny", "train.baseline=false", "registry.name=digits"]
    result = fit(load_config([*overrides, f"tracking.uri={mlflow_uri}", "registry.alias=best"]))
    assert result.registered == "models:/digits/1"
    random = np.random.default_rng(0)
    images, larger = (random.integers(0, 256, (5, 1, size, size), dtype=np.uint8) for size in (8, 21))
    photo = encode(picture(3, (30, 20)))
    np.savez(tmp_path / "images.npz", images=images, larger=larger)
    (tmp_path / "photo.png").write_bytes(photo)
    code = f"""
import gc; gc.disable()  # while libraries are loaded
import base64, json, sys
from pathlib import Path
import mlflow, mlflow.pyfunc.scoring_server as server, numpy as np, pandas, torch
mlflow.set_tracking_uri({mlflow_uri!r})
given = np.load({str(tmp_path / "images.npz")!r})
photo = Path({str(tmp_path / "photo.png")!r}).read_bytes()
encoded = base64.b64encode(photo).decode()
for place in ("models:/digits@best", "runs:/{result.run_id}/model", {result.model!r}):
    model = mlflow.pyfunc.load_model(place)
    assert [answer["error"] for answer in model.predict(model.input_example)] == [None, None]
    columns = [column.name for column in model.metadata.signature.outputs]
    assert columns == ["label", "confidence", "probabilities", "error"]
answers = {{
    "images": model.predict(given["images"]),
    "floats": model.predict(given["images"] / 255),
    "larger": model.predict(given["larger"]),
    "json": model.predict(server.infer_and_parse_data({{"inputs": given["larger"].tolist()}})),
    "photo": model.predict([photo, "data:image/png;base64," + encoded, photo[:90]]),
    "served": model.predict(server.infer_and_parse_data({{"inputs": [encoded, "AAAA", "?"]}})),
    "table": model.predict(pandas.DataFrame({{"image": [encoded, encoded]}})),
    "mixed": model.predict([given["larger"][0], given["images"][0]]),
    "graph": mlflow.pytorch.load_model({result.model!r} + "/data/graph")(torch.from_numpy(given["images"])).tolist(),
}}
assert not [name for name in sys.modules if name == "dpl_ray" or name.startswith("dpl_ray.")]
print(json.dumps([answers, model.metadata.metadata["class_names"]]))
gc.freeze()
"""
    environment = {"MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    answers, class_names = json.loads(done.stdout.splitlines()[-1])
    predictor = load_checkpoint(result.checkpoint)
    assert class_names == list(predictor.class_names)
    expected = {"images": predictor.predict(images), "larger": predictor.predict(larger)}
    expected |= {"floats": expected["images"], "json": expected["larger"]}
    expected |= {"photo": predictor.predict([photo, photo, photo[:90]]), "table": predictor.predict([photo, photo])}
    expected |= {
        "served": predictor.predict([photo, bytes(3), b""]),
        "mixed": predictor.predict([larger[0], images[0]]),
    }
    for name, wanted in expected.items():
        for answer, label, probs in zip(answers[name], wanted.names, wanted.probabilities, strict=True):
            assert answer["label"] == label, name
            if label is not None:
                assert list(answer["probabilities"]) == class_names
                assert list(answer["probabilities"].values()) == pytest.approx(probs, abs=1e-5)
                assert answer["confidence"] == max(answer["probabilities"].values())
    errors = {name: [answer["error"] for answer in answers[name]] for name in ("photo", "served")}
    assert errors == {"photo": [None, None, "truncated"], "served": [None, "not an image", "not base64"]}
    assert np.array(answers["graph"]) == pytest.approx(expected["images"].probabilities, abs=1e-5)


def test_the_root_logger_stays_that_of_the_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dpl_ray.inference.exported_model import export_model

    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])  # as of a program that has none; pytest has
    monkeypatch.setattr(root, "level", logging.INFO)
    monkeypatch.delitem(sys.modules, "mlflow.pytorch", raising=False)  # so that it is imported here
    with pytest.raises(ValueError, match="checkpoint"):
        export_model(Storage(str(tmp_path)), Storage(str(tmp_path)))
    assert (root.level, root.handlers) == (logging.INFO, [])


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
