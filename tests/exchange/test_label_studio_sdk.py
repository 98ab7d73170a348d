"""Label Studio's own library takes what is exported, and what its converter exports is read back.

label-studio-sdk asks for an older numpy than torch and scikit-learn's, so that it is no dependency of the tests: they
run where it is there (`pip install --target sdk label-studio-sdk`, and sdk at the end of PYTHONPATH).
"""

import json
from pathlib import Path

import pytest

from dpl_ray.exchange.exporting import export_labels
from tests.exchange.outputs import write_rows
from tests.exchange.test_exchange import CLASSES, read_back
from tests.labeling.jobs import write_images

pytest.importorskip("label_studio_sdk")


def test_its_interface_takes_every_prediction_and_its_exports_come_back(tmp_path: Path) -> None:
    from label_studio_sdk.converter.converter import Converter
    from label_studio_sdk.label_interface import LabelInterface

    write_images(tmp_path / "pool", range(3))
    ids = sorted(map(str, (tmp_path / "pool").glob("*.png")))
    rows = [(name, number, 0.75, True) for number, name in enumerate(ids)]
    labels = write_rows(tmp_path / "labels", rows, CLASSES, tmp_path / "pool")
    result = export_labels(labels=str(labels), output=str(tmp_path / "out"), format="label_studio")
    tasks = json.loads(Path(result.file).read_text())
    config = (tmp_path / "out" / "config.xml").read_text()
    interface = LabelInterface(config)
    for task in tasks:
        assert interface.validate_task({"data": task["data"]})
        assert interface.validate_prediction(task["predictions"][0])
    said = [{"id": 1, "completed_by": 1, "result": task["predictions"][0]["result"]} for task in tasks]
    said[2]["was_cancelled"] = True
    done = [
        {"id": number, **task, "annotations": [each]}
        for number, (task, each) in enumerate(zip(tasks, said, strict=True))
    ]
    (tmp_path / "project.json").write_text(json.dumps(done))
    converter = Converter(config, None, download_resources=False)
    expected = {name: CLASSES[number] for number, name in enumerate(ids[:2])}
    for form, skipped in {"JSON": {ids[2]: None}, "JSON_MIN": {}}.items():
        (tmp_path / form).mkdir()
        converter.convert(str(tmp_path / "project.json"), str(tmp_path / form), form, is_dir=False)
        (exported,) = (tmp_path / form).glob("*.json")
        assert read_back(exported, tmp_path) == expected | skipped, "JSON-MIN leaves out what was skipped"
