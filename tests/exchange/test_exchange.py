"""Labels written for other tools, read by these tools' own libraries, and annotations read back."""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from pycocotools.coco import COCO
from rich.console import Console
from torchvision.datasets import ImageFolder

from dpl_ray.config.schema import DataConfig
from dpl_ray.data.files.location import open_location
from dpl_ray.data.labeled.records import check_of_a_person, list_records
from dpl_ray.exchange.config import ExportLabelsConfig, ImportLabelsConfig
from dpl_ray.exchange.exporting import ExportLabelsResult, export_labels
from dpl_ray.exchange.importing import import_labels
from dpl_ray.reviewing.draw import Draw
from dpl_ray.reviewing.job import review
from dpl_ray.store.records import read_json, write_json
from dpl_ray.store.storage import Storage
from tests.exchange.outputs import write_rows
from tests.labeling.jobs import write_images, write_parquet

CLASSES = ("ant", "bee", "a cat & a dog")


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two folders with files of the same names, and a parquet file."""
    folder = tmp_path_factory.mktemp("data") / "pool"
    for part in ("a", "b"):
        write_images(folder / part, range(3))
    return folder


@pytest.fixture(scope="module")
def labels(pool: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of these files: the last is not selected, and one cannot be read."""
    ids = sorted(map(str, pool.rglob("*.png")))
    rows = [(name, number % 3, 0.5 + number / 16, number < 5) for number, name in enumerate(ids)]
    return write_rows(
        tmp_path_factory.mktemp("labels"), [*rows, (str(pool / "broken.png"), None, 0, False)], CLASSES, pool
    )


@pytest.fixture(scope="module")
def of_parquet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Labels of the rows of a parquet file."""
    pool = tmp_path_factory.mktemp("data") / "pool.parquet"
    write_parquet(pool, range(3))
    rows = [(f"{pool}:{row}", row, 0.75, True) for row in range(3)]
    return write_rows(tmp_path_factory.mktemp("labels"), rows, CLASSES, pool)


def truth(pool: Path, number: int = 5) -> dict[str, str]:
    """What is selected."""
    ids = sorted(map(str, pool.rglob("*.png")))
    return {name: CLASSES[place % 3] for place, name in enumerate(ids[:number])}


def export(labels: Path, output: Path, form: str, **fields: Any) -> ExportLabelsResult:
    return export_labels(labels=str(labels), output=str(output), format=form, **fields)


def read_table(file: str) -> dict[str, str | int | None]:
    """Path -> label, as a training reads a CSV."""
    records = list_records(DataConfig(name="image_folder", allow_outside=True), "data.train", file)
    return dict(zip(records.ids, records.labels, strict=True))


def read_back(annotations: Path | str, folder: Path, **fields: Any) -> dict[str, str | int | None]:
    output = folder / "answers.csv"
    import_labels(annotations=str(annotations), output=str(output), **fields)
    found = read_table(str(output))
    output.unlink()
    return found


def test_a_csv_is_one_that_trainings_read(labels: Path, of_parquet: Path, pool: Path, tmp_path: Path) -> None:
    console = Console(file=(told := io.StringIO()), width=500)
    assert read_table(export(labels, tmp_path / "out", "csv", console=console).file) == truth(pool)
    assert "5 labels of" in told.getvalue()
    assert "1 rejected ones left out (selected_only=false takes all)" in told.getvalue()
    whole = export(labels, tmp_path / "all", "csv", selected_only=False)
    assert whole.num_labels == 6, "but not the image that cannot be read"
    rows = read_table(export(of_parquet, tmp_path / "rows", "csv").file)
    assert [(name.rpartition("/")[2], label) for name, label in rows.items()] == [
        (f"pool.parquet:{row}", name) for row, name in enumerate(CLASSES)
    ]


def test_what_a_review_has_drawn_is_exported_alone_and_in_its_order(labels: Path, tmp_path: Path) -> None:
    drawn = tmp_path / "review"
    review(labels=str(labels), output=str(drawn), num=10)
    draw = read_json(file := Storage(str(drawn)) / "draw.json", Draw)
    assert draw is not None
    write_json(file, draw := replace(draw, items=draw.items[:4]))
    result = export(labels, tmp_path / "out", "csv", draw=str(drawn))
    assert list(read_table(result.file)) == [item.sample_id for item in draw.items]
    assert result.num_labels == 4, "selected or not"
    with pytest.raises(ValueError, match=f"^draw={tmp_path}: holds no draw"):
        export(labels, tmp_path / "more", "csv", draw=str(tmp_path))


def test_class_folders_are_read_by_torchvision_and_back(labels: Path, pool: Path, tmp_path: Path) -> None:
    result = export(labels, tmp_path / "out", "image_folder")
    found = ImageFolder(result.file)
    assert {os.path.realpath(path): found.classes[label] for path, label in found.samples} == truth(pool)
    assert read_back(result.file, tmp_path) == truth(pool), "a link counts as the image of the pool"
    moved = next(Path(result.file, "ant").iterdir())
    original = str(moved.readlink())
    moved.rename(Path(result.file, "bee", moved.name))
    assert read_back(result.file, tmp_path) == truth(pool) | {original: "bee"}


def test_coco_is_read_by_pycocotools_and_back(labels: Path, pool: Path, tmp_path: Path) -> None:
    result = export(labels, tmp_path / "out", "coco")
    coco = COCO(result.file)
    said = {}
    for image in coco.loadImgs(coco.getImgIds()):
        (annotation,) = coco.loadAnns(coco.getAnnIds(imgIds=image["id"], areaRng=[1, 1e9], iscrowd=False))
        assert annotation["bbox"] == [0, 0, image["width"], image["height"]] == [0, 0, 8, 8]
        said[image["file_name"]] = coco.loadCats(annotation["category_id"])[0]["name"]
    assert said == truth(pool)
    assert read_back(result.file, tmp_path) == truth(pool)


@pytest.mark.parametrize("form", ["coco", "fiftyone", "csv"])
def test_what_nobody_has_annotated_is_no_audit(form: str, labels: Path, tmp_path: Path) -> None:
    answers = Path(export(labels, tmp_path / "out", form).file)
    if form != "csv":
        exported, answers = answers, tmp_path / "answers.csv"
        result = import_labels(annotations=str(exported), output=str(answers))
        assert (result.num_labels, result.num_by_model) == (5, 5)
    with pytest.raises(ValueError, match=r"5 of its 5 rows are labels of a model, .* remove the column confidence"):
        check_of_a_person(open_location("audit", str(answers)))
    if form != "csv":
        answers.unlink()
        tree = json.loads(exported.read_text())
        for annotation in tree["annotations"] if form == "coco" else tree["labels"].values():
            del annotation["score" if form == "coco" else "confidence"]
        exported.write_text(json.dumps(tree))
        assert not import_labels(annotations=str(exported), output=str(answers)).num_by_model
        check_of_a_person(open_location("audit", str(answers)))


def test_a_name_is_that_of_the_file_whichever_of_unicodes_forms_it_is_written_in(tmp_path: Path) -> None:
    decomposed, composed = "a\u0308.png", "\u00e4.png"
    (tmp_path / decomposed).touch()
    images, annotations = [{"id": 1, "file_name": composed}], [{"image_id": 1, "category_id": 1}]
    tree = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "ant"}]}
    (tmp_path / "coco.json").write_text(json.dumps(tree))
    assert read_back(tmp_path / "coco.json", tmp_path) == {str(tmp_path / decomposed): "ant"}


def test_label_studio_takes_predictions_and_gives_annotations_back(labels: Path, pool: Path, tmp_path: Path) -> None:
    # The form is that of https://labelstud.io/guide/predictions and https://labelstud.io/guide/task_format.
    result = export(labels, tmp_path / "out", "label_studio", document_root=str(pool))
    interface = ElementTree.parse(tmp_path / "out" / "config.xml").getroot()
    image, choices = interface.find("Image"), interface.find("Choices")
    assert image is not None
    assert choices is not None
    assert tuple(choice.get("value") for choice in choices) == CLASSES
    tasks = json.loads(Path(result.file).read_text())
    for task, (name, label) in zip(tasks, truth(pool).items(), strict=True):
        assert task["data"][(image.get("value") or "").removeprefix("$")] == (
            f"/data/local-files/?d={name.removeprefix(f'{pool}/')}"
        )
        (prediction,) = task["predictions"]
        (said,) = prediction["result"]
        assert (said["from_name"], said["to_name"]) == (choices.get("name"), choices.get("toName"))
        assert (said["type"], said["value"]) == ("choices", {"choices": [label]})
        assert 0.5 <= prediction["score"] <= 1
    ids = list(truth(pool))
    said = [{"was_cancelled": False, "result": task["predictions"][0]["result"]} for task in tasks]
    said[1]["result"] = [{**said[1]["result"][0], "value": {"choices": ["ant"]}}]
    said[2]["was_cancelled"] = True
    done = [task | {"annotations": [each]} for task, each in zip(tasks, said, strict=True)]
    done[3]["annotations"] = []
    done[4]["annotations"] *= 2  # two people say the same
    (tmp_path / "project.json").write_text(json.dumps(done))
    expected = truth(pool) | {ids[1]: "ant", ids[2]: None}
    expected.pop(ids[3])
    assert read_back(tmp_path / "project.json", tmp_path) == expected
    small = [{"id": 1, "image": "/data/local-files/?d=a/0001.png", "label": "bee"}, {"id": 2, **tasks[0]["data"]}]
    (tmp_path / "min.json").write_text(json.dumps(small))
    assert read_back(tmp_path / "min.json", tmp_path, root=str(pool)) == {str(pool / "a" / "0001.png"): "bee"}


def test_fiftyone_finds_paths_or_copies_and_they_are_read_back(labels: Path, pool: Path, tmp_path: Path) -> None:
    # The form is that of FiftyOneImageClassificationDataset, https://docs.voxel51.com/user_guide/import_datasets.html.
    result = export(labels, tmp_path / "out", "fiftyone")
    tree, paths = (json.loads((tmp_path / "out" / name).read_text()) for name in ("labels.json", "data.json"))
    said = {paths[name]: tree["classes"][target["label"]] for name, target in tree["labels"].items()}
    assert (said, result.num_labels) == (truth(pool), 5)
    assert all(0.5 <= target["confidence"] <= 1 for target in tree["labels"].values())
    assert read_back(result.file, tmp_path) == read_back(result.output, tmp_path) == truth(pool)
    copies = export(labels, tmp_path / "copies", "fiftyone", copies=True)
    files = {path.stem: path for path in (tmp_path / "copies" / "data").iterdir()}
    named = json.loads(Path(copies.file).read_text())["labels"]
    assert named.keys() == files.keys()
    found = {Path(name).read_bytes(): label for name, label in read_back(copies.file, tmp_path).items()}
    assert found == {Path(name).read_bytes(): label for name, label in truth(pool).items()}
    first = next(iter(files))
    Path(copies.file).write_text(json.dumps({"labels": {first: "bee"}}))  # without classes, labels are names
    assert read_back(copies.file, tmp_path) == {str(files[first]): "bee"}


@pytest.mark.parametrize("form", ["csv", "label_studio", "coco", "image_folder"])
def test_rows_of_parquet_files_are_copied(form: str, of_parquet: Path, tmp_path: Path) -> None:
    result = export(of_parquet, tmp_path / "out", form, copies=True)
    copies = sorted((tmp_path / "out").rglob("*.png"))
    assert len(copies) == result.num_labels == 3
    if form == "csv":
        assert {Path(name).name for name in read_table(result.file)} == {copy.name for copy in copies}
    elif form != "label_studio":
        assert set(read_back(result.file, tmp_path)) == set(map(str, copies))


Spoil = Callable[[Path, Path], dict[str, Any]]


def written(content: Any) -> Spoil:
    """Annotations of this content."""

    def write(folder: Path, pool: Path) -> dict[str, Any]:
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / "given.json").write_text(text.replace("POOL", str(pool)))
        return {"annotations": str(folder / "given.json")}

    return write


def coco(*annotations: tuple[int, int]) -> dict[str, Any]:
    """Two images, of which these have annotations of a category."""
    return {
        "images": [{"id": 1, "file_name": "POOL/a/0000.png"}, {"id": 2, "file_name": "POOL/a/0001.png"}],
        "categories": [{"id": 1, "name": "ant"}, {"id": 2, "name": "bee"}],
        "annotations": [{"image_id": image, "category_id": category} for image, category in annotations],
    }


def chosen(*names: str) -> dict[str, Any]:
    return {"result": [{"type": "choices", "value": {"choices": list(names)}}]}


def task(*annotations: dict[str, Any]) -> dict[str, Any]:
    return {"data": {"image": "x.png", "sample_id": "POOL/a/0000.png"}, "annotations": list(annotations)}


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (written("no JSON"), "is nothing that Label Studio, FiftyOne or a tool of COCO's form has written .JSONDecode"),
        (written({"a": 1}), "is nothing that .*KeyError: 'labels'"),
        (written([1]), "is nothing that .*AttributeError"),
        (written(coco((1, 1), (1, 2))), "0000.png has ant and bee; an image has one class here"),
        (written(coco((1, 9))), "is nothing that .*KeyError: 9"),
        (written([{"data": {"image": "x.png"}, "predictions": []}]), "has tasks without annotations: annotate them in"),
        (written(coco()), r"no image has a class yet \(2 are there\)"),
        (
            written(
                [
                    task(
                        chosen("ant"),
                    ),
                    task(chosen("bee")),
                ]
            ),
            "0000.png is there twice, as ant and bee",
        ),
        (written([task(chosen("ant"), chosen("bee"))]), "annotators give .*0000.png 'ant' and 'bee'; decide"),
        (written([task(chosen("ant", "bee"))]), "ant and bee are chosen for one image"),
        (written({"labels": {"1": "ant"}}), "neither data.json nor the folder data beside it has the image 1"),
        (written([{"image": "gone.png", "label": "ant"}]), "1 of its 1 images are not there, as /gone.png; .*root="),
        (lambda folder, pool: {"annotations": str(pool / "none.json")}, "there is no such file"),
        (lambda folder, pool: {"annotations": str(pool / "a")}, "0000.png lies in no subfolder"),
        (lambda folder, pool: written("path,label")(folder, pool) | {"output": "answers.txt"}, "must end in .csv"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_annotations_that_do_not_fit_are_answered_in_one_line(
    spoil: Spoil, message: str, pool: Path, tmp_path: Path
) -> None:
    output = tmp_path / "answers.csv"
    with pytest.raises(ValueError, match=message) as found:
        import_labels(**{"output": str(output)} | spoil(tmp_path, pool))
    assert "\n" not in str(found.value)
    assert not output.exists()


def test_a_bucket_whose_address_has_options_is_exported_from_and_to(
    s3: tuple[Any, str], pool: Path, tmp_path: Path
) -> None:
    filesystem, options = s3
    with filesystem.open_output_stream("images/pool/one.png") as stream:
        stream.write((pool / "a" / "0000.png").read_bytes())
    folder = write_rows(tmp_path / "labels", [("s3://images/pool/one.png", 1, 0.75, True)], CLASSES, Path("images"))
    at, given = f"s3://labels/out{options}", {"pool": f"s3://images/pool{options}"}
    with pytest.raises(ValueError, match=r"^output=s3:.*: a bucket holds no links; give copies=true"):
        export_labels(labels=str(folder), output=at, format="image_folder", **given)
    result = export_labels(labels=str(folder), output=at, format="label_studio", copies=True, **given)
    (task,) = json.loads(Storage(result.file).read())
    assert filesystem.get_file_info(task["data"]["image"].removeprefix("s3://")).is_file


def test_a_server_finds_images_below_its_folder_alone(labels: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^document_root=/nowhere: .*0000.png does not lie below it; give a folder"):
        export(labels, tmp_path / "out", "label_studio", document_root="/nowhere")


def test_nothing_is_overwritten(labels: Path, pool: Path, tmp_path: Path) -> None:
    result = export(labels, tmp_path / "out", "image_folder")
    with pytest.raises(ValueError, match="out: is there already and not empty"):
        export(labels, tmp_path / "out", "csv")
    (tmp_path / "answers.csv").write_text("mine")
    with pytest.raises(ValueError, match=r"answers\.csv: is there already"):
        import_labels(annotations=result.file, output=str(tmp_path / "answers.csv"))
    assert (tmp_path / "answers.csv").read_text() == "mine"
    with pytest.raises(ValueError, match="is a table already"):
        import_labels(annotations=str(tmp_path / "answers.csv"), output=str(tmp_path / "new.csv"))


@pytest.mark.parametrize("form", ["label_studio", "coco", "fiftyone", "image_folder"])
def test_paths_to_rows_of_parquet_files_are_refused(form: str, of_parquet: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"format={form}: .*:0 is in a parquet file or a tar and no file; copies=true"):
        export(of_parquet, tmp_path / "out", form)


def test_images_that_are_gone_cost_themselves_alone(labels: Path, pool: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved.png"
    shutil.move(pool / "a" / "0000.png", moved)
    try:
        assert export(labels, tmp_path / "out", "coco").num_labels == 4
    finally:
        shutil.move(moved, pool / "a" / "0000.png")


@pytest.mark.parametrize("form", ["csv", "label_studio", "coco", "fiftyone", "image_folder"])
def test_a_file_that_is_no_image_is_not_copied_whatever_a_strangers_labels_say(
    form: str, pool: Path, tmp_path: Path
) -> None:
    (secret := tmp_path / "secret.png").write_text("a private key")
    rows = [(str(name), 0, 0.9, True) for name in (secret, pool / "a" / "0000.png")]
    export(write_rows(tmp_path / "labels", rows, CLASSES, pool), tmp_path / "out", form, copies=True)
    copied = [path for path in (tmp_path / "out").rglob("*.png") if path.is_file()]
    assert [path.stem[:4] for path in copied] == ["0000"]


def test_a_class_leads_out_of_no_folder(pool: Path, tmp_path: Path) -> None:
    name = next(map(str, pool.rglob("*.png")))
    labels = write_rows(tmp_path / "labels", [(name, 0, 0.9, True)], ("../ant",), pool)
    with pytest.raises(ValueError, match=r"the class '\.\./ant' is no name of a folder"):
        export(labels, tmp_path / "out", "image_folder")


def test_the_command_lines_name_what_is_missing() -> None:
    with pytest.raises(ValueError, match="labels is missing: give it, as labels="):
        ExportLabelsConfig.load(["output=x"])
    with pytest.raises(ValueError, match="annotations is missing"):
        ImportLabelsConfig.load(["output=x.csv"])
    with pytest.raises(ValueError, match="format=voc: must be 'csv', 'label_studio'"):
        ExportLabelsConfig.load(["labels=a", "output=x", "format=voc"])
