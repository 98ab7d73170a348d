"""What an earlier version wrote is read: a run and its checkpoint, labels, a comparison, a search, and rounds.

In the files @HERE@ stands where the folder was, and /tmp/rec in those of Arrow, whose text cannot be replaced.
"""

from __future__ import annotations

import csv
import io
import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from PIL import Image
from rich.console import Console

from dpl_ray import compare, fit, label_pool, load_checkpoint, load_config, search, self_train
from dpl_ray.labeling.config import LabelConfig
from dpl_ray.store.history import read_points
from dpl_ray.store.storage import Storage
from dpl_ray.studies.comparison.config import load_comparison
from dpl_ray.studies.comparison.job import Comparison
from dpl_ray.studies.frame import Study
from dpl_ray.studies.self_training.config import load_self_training
from dpl_ray.studies.self_training.job import SelfTraining
from dpl_ray.studies.tuning.config import load_search
from dpl_ray.studies.tuning.job import Search
from dpl_ray.tracking.tracker import Tracker

RECORDED = Path(__file__).parent
SMALL = (
    "model.depth=10", "model.width=1", "model.normalization=group", "train.batch_size=4", "train.mu=2",
    "train.num_steps=3", "train.log_every=1", "scale.num_workers=0", "tracking.enabled=false",
)  # fmt: skip


def fill_arrow(path: Path, here: str) -> None:
    def filled(table: pa.Table) -> pa.Table:
        for place, (name, column) in enumerate(zip(table.column_names, table.columns, strict=True)):
            if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
                table = table.set_column(place, name, pc.replace_substring(column, "/tmp/rec", here))
        return table

    if path.suffix == ".parquet":
        pq.write_table(filled(pq.read_table(path)), path)
    else:
        table = filled(pa.ipc.open_file(path.read_bytes()).read_all())
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder as it was, of which it is the working directory."""
    for name, place in (("storage", "runs"), ("labels", "labels"), ("pool", "pool")):
        shutil.copytree(RECORDED / name, tmp_path / place)
    for path in tmp_path.rglob("*"):
        if path.suffix in (".json", ".yaml", ".csv", ".md", ".jsonl"):
            path.write_text(path.read_text().replace("@HERE@", str(tmp_path)))
        elif path.suffix in (".parquet", ".arrow"):
            fill_arrow(path, str(tmp_path))
    for path in tmp_path.rglob("manifests/*.json"):
        manifest = json.loads(path.read_text())
        for part in manifest["parts"]:
            part["size"] = (path.parents[2] / part["name"]).stat().st_size
        path.write_text(json.dumps(manifest))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def console() -> Console:
    return Console(file=io.StringIO(), width=150)


def printed(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def arguments(file: Path) -> list[str]:
    """Those of the command that has written the file."""
    return shlex.split(json.loads(file.read_text())["command"])[3:]


def forbid(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    for name in names:
        monkeypatch.setattr(f"dpl_ray.{name}", lambda *_, **__: pytest.fail("nothing is left to be done"))


def test_a_checkpoint_predicts(here: Path) -> None:
    predictor = load_checkpoint("runs/run")
    pixels = np.stack([np.asarray(Image.open(here / "pool" / f"{number}.png")) for number in range(12)])
    found = predictor.predict(pixels[:, None])
    assert float(found.confidences[0]) == pytest.approx(0.718019, abs=1e-5), "as on the day that it was trained"
    recorded = pq.read_table("labels/part-000000-00000.parquet").to_pylist()
    assert {Path(row["sample_id"]).stem: row["pseudo_label"] for row in recorded} == {
        str(number): int(label) for number, label in enumerate(found.probabilities.argmax(axis=1))
    }


def test_a_run_had_finished(here: Path, console: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    forbid(monkeypatch, "jobs.fit.run_phases")
    result = fit(load_config(["data=digits", "run.name=run", *SMALL]), console=console)
    assert "run had finished" in printed(console)
    recorded = json.loads((RECORDED / "storage" / "run" / "run.json").read_text())["result"]
    assert (result.metrics, result.baseline, result.verdict) == (
        recorded["metrics"],
        recorded["baseline"],
        recorded["verdict"],
    )


def test_labels_are_finished_and_trained_on(here: Path, console: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        forbid(patch, "labeling.job.fill")
        given = ["checkpoint=runs/run", "pool=pool", "output=labels", *SMALL[-2:]]
        result = label_pool(LabelConfig.load(given), console=console)
    assert "labels had finished" in printed(console)
    assert (result.num_rows, result.num_selected) == (12, 12)
    photos = [here / "photos" / str(label) / f"{number}.png" for label in range(10) for number in range(2)]
    for path in photos:
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(here / "pool" / f"{path.stem}.png", path)
    data = ("data=image_folder", "data.train=photos", "data.image_size=8", "data.channels=1", "data.allow_overlap=true")
    pool = ("data.unlabeled=pool", "data.labels=labels", "data.labels_per_class=8")
    config = load_config([*data, *pool, *SMALL, "train.num_steps=1", "train.baseline=false", "run.name=student"])
    fit(config)
    assert json.loads((here / "runs" / "student" / "run.json").read_text())["num_pseudo_labeled"] == 8


def without_outputs(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).unlink()


def test_a_comparison_is_written_again(here: Path, console: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    forbid(monkeypatch, "studies.comparison.job.run_cell", "studies.comparison.job.load_splits")
    folder = here / "runs" / "comparison"
    before = [*csv.DictReader((folder / "comparison.csv").open())]
    without_outputs(folder, "comparison.csv", "comparison.md")
    result = compare(*load_comparison(arguments(folder / "comparison.json")), console=console)
    assert "comparison goes on, 2 of them finished before" in printed(console)
    new = {"subset": "0", "detectable_difference": ""}
    assert [*csv.DictReader((folder / "comparison.csv").open())] == [row | new for row in before]
    assert [row.is_reference for row in sorted(result.rows, key=lambda row: row.label)] == [False, True]
    assert "1 labelled subset," in Path(result.report).read_text()


def test_a_search_is_written_again(here: Path, console: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    forbid(monkeypatch, "studies.tuning.on_ray.run_trial")
    folder = here / "runs" / "search"
    before = (folder / "trials.csv").read_text()
    without_outputs(folder, "trials.csv", "search.md", "best.yaml")
    result = search(*load_search(arguments(folder / "search.json")), console=console)
    assert "search goes on, 2 of them ended before" in printed(console)
    assert (folder / "trials.csv").read_text() == before
    best: Any = load_config([f"config={result.best}"])
    assert best.optim.learning_rate == result.trials[0].values["optim.learning_rate"]


@pytest.mark.parametrize("was_written", [True, False])
def test_rounds_are_found(here: Path, console: Console, monkeypatch: pytest.MonkeyPatch, was_written: bool) -> None:
    forbid(monkeypatch, "studies.self_training.job.fit", "studies.self_training.job.label_pool")
    folder = here / "runs" / "rounds"
    info, before = json.loads((folder / "self_train.json").read_text()), (folder / "self_train.csv").read_text()
    if not was_written:  # killed after the last round
        (folder / "self_train.json").write_text(json.dumps(info | {"finished": None}))
        without_outputs(folder, "self_train.csv")
    result = self_train(*load_self_training(arguments(folder / "self_train.json")), console=console)
    assert ("rounds had finished" if was_written else "rounds goes on, 2 round(s) finished before") in printed(console)
    assert [each.num_selected for each in result.rounds] == [30, 0]
    assert (folder / "self_train.csv").read_text() == before
    assert result.stopped == info["finished"]


class Told(Tracker):
    """Keeps which children it was told of, and the last step of each, as the sender would read it."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self.children: dict[str, int] = {}

    def log_child(self, name: str, *, params: dict[str, str], tags: dict[str, str], folder: str) -> None:
        assert params
        assert tags
        history = read_points(self.storage / folder, params["policy.name"])
        self.children[name] = history[-1].step


def opened(here: Path, kind: str) -> Study:
    folder = here / "runs" / kind
    if kind == "comparison":
        return Comparison(*load_comparison(arguments(folder / "comparison.json")))
    if kind == "search":
        return Search(*load_search(arguments(folder / "search.json")))
    return SelfTraining(*load_self_training(arguments(folder / "self_train.json")))


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("comparison", ["dpl-rule-band-seed-0", "supervised-seed-0"]),
        ("search", ["trial-0000", "trial-0001"]),
        ("rounds", ["rounds/round-0", "rounds/round-1"]),
    ],
)
def test_half_a_line_of_a_history_is_passed_over(here: Path, kind: str, names: list[str]) -> None:
    for path in here.rglob("history.jsonl"):
        path.open("a").write('{"phase": "dpl", "st')
    study = opened(here, kind)
    tracker = Told(study.storage)
    for result in study.ended():
        study.record(tracker, result)
    assert tracker.children == dict.fromkeys(names, 3)


def without(path: Path, *fields: str) -> None:
    """The JSON without these dotted fields, and with one that is not known today."""
    tree: Any = json.loads(path.read_text()) | {"new": 1}
    for field in fields:
        *sections, name = field.split("/")
        place = tree
        for section in sections:
            place = place[section]
        del place[name]
    path.write_text(json.dumps(tree))


def test_fields_and_facts_that_an_older_version_did_not_know(here: Path, console: Console) -> None:
    known = ("config/train/lambda_u", "config/optim/momentum")
    without(here / "runs" / "search" / "search.json", *known, "config/search/reduction_factor")
    without(here / "runs" / "rounds" / "self_train.json", *known, "config/registry", "config/checkpoint")
    for number in range(2):
        trial = here / "runs" / "search" / f"trial-000{number}"
        without(trial / "trial.json")
        without(trial / "result.json", "facts/commit", "facts/data.num_validation", "facts/version.ray", "metrics")
    result = search(*load_search(arguments(here / "runs" / "search" / "search.json")), console=console)
    assert "commit unknown" in result.markdown
    for changed in ("train.lambda_u=2", "optim.momentum=0.5"):
        with pytest.raises(ValueError, match=rf"this search exists with {changed.partition('=')[0]}"):
            search(*load_search([*arguments(here / "runs" / "search" / "search.json"), changed]))
    assert [each.num_selected for each in opened(here, "rounds").ended()] == [30, 0]
