"""What `evaluate` measures and refuses, and its intervals."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from rich.console import Console

from dpl_ray import evaluate, load_checkpoint
from dpl_ray.commands import cli
from dpl_ray.commands import evaluate as command
from dpl_ray.jobs.evaluate_config import EvaluateConfig
from dpl_ray.report.intervals import mean_recall_interval, score_intervals
from dpl_ray.runs.splits import write_splits
from dpl_ray.store.storage import Storage
from dpl_ray.training.predictions import Predictions
from tests.builders import tiny_splits
from tests.labeling.jobs import CLASSES, make_checkpoint, picture, png

NUMBERS = range(24)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same 24 images as a folder, a CSV and a parquet file."""
    root = tmp_path_factory.mktemp("data")
    lines = ["path,label"]
    for number in NUMBERS:
        file = root / "folder" / CLASSES[number % 3] / f"{number:02}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(png(number))
        lines.append(f"folder/{CLASSES[number % 3]}/{number:02}.png,{CLASSES[number % 3]}")
    (root / "labels.csv").write_text("\n".join(lines))
    columns = {"image": [png(number) for number in NUMBERS], "class": [number % 3 for number in NUMBERS]}
    pq.write_table(pa.table(columns), root / "rows.parquet")
    return root


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_checkpoint(tmp_path_factory.mktemp("run"))


def test_the_scores_are_those_of_the_predictions_whatever_form_the_data_have(
    checkpoint: str, data: Path, tmp_path: Path
) -> None:
    console = Console(record=True, width=100, file=io.StringIO())
    result = evaluate(checkpoint=checkpoint, data=str(data / "folder"), output=str(tmp_path / "out"), console=console)
    said = load_checkpoint(checkpoint).predict(data / "folder")
    right = [name == Path(path).parent.name for path, name in zip(said.ids, said.names, strict=True)]
    assert result.metrics["eval/accuracy"] == pytest.approx(np.mean(right))
    assert result.num_images == len(NUMBERS)
    text = console.export_text()
    assert "nothing is known of the images that this model was trained on" in text
    scores = json.loads(Path(result.scores).read_text())
    assert np.trace(scores["confusion"]) == sum(right)
    assert scores["intervals"].keys() == scores["metrics"].keys() == scores["interval_methods"].keys()
    with Path(result.predictions).open() as file:
        rows = list(csv.DictReader(file))
    assert [row["label"] for row in rows] == list(said.names)
    assert [row["true_label"] for row in rows] == [Path(path).parent.name for path in said.ids]
    calibrated = load_checkpoint(checkpoint, temperature=result.temperature).predict(data / "folder")
    assert calibrated.names == said.names
    assert f"temperature={result.temperature:g} for predict, label and export" in text
    assert scores["temperature"] == result.temperature > 1, "its weights are large and random"
    assert scores["calibrated"]["eval/ece"] < result.metrics["eval/ece"]
    page = Path(result.page).read_text()
    for title in ("Scores", "Reliability diagram with the temperature", "Confusion matrix", "Images to look at"):
        assert title in page
    for other in (("labels.csv",), ("rows.parquet", "label_column=class")):
        again = evaluate([f"checkpoint={checkpoint}", f"data={data / other[0]}", *other[1:], f"output={tmp_path}/b"])
        assert again.metrics == result.metrics
        assert again.intervals["eval/accuracy"] == result.intervals["eval/accuracy"]


def test_images_that_the_model_was_trained_on_are_refused(tmp_path: Path) -> None:
    checkpoint, splits = make_checkpoint(tmp_path / "run"), tiny_splits()
    write_splits(Storage(str(tmp_path / "run")), splits)
    for number, image in enumerate([splits.labeled.images[0], splits.validation.images[0], splits.test.images[0]]):
        (tmp_path / "new" / "ant").mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.transpose(1, 2, 0)).save(tmp_path / "new" / "ant" / f"{number}.png")
    given = {"checkpoint": checkpoint, "data": str(tmp_path / "new")}
    with pytest.raises(ValueError, match=r"^data=.*/new: the model was trained on 1 of its 3 images, as .*/ant/0.png"):
        evaluate(**given)
    assert not (tmp_path / "run" / "evaluation").exists()
    result = evaluate(**given, allow_overlap=True)
    assert "trained on 1 of them: the scores are too good" in Path(result.page).read_text()
    (tmp_path / "new" / "ant" / "0.png").unlink()
    result = evaluate(**given)
    page = Path(result.page).read_text()
    assert "trained on none of them" in page, "those held out are none of them"
    assert re.search(r"a temperature is fitted where 10 images or more are wrong; here it is [012]\.", page)
    assert result.temperature == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("dog", r"data=.*/some: label dog of .*/dog/0.png is not one of the classes ant, bee, cat"),
        ("csv", r"data=.*/some.csv: 1 of its 2 images have no label, which testing needs"),
        ("digits", r"data=digits: its classes are 0, 1, .*, not ant, bee, cat"),
        ("output", r"output=.*/out: is there already and holds no evaluation; take another folder"),
        ("column", r"label_column=nothing: .*rows.parquet has no such column"),
        ("features", r"data=.*/features: is a folder of features, and the model takes images; give those"),
        ("none", r"data=.*/some: none of its 1 images can be read"),
    ],
)
def test_what_cannot_be_measured_is_answered_in_a_line(
    change: str, message: str, checkpoint: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given, more = tmp_path / "some", []
    (given / ("dog" if change == "dog" else "ant")).mkdir(parents=True)
    picture(0).save(given / ("dog" if change == "dog" else "ant") / "0.png")
    if change == "csv":
        (given / "ant" / "1.png").write_bytes(png(1))
        (tmp_path / "some.csv").write_text("path,label\nsome/ant/0.png,\nsome/ant/1.png,ant")
        given = tmp_path / "some.csv"
    elif change == "output":
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "mine.txt").write_text("mine")
        more = [f"output={tmp_path / 'out'}"]
    elif change == "column":
        given, more = data / "rows.parquet", ["label_column=nothing"]
    elif change == "features":
        given = tmp_path / "features"
        (given / "_backbone").mkdir(parents=True)
        (given / "_backbone" / "spec.json").write_text("{}")
    elif change == "none":
        (given / "ant" / "0.png").write_bytes(b"no image")
    place = "digits" if change == "digits" else str(given)
    assert cli.run(command.COMMAND, [f"checkpoint={checkpoint}", f"data={place}", *more]) == cli.WRONG_USE
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(message, line), line


def test_fields_of_a_training_are_named_as_they_are_called_here() -> None:
    with pytest.raises(ValueError, match=r"data.test=x: there is no field data.test; give data=x"):
        EvaluateConfig.load(["checkpoint=runs/first", "data.test=x"])
    with pytest.raises(ValueError, match=r"data is missing: give it, as data=photos/labelled"):
        EvaluateConfig.load(["checkpoint=runs/first"])


def test_intervals_are_of_a_model_that_is_never_wrong_and_of_one_that_is_calibrated() -> None:
    targets = np.arange(60) % 3
    sure = score_intervals(Predictions(targets, np.ones(60, np.float32)), targets)
    assert sure["eval/ece"] == (0, 0)
    for key in ("eval/accuracy", "eval/balanced_accuracy"):
        assert 0.8 < sure[key][0] < 0.96
        assert sure[key][1] == 1
    generator = np.random.default_rng(0)
    held = 0
    for _ in range(20):
        confidence = generator.uniform(0.5, 1, 200).astype(np.float32)
        labels = np.where(generator.random(200) < confidence, 0, 1)
        low, high = score_intervals(Predictions(labels, confidence), np.zeros(200, np.int64))["eval/ece"]
        held += low == 0 and high < 0.2
    assert held >= 18, "the true error is 0; what is measured of it is chance"


def test_the_interval_of_balanced_accuracy_has_the_truth_in_it_as_often_as_it_says() -> None:
    recalls, numbers, generator = np.array([0.95, 0.6, 0.8]), np.array([20, 40, 200]), np.random.default_rng(0)
    targets = np.repeat(np.arange(3), numbers)
    held = 0
    for _ in range(200):
        right = generator.random(len(targets)) < recalls[targets]
        low, high = mean_recall_interval(right, targets)
        held += low <= recalls.mean() <= high
    assert held >= 180
