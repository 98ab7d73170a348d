"""What annotation tools read and write of images that have one class each: trees of JSON to rows, and back.

label_studio  tasks with predictions (https://labelstud.io/guide/predictions), and its exports JSON and JSON-MIN
coco          images, categories, annotations (https://cocodataset.org/#format-data); a box is the whole image
fiftyone      labels.json and data.json of FiftyOneImageClassificationDataset (https://docs.voxel51.com)

A row that is read has the class of an image, "" where a person could not tell it, or None where nobody has looked.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, unquote
from xml.sax.saxutils import quoteattr

CONTROL, OBJECT = "label", "image"  # names of Label Studio's tags
SERVED = "/data/local-files/?d="  # before the path of a file on the disk of Label Studio's server
DIGITS = 12  # of a name in FiftyOne's files


@dataclass(frozen=True)
class Exported:
    """A label of an image, and what the export says of the image."""

    sample_id: str
    image: str  # path or URI, or path below the folder of the export
    label: int  # class index
    confidence: float
    selected: bool
    foreign: float | None = None  # how foreign it looks, from 0 to 1, where the policy asks
    size: tuple[int, int] | None = None  # (width, height) pixels, where the format has it


Row = tuple[str, str | None, float | None]
"""Path or URI of an image, its class, and the confidence of the model that said so; None where a person did."""


def label_studio_config(class_names: Sequence[str]) -> str:
    """The labelling interface of a project: one class an image."""
    choices = "\n".join(f"    <Choice value={quoteattr(name)}/>" for name in class_names)
    return (
        f'<View>\n  <Image name="{OBJECT}" value="${OBJECT}"/>\n'
        f'  <Choices name="{CONTROL}" toName="{OBJECT}" choice="single" showInLine="true">\n{choices}\n'
        "  </Choices>\n</View>\n"
    )


def to_label_studio(rows: Sequence[Exported], class_names: Sequence[str], version: str, root: str) -> list[Any]:
    """Tasks with a prediction each.

    Args:
        version: of the model, as Label Studio shows it.
        root: LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT of the server, from which it serves local files.
    """

    def task(row: Exported) -> dict[str, Any]:
        value = {"choices": [class_names[row.label]]}
        result = {"from_name": CONTROL, "to_name": OBJECT, "type": "choices", "value": value}
        prediction = {"model_version": version, "score": row.confidence, "result": [result]}
        address = row.image if "://" in row.image else SERVED + quote(row.image.removeprefix(root.rstrip("/") + "/"))
        return {"data": {OBJECT: address, "sample_id": row.sample_id}, "predictions": [prediction]}

    return [task(row) for row in rows]


def from_label_studio(tasks: Sequence[Any]) -> Iterator[Row]:
    """Of exports as JSON and as JSON-MIN. A task that was skipped has the class "".

    Raises:
        LookupError, TypeError, ValueError: they are no tasks on images of one class.
    """
    for task in tasks:
        data = task.get("data", task)
        image = data.get("sample_id") or unquote(data[OBJECT].removeprefix(SERVED))
        if "data" not in task:
            yield image, task.get(CONTROL), None
            continue
        if "annotations" not in task:
            raise ValueError("has tasks without annotations: annotate them in Label Studio, and export the project")
        said = {_choice(each) for each in task["annotations"] if not each.get("was_cancelled")}
        if len(said) > 1:
            raise ValueError(f"annotators give {image} {' and '.join(sorted(map(repr, said)))}; decide for one")
        yield image, said.pop() if said else "" if task["annotations"] else None, None


def _choice(annotation: dict[str, Any]) -> str:
    found = [name for part in annotation["result"] if part["type"] == "choices" for name in part["value"]["choices"]]
    if len(found) > 1:
        raise ValueError(f"{' and '.join(found)} are chosen for one image; an image has one class here")
    return found[0] if found else ""


def to_coco(rows: Sequence[Exported], class_names: Sequence[str]) -> dict[str, Any]:
    """Every annotation is a box around the whole image: COCO has no other place for the class of an image."""
    images, annotations = [], []
    for number, row in enumerate(rows, start=1):
        assert row.size is not None
        width, height = row.size
        images.append({"id": number, "file_name": row.image, "width": width, "height": height})
        annotations.append(
            {
                "id": number,
                "image_id": number,
                "category_id": row.label + 1,
                "bbox": [0, 0, width, height],
                "area": width * height,
                "iscrowd": 0,
                "score": row.confidence,
            }
        )
    categories = [{"id": number, "name": name} for number, name in enumerate(class_names, start=1)]
    return {"images": images, "annotations": annotations, "categories": categories}


def from_coco(tree: dict[str, Any]) -> Iterator[Row]:
    """An image without an annotation was not looked at.

    Raises:
        LookupError, TypeError, ValueError: it is not COCO's form, or an image has annotations of several classes.
    """
    names = {category["id"]: category["name"] for category in tree["categories"]}
    said: dict[Any, set[str]] = {}
    scores = {}
    for annotation in tree["annotations"]:
        said.setdefault(annotation["image_id"], set()).add(names[annotation["category_id"]])
        scores[annotation["image_id"]] = annotation.get("score")
    for image in tree["images"]:
        found = said.get(image["id"], set())
        if len(found) > 1:
            raise ValueError(f"{image['file_name']} has {' and '.join(sorted(found))}; an image has one class here")
        yield image["file_name"], found.pop() if found else None, scores.get(image["id"])


def to_fiftyone(rows: Sequence[Exported], class_names: Sequence[str]) -> tuple[dict[str, Any], dict[str, str]]:
    """labels.json, and data.json where the images are not in the folder data/ of the export.

    An image there is called as its file without the ending, others are numbered.
    """
    labels, paths = {}, {}
    for number, row in enumerate(rows):
        is_copy = row.image.startswith("data/")
        name = row.image.removeprefix("data/").rpartition(".")[0] if is_copy else f"{number:0{DIGITS}d}"
        labels[name] = {"label": row.label, "confidence": row.confidence}
        paths[name] = row.image
    return {"classes": list(class_names), "labels": labels}, paths


def from_fiftyone(labels: dict[str, Any], paths: dict[str, str]) -> Iterator[Row]:
    """Of labels.json and data.json, or the files of data/ by their names.

    Raises:
        LookupError, TypeError, ValueError: they are not in FiftyOne's form, or an image has several classes.
    """
    classes = labels.get("classes")
    for name, target in labels["labels"].items():
        label, score = (target["label"], target.get("confidence")) if isinstance(target, dict) else (target, None)
        if isinstance(label, list):
            raise ValueError(f"{name} has a list of classes; an image has one class here")
        yield paths[name], classes[label] if isinstance(label, int) and classes is not None else label, score
