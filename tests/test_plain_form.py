"""The other forms of the training step: what they compute, that trainings have them, and the table of their rows."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import plain_form, study, study_table, tables
from benchmarks.plain_form import FIXED, FORMS, ONE_BATCH, OURS, plain_step
from dpl_ray.studies.comparison.cells import CellResult, read_cells, run_cell
from dpl_ray.training import loop
from dpl_ray.training.distributed import Workers
from dpl_ray.training.faults import NonFiniteLossError
from dpl_ray.training.fixed_shapes import FixedShapes
from dpl_ray.training.metrics import SUMS
from dpl_ray.training.state import TrainState, build_state
from dpl_ray.training.step import train_step
from tests.builders import tiny_config, tiny_feed, tiny_splits
from tests.training.test_step import CASES, everything

NUM_CLASSES = 3
SMALL = "model.width=1 train.num_steps=4 train.batch_size=2 train.log_every=2 train.curve_every=2"
SETTING = f"data=digits data.num_labels_per_class=2 {SMALL} train.curve_images=50"


def pair(policy: dict[str, Any], **groups: Any) -> tuple[Any, Any, TrainState, TrainState]:
    """Configuration, feed, and two states that are alike."""
    config, splits = tiny_config(policy=policy, **groups), tiny_splits(NUM_CLASSES)
    states = [build_state(config, 3, NUM_CLASSES, Workers(), pool_size=len(splits.unlabeled)) for _ in range(2)]
    if policy["name"] == "dpl":  # as after a while: a fresh policy takes every sample in
        for state in states:
            state.policy.states.copy_(torch.tensor([[0.55], [0.52]]).expand(2, NUM_CLASSES))
    return config, tiny_feed(config, splits), *states


@pytest.mark.parametrize("case", CASES)
def test_without_batch_statistics_the_plain_step_trains_the_weights_of_ours(case: str) -> None:
    train = {"lambda_u": 0.5, "lambda_u_ramp": 0.3, "ema_decay": 0.15}
    config, feed, ours, plain = pair(CASES[case], train=train, optim={"num_warmup_steps": 1, "learning_rate": 0.02})
    for step in range(3):
        expected = dict(zip(SUMS, train_step(ours, feed(step), config, Workers()).tolist(), strict=True))
        found = dict(zip(SUMS, plain_step(plain, feed(step), config, Workers()).tolist(), strict=True))
        assert found == pytest.approx(expected | {"strong_views": expected["unlabeled"]}, abs=1e-5)
    assert ours.step == plain.step == 3
    expected_state = everything(ours)
    for name, value in everything(plain).items():
        torch.testing.assert_close(value, expected_state[name], rtol=0, atol=1e-5, msg=name)


def test_with_batch_statistics_all_views_are_normalized_together() -> None:
    config, feed, ours, plain = pair({"name": "fixmatch"}, model={"normalization": "batch"})
    passes: dict[str, list[tuple[int, bool]]] = {"ours": [], "plain": []}
    for name, state in (("ours", ours), ("plain", plain)):
        state.student.register_forward_hook(
            lambda _module, given, outputs, name=name: passes[name].append((len(given[0]), outputs[1].requires_grad))
        )
    train_step(ours, feed(0), config, Workers())
    plain_step(plain, feed(0), config, Workers())
    assert passes == {"ours": [(12, False), (4, True)], "plain": [(4 + 12 + 12, True)]}, "none has a weight yet"
    assert (ours.student.classifier.weight != plain.student.classifier.weight).any()


def test_a_loss_that_is_not_finite_ends_the_plain_form_too() -> None:
    config, feed, _, plain = pair({"name": "fixmatch"})
    with torch.no_grad():
        plain.student.classifier.bias.fill_(torch.nan)
    with pytest.raises(NonFiniteLossError, match=r"^step 0: the losses are \[nan, "):
        plain_step(plain, feed(0), config, Workers())


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The CSV of a small setting, of which the study has one row; trainings run in this process, one after another."""
    monkeypatch.setattr(study, "SETTINGS", {"tiny": SETTING})
    monkeypatch.setattr(tables, "FOLDER", tmp_path)
    monkeypatch.setattr(study, "ProcessPoolExecutor", lambda *_, **__: ThreadPoolExecutor(1))
    monkeypatch.chdir(tmp_path)
    row = study_row("tiny", "fixmatch", "5", "0.5")
    (tmp_path / "study.csv").write_text(f"{','.join(row)}\n{','.join(row.values())}\n")
    return tmp_path / "plain_form.csv"


def run(*arguments: str, minutes: int = 60) -> int:
    given = ("--settings=tiny", "--policies=fixmatch", f"--minutes={minutes}", *arguments)
    return plain_form.main(given)


def rows(file: Path) -> list[tuple[str, ...]]:
    """What says which training a row is of."""
    return [tuple(row.values())[: plain_form.KEY] for row in csv.DictReader(file.open())]


def cell_of(form: str) -> CellResult:
    (cell,) = read_cells(f"runs/study/plain-form/{form.replace(' ', '-')}/tiny")
    return cell


def test_trainings_have_their_form(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adapted, adapt = [], FixedShapes.adapt

    def noted(self: FixedShapes) -> None:
        adapt(self)
        adapted.append(self.capacity)

    monkeypatch.setattr(FixedShapes, "adapt", noted)
    assert run("--subsets=5", "--train-ours") == 0
    assert adapted == [4, 4], "a quarter of the views, at both records of one form, as none has a weight yet"
    shares = {form: cell_of(form).metrics["pseudo/strong_view_share"] for form in FORMS}
    assert shares == {OURS: 0, ONE_BATCH: 1, FIXED: 0}
    assert (loop.train_step, loop.build_state) == (train_step, build_state), "as before"


def test_what_is_missing_is_trained_and_kept(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--subsets=5", minutes=0) == 0
    assert "2 trainings are missing still" in capsys.readouterr().out
    assert not results.exists()
    assert run("--subsets=5") == 0
    others = [("tiny", form, "fixmatch", "5", "5") for form in (ONE_BATCH, FIXED)]
    assert rows(results) == others, "our form is the study's"
    (row, _), found = csv.DictReader(results.open()), cell_of(ONE_BATCH)
    assert (row["accuracy"], row["steps"]) == (f"{found.metrics['eval/accuracy']:.4f}", "4")
    assert "tiny  fixed shapes  fixmatch-seed-5  " in capsys.readouterr().out
    written = results.read_bytes()
    assert run("--subsets=5") == 0
    assert "0 trainings are missing; " in capsys.readouterr().out
    assert results.read_bytes() == written
    assert run("--subsets=5", "--train-ours") == 0
    assert rows(results) == [*others, ("tiny", OURS, "fixmatch", "5", "5")]
    results.unlink()
    assert run("--subsets=5", minutes=0) == 0
    assert rows(results) == others, "of cells that have ended"


def test_every_form_stops_with_a_checkpoint_and_goes_on_from_it(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*arguments: Any, stop: Any) -> CellResult:
        stop.set()  # as the timer does
        return run_cell(*arguments, stop=stop)

    with monkeypatch.context() as patch:
        patch.setattr(study, "run_cell", stopped)
        assert run("--subsets=6") == 0
    assert not results.exists()
    cells = sorted(Path("runs/study/plain-form").glob("*/tiny/fixmatch-seed-6"))
    assert [path.name for cell in cells for path in cell.glob("step-*")] == ["step-00000001"] * len(FORMS)
    assert run("--subsets=6") == 0
    assert rows(results) == [("tiny", form, "fixmatch", "6", "6") for form in FORMS]


def test_a_training_of_before_with_other_settings_is_refused(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("--subsets=5") == 0
    monkeypatch.setitem(study.SETTINGS, "tiny", f"{SETTING} train.lambda_u_half=3")
    with pytest.raises(ValueError, match=r"fixmatch-seed-5 has train.lambda_u_half=None, not 3.0$"):
        run("--subsets=5-6")


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--gpu", "--gpu: a GPU has fixed shapes in every form"),
        ("--settings=digits-2-bfloat16", "--settings=digits-2-bfloat16: one batch has one precision"),
    ],
)
def test_what_would_differ_in_more_than_the_form_is_refused(option: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        plain_form.main(["--minutes=0", option])


def study_row(setting: str, policy: str, subset: str, accuracy: str) -> dict[str, str]:
    row = dict.fromkeys(study.COLUMNS, "") | {"steps": "100", "training_seconds": "1"}
    return row | {"setting": setting, "policy": policy, "subset": subset, "seed": subset, "accuracy": accuracy}


def form_row(form: str, policy: str, subset: str, accuracy: str) -> dict[str, str]:
    return study_row("a", policy, subset, accuracy) | {"form": form}


def shown(beside: Sequence[dict[str, str]], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The rows of the table."""
    subsets = ("0", "5", "6", "7")
    of_study = [study_row("a", policy, subset, "0.8") for policy in ("dpl", "fixmatch") for subset in subsets]
    files = {"study": of_study, "plain_form": beside}
    monkeypatch.setattr(study_table, "read", files.__getitem__)
    return study_table.plain_form().splitlines()[2:]


def test_forms_are_compared_on_the_reported_subsets_that_all_have(monkeypatch: pytest.MonkeyPatch) -> None:
    beside = [form_row(ONE_BATCH, "fixmatch", "5", "0.6"), form_row(ONE_BATCH, "fixmatch", "0", "0.1")]
    assert shown(beside, monkeypatch) == ["| a | fixmatch | 1 | 80.0 | 60.0 | - | +20.0 | - |"]
    beside += [form_row(FIXED, "fixmatch", subset, "0.7") for subset in ("5", "6")]
    assert shown(beside, monkeypatch) == ["| a | fixmatch | 1 | 80.0 | 60.0 | 70.0 | +20.0 | -10.0 |"]
    beside += [form_row(OURS, "fixmatch", "5", "0.9"), form_row(FIXED, "dpl", "6", "0.8")]
    assert shown(beside, monkeypatch) == [
        "| a | dpl | 1 | 80.0 | - | 80.0 | - | +0.0 |",
        "| a | fixmatch | 1 | 90.0 | 60.0 | 70.0 | +30.0 | -20.0 |",
    ], "our form that was trained beside the others counts more than the study's"


def test_differences_of_several_subsets_have_an_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = {"5": "0.7", "6": "0.71", "7": "0.72"}
    beside = [form_row(ONE_BATCH, "dpl", subset, accuracy) for subset, accuracy in numbers.items()]
    (row,) = shown(beside, monkeypatch)
    low, high = (float(part) for part in row.split("[")[1].split("]")[0].split(","))
    assert row.startswith("| a | dpl | 3 | 80.0 | 71.0 | - | +9.0 [")
    assert low < 9 < high


def test_without_rows_there_is_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shown([], monkeypatch) == []
    assert shown([form_row(ONE_BATCH, "adamatch", "5", "0.6")], monkeypatch) == [], "nothing to compare it to"
    with (Path(tables.__file__).parent.parent / "docs" / "results" / "plain_form.csv").open() as file:
        assert tuple(next(csv.reader(file))) == plain_form.COLUMNS
