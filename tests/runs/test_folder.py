"""The folder of a run: who may go on with it, and what is in it."""

from __future__ import annotations

import dataclasses
import datetime
import gc
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from rich.console import Console

from dpl_ray.config.compose import load_config
from dpl_ray.config.parse import parse_config
from dpl_ray.config.schema import Config
from dpl_ray.data.dataset import BadImage, ImageSet, Splits
from dpl_ray.jobs.fit import _receiver
from dpl_ray.page.console import Progress
from dpl_ray.report.curves import History
from dpl_ray.runs.folder import FREE_FIELDS, FREE_SECTIONS, RunFolder, check_run, run_storage
from dpl_ray.runs.history_writer import HistoryWriter
from dpl_ray.store.history import HistoryReader, read_history
from dpl_ray.store.records import read_tree
from dpl_ray.store.storage import Storage
from dpl_ray.tracking.tracker import Tracker
from dpl_ray.training.records import Outcome, Record


def splits(value: int = 0, bad: tuple[BadImage, ...] = ()) -> Splits:
    part = ImageSet(np.full((2, 1, 4, 4), value, np.uint8), np.arange(2), np.array(["a", "b"]))
    return Splits(part, part, part, part, ("x", "y"), bad)


def config(folder: Path, *overrides: str) -> Config:
    return load_config([f"run.storage_path={folder}", "run.name=first", *overrides])


def opened(config: Config, splits: Splits) -> RunFolder:
    return RunFolder(run_storage(config), config, splits)


def test_a_new_run(tmp_path: Path) -> None:
    made = opened(config(tmp_path), splits())
    assert (made.name, made.resumed, made.history) == ("first", False, [])
    folder = tmp_path / "first"
    assert sorted(path.name for path in folder.iterdir()) == ["config.yaml", "run.json", "splits.parquet"]
    assert parse_config(yaml.safe_load((folder / "config.yaml").read_text())) == config(tmp_path)
    assert read_tree(made.storage / "run.json") == {
        "fingerprint": splits().fingerprint(),
        "num_pseudo_labeled": 0,
        "held_out": {"test": [2, 1], "validation": [2, 1]},
        "result": None,
    }


def test_a_run_without_a_name_gets_one(tmp_path: Path) -> None:
    made = opened(config(tmp_path, "run.name=null", "policy=fixmatch"), splits())
    assert made.name.startswith("digits-fixmatch-")
    assert [path.name for path in tmp_path.iterdir()] == [made.name]


def test_runs_without_a_name_that_start_together_get_folders_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stopped(datetime.datetime):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> Stopped:
            return cls(2026, 11, 22, 17, 31, 12)

    monkeypatch.setattr("dpl_ray.runs.folder.datetime", Stopped)
    made = [opened(config(tmp_path, "run.name=null"), splits()) for _ in range(3)]
    stem = "digits-dpl-20261122-173112"
    assert [folder.name for folder in made] == [stem, f"{stem}-2", f"{stem}-3"]
    assert not any(folder.resumed for folder in made)


def test_the_same_name_goes_on(tmp_path: Path) -> None:
    first = opened(config(tmp_path), splits())
    writer = HistoryWriter(first.storage)
    writer.add(Record("dpl", 5, 10, 100.0, {"train/loss_labeled": 1.5, "threshold/over/x": 0.5}))
    writer.add(Record("dpl", 10, 10, 100.0, {"train/loss_labeled": 0.5}))
    again = opened(config(tmp_path), splits())
    assert again.resumed
    assert again.history == first.history
    assert again.history[0] == {
        "time": first.history[0]["time"],
        "phase": "dpl",
        "step": 5,
        "num_steps": 10,
        "images_per_second": 100.0,
        "metrics": {"train/loss_labeled": 1.5, "threshold/over/x": 0.5},
    }
    writer.add(Record("dpl", 15, 15, 100.0, {"eval/accuracy": 0.9}))
    assert len((tmp_path / "first" / "history.jsonl").read_text().splitlines()) == 3
    # The loop has told of the last step only what it had evaluated; the rest it measured before it was interrupted.
    again.finish(
        [Outcome("dpl", {"eval/accuracy": 0.9}, {"over": [0.5, 0.6]}, "/x/step-00000015", 1.0, 1.0)], ("x", "y"), "told"
    )
    assert read_tree(again.storage / "run.json")["result"] == {
        "metrics": {"train/loss_labeled": 0.5, "eval/accuracy": 0.9},
        "baseline": None,
        "thresholds": {"over": {"x": 0.5, "y": 0.6}},
        "checkpoint": "step-00000015",
        "verdict": "told",
        "health": [],
    }
    assert not again.finished, "there is no such checkpoint"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.learning_rate=0.5", "optim.learning_rate=0.03, now it is 0.5;"),
        ("policy=fixmatch", r"policy.\w+=.*, now it is None \(and \d more fields\)"),
        ("policy.epsilon=0.5", "policy.epsilon=0.02, now it is 0.5;"),
        ("data.views.cutout=0", "data.views.cutout=0.5, now it is 0.0;"),
        ("data.num_labels_per_class=5", "data.num_labels_per_class=4, now it is 5;"),
        ("train.num_steps=700", "train.num_steps=600, now it is 700;"),
    ],
)
def test_another_configuration_is_refused(tmp_path: Path, override: str, message: str) -> None:
    opened(config(tmp_path), splits())
    check_run(config(tmp_path))
    before = (tmp_path / "first" / "config.yaml").read_bytes()
    with pytest.raises(ValueError, match=f"run.name=first: this run exists with {message}") as error:
        check_run(config(tmp_path, override))
    assert "take another run.name" in str(error.value)
    assert (tmp_path / "first" / "config.yaml").read_bytes() == before


def test_a_field_that_an_older_version_did_not_know_had_its_default(tmp_path: Path) -> None:
    opened(config(tmp_path), splits())
    saved = tmp_path / "first" / "config.yaml"
    tree = yaml.safe_load(saved.read_text())
    del tree["train"]["lambda_u"], tree["policy"]["epsilon"], tree["registry"], tree["data"]["views"]["cutout"]
    saved.write_text(yaml.safe_dump(tree))
    check_run(config(tmp_path))
    for override, before in (("train.lambda_u=2", 1.0), ("policy.epsilon=0.5", 0.02), ("data.views.cutout=0", 0.5)):
        with pytest.raises(ValueError, match=rf"exists with {override.partition('=')[0]}={before}, now it is"):
            check_run(config(tmp_path, override))
    check_run(config(tmp_path, "data.pool.windows_ahead=2"))


def test_other_data_are_refused(tmp_path: Path) -> None:
    opened(config(tmp_path), splits())
    with pytest.raises(ValueError, match=r"run.name=first: this run exists with other data .*take another run.name"):
        opened(config(tmp_path), splits(value=1))


@pytest.mark.parametrize(
    "override",
    [
        "scale.num_workers=4",
        "train.compile=true",
        "tracking.uri=http://elsewhere",
        "train.keep_checkpoints=7",
        "train.log_every=3",
        "train.checkpoint_every=9",
        "data.download=false",
    ],
)
def test_where_and_how_may_differ(tmp_path: Path, override: str) -> None:
    field = override.partition("=")[0]
    assert field in FREE_FIELDS or field.partition(".")[0] in FREE_SECTIONS
    opened(config(tmp_path), splits())
    check_run(config(tmp_path, override))
    again = opened(config(tmp_path, override), splits())
    assert again.resumed
    saved: Any = yaml.safe_load((tmp_path / "first" / "config.yaml").read_text())
    assert parse_config(saved) == config(tmp_path, override), "the newest configuration is the one that is kept"


def test_bad_images_that_were_found_on_the_way_stay_listed_when_the_run_goes_on(tmp_path: Path) -> None:
    for number in range(2):
        bad = BadImage(f"{number}, é.png", "truncated")
        writer = HistoryWriter(opened(config(tmp_path), splits()).storage)
        writer.add(Record("dpl", 5, 10, 1.0, {"data/unreadable": 1.0}, (bad,)))
    text = (tmp_path / "first" / "bad_images.csv").read_text()
    assert text.splitlines() == ["id,reason", '"0, é.png",truncated', '"1, é.png",truncated']


class Pool:
    """One that is streamed, of ten images."""

    def __len__(self) -> int:
        return 10

    def fingerprint(self) -> str:
        return "ten"


def test_a_run_that_has_found_too_many_bad_images_in_its_pool_is_refused(tmp_path: Path) -> None:
    first, second = (BadImage(f"pool/{number}.png", "truncated") for number in range(2))
    data = dataclasses.replace(splits(bad=(BadImage("test/1.png", "truncated"),)), unlabeled=Pool())
    limited = config(tmp_path, "data.max_bad_fraction=0.1")
    HistoryWriter(opened(limited, data).storage).add(Record("dpl", 5, 10, 1.0, {"data/unreadable": 1.0}, (first,)))
    HistoryWriter(opened(limited, data).storage).add(Record("dpl", 6, 10, 1.0, {"data/unreadable": 2.0}, (second,)))
    with pytest.raises(ValueError, match=r"run.name=first has found 2 images that cannot be read, of a pool of 10"):
        opened(limited, data)
    opened(config(tmp_path, "data.max_bad_fraction=0.2"), data)


def test_bad_images_are_listed(tmp_path: Path) -> None:
    bad = (BadImage("a/1.png", "not an image"), BadImage('with "quotes", and comma.png', "truncated"))
    opened(config(tmp_path), splits(bad=bad))
    text = (tmp_path / "first" / "bad_images.csv").read_text()
    assert text.splitlines() == [
        "id,reason",
        "a/1.png,not an image",
        '"with ""quotes"", and comma.png",truncated',
    ]


def test_a_place_is_looked_at_and_not_made(tmp_path: Path) -> None:
    check_run(config(tmp_path / "runs"))
    check_run(config(tmp_path / "runs", "run.name=null"))
    assert list(tmp_path.iterdir()) == []


def test_a_bucket_that_does_not_answer_is_named_with_its_field() -> None:
    address = "s3://bucket/runs?scheme=http&endpoint_override=127.0.0.1:1"
    with pytest.raises(
        ValueError, match=r"^run\.storage_path=s3://bucket/runs.*: cannot be written \(.*connect"
    ) as error:
        check_run(parse_config({"run": {"storage_path": address}}))
    assert "give a bucket that answers, with credentials and region" in str(error.value)


def test_times_of_the_history_do_not_go_back_with_the_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer, seconds = HistoryWriter(Storage(str(tmp_path))), iter([20.0, 10.0, 30.0])
    monkeypatch.setattr("time.time", lambda: next(seconds))
    rows = [writer.add(Record("dpl", step, 10, 100.0, {"train/loss_labeled": 1.5})) for step in (1, 2, 3)]
    assert [row["time"] for row in rows] == [20_000, 20_000, 30_000]


def test_half_a_line_of_the_history_costs_no_other(tmp_path: Path) -> None:
    record = Record("dpl", 5, 10, 100.0, {"train/loss_labeled": 1.5})
    folder = opened(config(tmp_path), splits())
    row = HistoryWriter(folder.storage).add(record)
    assert folder.history == [row], "written at once"
    with (tmp_path / "first" / "history.jsonl").open("a") as stream:
        stream.write('{"phase": "dpl", "st')
    assert folder.history == [row]
    later = HistoryWriter(folder.storage).add(record)
    assert folder.history == [row, later]
    assert (tmp_path / "first" / "history.jsonl").read_text().count("\n") == 2


def test_records_are_kept_on_the_disk_and_not_in_memory(tmp_path: Path) -> None:
    """Those of every step, by all that a training in this process tells of them."""
    writer, reader = (
        HistoryWriter(Storage(str(tmp_path))),
        HistoryReader(Storage(str(tmp_path / "history.jsonl")), "dpl"),
    )

    def train(first: int, last: int) -> int:
        for step in range(first, last):
            metrics = {f"threshold/over/class {number}": step / 7 for number in range(20)}
            record = Record("dpl", step, 10_000, 1.0, metrics)
            writer.add(record)
            receive(record)
            assert len(reader.read()) == 1
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    with Progress(Console(quiet=True), "steps") as progress:
        receive = _receiver(progress, Tracker(), None, loads=False)
        tracemalloc.start()
        before = train(0, 50)
        kept = (train(50, 200) - before) / 150
        tracemalloc.reset_peak()
        drawn = History(read_history(Storage(str(tmp_path))), "dpl")
        peak = (tracemalloc.get_traced_memory()[1] - before) / 200
        tracemalloc.stop()
    assert kept < 200, f"{kept:.0f} bytes a record, of some 1,000"
    assert len(drawn.points("threshold/over/class 7")) == 200
    assert peak < 2500, f"{peak:.0f} bytes a record for a drawing of them all"


def test_in_a_bucket_rows_are_there_from_the_next_save_on(tmp_path: Path) -> None:
    folder = Storage(str(tmp_path))
    folder.is_local = False  # nothing can be added to its files
    first = HistoryWriter(folder)
    row = first.add(Record("dpl", 1, 9, 1.0, {"loss": 1.5}))
    assert [*read_history(folder)] == []
    assert first.save() == (tmp_path / "history.jsonl").stat().st_size
    assert [*read_history(folder)] == [row]
    second = HistoryWriter(folder)
    rows = [row, *(second.add(Record("dpl", step, 9, 1.0, {"loss": 0.5})) for step in (2, 3))]
    second.save()
    assert [*read_history(folder)] == rows
