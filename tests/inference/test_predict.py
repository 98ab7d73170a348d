"""What `predict` takes and says: every kind of image is read as training read its own."""

from __future__ import annotations

import csv
import io
import json
import sys
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from sklearn.datasets import load_digits

from dpl_ray import load_checkpoint
from dpl_ray.commands import cli
from dpl_ray.data.images.convert import DecodeSettings
from dpl_ray.data.images.decode import decode
from dpl_ray.inference.predictions import Predictions
from dpl_ray.inference.predictor import Predictor
from dpl_ray.jobs.predict import MAX_IMAGES, predict_files
from dpl_ray.jobs.predict_config import ExportConfig, PredictConfig
from dpl_ray.models import build_model
from dpl_ray.training.checkpoint_folder import ModelInfo
from dpl_ray.training.evaluation import predict_probs
from tests.builders import save_labeler, tiny_config
from tests.labeling.jobs import CLASSES, SIZE, encode, make_checkpoint, picture, write_parquet

#: (1797, 1, 8, 8)
DIGITS = (load_digits().images * (255 / 16)).round().astype(np.uint8)[:, None]


def load(checkpoint: str) -> Predictor:
    """An untrained model whose answers are not as good as certain: they tell one image from another."""
    return load_checkpoint(checkpoint, temperature=30)


@pytest.fixture(scope="module")
def colour(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    """A model of three classes and 8x8 images in colour."""
    return load(make_checkpoint(tmp_path_factory.mktemp("colour")))


@pytest.fixture(scope="module")
def digits() -> Predictor:
    """A model of grey 8x8 digits that has learnt them."""
    torch.manual_seed(0)
    config = tiny_config(data={"name": "digits", "interpolation": "area"})
    model = build_model(config.model, 1, 10)
    images, targets = torch.from_numpy(DIGITS), torch.from_numpy(load_digits().target)
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for start in range(0, 800, 40):
        optimizer.zero_grad()
        batch = slice(start, start + 40)
        torch.nn.functional.cross_entropy(model(images[batch])[1], targets[batch]).backward()
        optimizer.step()
    return Predictor(model.eval(), config, ModelInfo(tuple("0123456789"), 1, (8, 8)))


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def same(found: Predictions, expected: Predictions) -> None:
    np.testing.assert_allclose(found.probabilities, expected.probabilities, atol=1e-6)


# Arrays


def test_digits_at_twice_the_size_keep_their_accuracy(digits: Predictor) -> None:
    found, doubled = digits.predict(DIGITS), digits.predict(DIGITS.repeat(2, axis=2).repeat(2, axis=3))
    assert np.mean([int(name) for name in found.names if name] == load_digits().target) > 0.6, "chance is 0.1"
    np.testing.assert_allclose(doubled.probabilities, found.probabilities, atol=1e-5)


def test_arrays_and_tensors_bytes_and_floats_agree(colour: Predictor) -> None:
    array = noise(5, 3, SIZE, SIZE)
    found = colour.predict(array)
    assert (found.probabilities.shape, found.probabilities.dtype) == ((5, 3), np.float32)
    np.testing.assert_allclose(found.probabilities.sum(axis=1), np.ones(5), atol=1e-6)
    assert found.ids == tuple("01234")
    assert found.bad == {}
    assert found.names == [CLASSES[label] for label in found.probabilities.argmax(axis=1)]
    read_only = array.copy()
    read_only.flags.writeable = False
    for given in (torch.from_numpy(array), array / 255, torch.from_numpy(array).float() / 255, read_only):
        same(colour.predict(given), found)
    same(colour.predict(array, batch_size=2), found)
    same(colour.predict(list(array)), found)
    same(colour.predict([torch.from_numpy(image) / 255 for image in array]), found)
    assert len(colour.predict(array[:0])) == len(colour.predict([])) == 0


def test_channels_may_be_last(colour: Predictor, digits: Predictor) -> None:
    array = noise(5, 3, SIZE, SIZE)
    found = colour.predict(array)
    same(colour.predict(array.transpose(0, 2, 3, 1)), found)
    for given in (array[2], array[2].transpose(1, 2, 0)):
        assert colour.predict(given).names == [found.names[2]]
    grey = noise(SIZE, SIZE)
    for given in (grey[None], grey[..., None], grey[None, None]):
        same(digits.predict(given), digits.predict(grey))
    same(digits.predict(DIGITS[:5, 0]), digits.predict(DIGITS[:5]))
    with pytest.raises(ValueError, match=r"shape \(3, 8, 8\): one image in colour, or three grey ones; give \(1, 3"):
        digits.predict(DIGITS[:3, 0])
    same(digits.predict([noise(3, 8, 8)]), digits.predict(noise(1, 3, 8, 8)))


def test_another_size_or_colour_is_made_as_by_decoding(colour: Predictor, digits: Predictor) -> None:
    larger, grey = noise(20, 14, 3), noise(20, 14)
    for model, pixels in ((colour, larger), (colour, grey), (digits, larger), (digits, grey)):
        settings = replace(DecodeSettings.from_config(model.config.data), image_size=SIZE, channels=model.channels)
        read = decode(encode(Image.fromarray(pixels)), settings)
        expected = predict_probs(model.model, read[None]).numpy()
        for given in (pixels, pixels / 255, torch.from_numpy(pixels), Image.fromarray(pixels)):
            np.testing.assert_allclose(model.predict(given).probabilities, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (np.zeros((8, 8, 4), np.uint8), r"shape \(1, 8, 8, 4\): no axis is that of channels; give \(N, H, W\), "),
        (np.zeros((5, 4, 8, 8), np.uint8), r"shape \(5, 4, 8, 8\): no axis"),
        (np.zeros((5, 3, 8, 3), np.uint8), r"shape \(5, 3, 8, 3\): two axes may be the channels"),
        (np.zeros((2, 5, 3, 8, 8), np.uint8), r"shape \(2, 5, 3, 8, 8\): no axis"),
        (np.full((1, 3, 8, 8), 255.0), r"floats from 255 to 255: must be in \[0, 1\], or uint8"),
        (np.full((1, 3, 8, 8), -0.5, np.float32), "floats from -0.5"),
        (np.full((1, 3, 8, 8), np.nan), "floats from nan"),
        (np.zeros((1, 3, 8, 8), np.int64), "type int64: must be uint8"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.bool), "type bool"),
        ([np.zeros((2, 3, 8, 8), np.uint8)], r"shape \(2, 3, 8, 8\) in a list: each must be one image"),
        (3, "images: int is no image; give a path"),
        ([{}], "images: dict is no image"),
    ],
)
def test_wrong_images(colour: Predictor, wrong: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        colour.predict(wrong)
    assert "\n" not in str(error.value)


def test_pixels_that_end_at_16_are_questioned(digits: Predictor) -> None:
    with pytest.warns(UserWarning, match=r"uint8 from 0 to 16: nearly black, .*\(images \* \(255 / 16\)\)"):
        digits.predict(load_digits().images.astype(np.uint8)[:9, None])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        digits.predict(np.full((1, 1, 8, 8), 17, np.uint8))
        digits.predict(np.zeros((1, 1, 8, 8), np.uint8))


def test_a_model_of_images_that_are_not_square_takes_no_other_size(tmp_path: Path) -> None:
    config = tiny_config()
    model = Predictor(build_model(config.model, 3, 3).eval(), config, ModelInfo(CLASSES, 3, (8, 12)))
    assert len(model.predict(noise(2, 3, 8, 12))) == 2
    with pytest.raises(ValueError, match=r"8x8 pixels; the model was trained on 12x8 pixels as they are"):
        model.predict(noise(2, 3, 8, 8))
    found = model.predict([encode(picture(0, (12, 8))), encode(picture(0, (8, 12)))])
    assert list(found.bad.items()) == [("1", "8x12 pixels; the model was trained on 12x8 pixels as they are")]


# Files


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Four photos of other sizes than the model's."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(4):
        (folder / f"{number}.png").write_bytes(encode(picture(number, (20 + number, 15))))
    return folder


def test_a_photo_is_read_in_any_form(colour: Predictor, photos: Path) -> None:
    path = photos / "2.png"
    found = colour.predict(path)
    assert found.ids == (str(path),)
    with Image.open(path) as opened:
        for given in (str(path), path.read_bytes(), opened, np.asarray(opened), [path], [opened], (path.read_bytes(),)):
            same(colour.predict(given), found)


def test_folders_globs_and_parquet_are_answered_in_order(colour: Predictor, photos: Path, tmp_path: Path) -> None:
    paths = [photos / f"{number}.png" for number in range(4)]
    each = [colour.predict(path) for path in paths]
    assert min(np.diff(sorted(float(found.probabilities[0, 0]) for found in each))) > 1e-4
    for given in (photos, f"{photos}/*.png", paths, [photos / "0.png", f"{photos}/[123].png"], map(str, paths)):
        found = colour.predict(given, batch_size=3)
        assert found.ids == tuple(map(str, paths))
        for row, expected in zip(found.probabilities, each, strict=True):
            np.testing.assert_allclose(row, expected.probabilities[0], atol=1e-6)
    backwards = colour.predict(paths[::-1], batch_size=3)
    assert backwards.ids == tuple(map(str, paths[::-1]))
    np.testing.assert_allclose(backwards.probabilities, colour.predict(photos).probabilities[::-1], atol=1e-6)
    write_parquet(tmp_path / "some.parquet", range(6))
    found = colour.predict(tmp_path / "some.parquet")
    assert found.ids == tuple(f"{tmp_path}/some.parquet:{row}" for row in range(6))
    same(found, colour.predict([encode(picture(number)) for number in range(6)]))


def test_a_photo_is_turned_as_the_camera_was(colour: Predictor, tmp_path: Path) -> None:
    upright = picture(5, (14, 8))
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = tmp_path / "turned.png"
    turned.write_bytes(encode(upright.transpose(Image.Transpose.ROTATE_90), exif=exif))
    expected = colour.predict(upright)
    same(colour.predict(turned), expected)
    with Image.open(turned) as opened:
        same(colour.predict(opened), expected)
        lying = colour.predict(np.asarray(opened))
    assert not np.allclose(lying.probabilities, expected.probabilities, atol=1e-3)


def test_what_cannot_be_read_is_named_and_costs_nothing_else(colour: Predictor, photos: Path, tmp_path: Path) -> None:
    (photos / "1.png").write_bytes((photos / "1.png").read_bytes()[:80])
    (photos / "3.jpg").write_bytes(b"nothing")
    good = colour.predict([photos / "0.png", photos / "2.png", photos / "3.png"])
    found = colour.predict(photos)
    assert found.bad == {f"{photos}/1.png": "truncated", f"{photos}/3.jpg": "not an image"}
    assert found.names == [good.names[0], None, good.names[1], None, good.names[2]]
    assert np.isnan(found.probabilities[[1, 3]]).all()
    np.testing.assert_allclose(found.probabilities[[0, 2, 4]], good.probabilities, atol=1e-6)
    missing = colour.predict([photos / "0.png", tmp_path / "nowhere.png"])
    assert missing.names == [good.names[0], None]
    assert missing.bad[str(tmp_path / "nowhere.png")].startswith("there is no such file or folder")
    for given in ("nowhere.png", tmp_path / "nowhere"):
        with pytest.raises(ValueError, match="there is no such file or folder"):
            colour.predict(given)
    assert repr(found) == repr(good).replace("3 images", "5 images").replace(")", ", 2 unreadable)")
    table = found.to_pandas()
    assert list(table["error"].notna()) == [False, True, False, True, False]
    assert "<td>truncated</td>" in found._repr_html_()
    found.write(tmp_path / "found.csv")
    rows = list(csv.DictReader((tmp_path / "found.csv").open()))
    assert [row["label"] or None for row in rows] == found.names
    assert [row["error"] for row in rows] == ["", "truncated", "", "not an image", ""]
    said = [float(rows[0][name]) for name in ("confidence", "runner_up_confidence")]
    assert said == pytest.approx(np.sort(found.probabilities[0])[:0:-1], abs=1e-6)


@pytest.mark.parametrize("fit", ["crop", "pad", "squash"])
@pytest.mark.parametrize("interpolation", ["area", "bicubic"])
def test_the_settings_of_the_training_hold(fit: Any, interpolation: Any, tmp_path: Path) -> None:
    model = load(make_checkpoint(tmp_path, fit=fit, interpolation=interpolation))
    encoded = encode(picture(0, (31, 17)))
    expected = predict_probs(model.model, decode(encoded, DecodeSettings(SIZE, 3, fit, interpolation))[None])
    np.testing.assert_allclose(model.predict(encoded).probabilities, expected.numpy(), atol=1e-6)


def test_a_stream_reads_no_more_than_two_batches(colour: Predictor) -> None:
    taken: list[int] = []

    def images() -> Iterator[Image.Image]:
        for number in range(20):
            taken.append(number)
            yield picture(number)

    stream = colour.stream(images(), batch_size=3)
    assert len(next(stream)) == 3
    assert len(taken) == 6
    assert [len(part) for part in stream] == [3] * 5 + [2]
    with pytest.raises(ValueError, match="batch_size=0: must be at least 1"):
        colour.predict(noise(2, 3, 8, 8), batch_size=0)


def test_a_broken_model_is_not_taken_for_unreadable_images(tmp_path: Path) -> None:
    model = load_checkpoint(make_checkpoint(tmp_path))
    model.model.classifier.bias.data[1] = torch.nan
    with pytest.raises(ArithmeticError, match="logits are not finite"):
        model.predict(noise(1, 3, 8, 8))


# The commands


def printed(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def run(*given: Any) -> str:
    console = Console(file=io.StringIO(), width=150)
    predict_files(PredictConfig.load([str(text) for text in given]), console)
    return printed(console)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Of a model whose classes have names that a spreadsheet would run."""
    config = tiny_config(data={"name": "digits", "image_size": SIZE})
    return save_labeler(tmp_path_factory.mktemp("named"), config, ("=1+1", "@bee", "-1"), 3, SIZE)


def test_the_command_shows_photos_and_writes_a_table(checkpoint: str, photos: Path, tmp_path: Path) -> None:
    (photos / "9.png").write_bytes(b"nothing")
    output = tmp_path / "out" / "predictions.csv"
    text = run(f"checkpoint={checkpoint}", f"images={photos}", f"output={output}", "temperature=30")
    assert f"5 images, from {photos}" in text
    assert f"1 of 5 images cannot be read: {photos}/9.png (not an image)" in text
    assert "(not an image)" in text
    assert f"predictions {output}" in text
    found = load(checkpoint).predict(photos)
    rows = list(csv.DictReader(output.open()))
    assert [row["confidence"] for row in rows[:-1]] == [str(round(float(each), 6)) for each in found.confidences[:-1]]
    assert [row["path"] for row in rows] == list(found.ids)
    quoted = {"=1+1": "'=1+1", "@bee": "'@bee", "-1": "-1", None: ""}
    assert [row["label"] for row in rows] == [quoted[name] for name in found.names]
    for name in filter(None, found.names):
        assert name in text
    assert {line.split()[1] for line in text.splitlines() if ".png " in line and "│" in line} == {
        Path(name).name for name in found.ids
    }, "no path is broken"


def test_the_command_counts_classes_where_there_are_many(checkpoint: str, tmp_path: Path) -> None:
    write_parquet(tmp_path / "many.parquet", range(MAX_IMAGES + 1))
    text = run(f"checkpoint={checkpoint}", f"images=[{tmp_path}/many.parquet]", "batch_size=4")
    names = load_checkpoint(checkpoint).predict(tmp_path / "many.parquet").names
    lines = [line.split("│") for line in text.splitlines()]
    counts = {cells[1].strip(): int(cells[2]) for cells in lines if len(cells) == 6}
    assert counts == {name: names.count(name) for name in set(names)}


def test_an_output_that_holds_something_else_stays(checkpoint: str, photos: Path, tmp_path: Path) -> None:
    given = [f"checkpoint={checkpoint}", f"images={photos}/0.png"]
    (tmp_path / "labels.csv").write_text("path,label\n0.png,cat\n")
    with pytest.raises(ValueError, match=r"^output=/proc/x\.csv: cannot be written .*; give another file$"):
        run(*given, "output=/proc/x.csv")
    with pytest.raises(ValueError, match=r"labels\.csv: is there already and holds no predictions"):
        run(*given, f"output={tmp_path}/labels.csv")
    assert (tmp_path / "labels.csv").read_text() == "path,label\n0.png,cat\n"
    for _ in range(2):
        run(*given, f"output={tmp_path}/found.csv")
    assert len((tmp_path / "found.csv").read_text().splitlines()) == 2


@pytest.mark.parametrize(
    ("load", "given", "message"),
    [
        (PredictConfig.load, ["images=a"], "checkpoint is missing"),
        (PredictConfig.load, ["checkpoint=a"], "images is missing"),
        (PredictConfig.load, ["checkpoint=a", "pool=b"], "there is no field pool; give images=b"),
        (
            PredictConfig.load,
            ["checkpoint=a", "images=[it's.png]"],
            r"^images=\[it's.png\]: .*, as in 'images=\[\"a, b",
        ),
        (PredictConfig.load, ["checkpoint=a", "images=b", "output=c.txt"], r"output=c\.txt: must end in \.csv"),
        (
            PredictConfig.load,
            ["checkpoint=a", "images=b", "temperature=0"],
            r"^temperature=0: must be .* 0\.01 \(number that",
        ),
        (ExportConfig.load, ["checkpoint=a"], "output is missing"),
        (ExportConfig.load, ["checkpoint=a", "output=model"], r"output=model: must end in \.onnx"),
    ],
)
def test_mistakes_in_fields(load: Any, given: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load(given)


# ONNX


def test_onnx_answers_as_the_model_does(checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    path = tmp_path / "model.onnx"
    given = [f"checkpoint={checkpoint}", f"output={path}", "temperature=30"]
    assert cli.run(cli.load_command("export"), given) == 0
    assert "takes images (N, 3, 8, 8) uint8" in capsys.readouterr().out
    session, model = onnxruntime.InferenceSession(str(path)), load(checkpoint)
    images = noise(7, 3, 8, 8)
    assert session.get_inputs()[0].shape == ["batch", 3, 8, 8]
    found = session.run(["probabilities"], {"images": images})[0]
    np.testing.assert_allclose(found, model.predict(images).probabilities, atol=1e-5)
    assert json.loads(session.get_modelmeta().custom_metadata_map["class_names"]) == list(model.class_names)
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"], "the weights are in it"


def test_onnx_names_what_is_missing(colour: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ValueError, match=r"onnxruntime, which is not installed: pip install 'dpl_ray\[onnx\]'"):
        colour.to_onnx(tmp_path / "model.onnx")
