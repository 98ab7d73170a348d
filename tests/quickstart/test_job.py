"""quickstart/job.py: from a folder to a report and predictions."""

from __future__ import annotations

import csv
import io
import shlex
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.torch
import timm
from PIL import Image
from rich.console import Console
from sklearn.datasets import load_digits

import dpl_ray.quickstart.choices
import dpl_ray.quickstart.job
from dpl_ray.commands.cli import load_command
from dpl_ray.config.compose import load_config
from dpl_ray.config.schema import ModelConfig
from dpl_ray.data.splits.sources import load_splits
from dpl_ray.inference.predictor import load_checkpoint
from dpl_ray.quickstart import frozen
from dpl_ray.quickstart.config import load_quickstart, seconds_of
from dpl_ray.quickstart.job import _with_steps, quickstart
from dpl_ray.training.interruption import Interrupted


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Eight labelled and 20 unlabelled digits of each of two classes."""
    digits, root = load_digits(), tmp_path / "my photos"
    for digit in (3, 7):
        for index, image in enumerate(digits.images[digits.target == digit][:28]):
            folder = root / (f"digit {digit}" if index < 8 else "unlabelled")
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray((image * 255 / 16).astype(np.uint8)).save(folder / f"{digit}-{index}.png")
    return root


@pytest.fixture(autouse=True)
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """And no weights at hand."""
    monkeypatch.setattr(dpl_ray.quickstart.choices, "MIN_STEPS", 1)
    monkeypatch.setattr(dpl_ray.quickstart.job, "MIN_STEPS", 1)
    monkeypatch.setattr(dpl_ray.quickstart.choices, "MAX_STEPS", 4)
    monkeypatch.setattr(frozen, "NUM_STEPS", 4)
    monkeypatch.setattr(frozen, "weights_at_hand", lambda: None)


@pytest.mark.rendered
def test_a_folder_becomes_a_report_predictions_and_commands(photos: Path, tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=200)
    given = [f"run.storage_path={tmp_path / 'runs'}", "tracking.enabled=false", "scale.num_workers=0"]
    result = quickstart(photos, "5min", overrides=given, console=console)
    said = console.file.getvalue()  # type: ignore[attr-defined]
    for word in ("unlabeled ", "train ", "size ", "network ", "steps ", "batch ", "policy ", "test ", "views "):
        assert f"\n{word}" in f"\n{said}", word
    config = load_config([f"config={result.config}"])
    assert (config.run.name, config.data.image_size, config.train.num_steps) == ("quickstart-my-photos", 8, 4)
    assert Path(result.run.report).exists()
    assert result.predictions is not None
    with Path(result.predictions).open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert sorted(row["path"] for row in rows) == sorted(map(str, (photos / "unlabelled").glob("*.png")))
    assert {row["label"] for row in rows} <= {"digit 3", "digit 7"}
    assert len(result.next_commands) == 3
    for command in result.next_commands:
        program, name, *arguments = shlex.split(command)
        assert program == "dpl-ray"
        load_command(name).load(arguments)  # raises where a field or value is wrong
    # The same command goes on: nothing is chosen or trained again.
    again = quickstart(photos, "5min", overrides=given, console=console)
    assert "was chosen before" in console.file.getvalue()  # type: ignore[attr-defined]
    assert again.run.metrics == result.run.metrics


@pytest.mark.parametrize("on_features", [False, True])
def test_loose_images_of_several_kinds_are_the_pool(
    on_features: bool, photos: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    for number, path in enumerate(sorted((photos / "unlabelled").iterdir())):
        path.rename(photos / f"{path.stem}{('.png', '.PNG')[number % 2]}")
    (photos / "unlabelled").rmdir()
    if on_features:
        request.getfixturevalue("weights")
    given = [f"run.storage_path={tmp_path / 'runs'}", "tracking.enabled=false", "scale.num_workers=0"]
    result = quickstart(photos, overrides=given)
    assert load_config([f"config={result.config}"]).data.name == ("features" if on_features else "image_folder")
    assert result.predictions is not None
    with Path(result.predictions).open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 40
    for command in result.next_commands:
        _, name, *arguments = shlex.split(command)
        load_command(name).load(arguments)


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a small network, at hand, whose passes take 1 s by its word."""
    safetensors.torch.save_file(timm.create_model("test_vit").state_dict(), tmp_path / "w.safetensors")
    model = ModelConfig(name="timm", architecture="test_vit", weights=str(tmp_path / "w.safetensors"))
    monkeypatch.setattr(frozen, "weights_at_hand", lambda: frozen.Weights(model, "a small network"))
    monkeypatch.setattr(frozen, "seconds_per_pass", lambda *_: 1.0)


@pytest.mark.usefixtures("weights")
def test_weights_at_hand_give_frozen_features(photos: Path, tmp_path: Path) -> None:
    shutil.copy(photos / "digit 3" / "3-0.png", photos / "unlabelled" / "copy.png")  # not trained on, but predicted
    (photos / "unlabelled" / "broken.png").write_bytes(b"")
    given = [f"run.storage_path={tmp_path / 'runs'}", "tracking.enabled=false", "scale.num_workers=0"]
    console = Console(file=io.StringIO(), width=200)
    result = quickstart(photos, "6min", overrides=given, console=console)  # 58 images, 3 views: 174 s
    said = console.file.getvalue()  # type: ignore[attr-defined]
    assert "a small network: frozen, its features are written once" in said
    assert "1 weak and 1 strong views" in said
    for word in ("network ", "size ", "steps ", "batch ", "policy ", "test ", "views "):
        assert f"\n{word}" in said, word
    config = load_config([f"config={result.config}"])
    assert (config.data.name, config.model.name, config.train.num_steps) == ("features", "head", 4)
    assert config.train.mu == 1, "the pool has 42 images, and a step 32 labelled ones"
    assert result.predictions is not None
    with Path(result.predictions).open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert sorted(row["path"] for row in rows) == sorted(map(str, (photos / "unlabelled").glob("*.png")))
    answered = {row["path"]: row for row in rows}
    assert [row["error"] for row in rows if not row["label"]] == ["empty"]
    first = str(photos / "unlabelled" / "3-10.png")
    photo = load_checkpoint(result.run.checkpoint).predict(first)
    assert photo.confidences[0] == pytest.approx(float(answered[first]["confidence"]), abs=0.01)
    again = quickstart(photos, "6min", overrides=given, console=console)
    assert again.run.metrics == result.run.metrics


@pytest.mark.usefixtures("weights")
def test_a_table_says_what_is_labelled(photos: Path, tmp_path: Path) -> None:
    labelled = {path: path.parent.name for path in sorted(photos.glob("digit*/*.png"))}
    without = sorted((photos / "unlabelled").iterdir())
    rows = [("path", "label"), *labelled.items(), (without[0], "")]
    (photos / "labels.csv").write_text("\n".join(f"{path},{label}" for path, label in rows))
    given = [f"run.storage_path={tmp_path / 'runs'}", "tracking.enabled=false", "scale.num_workers=0"]
    result = quickstart(photos, "1h", overrides=given)
    config = load_config([f"config={result.config}"])
    assert config.data.name == "features"
    splits = load_splits(config.data, seed=0)
    assert (len(splits.labeled) + len(splits.test), len(splits.unlabeled)) == (16, 40)
    assert result.predictions is not None
    with Path(result.predictions).open(newline="") as file:
        assert sorted(row["path"] for row in csv.DictReader(file)) == list(map(str, without))


@pytest.mark.usefixtures("weights")
def test_rows_of_a_parquet_file_without_a_label_are_the_pool(photos: Path, tmp_path: Path) -> None:
    files, place = sorted(photos.glob("*/*.png")), tmp_path / "shards" / "all.parquet"
    place.parent.mkdir()
    labels = [path.parent.name if path.parent.name.startswith("digit") else None for path in files]
    pq.write_table(pa.table({"image": [path.read_bytes() for path in files], "label": labels}), place)
    given = [f"run.storage_path={tmp_path / 'runs'}", "tracking.enabled=false", "scale.num_workers=0"]
    result = quickstart(place.parent, "1h", overrides=given)
    assert load_config([f"config={result.config}"]).policy.name != "supervised"
    assert result.predictions is not None
    with Path(result.predictions).open(newline="") as file:
        without = [row for row, label in enumerate(labels) if label is None]
        assert [row["path"] for row in csv.DictReader(file)] == [f"{place}:{row}" for row in without]
    assert any(" compare " in command for command in result.next_commands)


@pytest.mark.usefixtures("weights")
def test_images_to_be_tested_on_are_no_labelled_ones(photos: Path, tmp_path: Path) -> None:
    (photos / "train").mkdir()
    for name in ("digit 3", "digit 7"):
        (photos / name).rename(photos / "train" / name)
        (photos / "test" / name).mkdir(parents=True)
        shutil.copy(photos / "train" / name / f"{name[-1]}-0.png", photos / "test" / name / "copy.png")
    with pytest.raises(ValueError, match=r"data\.allow_overlap=true"):
        quickstart(photos, overrides=[f"run.storage_path={tmp_path / 'runs'}", "tracking.enabled=false"])
    assert not (tmp_path / "runs").exists(), "nothing was written"


def test_at_the_end_of_the_budget_there_is_a_checkpoint_and_its_predictions(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dpl_ray.quickstart.job, "STOP_SHARE", 0.0)
    given = [f"run.storage_path={tmp_path / 'runs'}", "tracking.enabled=false", "scale.num_workers=0"]
    file = tmp_path / "runs" / "quickstart-my-photos" / "predictions.csv"
    with pytest.raises(
        Interrupted, match=rf"^budget=5min is over .* step 1 of 4 of supervised is saved, .* in {file}$"
    ):
        quickstart(photos, "5min", overrides=given)
    assert len(file.read_text().splitlines()) == 41


def test_a_classifier_on_features_has_the_steps_that_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    config, timing = load_config(["data=digits"]), SimpleNamespace(seconds_per_step=0.1, seconds_per_baseline_step=0.1)
    monkeypatch.setattr(dpl_ray.quickstart.job, "measure_steps", lambda *_: timing)
    monkeypatch.setattr(dpl_ray.quickstart.job, "MIN_STEPS", 600)
    monkeypatch.setattr(dpl_ray.quickstart.choices, "MAX_STEPS", 10_000)
    monkeypatch.setattr(frozen, "NUM_STEPS", 2000)
    found = [_with_steps(config, left, Console(quiet=True)).train.num_steps for left in (1e6, 400.0, -1.0)]
    assert found == [2000, 1500, 600]


def test_weights_are_found_where_packages_and_caches_have_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    assert [found.model.architecture for found in frozen._installed()] == ["tf_efficientnet_lite0"]
    assert list(frozen._in_torch_cache()) == []
    (tmp_path / "checkpoints" / "resnet18-f37072fd.pth").touch()
    assert [found.model for found in frozen._in_torch_cache()] == [
        ModelConfig(name="torchvision", architecture="resnet18", weights="IMAGENET1K_V1")
    ]


@pytest.mark.parametrize(("budget", "views"), [(1600, 4), (1000, 2), (640, 1), (620, None)])
def test_as_many_views_as_half_the_budget_has_room_for(budget: float, views: int | None) -> None:
    assert frozen.num_views(100, 0.8, 0.8, budget) == views


def test_without_a_pool_the_supervised_model_is_trained(photos: Path, tmp_path: Path) -> None:
    for path in (photos / "unlabelled").iterdir():
        path.unlink()
    (photos / "unlabelled").rmdir()
    given = [f"run.storage_path={tmp_path / 'runs'}", "tracking.enabled=false", "scale.num_workers=0"]
    result = quickstart(photos, overrides=given)
    assert result.predictions is None
    assert load_config([f"config={result.config}"]).policy.name == "supervised"


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("10min", 600), ("2h", 7200), ("1.5 min", 90), ("45 sec", 45)]
)
def test_a_budget_has_a_unit(text: str, seconds: float) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], r"^folder is missing: give the folder of your images"),
        (
            ["photos", "budget=10"],
            r"^budget=10: must be a number and a unit \(time for all of it, as 90s, 10min or 2h;",
        ),
        (["photos", "budget=5s"], r"^budget=5s: must be at least 30s"),
        (["photos", "bugdet=5min"], r"^bugdet=5min: there is no field bugdet; did you mean budget\?"),
        (["photos", "data.train=x"], r"^data\.train=x: quickstart finds that itself"),
        (["photos", "train.num_steps=5"], r"^train\.num_steps=5: quickstart finds that itself"),
    ],
)
def test_a_mistake_is_answered(given: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_quickstart(given)
