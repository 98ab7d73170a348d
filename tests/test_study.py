"""The study's driver: it trains what is missing, stops when the time is over, goes on, and keeps the rows it has."""

from __future__ import annotations

import csv
import stat
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from benchmarks import ceiling, study, tables
from dpl_ray.studies.comparison.cells import CellResult, run_cell

ROOT = Path(__file__).parent.parent
SMALL = "model.width=1 train.num_steps=4 train.batch_size=2 train.curve_every=2 train.curve_images=50"
SETTINGS = {
    name: f"data=digits data.num_labels_per_class=2 {SMALL} {pool}"
    for name, pool in (("tiny", ""), ("tiny-open60", "data.pool.foreign=0.6"))
}


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The CSV of a study of two small settings, whose trainings run in this process, one after another."""
    monkeypatch.setattr(study, "SETTINGS", SETTINGS)
    monkeypatch.setattr(tables, "FOLDER", tmp_path)
    monkeypatch.setattr(study, "ProcessPoolExecutor", lambda *_, **__: ThreadPoolExecutor(1))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "study.csv"


def rows(file: Path) -> list[tuple[str, ...]]:
    """What says which training a row is of."""
    return [tuple(row.values())[: study.KEY] for row in csv.DictReader(file.open())]


def run(*arguments: str, minutes: int = 60) -> int:
    return study.main([f"--minutes={minutes}", "--policies=supervised,fixmatch", *arguments])


def test_what_is_missing_is_trained_and_rows_of_other_trainings_stay(
    results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results.write_text(",".join(study.COLUMNS) + "\nother,dpl,0,0" + "," * (len(study.COLUMNS) - study.KEY) + "\n")
    assert run("--subsets=5", "--settings=tiny") == 0
    assert "2 trainings are missing; " in capsys.readouterr().out
    assert run("--subsets=5-6") == 0
    printed = capsys.readouterr().out
    assert "6 trainings are missing; " in printed
    assert "0 trainings are missing still" in printed
    assert "| supervised | 2 x 1 |" in printed
    assert rows(results) == [("other", "dpl", "0", "0")] + [
        (setting, policy, seed, seed) for setting in SETTINGS for policy in ("fixmatch", "supervised") for seed in "56"
    ]
    written = results.read_bytes()
    assert run("--subsets=5-6", minutes=0) == 0
    assert "0 trainings are missing; " in capsys.readouterr().out
    assert results.read_bytes() == written


def test_it_stops_with_a_checkpoint_and_goes_on_from_it(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ("--subsets=0", "--settings=tiny")

    def stopped(*arguments: Any, stop: Any) -> CellResult:
        stop.set()  # as the timer does
        return run_cell(*arguments, stop=stop)

    with monkeypatch.context() as patch:
        patch.setattr(study, "run_cell", stopped)
        assert run(*options) == 0
    assert rows(results) == []
    cells = [results.parent / "runs/study/tiny" / f"{policy}-seed-0" for policy in ("supervised", "fixmatch")]
    assert [(cell / "step-00000001").is_dir() for cell in cells] == [True, True]
    run(*options, minutes=0)
    assert not any((cell / "step-00000002").exists() for cell in cells), "no time is left"
    assert run(*options) == 0
    assert len(rows(results)) == 2


def test_a_training_that_fails_does_not_stop_the_others(
    results: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def failing(config: Any, cell: Any, *rest: Any, **keywords: Any) -> CellResult:
        if cell.label == "supervised":
            raise RuntimeError("no memory")
        return run_cell(config, cell, *rest, **keywords)

    monkeypatch.setattr(study, "run_cell", failing)
    assert run("--subsets=0", "--settings=tiny") == 1
    assert "tiny  supervised-seed-0  failed: RuntimeError: no memory" in capsys.readouterr().out
    assert rows(results) == [("tiny", "fixmatch", "0", "0")]


def test_all_settings_and_policies_are_known_and_subsets_come_before_repeats(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(study, "settle_model", lambda config: config)  # features are not there
    assert len(study.BASES) * len(study.POOLS) == 56
    others = [name for name in study.SETTINGS if name.endswith((study.WEAK_BFLOAT16, study.CONSTANT))]
    assert len(study.SETTINGS) - len(others) == 56
    given = study.make_parser(None).parse_args(["--subsets=5-9", "--repeats=2", f"--folder={tmp_path}"])
    for name in [*study.BASES, *others, *(f"digits-4{pool}" for pool in study.POOLS)]:
        config, found = study.plan(name, study.POLICIES, given)
        assert config.data.num_labels_per_class in (2, 4, 25)
        assert config.scale.threads_per_worker == 1
        falls = name.startswith("frozen") and not name.endswith(study.CONSTANT)
        assert config.train.lambda_u_half == (200 if falls else None)
        assert config.train.weak_precision == ("bfloat16" if name.endswith(study.WEAK_BFLOAT16) else None)
        turns = sorted({study._turn(study.Job(name, config, cell, "runs")) for cell in found.cells})
        assert turns == [(repeat, subset) for repeat in (0, 1000) for subset in range(5, 10)]


def test_settings_that_vary_the_training_have_to_be_named() -> None:
    def names(settings: str) -> list[str]:
        return study.names_of(study.make_parser(None).parse_args([f"--settings={settings}", "--cifar10=somewhere"]))

    assert len(names("*")) == 56
    assert names("frozen-4,frozen-4-constant") == ["frozen-4", "frozen-4-constant"]
    assert names("digits-*-bfloat16") == ["digits-2-bfloat16", "digits-4-bfloat16"]


def test_a_training_of_before_with_other_settings_is_refused(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("--subsets=5", "--settings=tiny") == 0
    monkeypatch.setitem(study.SETTINGS, "tiny", f"{SETTINGS['tiny']} train.lambda_u_half=3")
    with pytest.raises(
        ValueError, match=r"^--folder=runs/study: tiny/.*-seed-5 has train.lambda_u_half=None, not 3.0$"
    ):
        run("--subsets=5-6", "--settings=tiny")
    assert len(rows(results)) == 2


def test_settings_whose_files_are_not_named_are_left_out(
    results: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(study, "SETTINGS", {"tiny": SETTINGS["tiny"], "cifar": study.CIFAR, "frozen": study.FEATURES})
    assert run("--subsets=0", minutes=0) == 0
    printed = capsys.readouterr().out
    assert "left out, as --cifar10 names no folder of parquet files: cifar, frozen" in printed
    assert "2 trainings are missing; " in printed


def test_an_unknown_setting_is_answered_with_those_there_are(results: Path) -> None:
    with pytest.raises(ValueError, match="--settings=digit: there is no such setting; known: tiny, tiny-open60"):
        run("--settings=digit")


def test_the_script_ends_what_does_not_end_by_itself(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "$@"\nexec tail -f /dev/null\n')
    python.chmod(stat.S_IRWXU)
    command = [ROOT / "benchmarks" / "study.sh", "0.002", "--subsets", "5-9"]
    done = subprocess.run(command, env={"PYTHON": str(python), "PATH": "/bin:/usr/bin"}, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (124, "-m benchmarks.study --minutes 0.002 --subsets 5-9\n")


def test_the_ceiling_trains_with_the_true_labels_of_the_whole_pool(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    monkeypatch.setattr(ceiling, "run_cell", lambda *given: found.append(run_cell(*given)) or found[-1])
    ceiling.main(["--settings=tiny", "--subsets=5"])
    (result,) = found
    row = {"setting": "tiny", "subset": "5", "accuracy": f"{result.metrics['eval/accuracy']:.4f}"}
    assert [entry | row for entry in tables.read("ceiling")] == tables.read("ceiling")
    assert (result.label, result.metrics["pseudo/precision"], result.metrics["pseudo/coverage"]) == (
        "true-labels",
        1,
        1,
    )
    with pytest.raises(ValueError, match="each image of it has to have a known class"):
        ceiling.main(["--settings=tiny-open60", "--subsets=5"])
