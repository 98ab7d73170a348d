"""What is recorded in MLflow, and what happens to it where the server is not there."""

from __future__ import annotations

import contextlib
import io
import json
import re
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlflow import MlflowClient
from mlflow.entities import Run
from rich.console import Console

from dpl_ray import fit, load_checkpoint, load_config, sync_tracking
from dpl_ray.config import RegistryConfig
from dpl_ray.history import TABLE_FILE, Point
from dpl_ray.storage import Storage
from dpl_ray.tracking.journal import Entry, Journal
from dpl_ray.tracking.sender import Sender, make_client, metric_key
from dpl_ray.tracking.sync import NotSentError
from dpl_ray.tracking.tracker import MlflowTracker, check_uri, start_tracker, tracking_uri
from pipelines import cli
from pipelines import sync_tracking as command

NOWHERE = "http://127.0.0.1:9"
QUIET = Console(quiet=True)


def write_model(folder: Path) -> None:
    """A folder that says it is a model, which is all that a store looks at."""
    (folder / "data").mkdir(parents=True)
    (folder / "MLmodel").write_text("model_uuid: abc0\nflavors: {}\nutc_time_created: '2026-01-01 00:00:00.0'\n")
    (folder / "data" / "model.pt2").write_bytes(b"graph")


def every_kind(folder: Path) -> list[Entry]:
    """Entries of every kind, and the files that they name."""
    (folder / "notes.txt").write_text("text")
    (folder / "page.html").write_text('<section id="a"><img alt="B &amp; c" src="data:image/svg+xml;base64,PHN2Zz4="')
    (folder / "thresholds.json").write_text('{"columns": ["step"], "data": [[1]]}')
    write_model(folder / "model")
    registry = {"name": "digits", "alias": "candidate"}
    history = [[1, {"threshold/over/cat": 0.5, "loss": 2.0}, 3000], [2, {"threshold/over/cat": 0.75}, 4000]]
    return [
        {"kind": "metrics", "values": {"loss": 1.5, "precision of é": 0.5}, "step": 1, "time": 1000},
        {"kind": "metrics", "values": {"loss": 0.5}, "step": 2, "time": 2000},
        {"kind": "tag", "key": "checkpoint", "value": "step-2"},
        {"kind": "file", "file": "notes.txt"},
        {"kind": "page", "file": "page.html"},
        {"kind": "table", "file": "thresholds.json"},
        {"kind": "child", "name": "it's one", "params": {"a": "1"}, "tags": {"b": "2"}, "history": history, "time": 5},
        {"kind": "model", "folder": "model", "step": 2, "registry": registry, "time": 8000},
        {"kind": "finish", "status": "FINISHED", "time": 9000},
    ]


def start_entry(uri: str, folder: Path) -> Entry:
    return {
        "kind": "start",
        "uri": uri,
        "experiment": "tests",
        "artifact_location": f"file://{folder}/artifacts",
        "run_name": "first",
        "time": 500,
        "params": {"train.mu": "7", "long": "x" * 7000},
        "tags": {"commit": "abc"},
    }


def everything_at(uri: str, run_id: str) -> dict[str, Any]:
    """What a client sees of the run of `every_kind`."""
    client = MlflowClient(uri)
    run = client.get_run(run_id)
    runs = client.search_runs([run.info.experiment_id])
    children = [found for found in runs if found.data.tags.get("mlflow.parentRunId") == run_id]
    versions = client.search_model_versions("name = 'digits'")
    return {
        "runs": len(runs),
        "status": (run.info.status, run.info.start_time, run.info.end_time),
        "params": run.data.params,
        "tags": {key: value for key, value in run.data.tags.items() if not key.startswith("mlflow.log-model")},
        "loss": [(point.step, point.value, point.timestamp) for point in client.get_metric_history(run_id, "loss")],
        "metrics": run.data.metrics,
        "files": sorted(file.path for file in client.list_artifacts(run_id)),
        "figures": [file.path for file in client.list_artifacts(run_id, "figures")],
        "table": load_table(uri, run),
        "children": [
            (
                child.info.run_name,
                (child.info.status, child.info.start_time, child.info.end_time),
                child.data.params,
                load_table(uri, child),
                [
                    (point.value, point.timestamp)
                    for point in client.get_metric_history(child.info.run_id, "threshold/over/cat")
                ],
            )
            for child in children
        ],
        "models": [output.step for output in run.outputs.model_outputs] if run.outputs else [],
        "versions": [(str(version.version), version.run_id) for version in versions],
        "alias": str(client.get_model_version_by_alias("digits", "candidate").version),
    }


def load_table(uri: str, run: Run) -> dict[str, Any]:
    """Through MLflow's global address, which `load_table` has whatever that of its client is."""
    mlflow.set_tracking_uri(uri)
    try:
        return MlflowClient(uri).load_table(run.info.experiment_id, TABLE_FILE, [run.info.run_id]).to_dict("list")
    finally:
        mlflow.set_tracking_uri("")


def test_what_is_sent_twice_is_there_once(tmp_path: Path, mlflow_uri: str) -> None:
    journal, entries = Journal(Storage(str(tmp_path))), every_kind(tmp_path)
    Sender(mlflow_uri, journal).send([start_entry(mlflow_uri, tmp_path), *entries])
    assert journal.run_id is not None
    once = everything_at(mlflow_uri, journal.run_id)
    assert once["loss"] == [(1, 1.5, 1000), (2, 0.5, 2000)]
    assert once["metrics"]["precision of é"] == 0.5
    assert once["status"] == ("FINISHED", 500, 9000)
    assert once["params"] == {"train.mu": "7", "long": "x" * 6000}
    assert once["files"] == ["figures", "notes.txt", "page.html", "thresholds.json"]
    assert once["figures"] == ["figures/a-b-c.svg"]
    table = {"step": [1, 2], "class": ["cat", "cat"], "over": [0.5, 0.75]}
    points = [(0.5, 3000), (0.75, 4000)]
    assert once["children"] == [("it's one", ("FINISHED", 3000, 4000), {"a": "1"}, table, points)]
    assert (once["models"], once["versions"], once["alias"]) == ([2], [("1", journal.run_id)], "1")
    assert journal.registered == "models:/digits/1"
    # Another process, that knows what is written down, and one that was killed before it could write it down.
    for forgotten in ({}, {"children": {}, "registered": None}):
        again = Journal(Storage(str(tmp_path)))
        vars(again).update(forgotten)
        Sender(mlflow_uri, again).send([start_entry(mlflow_uri, tmp_path), *entries])
        assert everything_at(mlflow_uri, journal.run_id) == once


@pytest.mark.parametrize("num_calls", range(18))
def test_what_is_left_after_a_failure_is_sent_later(
    tmp_path: Path, mlflow_uri: str, monkeypatch: pytest.MonkeyPatch, num_calls: int
) -> None:
    """The server goes after so many calls, at every place that there is; then it is back."""
    calls = 0

    def failing(call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **named: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls > num_calls:
                raise ConnectionError("the server is gone")
            return call(*arguments, **named)

        return counted

    with monkeypatch.context() as patched:
        for name in ("get_run", "create_run", "log_batch", "log_artifact", "set_tag", "set_terminated"):
            patched.setattr(MlflowClient, name, failing(getattr(MlflowClient, name)))
        tracker = new_tracker(tmp_path, mlflow_uri)
        with pytest.warns(UserWarning, match=r"MLflow at sqlite.*the server is gone.*sync_tracking run="):
            tell(tracker, every_kind(tmp_path))
    journal = Journal(Storage(str(tmp_path)))
    assert journal.has_unsent
    result = sync_tracking(str(tmp_path))
    assert set(result.num_entries) == {str(tmp_path)}
    assert sync_tracking(str(tmp_path)).num_entries == {}
    found = everything_at(mlflow_uri, str(result.run_ids[str(tmp_path)]))
    assert [point[:2] for point in found["loss"]] == [(1, 1.5), (2, 0.5)]
    assert (found["runs"], found["status"][0], found["tags"]["checkpoint"]) == (2, "FINISHED", "step-2")
    assert (found["params"], found["tags"]["commit"]) == ({"train.mu": "7", "long": "x" * 6000}, "abc")
    assert found["files"] == ["figures", "notes.txt", "page.html", "thresholds.json"]
    assert [child[4] for child in found["children"]] == [[(0.5, 3000), (0.75, 4000)]]
    assert (found["models"], found["alias"]) == ([2], "1")


def new_tracker(folder: Path, uri: str) -> MlflowTracker:
    started = {key: value for key, value in start_entry(uri, folder).items() if key not in ("kind", "time")}
    return MlflowTracker(Journal(Storage(str(folder))), **started)


def tell(tracker: MlflowTracker, entries: list[Entry]) -> None:
    """The calls that make these entries."""
    for entry in entries:
        match entry["kind"]:
            case "metrics":
                tracker.log(entry["values"], entry["step"])
            case "tag":
                tracker.log_tag(entry["key"], entry["value"])
            case "file":
                tracker.log_file(entry["file"])
            case "page":
                tracker.log_page(entry["file"])
            case "table":
                tracker.log_table(entry["file"])
            case "child":
                history = [Point(*point) for point in entry["history"]]
                tracker.log_child(entry["name"], params=entry["params"], tags=entry["tags"], history=history)
            case "model":
                tracker.log_model(entry["folder"], entry["step"], RegistryConfig(**entry["registry"]))
            case "finish":
                tracker.finish(entry["status"], QUIET)


def test_a_run_that_goes_on_sends_what_was_left_over(tmp_path: Path, mlflow_uri: str) -> None:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        first = new_tracker(tmp_path, NOWHERE)
        first.log({"loss": 3.0}, 1)
        first.log_tag("from", "first")
        first.finish("FAILED", QUIET)
        assert [str(warning.message).partition(":9: ")[0] for warning in told] == ["MLflow at http://127.0.0.1"]
    assert first.run_id is None
    # Half a line of a process that was killed, and an entry behind it.
    with (tmp_path / "tracking-unsent.jsonl").open("ab") as unsent:
        unsent.write(b'\n{"kind": "tag", "key": "ha')
    Journal(Storage(str(tmp_path))).keep([{"kind": "tag", "key": "after", "value": "half"}])
    second = new_tracker(tmp_path, mlflow_uri)
    second.log({"loss": 2.0}, 2)
    second.finish("FINISHED", QUIET)
    client = MlflowClient(mlflow_uri)
    run = client.get_run(str(second.run_id))
    assert (run.info.status, run.info.run_name) == ("FINISHED", "first")
    assert [point.step for point in client.get_metric_history(run.info.run_id, "loss")] == [1, 2]
    assert (run.data.tags["from"], run.data.tags["after"]) == ("first", "half")
    assert len(client.search_runs([run.info.experiment_id])) == 1
    assert not list(tmp_path.glob("tracking-*"))


def test_a_run_that_was_deleted_for_good_is_created_anew(tmp_path: Path, mlflow_uri: str) -> None:
    journal = Journal(Storage(str(tmp_path)))
    journal.uri, journal.run_id = mlflow_uri, "0" * 32
    journal.save()
    tracker = new_tracker(tmp_path, mlflow_uri)
    tracker.finish("FINISHED", QUIET)
    assert tracker.run_id != "0" * 32
    assert MlflowClient(mlflow_uri).get_run(str(tracker.run_id)).info.status == "FINISHED"


def test_a_server_that_does_not_answer_is_left_after_a_minute(
    tmp_path: Path, mlflow_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import threading

    hangs = threading.Event()
    sent = MlflowClient.set_tag
    monkeypatch.setattr("dpl_ray.tracking.tracker.SECONDS_TO_FINISH", 0.5)
    monkeypatch.setattr(MlflowClient, "set_tag", lambda *given: (hangs.wait(), sent(*given)))
    tracker = new_tracker(tmp_path, mlflow_uri)
    tracker.log_tag("a", "1")
    tracker.log({"loss": 1.0}, 1)
    with pytest.warns(UserWarning, match="no answer within"):
        tracker.finish("FINISHED", QUIET)
    kept = (tmp_path / "tracking-unsent.jsonl").read_text().split("\n")
    assert [json.loads(line)["kind"] for line in kept if line][-3:] == ["tag", "metrics", "finish"]
    hangs.set()
    tracker._thread.join()
    sync_tracking(str(tmp_path))
    run = MlflowClient(mlflow_uri).get_run(str(tracker.run_id))
    assert (run.info.status, run.data.tags["a"], run.data.metrics["loss"]) == ("FINISHED", "1", 1.0)


def test_a_file_that_is_gone_does_not_hold_up_the_others(tmp_path: Path, mlflow_uri: str) -> None:
    tracker = new_tracker(tmp_path, mlflow_uri)
    tracker.log_file("gone.csv")
    tracker.log_table("gone.json")
    tracker.log_page("gone.html")
    tracker.log_model("gone", 1, RegistryConfig(name="digits"))
    tracker.log_tag("after", "all")
    tracker.finish("FINISHED", QUIET)
    assert MlflowClient(mlflow_uri).get_run(str(tracker.run_id)).data.tags["after"] == "all"
    assert not list(tmp_path.glob("tracking-*"))


def test_what_mlflow_refuses_does_not_hold_up_what_is_behind_it(tmp_path: Path, mlflow_uri: str) -> None:
    tracker = new_tracker(tmp_path, mlflow_uri)
    tracker.log_tag("", "a tag without a name")
    tracker.log_tag("after", "all")
    with pytest.warns(UserWarning, match=r"it refuses some entries; the run goes on, .*tracking-refused.jsonl"):
        tracker.finish("FINISHED", QUIET)
    run = MlflowClient(mlflow_uri).get_run(str(tracker.run_id))
    assert (run.data.tags["after"], run.info.status) == ("all", "FINISHED")
    refused = json.loads((tmp_path / "tracking-refused.jsonl").read_text())
    assert (refused["kind"], refused["value"]) == ("tag", "a tag without a name")
    assert "name" in refused["answer"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # what was refused before is no news
        new_tracker(tmp_path, mlflow_uri).finish("FINISHED", QUIET)


def test_what_mlflow_refuses_later_is_told(tmp_path: Path, mlflow_uri: str, capsys: pytest.CaptureFixture[str]) -> None:
    entries = [start_entry(mlflow_uri, tmp_path), {"kind": "tag", "key": "", "value": "b"}]
    Journal(Storage(str(tmp_path))).keep(entries)
    assert run_command(f"run={tmp_path}") == 0
    output = capsys.readouterr().out
    assert "2 entries sent to run" in output
    assert output.endswith(", 1 of which it does not take: tracking-refused.jsonl\n")


def test_a_store_is_made_where_there_are_no_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*_: object) -> None:
        raise PermissionError("Operation not permitted")

    monkeypatch.setattr("os.link", no_links)
    assert make_client(f"sqlite:///{tmp_path}/mlflow.db").search_experiments()
    assert [path.name for path in tmp_path.iterdir()] == ["mlflow.db"]


def test_a_server_that_is_back_is_used_again(tmp_path: Path, mlflow_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tracker, failures, set_tag = new_tracker(tmp_path, mlflow_uri), [1, 2], MlflowClient.set_tag
    monkeypatch.setattr("dpl_ray.tracking.tracker.SECONDS_TO_RETRY", 0.0)

    def failing(self: MlflowClient, *given: Any) -> None:
        if failures:
            failures.pop()
            raise ConnectionError("the server is gone")
        set_tag(self, *given)

    monkeypatch.setattr(MlflowClient, "set_tag", failing)
    output = io.StringIO()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for number in range(8):
            tracker.log_tag("a", str(number))
            while tracker._queue.qsize():
                pass
        tracker.finish("FINISHED", Console(file=output))
    assert ["the server is gone" in str(warning.message) for warning in told] == [True]
    run = MlflowClient(mlflow_uri).get_run(str(tracker.run_id))
    assert (run.data.tags["a"], run.info.status, output.getvalue()) == ("7", "FINISHED", "")
    assert not list(tmp_path.glob("tracking-*"))


def test_what_is_sent_late_does_not_take_the_alias_back(tmp_path: Path, mlflow_uri: str) -> None:
    for name in ("late", "early"):
        (tmp_path / name).mkdir()
        journal = Journal(Storage(str(tmp_path / name)))
        entries = every_kind(tmp_path / name)
        entries[-2]["time"] = 10 if name == "early" else int(time.time() * 1000)
        Sender(mlflow_uri, journal).send([start_entry(mlflow_uri, tmp_path), *entries])
    client = MlflowClient(mlflow_uri)
    assert len(client.search_model_versions("name = 'digits'")) == 2
    assert str(client.get_model_version_by_alias("digits", "candidate").version) == "1"


@given(st.sets(st.text(min_size=1, max_size=300), min_size=2, max_size=6))
def test_keys_stay_apart_and_are_names_that_mlflow_takes(names: set[str]) -> None:
    from mlflow.utils.validation import _validate_metric_name

    keys = {f"threshold/over/{name}" for name in names | {".", "..", "a/", "a//b", "./x", "c+", "c#"}}
    made = {metric_key(key) for key in keys}
    assert len(made) == len(keys)
    for key in made:
        _validate_metric_name(key)


def test_ordinary_keys_are_as_they_are() -> None:
    for key in ("train/loss_labeled", "threshold/over/maple tree", "threshold/under/a-1.5", "accuracy/dpl"):
        assert metric_key(key) == key


def test_runs_that_begin_together_make_one_store(tmp_path: Path) -> None:
    """Two migrations of one file at once would leave it broken for good."""
    uri = f"sqlite:///{tmp_path}/store/mlflow.db"
    clients: list[MlflowClient] = []
    threads = [threading.Thread(target=lambda: clients.append(make_client(uri))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, client in enumerate(clients):
        client.create_experiment(f"of-{number}")
    assert len(clients[0].search_experiments()) == 3
    assert [path.name for path in (tmp_path / "store").iterdir()] == ["mlflow.db"]


# The command


def test_the_command_says_what_it_has_sent(tmp_path: Path, mlflow_uri: str, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "runs" / "first"
    Journal(Storage(str(folder)), "_ledger/").keep([start_entry(mlflow_uri, tmp_path)])
    assert run_command(f"run={tmp_path}/runs") == 0
    run_id = json.loads((folder / "_ledger" / "tracking.json").read_text())["run_id"]
    assert capsys.readouterr().out == f"{folder}: 1 entries sent to run {run_id}\n"
    assert run_command(f"run={folder}") == 0
    assert capsys.readouterr().out == f"{folder}: nothing is left to send\n"


def test_a_server_that_is_still_down_is_named_and_costs_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    entries = [start_entry(NOWHERE, tmp_path), {"kind": "tag", "key": "a", "value": "b"}]
    Journal(Storage(str(tmp_path))).keep(entries)
    for _ in range(2):
        assert run_command(f"run={tmp_path}") == 1
        message = capsys.readouterr().err
        assert message.startswith(f"failed: NotSentError: MLflow at {NOWHERE}: ")
        assert "; 2 entries of" in message
    assert Journal(Storage(str(tmp_path))).take() == entries


def test_a_server_at_another_address_is_the_same_server(tmp_path: Path, mlflow_uri: str) -> None:
    journal = Journal(Storage(str(tmp_path)))
    Sender(mlflow_uri, journal).send([start_entry(mlflow_uri, tmp_path)])
    journal.uri = NOWHERE
    journal.save()
    journal.keep([start_entry(NOWHERE, tmp_path), {"kind": "tag", "key": "a", "value": "b"}])
    with pytest.raises(NotSentError):
        sync_tracking(str(tmp_path))
    assert sync_tracking(str(tmp_path), uri=mlflow_uri).num_entries == {str(tmp_path): 2}
    client = MlflowClient(mlflow_uri)
    assert client.get_run(str(journal.run_id)).data.tags["a"] == "b"
    assert len(client.search_runs([client.get_run(str(journal.run_id)).info.experiment_id])) == 1


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([], "run is missing: give it, as run=runs/NAME"),
        (["run=nowhere"], "run=nowhere: there is no such folder"),
        (["run=tests"], "run=tests: nothing there was recorded in MLflow"),
        (["run=tests", "uri=foo"], "uri=foo: is no address of an MLflow server"),
        (["rnu=runs"], "there is no field rnu; did you mean run?"),
    ],
)
def test_a_mistake_is_answered(capsys: pytest.CaptureFixture[str], given: list[str], expected: str) -> None:
    assert run_command(*given) == 2
    assert expected in capsys.readouterr().err


def run_command(*given: str) -> int:
    return cli.run(command.job, list(given), "", load=command.load_syncing, only=command.SyncConfig)


# Addresses


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        (
            "127.0.0.1:5000",
            "tracking.uri=127.0.0.1:5000: is no address of an MLflow server or database; give it as http://127",
        ),
        ("runs/mlflow.db", "or sqlite:////absolute/path/mlflow.db"),
        ("file:///tmp/mlruns", "or sqlite:////absolute/path/mlflow.db"),
        ("htp://mlflow:5000", "tracking.uri=htp://mlflow:5000: MLflow knows no htp://; did you mean http?"),
        ("postgres://host/db", "did you mean postgresql?"),
    ],
)
def test_what_is_no_address_is_answered_before_anything_starts(uri: str, expected: str) -> None:
    with pytest.raises(ValueError, match=re.escape(expected)):
        fit(load_config([f"tracking.uri={uri}"]))


@pytest.mark.parametrize("uri", ["https://a", "sqlite:///a.db", "mysql+pymysql://a/b", "databricks", "azureml://a"])
def test_what_may_be_an_address_is_one(uri: str) -> None:
    check_uri("tracking.uri", uri)


def test_a_password_is_refused_where_it_would_be_written_down_and_shown_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = "http://alice:s3cret@127.0.0.1:9"
    with pytest.raises(ValueError, match=r"^tracking.uri=http://alice@127.0.0.1:9: holds a password, .*PASSWORD"):
        fit(load_config([f"tracking.uri={address}"]))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    assert tracking_uri(load_config([])) == address
    output = io.StringIO()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        tracker = new_tracker(tmp_path, address)
        tracker.finish("FINISHED", Console(file=output))
    with pytest.raises(NotSentError) as error:
        sync_tracking(str(tmp_path))
    written = "".join(path.read_text() for path in tmp_path.iterdir())
    messages = [output.getvalue(), str(error.value), *(str(warning.message) for warning in told)]
    assert "s3cret" not in written + "".join(messages)
    assert "alice@127" in written


def test_an_address_in_the_environment_is_checked_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "mlflow:5000")
    with pytest.raises(ValueError, match=r"^MLFLOW_TRACKING_URI=mlflow:5000: is no address"):
        fit(load_config([]))


def test_a_database_that_is_named_keeps_its_files_beside_the_runs(tmp_path: Path, mlflow_uri: str) -> None:
    config = load_config([f"tracking.uri={mlflow_uri}", f"run.storage_path={tmp_path}", "tracking.experiment=new"])
    tracker = start_tracker(config, mlflow_uri, Journal(Storage(str(tmp_path))), name="first", params={}, tags={})
    tracker.finish("FINISHED", QUIET)
    run = MlflowClient(mlflow_uri).get_run(str(tracker.run_id))
    assert run.info.artifact_uri.startswith(f"file://{tmp_path}/mlflow-artifacts")


def test_an_interrupted_run_was_killed_and_the_end_says_what_is_not_sent(tmp_path: Path, mlflow_uri: str) -> None:
    output = io.StringIO()
    for uri in (mlflow_uri, NOWHERE):
        tracker = new_tracker(tmp_path, uri)
        with contextlib.suppress(KeyboardInterrupt), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                raise KeyboardInterrupt
            finally:
                tracker.finish("FAILED", Console(file=output, width=40))
        if uri == mlflow_uri:
            assert MlflowClient(uri).get_run(str(tracker.run_id)).info.status == "KILLED"
            assert output.getvalue() == ""
    expected = f"MLflow does not have all of it yet: python -m pipelines.sync_tracking run={tmp_path}"
    assert output.getvalue().strip() == expected


# The model


def test_the_final_model_answers_without_this_package_and_without_pickle(tmp_path: Path, mlflow_uri: str) -> None:
    overrides = ["scale.num_workers=0", "train.num_steps=4", "train.log_every=2", "model.width=1", "train.batch_size=4"]
    overrides += [f"run.storage_path={tmp_path}", "run.name=tiny", "train.baseline=false", "registry.name=digits"]
    result = fit(load_config([*overrides, f"tracking.uri={mlflow_uri}", "registry.alias=best"]))
    assert result.registered == "models:/digits/1"
    images = np.random.default_rng(0).integers(0, 256, (5, 1, 8, 8), dtype=np.uint8)
    np.save(tmp_path / "images.npy", images)
    code = f"""
import json, sys
import mlflow, numpy as np
mlflow.set_tracking_uri({mlflow_uri!r})
images = np.load({str(tmp_path / "images.npy")!r})
answers = []
for place in ("models:/digits@best", "runs:/{result.run_id}/model", {result.model!r}):
    model = mlflow.pyfunc.load_model(place)
    assert str(model.metadata.signature.inputs) == "[Tensor('uint8', (-1, 1, 8, 8))]", model.metadata.signature
    assert str(model.metadata.signature.outputs) == "[Tensor('float32', (-1, 10))]"
    assert model.input_example.dtype == np.uint8 and model.predict(model.input_example).shape == (2, 10)
    answers.append(model.predict(images).tolist())
assert not [name for name in sys.modules if name.startswith("dpl_ray")]
print(json.dumps(answers + [model.metadata.metadata["class_names"]]))
"""
    environment = {"MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    *answers, class_names = json.loads(found.stdout.splitlines()[-1])
    predictor = load_checkpoint(result.checkpoint)
    assert class_names == list(predictor.class_names)
    for answer in answers:
        assert np.array(answer) == pytest.approx(predictor.predict(images).numpy(), abs=1e-5)


def test_a_model_that_cannot_be_exported_costs_a_warning(tmp_path: Path, mlflow_uri: str) -> None:
    from dpl_ray.tracking.exported_model import record_model

    tracker = new_tracker(tmp_path, mlflow_uri)
    with pytest.warns(UserWarning, match="the model was not exported for MLflow: ValueError: checkpoint="):
        record_model(tracker, RegistryConfig(), Storage(str(tmp_path)) / "step-00000004", Storage(str(tmp_path)))
    tracker.finish("FINISHED", QUIET)
    assert tracker.run_id
