"""What is written is the old or the new one, wherever the process or the machine stops (tests/crashes.py says how)."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dpl_ray.page.html import Page
from dpl_ray.runs.history_writer import HistoryWriter
from dpl_ray.store.history import read_history
from dpl_ray.store.storage import Storage
from dpl_ray.training.checkpoint import ModelInfo, list_checkpoints, load_state, save_checkpoint
from dpl_ray.training.checkpoint_folder import drop_damaged
from dpl_ray.training.distributed import Workers
from dpl_ray.training.records import Record
from dpl_ray.training.state import TrainState, build_state
from tests.builders import tiny_config
from tests.crashes import Recorder, read_tree, states, write_tree

INFO = ModelInfo(("a", "b"), 1, (8, 8))


def every_state(
    root: Path, work: Callable[[Recorder], object], check: Callable[[str, Path], None], num_notes: int | None = None
) -> int:
    """Do the work on files below `root`, and check every state that a stop may leave; returns how many there are.

    Args:
        num_notes: only states after so many notes.
    """
    before, recorder = read_tree(root), Recorder(root)
    with pytest.MonkeyPatch.context() as patch:
        recorder.start(patch)
        work(recorder)
    place, number = root.parent / "state", 0
    for when, notes, tree in states(before, recorder.operations):
        if num_notes in (None, notes):
            number += 1
            write_tree(tree, root, place)
            check(when, place)
            shutil.rmtree(place)
    return number


def state_at(step: int) -> TrainState:
    state = build_state(tiny_config(), 1, 2, Workers(), pool_size=4)
    state.step = step
    for parameter in state.student.parameters():
        parameter.data.fill_(step)
    return state


@pytest.mark.parametrize("is_there", [False, True])
def test_a_file_is_the_old_or_the_new_one(tmp_path: Path, is_there: bool) -> None:
    root = tmp_path / "root"
    root.mkdir()
    name = "below/manifest.json"
    if is_there:
        (Storage(str(root)) / name).write(b"the old one")

    def check(when: str, place: Path) -> None:
        file = place / name
        found = file.read_bytes() if file.exists() else None
        assert found in ((b"the old one" if is_there else None), b"the new one, which is longer"), when

    number = every_state(root, lambda _: (Storage(str(root)) / name).write(b"the new one, which is longer"), check)
    assert number > 3


def test_a_page_is_the_old_or_the_new_one(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    old, new = Page("<!doctype html>old", {"a": b"<svg/>"}), Page("<!doctype html>new", {"b": b"<svg></svg>"})
    old.write(Storage(str(root)) / "report.html")

    def check(when: str, place: Path) -> None:
        text = (place / "report.html").read_text()
        assert text in (old.html, new.html), when
        shown = old if text == old.html else new
        for name, drawing in shown.drawings.items():
            assert (place / "figures" / f"{name}.svg").read_bytes() == drawing, when

    every_state(root, lambda _: new.write(Storage(str(root)) / "report.html"), check)


def test_a_checkpoint_is_the_old_or_the_new_one(tmp_path: Path) -> None:
    root = tmp_path / "root"
    folder, config = Storage(str(root)), tiny_config()
    save_checkpoint(folder, state_at(1), config, INFO, Workers(), keep=1)
    state = state_at(2)

    def check(when: str, place: Path) -> None:
        drop_damaged(Storage(str(place)))
        newest = list_checkpoints(Storage(str(place)))[-1]
        found = state_at(0)
        load_state(newest, found, Workers())
        assert newest.name == f"step-{found.step:08d}", when
        assert all(torch.all(parameter == found.step) for parameter in found.student.parameters()), when

    number = every_state(root, lambda _: save_checkpoint(folder, state, config, INFO, Workers(), keep=1), check)
    assert number > 25


@pytest.mark.parametrize("num_saved", [0, 1, 2])
def test_rows_of_the_history_that_were_saved_are_there_and_others_are_whole(tmp_path: Path, num_saved: int) -> None:
    root = tmp_path / "root"
    root.mkdir()
    records = [Record("dpl", step, 9, 1.0, {"loss": step / 3}) for step in range(1, 5)]
    rows: list[dict] = []
    lengths = set[int]()

    def work(recorder: Recorder) -> None:
        writer = HistoryWriter(Storage(str(root)))
        for some in (records[:2], records[2:]):
            rows.extend(map(writer.add, some))
            writer.save()
            recorder.note()

    def check(when: str, place: Path) -> None:
        found = [*read_history(Storage(str(place)))]
        assert found == rows[: len(found)], when
        lengths.add(len(found))
        HistoryWriter(Storage(str(place))).add(records[0])
        again = [*read_history(Storage(str(place)))]
        assert again[:-1] == found, when
        assert again[-1]["step"] == 1, when

    every_state(root, work, check, num_saved)
    assert lengths == [{0, 1, 2}, {2, 3, 4}, {4}][num_saved]
