"""The page of a run that goes on."""

from __future__ import annotations

import time
import warnings
from dataclasses import replace
from pathlib import Path

import pytest

from dpl_ray.jobs.phases import train_phases
from dpl_ray.page.html import Page
from dpl_ray.report import live
from dpl_ray.report.live import LivePage
from dpl_ray.runs.folder import RunFolder, run_storage
from dpl_ray.store.storage import Storage
from dpl_ray.training.distributed import Workers
from dpl_ray.training.records import Record
from tests.builders import tiny_config, tiny_splits
from tests.page.test_html import Outline
from tests.report.test_report import page_of_run

RECORD = Record("dpl", 2, 4, 100.0, {"train/loss_labeled": 1.0})


def begun(folder: Path) -> tuple[RunFolder, LivePage]:
    splits = tiny_splits()
    train = {"num_steps": 4, "log_every": 2, "curve_images": 0}
    config = tiny_config(train=train, run={"storage_path": str(folder), "name": "tiny"})
    run = RunFolder(run_storage(config), config, splits)
    return run, LivePage(config, splits, run)


def test_it_is_written_at_every_record_and_says_how_far_the_run_is(tmp_path: Path) -> None:
    run, page = begun(tmp_path)
    file, texts = tmp_path / "tiny" / "report.html", dict[tuple[str, int], str]()

    def receive(record: Record) -> None:
        if record.metrics:
            page.update(record)
            texts[record.phase, record.step] = file.read_text()
            if "train/loss_labeled" in record.metrics:
                assert f"loss {record.metrics['train/loss_labeled']:.3f}" in file.read_text()

    outcomes = train_phases(page.config, page.splits, run.storage, Workers(), receive)
    for (phase, step), text in texts.items():
        found = Outline(text)
        assert f"{phase}: step {step} of 4" in found.text
        assert '<meta http-equiv="refresh" content="15">' in text
        assert {"progress", "training"} <= set(found.ids)
        assert ("pseudo-labels" in found.ids) == (phase == "dpl")
        assert "http://" not in text
    assert list(texts) == [(phase, step) for phase in ("supervised", "dpl") for step in (2, 4)]
    page_of_run(page.config, page.splits, run, outcomes).write(Storage(str(file)))
    assert "refresh" not in file.read_text()


def test_writing_and_drawing_take_a_fiftieth_of_the_time_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now, written, drawn = 0.0, list[float](), list[float]()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    _, page = begun(tmp_path)

    def write(record: Record) -> Page:
        nonlocal now
        written.append(now)
        now += seconds
        return Page("", {})

    def draw(record: Record) -> dict:
        nonlocal now
        drawn.append(now)
        now += 2.0
        return {}

    monkeypatch.setattr(page, "_page", write)
    monkeypatch.setattr(page, "_draw", draw)
    seconds = 0.015  # less than a fiftieth of the second between two records
    page.update(replace(RECORD, phase="supervised"))
    for _ in range(999):
        page.update(RECORD)
        now += 1.0
    assert len(written) == 1000, "at every record"
    assert drawn[:2] == [0.0, written[0] + seconds], "at the first record of a phase"
    assert 2.0 * len(drawn) / now == pytest.approx(live.SHARE, rel=0.1)
    seconds, since = 5.0, now
    for _ in range(10_000):
        page.update(RECORD)
        now += 1.0
    assert 5.0 * (len(written) - 1000) / (now - since) == pytest.approx(live.SHARE, rel=0.1)


def test_a_page_that_cannot_be_written_is_told_of_once_and_ends_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "SHARE", 1.0)
    _, page = begun(tmp_path)

    def full(record: Record) -> Page:
        raise OSError("the disk is full")

    monkeypatch.setattr(page, "_page", full)
    with pytest.warns(UserWarning, match=r"^report\.html: cannot be written \(OSError: the disk is full\)$"):
        page.update(RECORD)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        page.update(RECORD)
