"""Loading what a run has left behind: what it predicts, and that damage and malice are refused."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dpl_ray.config.compose import load_config
from dpl_ray.data.splits.sources import load_splits
from dpl_ray.inference.predictor import Predictor, load_checkpoint
from dpl_ray.jobs.fit import FitResult, fit
from dpl_ray.store.records import read_tree, write_json
from dpl_ray.store.storage import Storage
from dpl_ray.training.checkpoint import MODULES, list_checkpoints, load_state
from dpl_ray.training.distributed import Workers
from dpl_ray.training.state import build_state

TRAIN = ["train.num_steps=2", "train.batch_size=4", "train.mu=2", "train.baseline=false", "model.width=1"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> FitResult:
    folder = tmp_path_factory.mktemp("runs")
    more = [f"run.storage_path={folder}", "run.name=tiny", "scale.num_workers=0", "tracking.enabled=false"]
    return fit(load_config([*TRAIN, *more]))


@pytest.fixture
def checkpoint(trained: FitResult, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(trained.checkpoint, tmp_path / "step-00000002"))


@pytest.fixture(scope="module")
def predictor(trained: FitResult) -> Predictor:
    return load_checkpoint(trained.checkpoint)


def images(predictor: Predictor, number: int = 5) -> np.ndarray:
    shape = (number, predictor.channels, *predictor.image_size)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def test_run_folder_and_step_folder_are_the_same(trained: FitResult, predictor: Predictor) -> None:
    by_run = load_checkpoint(str(Path(trained.checkpoint).parent))
    there, here = (each.predict(images(predictor)).probabilities for each in (by_run, predictor))
    np.testing.assert_array_equal(there, here)
    assert predictor.class_names == tuple("0123456789")
    assert (predictor.channels, predictor.image_size) == (1, (8, 8))
    assert predictor.config.train.num_steps == 2
    assert not predictor.model.training


def test_a_temperature_divides_the_logits_and_1_changes_nothing(trained: FitResult, predictor: Predictor) -> None:
    said = predictor.predict(images(predictor, 50))
    same = load_checkpoint(trained.checkpoint, temperature=1).predict(images(predictor, 50))
    np.testing.assert_array_equal(same.probabilities, said.probabilities)
    calibrated = load_checkpoint(trained.checkpoint, temperature=0.3).predict(images(predictor, 50))
    assert calibrated.names == said.names
    expected = said.probabilities ** (1 / 0.3)
    expected /= expected.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(calibrated.probabilities, expected, atol=1e-5)


@pytest.mark.parametrize("temperature", [0, -1, 1000, float("nan"), float("inf")])
def test_a_temperature_that_is_none_is_named(trained: FitResult, temperature: float) -> None:
    with pytest.raises(ValueError, match=rf"^temperature={temperature}: must be from 0.01 to 100$"):
        load_checkpoint(trained.checkpoint, temperature=temperature)


@pytest.mark.parametrize("name", ["teacher.safetensors", "config.yaml", "model.json"])
@pytest.mark.parametrize("damage", ["truncated", "changed", "empty", "missing"])
def test_a_damaged_file_is_named(checkpoint: Path, name: str, damage: str) -> None:
    content = (checkpoint / name).read_bytes()
    if damage == "missing":
        (checkpoint / name).unlink()
    else:
        changed = {"truncated": content[:-1], "changed": bytes([content[0] ^ 1]) + content[1:], "empty": b""}
        (checkpoint / name).write_bytes(changed[damage])
    with pytest.raises(ValueError, match=f"checkpoint={checkpoint}: {name} is damaged or missing") as error:
        load_checkpoint(str(checkpoint))
    assert "\n" not in str(error.value)


def test_what_a_resume_reads_is_checked_too(trained: FitResult, checkpoint: Path) -> None:
    config = load_checkpoint(str(checkpoint)).config
    state = build_state(config, 1, 10, Workers())
    load_state(Storage(str(checkpoint)), state, Workers())
    assert state.step == 2
    for name in [*(f"{module}.safetensors" for module in MODULES), "trainer.pt"]:
        content = (checkpoint / name).read_bytes()
        (checkpoint / name).write_bytes(content[: len(content) // 2])
        with pytest.raises(ValueError, match=f"{name} is damaged or missing"):
            load_state(Storage(str(checkpoint)), state, Workers())
        (checkpoint / name).write_bytes(content)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"step": 2}', b'{"files": {}}', b"\xff\xfe"])
def test_a_damaged_manifest_is_named(checkpoint: Path, content: bytes) -> None:
    (checkpoint / "manifest.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"manifest\.json") as error:
        load_checkpoint(str(checkpoint))
    assert str(checkpoint) in str(error.value)


def test_no_manifest_no_checkpoint(trained: FitResult, checkpoint: Path) -> None:
    newer = checkpoint.parent / "step-00000003"
    shutil.copytree(checkpoint, newer)
    (newer / "manifest.json").unlink()
    folder = Storage(str(checkpoint.parent))
    assert [found.name for found in list_checkpoints(folder)] == ["step-00000002"]
    assert load_checkpoint(str(folder)).class_names == tuple("0123456789")
    for path, fault in ((newer, "no finished checkpoint"), (newer / "nowhere", "no such folder")):
        with pytest.raises(ValueError, match=f"checkpoint={path}: there is {fault}; give a folder step-N that holds"):
            load_checkpoint(str(path))


def test_the_folder_of_all_runs_is_answered_with_the_newest_checkpoint(checkpoint: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    for age, name in enumerate(("newest", "older", "oldest")):
        copied = Path(shutil.copytree(checkpoint, runs / name / "step-00000002"))
        os.utime(copied / "manifest.json", (10**9 - age, 10**9 - age))
    (runs / "mlflow.db").write_bytes(b"")
    message = rf"checkpoint={runs}: .* the newest one below is {runs}/newest/step-00000002$"
    with pytest.raises(ValueError, match=message):
        load_checkpoint(runs)


class Payload:
    """What unpickles to a call of the thief's choice."""

    def __reduce__(self) -> Any:
        return (Path.touch, (Path("stolen"),))


def test_nothing_is_executed(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    content = io.BytesIO()
    torch.save({"step": 2, "optimizer": Payload()}, content)
    (checkpoint / "trainer.pt").write_bytes(content.getvalue())
    manifest = read_tree(Storage(str(checkpoint / "manifest.json")))
    digest = hashlib.sha256(content.getvalue()).hexdigest()
    manifest["files"]["trainer.pt"] = {"size": len(content.getvalue()), "sha256": digest}
    write_json(Storage(str(checkpoint / "manifest.json")), manifest)
    state = build_state(load_checkpoint(str(checkpoint)).config, 1, 10, Workers())
    with pytest.raises((pickle.UnpicklingError, ValueError)):
        load_state(Storage(str(checkpoint)), state, Workers())
    assert not Path("stolen").exists()
    torch.load(io.BytesIO(content.getvalue()), weights_only=False)
    assert Path("stolen").exists(), "the trap works: it is the loader that does not step in"


def test_a_yaml_tag_is_not_executed(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    content = b"!!python/object/apply:os.mkdir [stolen]"
    (checkpoint / "config.yaml").write_bytes(content)
    manifest = read_tree(Storage(str(checkpoint / "manifest.json")))
    manifest["files"]["config.yaml"] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    write_json(Storage(str(checkpoint / "manifest.json")), manifest)
    with pytest.raises(Exception, match="could not determine a constructor for the tag"):
        load_checkpoint(str(checkpoint))
    assert not Path("stolen").exists()


def test_loading_unpickles_nothing(trained: FitResult, monkeypatch: pytest.MonkeyPatch) -> None:
    def unpickles(*arguments: Any, **keywords: Any) -> None:
        pytest.fail("something was unpickled")

    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, unpickles)
    loaded = load_checkpoint(trained.checkpoint)
    splits = load_splits(loaded.config.data, seed=0)
    assert loaded.predict(splits.test.images[:3]).probabilities.shape == (3, 10)
