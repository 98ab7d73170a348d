"""Whole loops of self-training in this process, killed and going on, and every reason to stop."""

from __future__ import annotations

import csv
import io
import json
import signal
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.dataset as ds
import pytest
import yaml
from rich.console import Console

import dpl_ray.studies.self_training.job
from dpl_ray import SelfTrainConfig, SelfTrainResult, load_checkpoint, self_train
from dpl_ray.checking.settings import check_pool_use
from dpl_ray.commands import cli
from dpl_ray.commands import self_train as command
from dpl_ray.config.compose import load_config
from dpl_ray.data.splits.split import EmptyPoolError
from dpl_ray.store.records import read_tree, write_json
from dpl_ray.store.storage import Storage
from dpl_ray.studies.self_training.config import load_self_training, self_training_name
from dpl_ray.studies.self_training.folder import Round, stop_reason
from tests.builders import tiny_config, tiny_splits
from tests.labeling.outputs import write_digits
from tests.mistakes import images, plain, write
from tests.processes import Command, hold_after

POOL_SIZE, NUM_LABELED = 130, 60


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("digits")
    write_digits(folder / "train.parquet", 0, NUM_LABELED)
    write_digits(folder / "pool" / "a.parquet", 100, 200)
    write_digits(folder / "pool" / "b.parquet", 200, 100 + POOL_SIZE)
    write_digits(folder / "test.parquet", 300, 360)
    return folder


def arguments(data: Path, storage: Path, *more: str) -> list[str]:
    return [
        "data=parquet", f"data.train={data}/train.parquet", f"data.unlabeled={data}/pool",
        f"data.test={data}/test.parquet", "data.image_size=8", "data.channels=1", "data.views.horizontal_flip=false",
        "model.depth=10", "model.width=1", "model.normalization=group", "train.num_steps=6", "train.batch_size=4",
        "train.mu=2", "train.log_every=2", "train.checkpoint_every=3", "scale.num_workers=0", "tracking.enabled=false",
        f"run.storage_path={storage}", "run.name=loop", *more,
    ]  # fmt: skip


def run(data: Path, storage: Path, *more: str) -> tuple[SelfTrainResult, str]:
    """A loop of tiny trainings, with no bound on the change unless one is given, and what it prints."""
    output = io.StringIO()
    own = () if any(text.startswith("min_change=") for text in more) else ("min_change=0",)
    own += ("force=true",)  # they are no better than guessing
    config, options = load_self_training([*arguments(data, storage), *own, *more])
    return self_train(config, options, console=Console(file=output, width=140)), output.getvalue()


@pytest.fixture(scope="module")
def one_round(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SelfTrainResult]:
    """The storage of a loop of one round, for tests that leave it as it is, and its result."""
    storage = tmp_path_factory.mktemp("one-round")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dpl_ray.page.plots._render", lambda *_, **__: b"not rendered")
        return storage, run(data, storage, "rounds=1")[0]


def table(labels: str) -> dict[str, tuple[int, bool]]:
    rows = ds.dataset(labels).to_table(["sample_id", "pseudo_label", "selected"]).to_pylist()
    assert len(rows) == POOL_SIZE
    return {row["sample_id"]: (row["pseudo_label"], row["selected"]) for row in rows}


def true_labels(data: Path) -> dict[str, int]:
    found = {}
    for name in ("a", "b"):
        path = data / "pool" / f"{name}.parquet"
        labels = ds.dataset(path).to_table(["label"]).column(0).to_pylist()
        found |= {f"{path}:{row}": label for row, label in enumerate(labels)}
    return found


def forbid(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    for name in names:
        monkeypatch.setattr(
            dpl_ray.studies.self_training.job, name, lambda *_, **__: pytest.fail("there is nothing to do")
        )


@pytest.mark.rendered
def test_a_whole_loop(data: Path, tmp_path: Path) -> None:
    result, output = run(data, tmp_path, "rounds=2", "data.labels_per_class=3")
    assert [each.number for each in result.rounds] == [0, 1, 2]
    assert result.stopped == "rounds=2 is reached"
    assert result.checkpoint == str(tmp_path / "loop" / "round-2" / "training" / "step-00000006")
    tables, true = [table(each.labels) for each in result.rounds], true_labels(data)
    for each, labels, before in zip(result.rounds, tables, [None, *tables], strict=False):
        selected = [sample_id for sample_id, (_, chosen) in labels.items() if chosen]
        assert (each.num_samples, each.num_unreadable, each.num_selected) == (POOL_SIZE, 0, len(selected))
        metrics = each.metrics
        assert metrics["round/selected_share"] == len(selected) / POOL_SIZE
        right = [labels[sample_id][0] == true[sample_id] for sample_id in labels]
        assert metrics["round/pool_accuracy"] == pytest.approx(sum(right) / POOL_SIZE)
        assert metrics["round/precision"] == pytest.approx(
            sum(labels[sample_id][0] == true[sample_id] for sample_id in selected) / len(selected)
        )
        assert 0 <= metrics["round/accuracy"] <= 1
        if before is None:
            assert each.num_pseudo_labeled == 0
            assert each.changed_share is None
        else:
            changed = sum(labels[sample_id][0] != before[sample_id][0] for sample_id in labels)
            assert each.changed_share == pytest.approx(changed / POOL_SIZE)
            by_class = [sum(chosen and label == k for label, chosen in before.values()) for k in range(10)]
            assert each.num_pseudo_labeled == sum(min(3, number) for number in by_class) > 0
    folder = tmp_path / "loop"
    rows = list(csv.DictReader((folder / "self_train.csv").read_text().splitlines()))
    assert [float(row["round/accuracy"]) for row in rows] == [each.metrics["round/accuracy"] for each in result.rounds]
    assert rows[0]["round/changed_share"] == ""
    assert Path(result.figure).read_bytes().startswith(b"\x89PNG")
    assert json.loads((folder / "self_train.json").read_text())["rounds"] == [asdict(each) for each in result.rounds]
    for expected in ("round 2 of 2", "60 labelled + ", "Rounds of self-training", "stopped: rounds=2"):
        assert expected in output
    configs = [yaml.safe_load((folder / f"round-{n}" / "training" / "config.yaml").read_text()) for n in range(3)]
    assert [config["train"]["baseline"] for config in configs] == [True, False, False], "the labels alone, once"
    assert [config["data"]["labels"] for config in configs] == [None, *(each.labels for each in result.rounds[:2])]
    assert len({config["train"]["seed"] for config in configs}) == 1


def test_a_finished_loop_does_nothing_and_more_rounds_go_on(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _ = run(data, tmp_path, "rounds=1")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "loop").rglob("*") if path.is_file()}
    with monkeypatch.context() as patched:
        forbid(patched, "fit", "label_pool", "run_study")
        again, output = run(data, tmp_path, "rounds=1")
    assert again == first
    assert "loop had finished: rounds=1 is reached; another run.name starts anew" in output
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "loop").rglob("*") if path.is_file()} == before
    more, output = run(data, tmp_path, "rounds=2")
    assert more.rounds[:2] == first.rounds
    assert len(more.rounds) == 3
    assert "loop goes on, 2 round(s) finished before" in output
    whole, _ = run(data, tmp_path / "whole", "rounds=2")
    assert [each.metrics for each in whole.rounds] == [each.metrics for each in more.rounds]


def test_it_stops_when_nothing_changes(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A student that is the one of round 0 again, as where training has come to a fixed point."""
    fit, found = dpl_ray.studies.self_training.job.fit, []

    def same(*given: Any, **keywords: Any) -> Any:
        found.append(found[0] if found else fit(*given, **keywords))
        return found[-1]

    monkeypatch.setattr(dpl_ray.studies.self_training.job, "fit", same)
    result, _ = run(data, tmp_path, "rounds=5", "min_change=0.01")
    assert len(result.rounds) == 2
    assert result.rounds[1].changed_share == 0
    assert result.stopped == ("the pseudo-labels no longer change: 0.00% of them in round 1, less than min_change=0.01")
    forbid(monkeypatch, "fit", "label_pool", "run_study")
    assert run(data, tmp_path, "rounds=5", "min_change=0.01")[0] == result


def test_it_stops_where_nothing_is_selected(data: Path, tmp_path: Path) -> None:
    result, _ = run(data, tmp_path, "policy=fixmatch", "policy.threshold=1.0")
    assert [each.num_selected for each in result.rounds] == [0]
    assert result.stopped == "round 0 selected no sample to train on"


def of_round(number: int, selected: int, changed: float | None) -> Round:
    metrics = {} if changed is None else {"round/changed_share": changed}
    return Round(number, "", "", 0, 10, 0, selected, metrics)


def test_reasons_to_stop() -> None:
    options = SelfTrainConfig(rounds=3, min_change=0.01)
    first = of_round(0, 5, None)
    assert stop_reason([], options) is None
    assert stop_reason([first], options) is None
    assert stop_reason([first, of_round(1, 5, 0.01)], options) is None, "the bound itself is no smaller share"
    assert "no longer change" in str(stop_reason([first, of_round(1, 5, 0.0099)], options))
    assert "rounds=3 is" in str(stop_reason([first, of_round(3, 5, 0.5)], options))
    assert "no sample" in str(stop_reason([first, of_round(1, 0, 0.5)], options))
    assert stop_reason([first, of_round(1, 5, 0.0)], options.model_copy(update={"min_change": 0.0})) is None


def test_a_student_without_a_pool_learns_from_labels_and_pseudo_labels_alone(data: Path, tmp_path: Path) -> None:
    """dpl's weights are never 0 so early: it selects the whole pool."""
    given = ("policy=dpl", "rounds=1")
    result, output = run(data, tmp_path, *given)
    assert result.rounds[0].num_selected == POOL_SIZE == result.rounds[1].num_pseudo_labeled
    assert "round 0 selected the whole pool, or nearly: this student learns from labels and pseudo-" in output
    trained = [
        yaml.safe_load((tmp_path / "loop" / f"round-{number}" / "training" / "config.yaml").read_text())
        for number in (0, 1)
    ]
    assert [config["policy"]["name"] for config in trained] == ["dpl", "supervised"]
    # Told again, as after a crash between training and labelling, it is the same run.
    state = tmp_path / "loop" / "self_train.json"
    info = read_tree(Storage(str(state)))
    write_json(Storage(str(state)), info | {"rounds": info["rounds"][:1], "finished": None})
    assert run(data, tmp_path, *given)[0] == result


def test_a_few_images_that_are_left_are_no_pool() -> None:
    splits, train = tiny_splits(num_unlabeled=1), {"batch_size": 51, "mu": 2}
    with pytest.raises(EmptyPoolError, match=r"^train\.mu=2: a step takes 102 .* the pool has 1"):
        check_pool_use(tiny_config(train=train, data={"name": "parquet", "train": "x", "labels": "y"}), splits)


def test_a_labelling_that_fails_is_gone_on_with(
    data: Path, one_round: tuple[Path, SelfTrainResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    label = dpl_ray.studies.self_training.job.label_pool

    def failing(config: Any, **keywords: Any) -> Any:
        if "round-1" in config.output:
            raise OSError("the disk is full")
        return label(config, **keywords)

    monkeypatch.setattr(dpl_ray.studies.self_training.job, "label_pool", failing)
    with pytest.raises(OSError, match="the disk is full"):
        run(data, tmp_path, "rounds=1")
    checkpoint = tmp_path / "loop" / "round-1" / "training" / "step-00000006" / "manifest.json"
    written = checkpoint.stat().st_mtime_ns
    monkeypatch.setattr(dpl_ray.studies.self_training.job, "label_pool", label)
    result, output = run(data, tmp_path, "rounds=1")
    assert "loop goes on, 1 round(s) finished before" in output
    assert checkpoint.stat().st_mtime_ns == written, "the training is not done again"
    assert [each.metrics for each in one_round[1].rounds] == [each.metrics for each in result.rounds]


@pytest.mark.slow
def test_killed_in_the_middle_it_goes_on(data: Path, tmp_path: Path) -> None:
    given = ["rounds=1", "min_change=0", "train.num_steps=40", "train.checkpoint_every=10"]
    for number in range(2):
        newest = tmp_path / "loop" / f"round-{number}" / "training" / "step-00000010" / "manifest.json"
        fields = [*arguments(data, tmp_path), *given, "force=true"]
        process = Command("pipelines.self_train", fields, tmp_path / "printed", partial(hold_after, newest))
        process.wait_for(newest.exists)
        assert newest.exists()
        process.kill()
        assert process.status == -signal.SIGKILL
    result, output = run(data, tmp_path, *given)
    assert "loop goes on, 1 round(s) finished before" in output
    whole, _ = run(data, tmp_path / "whole", *given)
    assert [each.metrics for each in whole.rounds] == [each.metrics for each in result.rounds]


def test_round_0_with_a_checkpoint_that_is_given(
    data: Path, one_round: tuple[Path, SelfTrainResult], tmp_path: Path
) -> None:
    first = one_round[1]
    given = first.rounds[0]
    result, _ = run(data, tmp_path / "other", "rounds=1", f"checkpoint={Path(given.checkpoint).parent}")
    assert not (tmp_path / "other" / "loop" / "round-0" / "training").exists()
    assert result.rounds[0].checkpoint == given.checkpoint
    assert result.rounds[0].metrics == pytest.approx(given.metrics)
    assert result.rounds[1].metrics == first.rounds[1].metrics
    assert load_checkpoint(result.checkpoint).class_names == tuple(map(str, range(10)))


@pytest.mark.usefixtures("mlflow_store")
def test_mlflow_has_one_run_with_a_step_a_round_and_a_child_for_each(data: Path, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    first, _ = run(data, tmp_path, "rounds=1", "tracking.enabled=true", "registry.name=digits")
    more, _ = run(data, tmp_path, "rounds=2", "tracking.enabled=true", "registry.name=digits")
    assert first.run_id == more.run_id is not None
    client = MlflowClient(tracking_uri=first.tracking_uri)
    runs = client.search_runs([client.get_experiment_by_name("dpl_ray").experiment_id])
    parent = client.get_run(first.run_id)
    assert (parent.info.status, parent.info.run_name) == ("FINISHED", "loop")
    assert parent.data.tags["stopped"] == more.stopped
    assert parent.data.params["self_train.rounds"] == "1"
    for key in ("round/accuracy", "round/selected_share", "round/changed_share", "round/precision"):
        points = client.get_metric_history(first.run_id, key)
        expected = [(each.number, each.metrics[key]) for each in more.rounds if key in each.metrics]
        assert sorted((point.step, point.value) for point in points) == expected, "and none twice"
    children = {found.info.run_name: found for found in runs if found.info.run_id != first.run_id}
    assert sorted(children) == ["loop/round-0", "loop/round-1", "loop/round-2"]
    for each in more.rounds:
        child = children[f"loop/round-{each.number}"]
        assert child.data.tags["mlflow.parentRunId"] == first.run_id
        assert child.data.metrics["eval/accuracy"] == each.metrics["round/accuracy"]
    assert "baseline/eval/accuracy" in children["loop/round-0"].data.metrics
    assert {file.path for file in client.list_artifacts(first.run_id)} == {
        "self_train.csv",
        "self_train.png",
        "self_train.json",
    }
    assert parent.data.tags["data.fingerprint"] == children["loop/round-0"].data.tags["data.fingerprint"]
    # Its model is the last student, a version of it for each time that the loop came to an end.
    assert more.registered == "models:/digits/2"
    assert client.get_model_version_by_alias("digits", "candidate").run_id == more.run_id
    described = yaml.safe_load((Path(str(more.model)) / "MLmodel").read_text())
    assert described["metadata"] == {"class_names": [str(name) for name in range(10)], "checkpoint": more.checkpoint}


# Mistakes


def answer(capsys: pytest.CaptureFixture[str], given: list[str]) -> str:
    status = cli.run(command.COMMAND, given)
    captured = capsys.readouterr()
    assert (status, captured.out) == (2, "")
    assert captured.err.count("\n") == 1
    return captured.err


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (plain("rounds=2"), "data=digits: self-training labels a pool of files; it takes data=parquet"),
        (images("data.unlabeled=null"), "data.unlabeled is missing: self-training needs the pool that is labelled"),
        (images("data.labels=/x"), "data.labels=/x: every round makes its own; leave it null"),
        (images("rounds=0"), "rounds=0: must be greater than or equal to 1"),
        (images("rounds=many"), "rounds=many: must be a whole number"),
        (images("min_change=2"), "min_change=2: must be less than or equal to 1"),
        (images("round=2"), "round=2: there is no field round; did you mean rounds?"),
        (images("checkpoint={tmp}/none"), "checkpoint={tmp}/none: there is no such folder"),
        (images("data.unlabeled={tmp}/pol"), "data.unlabeled={tmp}/pol: there is no such file"),
    ],
)
def test_mistakes(tmp_path: Path, capsys: pytest.CaptureFixture[str], prepare: Any, message: str) -> None:
    places = [f"run.storage_path={tmp_path}/runs", "tracking.enabled=false", "scale.num_workers=0"]
    assert message.replace("{tmp}", str(tmp_path)) in answer(capsys, [*prepare(tmp_path), *places])
    assert not (tmp_path / "runs" / "loop" / "round-0" / "labels").exists()


def test_a_loop_of_another_configuration_is_refused(
    data: Path, one_round: tuple[Path, SelfTrainResult], capsys: pytest.CaptureFixture[str]
) -> None:
    given = arguments(data, one_round[0])
    for change, message in (
        ("optim.learning_rate=0.5", "this self-training exists with optim.learning_rate=0.03, now it is 0.5"),
        ("checkpoint=/x", "this self-training exists with checkpoint=None, now it is /x"),
    ):
        assert message in answer(capsys, [*given, change])


def test_names_that_are_taken(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = arguments(data, tmp_path)
    for file, kind in (("run.json", "a training run"), ("comparison.json", "a comparison")):
        path = write(tmp_path / "loop" / file, b"{}")
        assert f"run.name=loop: {kind} has this name; take another run.name" in answer(capsys, given)
        path.unlink()
    write(tmp_path / "loop" / "self_train.json", b"{}")
    from dpl_ray.commands import train

    assert cli.run(train.COMMAND, given) == 2
    assert "run.name=loop: a self-training has this name; take another run.name" in capsys.readouterr().err


def test_a_checkpoint_of_other_classes_is_refused(
    data: Path, one_round: tuple[Path, SelfTrainResult], tmp_path: Path
) -> None:
    first = one_round[1]
    names = ",".join("abcdefghij")
    with pytest.raises(ValueError, match=r"checkpoint=.*: its classes are 0, 1, .*, but those of data.train are a, b"):
        run(data, tmp_path / "other", f"checkpoint={first.checkpoint}", f"data.class_names=[{names}]")


def test_a_pool_that_changes_between_rounds_is_refused(data: Path, tmp_path: Path) -> None:
    pool = tmp_path / "pool"
    write_digits(pool / "b.parquet", 200, 260)
    given = (f"data.unlabeled={pool}", "data.labels_per_class=3")
    run(data, tmp_path, *given, "rounds=1")
    write_digits(pool / "a.parquet", 300, 340)
    with pytest.raises(ValueError, match=r"data.unlabeled=.*: its files have changed between two rounds"):
        run(data, tmp_path, *given, "rounds=2")


def test_the_same_command_without_a_name_has_the_same_one(data: Path, tmp_path: Path) -> None:
    options = SelfTrainConfig()
    config = load_config([*arguments(data, tmp_path), "run.name=null"])
    name = self_training_name(config, options)
    free = load_config([*arguments(data, tmp_path), "run.name=null", "train.log_every=9", "scale.num_workers=1"])
    other = load_config([*arguments(data, tmp_path), "run.name=null", "train.mu=3"])
    assert (
        name == self_training_name(free, options.model_copy(update={"rounds": 9})) != self_training_name(other, options)
    )
    assert name.startswith("parquet-self-train-")
    assert self_training_name(config, SelfTrainConfig(checkpoint="x")) != name


def test_help_lists_the_fields(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(command.COMMAND, ["--help"]) == 0
    text = capsys.readouterr().out
    for field in ("rounds=3", "min_change=0.01", "checkpoint=null", "data.labels_per_class=null"):
        assert field in text


def test_the_paths_are_shown(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(command.COMMAND, [*arguments(data, tmp_path), "rounds=1", "force=true"]) == 0
    output = capsys.readouterr().out
    folder = Storage(str(tmp_path)) / "loop"
    for expected in (f"labels      {folder}/round-1/labels", f"rounds      {folder}/self_train.csv", "Rounds of self"):
        assert expected in output


def test_no_pool_is_labelled_by_a_model_that_guesses(data: Path, tmp_path: Path) -> None:
    given = ("rounds=1", "force=false", "train.baseline=false")
    message = r"(no better than guessing|collapsed): .*; force=true goes on"
    with pytest.raises(ValueError, match=rf"^checkpoint=\S+/round-0/training/step-00000006: {message}"):
        run(data, tmp_path, *given)
    trained = tmp_path / "loop" / "round-0" / "training"
    for _ in range(2):  # as its run says, and then measured here
        with pytest.raises(ValueError, match=rf"^checkpoint={trained}: {message}"):
            run(data, tmp_path / "other", *given, f"checkpoint={trained}")
        (trained / "run.json").unlink(missing_ok=True)
