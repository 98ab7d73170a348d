"""The script for a GPU: the time of a call, its rows and tables, and its phases, which run on a CPU at tiny sizes."""

from __future__ import annotations

import argparse
import csv
import io
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from benchmarks import gpu, gpu_report, tables
from benchmarks.figures import Figure, Measurement
from benchmarks.gpu_rows import FILE, Rows, read_rows
from dpl_ray.config.schema import TrainConfig
from dpl_ray.training import fixed_shapes
from dpl_ray.training.determinism import WORKSPACE

TINY = (
    *("--depth", "10", "--width", "1", "--size", "8", "--batch-size", "2", "--mu", "1", "--steps", "1"),
    *("--pool", "20", "--copy-numbers", "64", "--matrix", "8"),
)


class Clock:
    """Of seconds that pass where a phase says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[dict[str, float], float]]:
    """Runs a call whose phases take so many seconds, or as many as they may: the limit of each, and what all took."""
    clock = Clock()
    monkeypatch.setattr(gpu, "clock", clock)
    monkeypatch.setattr(gpu, "beside", lambda given, phase: phase)

    def finish(process: str, seconds: float) -> None:
        clock.now += max(seconds, 0)

    monkeypatch.setattr(gpu, "finish", finish)

    def run(*arguments: str, seconds: float = np.inf) -> tuple[dict[str, float], float]:
        limits: dict[str, float] = {}

        def run_phase(given: argparse.Namespace, phase: str, limit: float) -> None:
            limits[phase] = limit
            clock.now += min(seconds, limit)

        monkeypatch.setattr(gpu, "run_phase", run_phase)
        began = clock.now
        gpu.main([str(tmp_path), *arguments])
        return limits, clock.now - began

    return run


def test_a_call_ends_in_time_whatever_its_phases_take(call: Any, tmp_path: Path) -> None:
    limits, took = call("--images", "cifar10", "--beside", "tests")
    assert list(limits) == [*gpu.PHASES, gpu.ACCURACY]
    assert {phase: limits[phase] for phase in gpu.PHASES} == gpu.PHASES
    assert limits[gpu.ACCURACY] == gpu.CALL_SECONDS - gpu.END_SECONDS - sum(gpu.PHASES.values()) - gpu.WARM_SECONDS
    assert took == gpu.CALL_SECONDS - gpu.END_SECONDS < gpu.CALL_SECONDS == 9 * 60
    assert (tmp_path / "table.md").exists()


def test_the_accuracy_run_has_what_is_left_or_less_if_asked(call: Any) -> None:
    assert call("--images", "cifar10", "--phases", "accuracy")[0] == {"accuracy": gpu.CALL_SECONDS - gpu.END_SECONDS}
    assert call("--images", "cifar10", "--phases", "accuracy", "--minutes", "2")[0] == {"accuracy": 150}
    limits, took = call("--images", "cifar10", seconds=10)
    assert limits[gpu.ACCURACY] == gpu.CALL_SECONDS - gpu.END_SECONDS - 10 * len(gpu.PHASES) - gpu.WARM_SECONDS
    assert took < gpu.CALL_SECONDS


def test_a_phase_for_which_no_time_is_left_is_skipped_and_the_table_says_so(
    call: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "PHASES", {"machine": 300, "tests": 300, "step": 300, "feed": 300})
    limits, took = call("--images", "cifar10")
    assert limits == {"machine": 300, "tests": 230}
    assert took == gpu.CALL_SECONDS - gpu.END_SECONDS
    skipped = [row["phase"] for row in read_rows(tmp_path) if row["name"] == "skipped"]
    assert skipped == ["step", "feed", "accuracy"]
    assert "| feed | skipped | no time is left of the call |" in (tmp_path / "table.md").read_text()


def test_less_than_a_phase_needs_to_begin_is_nothing() -> None:
    assert gpu.limit_of("feed", gpu.LEAST_SECONDS, 9) == gpu.LEAST_SECONDS
    assert gpu.limit_of("feed", gpu.LEAST_SECONDS - 1, 9) == 0
    assert gpu.limit_of(gpu.ACCURACY, gpu.LEAST_SECONDS + gpu.EVALUATION_SECONDS - 1, 9) == 0
    assert gpu.limit_of("feed", -5, 9) == 0


def test_a_phase_at_its_limit_is_killed_with_what_it_has_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its child holds the output open, for which the script would wait."""
    program = "import subprocess; print('feed: begun', flush=True); subprocess.run(['sleep', '600'])"
    monkeypatch.setattr(gpu, "command", lambda *_: [sys.executable, "-c", program])
    given = gpu.parse([str(tmp_path)])
    gpu.run_phase(given, "feed", 0.5)
    assert [(row["phase"], row["name"]) for row in read_rows(tmp_path)] == [("feed", "killed")]


def test_the_accuracy_process_is_told_the_minutes_that_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "command", lambda *_: [sys.executable, "-c", "import sys; print(sys.argv[1:])"])
    given = gpu.parse([str(tmp_path), "--images", "cifar10"])
    gpu.run_phase(given, gpu.ACCURACY, 150.0)
    assert (tmp_path / "log.txt").read_text() == "['--minutes', '2.000']\n"
    assert gpu.parse([str(tmp_path), "--minutes", "5", "--only", "accuracy", "--minutes", "2.000"]).minutes == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--phases", "step,fed"], "fed: known are machine, tests, step"),
        (["--beside", "test"], "test: known are machine"),
        (["--phases", "accuracy"], "accuracy needs --images"),
    ],
)
def test_an_unknown_phase_is_answered_with_the_known_ones(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        gpu.main([str(tmp_path / "folder"), *arguments])
    assert message in capsys.readouterr().err
    assert not (tmp_path / "folder").exists()


def measured(folder: Path, phase: str, *more: str) -> dict[str, list[dict[str, Any]]]:
    """The rows of a phase at tiny sizes, by name."""
    gpu.main([str(folder), *TINY, *more, "--only", phase])
    found: dict[str, list[dict[str, Any]]] = {}
    for row in read_rows(folder):
        assert row["phase"] == phase
        found.setdefault(row["name"], []).append(row)
    return found


def test_a_call_on_a_cpu_measures_the_machine(tmp_path: Path) -> None:
    gpu.main([str(tmp_path), *TINY, "--phases", "machine"])
    rows = {row["name"]: row for row in read_rows(tmp_path)}
    assert list(rows) == ["commit", "device", "versions", "copy", "matrix product"]
    assert rows["copy"]["value"] > 0
    assert f"torch {torch.__version__}; commit {rows['commit']['text']}" in (tmp_path / "table.md").read_text()
    assert "machine: copy: " in (tmp_path / "log.txt").read_text()


@pytest.mark.parametrize("phase", ["step", "step-compiled"])
def test_the_times_of_a_step_are_measured_at_each_coverage(phase: str, tmp_path: Path) -> None:
    rows = measured(tmp_path, phase)
    for name in ("one by one", "graph"):
        found = rows[f"compiled, {name}" if "compiled" in phase else name]
        assert [row["coverage"] for row in found] == [1, 0.7]
        assert all(0 < row["low"] <= row["value"] <= row["high"] for row in found)
    assert ("host waits for shapes" in rows) == (phase == "step")


def test_the_deterministic_step_and_the_wait_for_data_are_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(WORKSPACE, "")  # so that it is put back
    assert measured(tmp_path / "step", "step-deterministic")["deterministic, graph"][0]["coverage"] == 1
    assert measured(tmp_path / "feed", "feed")["data wait"][0]["unit"] == "%"
    measured(tmp_path / "warm", "warm")


def test_kernels_are_measured_by_part_of_the_step(tmp_path: Path) -> None:
    rows = measured(tmp_path, "kernels")
    assert {"weak view", "strong view", "optimizer and EMA"} <= {row["part"] for row in rows["part"]}
    assert [row["value"] for row in rows["number of kernels"]] == [0], "none on a CPU"


def test_the_tests_for_a_gpu_are_run_and_the_first_failure_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = lambda *_, **__: subprocess.CompletedProcess([], 1, ".F\nFAILED a::b\nFAILED a::c\n", "")  # noqa: E731
    monkeypatch.setattr(subprocess, "run", run)
    (row,) = measured(tmp_path, "tests")["pytest"]
    assert (row["text"], row["status"]) == ("FAILED a::b", 1)


def png(random: np.random.Generator) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(buffer, "png")
    return buffer.getvalue()


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder, random = tmp_path / "cifar10", np.random.default_rng(0)
    folder.mkdir()
    for part, number in (("train", 300), ("test", 20)):
        columns = {"img": [png(random) for _ in range(number)], "label": [index % 10 for index in range(number)]}
        pq.write_table(pa.table(columns), folder / f"{part}-00000.parquet")
    return folder


def test_the_accuracy_is_measured_and_kept_as_rows_table_and_curve(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(fixed_shapes, "NUM_SIZES", 4)  # so that it is put back
    folder = tmp_path / "found"
    rows = measured(folder, "accuracy", "--images", str(images), "--num-steps", "4")
    assert [row["step"] for row in rows["curve"]] == [1, 2, 3, 4]
    (end,) = rows["test accuracy"]
    assert (end["policy"], end["seed"], end["steps"]) == ("freematch", 0, 4)
    assert end["value"] == pytest.approx(100 * rows["eval/accuracy"][0]["value"])
    Rows(folder, "machine").add("device", text="CPU", cores=2)
    Rows(folder, "call").add("commit", text="abc1234")

    monkeypatch.setattr(tables, "FOLDER", tmp_path)
    kept: list[Measurement] = []
    monkeypatch.setattr(Measurement, "save", lambda self, name: kept.append(self))
    monkeypatch.setattr("benchmarks.figures.git_commit", lambda: "def1234")
    for _ in range(2):  # the second time in place of the first
        gpu_report.main([str(folder), "--save"])
    (row,) = kept[0].figures
    assert row == "CIFAR-10, 25 labels a class, freematch, seed 0"
    assert kept[0].figures[row]["half way"].value == pytest.approx(rows["curve"][1]["value"])
    assert (kept[0].commit, kept[0].hardware) == ("abc1234", "CPU, 2 cores")
    saved = tables.read("gpu_accuracy")
    assert [line["step"] for line in saved] == ["1", "2", "3", "4"]
    assert {(line["policy"], line["seed"], line["gpu"]) for line in saved} == {("freematch", "0", "CPU")}
    assert tables.gpu_accuracy(saved).count("| freematch | 0 |") == 4


def test_calls_that_go_on_with_the_next_seed_are_one_table(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fixed_shapes, "NUM_SIZES", 4)
    monkeypatch.setattr(tables, "FOLDER", tmp_path)
    both = []
    for seed in ("1", "2"):
        folder = tmp_path / seed
        rows = measured(folder, "accuracy", "--images", str(images), "--num-steps", "2", "--first-seed", seed)
        assert {row["seed"] for name in ("curve", "test accuracy", "steps") for row in rows[name]} == {int(seed)}
        assert len(rows["minutes before training"]) == 1
        Rows(folder, "call").add("commit", text="abc1234")
        both += read_rows(folder)
    assert list(gpu_report.table(both)) == [f"CIFAR-10, 25 labels a class, freematch, seed {seed}" for seed in (1, 2)]
    gpu_report.save_curves(both)
    assert [(line["seed"], line["step"]) for line in tables.read("gpu_accuracy")] == [
        ("1", "1"), ("1", "2"), ("2", "1"), ("2", "2")
    ]  # fmt: skip


def test_an_accuracy_run_without_time_for_a_step_trains_none(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fixed_shapes, "NUM_SIZES", 4)
    rows = measured(tmp_path / "found", "accuracy", "--images", str(images), "--minutes", "0")
    assert "of 0 minutes no time is left" in rows["skipped"][0]["text"]
    assert "test accuracy" not in rows


def test_rows_of_several_processes_are_one_csv_and_a_column_that_is_unknown_is_refused(tmp_path: Path) -> None:
    Rows(tmp_path, "machine").add("copy", 2.5, "GB/s", low=2, high=3)
    rows = Rows(tmp_path, "tests")
    rows.add("pytest", text='FAILED a, "b"\nc', status=1)
    with pytest.raises(ValueError, match="colour"):
        rows.add("x", 1, colour="red")
    with (tmp_path / FILE).open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 2
    assert read_rows(tmp_path) == [
        {"phase": "machine", "name": "copy", "value": 2.5, "unit": "GB/s", "low": 2.0, "high": 3.0},
        {"phase": "tests", "name": "pytest", "text": 'FAILED a, "b"\nc', "status": 1.0},
    ]


def test_the_table_has_steps_parts_and_kernels_and_later_rows_replace_earlier_ones(tmp_path: Path) -> None:
    Rows(tmp_path, "call").add("commit", text="abc1234")
    plain, compiled = Rows(tmp_path, "kernels"), Rows(tmp_path, "kernels-compiled")
    for value in (30.0, 20.0):
        Rows(tmp_path, "step").add("graph", value, "ms", coverage=1.0)
        Rows(tmp_path, "step-compiled").add("compiled, graph", value / 4, "ms", coverage=1.0)
        plain.add("part", value / 2, "ms", part="strong view")
        plain.add("all kernels", value, "ms")
        plain.add("number of kernels", 40)
        plain.add("kernel", value / 3, "ms", kernel=f"a<{value:g}>|b", calls=2)
    compiled.add("part", 1.5, "ms", part="strong view")
    text = gpu_report.page(read_rows(tmp_path))
    lines = text.splitlines()
    assert "| fixed shapes, one CUDA graph | 20.0 ms; bound: at most 10, **missed** |" in lines
    assert "| compiled, one CUDA graph | 5.00 ms; bound: at most 10 |" in lines
    assert "| strong view | 10.0 | 1.50 |" in lines
    assert "| all | 20.0 | 40.0 |" in lines
    assert r"| a\<20>\|b | 6.67 | 2.00 |" in lines
    assert "30>" not in text


def test_rows_of_no_commit_are_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Rows(tmp_path, "call").add("commit", text="unknown")
    monkeypatch.setattr("benchmarks.figures.git_commit", lambda: "def1234")
    with pytest.raises(SystemExit):
        gpu_report.main([str(tmp_path), "--save"])
    assert "the rows are of commit unknown: say with --commit" in capsys.readouterr().err


def test_the_curve_that_is_kept_is_that_of_the_training_in_the_table() -> None:
    """Its half is the column of that name."""
    figures = Measurement.load("gpu").figures
    named = "CIFAR-10, 25 labels a class, {policy}, seed {seed}"
    rows = tables.read("gpu_accuracy")
    runs = {named.format(**row) for row in rows}
    assert runs == {run for run, cells in figures.items() if "half way" in cells}
    assert len(runs) > 0
    for run in runs:
        curve = {int(row["step"]): float(row["accuracy"]) for row in rows if named.format(**row) == run}
        assert max(curve) == figures[run]["steps"].value
        half = max(step for step in curve if step <= figures[run]["steps"].value / 2)
        assert 100 * curve[half] == pytest.approx(figures[run]["half way"].value)


def test_the_table_of_the_documents_has_the_bound_of_a_step_for_both_graphs() -> None:
    """As the command gives it, by default and compiled."""
    rows = [{"name": name, "value": 1.0, "coverage": coverage} for name in gpu_report.STEPS for coverage in (1.0, 0.7)]
    expected = gpu_report.table(rows)
    figures = Measurement.load("gpu").figures
    bounded = [row for row in expected if figures.get(row, {}).get("coverage 1", Figure(0)).at_most]
    assert bounded == [gpu_report.STEPS[name] for name in gpu_report.BOUNDED]
    for row in set(figures) & set(expected):
        for column, cell in figures[row].items():
            assert cell.at_most == expected[row][column].at_most, (row, column)


def test_what_deterministic_algorithms_cost_is_said_where_it_was_measured() -> None:
    is_measured = gpu_report.STEPS["deterministic, graph"] in Measurement.load("gpu").figures
    description = TrainConfig.model_fields["deterministic"].description
    assert description is not None
    assert is_measured or not re.search("slow|fast|cost", description)
