"""Whole comparisons in this process: what is run, resumed, kept and recorded."""

from __future__ import annotations

import csv
import io
import json
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from dpl_ray import CompareConfig, CompareResult, compare, load_config
from dpl_ray.commands import cli
from dpl_ray.commands import compare as command
from dpl_ray.config.schema import Config
from dpl_ray.data.dataset import Splits
from dpl_ray.data.splits.sources import load_splits
from dpl_ray.runs.history_writer import HistoryWriter
from dpl_ray.studies.comparison.cells import Cell, CellResult, cell_config, read_cells, run_cell
from dpl_ray.studies.comparison.config import make_plan
from dpl_ray.studies.comparison.console import CellsProgress
from dpl_ray.studies.comparison.folder import write_comparison
from dpl_ray.studies.comparison.job import CellsFailedError
from dpl_ray.training import loop
from dpl_ray.training.distributed import Workers
from dpl_ray.training.interruption import Interrupted
from dpl_ray.training.records import Record
from dpl_ray.training.state import build_state
from tests.builders import tiny_config, tiny_feed, tiny_splits

TWO = CompareConfig(policies=("dpl", "fixmatch"), subsets=2)
NAMES = {f"{policy}-seed-{seed}" for policy in ("dpl", "fixmatch") for seed in (0, 1)}
FIXED = ("train.num_steps=6", "train.log_every=2", "train.checkpoint_every=2", "train.curve_every=2")
SMALL = ("model.width=1", "train.batch_size=4", "run.name=first", "tracking.enabled=false")


def config_for(folder: Path, *overrides: str) -> Config:
    return load_config([*FIXED, *SMALL, "scale.num_workers=0", f"run.storage_path={folder}", *overrides])


def run(folder: Path, *overrides: str, options: CompareConfig = TWO) -> tuple[CompareResult, str]:
    """A tiny comparison on digits and what it prints."""
    output = io.StringIO()
    result = compare(config_for(folder, *overrides), options, console=Console(file=output, width=150))
    return result, output.getvalue()


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the cells that are run, as they begin."""
    names: list[str] = []

    def noting(config: Config, cell: Cell, *rest: Any) -> CellResult:
        names.append(cell.name)
        return run_cell(config, cell, *rest)

    monkeypatch.setattr("dpl_ray.studies.comparison.job.run_cell", noting)
    return names


def measured(result: CompareResult) -> list[dict[str, str]]:
    """The rows of the CSV without what differs from one time to the next."""
    rows = list(csv.DictReader(io.StringIO(Path(result.csv).read_text())))
    return [
        {key: value for key, value in row.items() if not re.match("seconds|time/|throughput/|checkpoint|commit", key)}
        for row in rows
    ]


# What is run


@pytest.mark.rendered
def test_every_policy_is_trained_with_every_seed(tmp_path: Path) -> None:
    result, output = run(tmp_path)
    assert [(row.label, row.seeds) for row in sorted(result.rows, key=lambda row: row.label)] == [
        ("dpl", (0, 1)),
        ("fixmatch", (0, 1)),
    ]
    assert result.failed == {}
    assert all(0 <= row.accuracy <= 1 for row in result.rows)
    assert Path(result.report).read_text().startswith("<!doctype html>")
    assert {(row["policy"], row["seed"]) for row in measured(result)} == {
        (policy, seed) for policy in ("dpl", "fixmatch") for seed in ("0", "1")
    }
    for cell in read_cells(str(tmp_path / "first")):
        assert [step for step, _, _ in cell.curve] == [2, 4, 6]
        assert 0 < cell.curve[0][2] < cell.curve[1][2] < cell.curve[2][2] == cell.seconds
        assert (Path(cell.checkpoint) / "manifest.json").exists()
    for text in (
        "first starts: 2 policies (dpl, fixmatch) x 2 subsets x 1 repeat, 4 cells of 6 steps",
        "4 of 4 cells done, 0 runn",
    ):
        assert text in output
    assert output.count("accuracy ") >= 4
    assert "- subsets: 0, 1\n- seeds: 0, 1" in result.markdown


def test_a_comparison_that_is_repeated_runs_nothing_and_says_the_same(tmp_path: Path, ran: list[str]) -> None:
    first, _ = run(tmp_path)
    assert set(ran) == NAMES
    ran.clear()
    again, output = run(tmp_path)
    assert ran == []
    assert "goes on, 4 of them finished before" in output
    assert again.rows == first.rows


def test_only_the_cell_that_is_missing_is_run(tmp_path: Path, ran: list[str]) -> None:
    first, _ = run(tmp_path)
    ran.clear()
    (tmp_path / "first" / "dpl-seed-1" / "cell.json").unlink()
    again, _ = run(tmp_path)
    assert ran == ["dpl-seed-1"]
    assert measured(again) == measured(first), "its training had ended: what it measured then is in its folder"


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_saves_the_cell_that_is_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = HistoryWriter.add

    def interrupted(writer: HistoryWriter, record: Record) -> Any:
        if (writer.folder.name, record.step) == ("fixmatch-seed-0", 2) and "train/loss_labeled" in record.metrics:
            signal.raise_signal(signal.SIGINT)
        return real(writer, record)

    monkeypatch.setattr(HistoryWriter, "add", interrupted)
    with pytest.raises(Interrupted, match=r"^step 3 of 6 of fixmatch is saved$"):
        run(tmp_path, options=TWO.model_copy(update={"seeds": 1}))
    assert [cell.label for cell in read_cells(str(tmp_path / "first"))] == ["dpl"]
    assert (tmp_path / "first" / "fixmatch-seed-0" / "step-00000003" / "manifest.json").exists()


def test_policies_and_seeds_can_be_added(tmp_path: Path, ran: list[str]) -> None:
    run(tmp_path)
    ran.clear()
    more = CompareConfig(policies=("fixmatch", "dpl", "supervised"), subsets=3, reference="supervised")
    result, _ = run(tmp_path, options=more)
    assert set(ran) == {"dpl-seed-2", "fixmatch-seed-2", *(f"supervised-seed-{seed}" for seed in range(3))}
    assert {row.label: len(row.seeds) for row in result.rows} == {"dpl": 3, "fixmatch": 3, "supervised": 3}
    assert [row.label for row in result.rows if row.is_reference] == ["supervised"]


def failing_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cell dpl with seed 1 dies in this step."""
    train_step = loop.train_step

    def dying(state: Any, batch: Any, config: Config, *rest: Any) -> Any:
        if config.policy.name == "dpl" and config.train.seed == 1 and state.step == step:
            raise RuntimeError("the node is\ngone")
        return train_step(state, batch, config, *rest)

    monkeypatch.setattr(loop, "train_step", dying)


def test_a_cell_that_fails_is_reported_and_goes_on_from_its_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, _ = run(tmp_path / "whole")
    with monkeypatch.context() as patch:
        failing_at(5, patch)
        broken, output = run(tmp_path / "broken")
    assert broken.failed == {"dpl-seed-1": "RuntimeError: the node is"}
    assert "dpl with seed 1: failed: RuntimeError: the node is\n" in output
    assert "missing: dpl-seed-1 (RuntimeError: the node is)" in broken.markdown
    assert (tmp_path / "broken" / "first" / "dpl-seed-1" / "error.txt").read_text() == "the node is\ngone"
    assert {row.label: len(row.seeds) for row in broken.rows} == {"dpl": 1, "fixmatch": 2}

    steps: list[tuple[str, int]] = []
    show = CellsProgress.show
    monkeypatch.setattr(
        CellsProgress, "show", lambda self, cell, step: (steps.append((cell, step)), show(self, cell, step))
    )
    mended, _ = run(tmp_path / "broken")
    assert mended.failed == {}
    assert not (tmp_path / "broken" / "first" / "dpl-seed-1" / "error.txt").exists()
    assert {cell for cell, _ in steps} == {"dpl-seed-1"}
    assert min(step for _, step in steps) > 4, "on from the checkpoint of step 4"
    assert measured(mended) == measured(whole), "the curve's points before the failure are kept"
    assert "missing" not in mended.markdown


@pytest.mark.rendered
def test_the_command_fails_when_a_cell_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failing_at(3, monkeypatch)
    arguments = [*FIXED, *SMALL, "scale.num_workers=0", f"run.storage_path={tmp_path}"]
    arguments += ["policies=[dpl,fixmatch]", "seeds=2"]
    assert cli.run(command.COMMAND, arguments) == 1
    output, errors = capsys.readouterr()
    assert "comparison.csv" in output
    assert errors.startswith("failed: CellsFailedError: 1 cells did not finish, as dpl-seed-1 (RuntimeError: the node")
    assert errors.count("\n") == 1


def test_a_comparison_without_a_finished_cell_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failing_at(1, monkeypatch)
    one = CompareConfig(policies=("dpl",), subsets=1, reference="dpl")
    with pytest.raises(CellsFailedError, match=r"1 cells did not finish, as dpl-seed-1 \(RuntimeError: the node is\)"):
        run(tmp_path, "train.seed=1", options=one)


def test_an_interrupt_leaves_the_finished_cells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        finish = CellsProgress.finish

        def interrupted(self: CellsProgress, *arguments: Any) -> None:
            finish(self, *arguments)
            raise KeyboardInterrupt

        patch.setattr(CellsProgress, "finish", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path)
    assert len(read_cells(str(tmp_path / "first"))) == 1
    result, output = run(tmp_path)
    assert "goes on, 1 of them finished before" in output
    assert sum(len(row.seeds) for row in result.rows) == 4


# What the policies of a seed have in common


def test_policies_of_a_seed_have_images_weights_and_order_in_common(tmp_path: Path) -> None:
    run(tmp_path)
    fingerprints = {
        seed: {cell.facts["data.fingerprint"] for cell in read_cells(str(tmp_path / "first")) if cell.seed == seed}
        for seed in (0, 1)
    }
    assert [len(found) for found in fingerprints.values()] == [1, 1]
    assert fingerprints[0] != fingerprints[1], "each seed has labels of its own"

    config = tiny_config()
    plan = make_plan(config, CompareConfig(policies=("dpl", "fixmatch", "supervised"), subsets=2))
    configs = {(cell.label, cell.seed): cell_config(config, cell, "runs") for cell in plan.cells}
    weights = {key: build_state(found, 3, 3, Workers()).student.state_dict() for key, found in configs.items()}
    feeds = {key: tiny_feed(found, tiny_splits()) for key, found in configs.items()}
    for seed in (0, 1):
        for label in ("dpl", "supervised"):
            for name, value in weights["fixmatch", seed].items():
                assert torch.equal(weights[label, seed][name], value)
        for step in (0, 3, 11):
            expected = feeds["fixmatch", seed](step)
            for mine, other in zip(feeds["dpl", seed].ids(step), feeds["fixmatch", seed].ids(step), strict=True):
                assert np.array_equal(mine, other)
            assert torch.equal(feeds["dpl", seed](step).uniforms_strong, expected.uniforms_strong)
            assert torch.equal(feeds["supervised", seed](step).images, expected.images)
    assert any(not torch.equal(weights["dpl", 0][name], weights["dpl", 1][name]) for name in weights["dpl", 0])


def test_the_data_are_read_once_a_seed_and_only_for_cells_that_are_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds: list[int] = []

    def reading(*arguments: Any, seed: int, **keywords: Any) -> Splits:
        seeds.append(seed)
        return load_splits(*arguments, seed=seed, **keywords)

    monkeypatch.setattr("dpl_ray.studies.comparison.job.load_splits", reading)
    run(tmp_path / "a")
    assert seeds == [0, 1]
    (tmp_path / "a" / "first" / "dpl-seed-1" / "cell.json").unlink()
    run(tmp_path / "a")
    assert seeds == [0, 1, 1]
    seeds.clear()
    two = TWO.model_copy(update={"subsets": 1, "repeats": 2})
    run(tmp_path / "b", "data.subset_seed=5", options=two)
    assert seeds == [5], "all repeats have the same labels"
    cells = read_cells(str(tmp_path / "b" / "first"))
    assert {(cell.subset, cell.seed) for cell in cells} == {(5, 0), (5, 1)}
    assert len({cell.facts["data.fingerprint"] for cell in cells}) == 1


# A cell by itself


def test_a_cell_runs_by_itself_and_is_not_run_twice(tmp_path: Path) -> None:
    config, splits = tiny_config(train={"num_steps": 4}), tiny_splits()
    cell = Cell("fixmatch", {"name": "fixmatch", "threshold": 0.5}, seed=3)
    steps: list[int] = []
    first = run_cell(config, cell, splits, str(tmp_path), lambda _, step: steps.append(step))
    assert (first.label, first.seed, first.steps, len(first.curve)) == ("fixmatch", 3, 4, 4)
    assert steps
    steps.clear()
    assert run_cell(config, cell, splits, str(tmp_path), lambda _, step: steps.append(step)) == first
    assert steps == []
    assert read_cells(str(tmp_path)) == [first]
    (row,) = write_comparison(str(tmp_path), "fixmatch")
    assert row.accuracy == first.metrics["eval/accuracy"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda config, splits: (tiny_config(train={"num_steps": 5}), splits), "train.num_steps=4, now it is 5"),
        (lambda config, splits: (config, tiny_splits(seed=1)), "other data"),
    ],
)
def test_a_cell_of_another_configuration_or_data_is_refused(
    tmp_path: Path, change: Callable[[Config, Splits], tuple[Config, Splits]], message: str
) -> None:
    config, splits = tiny_config(train={"num_steps": 4, "curve_every": 2}), tiny_splits()
    cell = Cell("supervised", {"name": "supervised"}, seed=0)
    run_cell(config, cell, splits, str(tmp_path))
    other, others = change(config, splits)
    other = other.model_copy(update={"train": other.train.model_copy(update={"curve_every": 2})})
    with pytest.raises(ValueError, match=message):
        run_cell(other, cell, others, str(tmp_path))


def test_nothing_finished_is_nothing_to_write(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no cell of this comparison has finished"):
        write_comparison(str(tmp_path), "fixmatch")


# What is shown and recorded


def test_the_progress_of_a_terminal_is_a_bar_with_cells_and_time_left() -> None:
    output = io.StringIO()
    cells = [Cell("dpl", {"name": "dpl"}, seed) for seed in (0, 1)]
    with CellsProgress(Console(file=output, force_terminal=True, width=120), cells, 100, num_finished=1) as progress:
        progress.show("dpl-seed-0", 50)
        progress.show("dpl-seed-1", 60)
        progress.finish(cells[0], None, "ValueError: [x] [/b] :cat:")
    plain = re.sub(r"\x1b\[[?\d;]*[a-zA-Z]", "", output.getvalue())
    assert "dpl with seed 0: failed: ValueError: [x] [/b] :cat:\n" in plain
    assert "160/200 steps  0:00:0" in plain
    assert "left  1 of 3 cells done, 1 running" in plain
    assert "━" in plain


def test_the_progress_of_a_log_file_has_no_control_characters(tmp_path: Path) -> None:
    _, output = run(tmp_path)
    assert "\x1b" not in output
    assert len(re.findall(r"seed \d: accuracy .* %, 6 steps in \d+ s\n", output)) == 4
    assert "24/24 steps  0:00:00 left  4 of 4 cells done, 0 running" in output


@pytest.mark.usefixtures("mlflow_store")
def test_mlflow_has_a_parent_with_a_child_for_every_cell_and_no_child_twice(tmp_path: Path) -> None:
    from mlflow import MlflowClient

    first, _ = run(tmp_path, "tracking.enabled=true")
    more, _ = run(tmp_path, "tracking.enabled=true", options=TWO.model_copy(update={"subsets": 3}))
    assert more.run_id == first.run_id
    client = MlflowClient(tracking_uri=first.tracking_uri)
    runs = client.search_runs([client.get_experiment_by_name("dpl_ray").experiment_id])
    parent = client.get_run(first.run_id)
    children = [found for found in runs if found.data.tags.get("mlflow.parentRunId") == first.run_id]
    assert len(runs) == 1 + len(children)
    assert sorted(child.info.run_name for child in children) == sorted({*NAMES, "dpl-seed-2", "fixmatch-seed-2"})
    assert (parent.info.status, parent.data.tags["policies"]) == ("FINISHED", "dpl, fixmatch")
    assert (parent.data.tags["subsets"], parent.data.params["compare.subsets"]) == ("0, 1, 2", "2")
    assert parent.data.params["train.num_steps"] == "6"
    files = {file.path for file in client.list_artifacts(first.run_id)}
    assert files == {"comparison.csv", "comparison.json", "comparison.md", "comparison.html", "figures"}
    assert (
        parent.data.tags["data.fingerprint"] == json.loads((tmp_path / "first" / "comparison.json").read_text())["data"]
    )
    by_cell = {cell.cell.name: cell for cell in read_cells(str(tmp_path / "first"))}
    for child in children:
        cell = by_cell[child.info.run_name]
        assert (child.info.status, child.data.tags["label"]) == ("FINISHED", cell.label)
        assert (child.data.params["policy.name"], child.data.params["train.seed"]) == (cell.label, str(cell.seed))
        assert child.data.metrics["eval/accuracy"] == cell.metrics["eval/accuracy"]
        files = {file.path for file in client.list_artifacts(child.info.run_id)}
        assert files == ({"thresholds.json"} if cell.label == "dpl" else set())
        curve = client.get_metric_history(child.info.run_id, "curve/accuracy")
        assert sorted((point.step, point.value) for point in curve) == [point[:2] for point in cell.curve]


@pytest.mark.usefixtures("mlflow_store")
def test_what_a_server_that_is_down_was_not_sent_goes_to_the_one_that_is_there_next_time(tmp_path: Path) -> None:
    one = CompareConfig(policies=("supervised",), subsets=1, reference="supervised")
    with pytest.warns(UserWarning, match=r"MLflow at http://127.0.0.1:9: .*sync-tracking run="):
        down, _ = run(tmp_path, "tracking.enabled=true", "tracking.uri=http://127.0.0.1:9", options=one)
    assert (down.run_id, down.failed) == (None, {})
    up, _ = run(tmp_path, "tracking.enabled=true", options=one)
    known = json.loads((tmp_path / "first" / "tracking.json").read_text())
    assert known["run_id"] == up.run_id
    assert set(known["children"]) == {"supervised-seed-0"}
    assert not list((tmp_path / "first").glob("tracking-*"))
