"""What is recorded in MLflow, and what happens to it where the server is not there."""

from __future__ import annotations

import contextlib
import io
import json
import sqlite3
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.store.db import utils
from rich.console import Console

from dpl_ray import sync_tracking
from dpl_ray.config.schema import RegistryConfig
from dpl_ray.store.records import to_lines
from dpl_ray.store.storage import Storage
from dpl_ray.tracking.journal import Entry, Journal
from dpl_ray.tracking.sender import Sender, metric_key
from dpl_ray.tracking.server import make_client
from dpl_ray.tracking.tracker import MlflowTracker, recording
from tests.recordings import (
    NOWHERE,
    QUIET,
    every_kind,
    everything_at,
    keep,
    new_tracker,
    start_entry,
    tell,
    write_history,
)


def test_what_is_sent_twice_is_there_once(tmp_path: Path, mlflow_uri: str) -> None:
    entries = [start_entry(mlflow_uri, tmp_path), *every_kind(tmp_path)]
    journal = keep(tmp_path, *entries)
    Sender(mlflow_uri, journal).send()
    journal.save()
    assert journal.run_id is not None
    once = everything_at(mlflow_uri, journal.run_id)
    assert once["loss"] == [(1, 1.5, 1000), (2, 0.5, 2000)]
    assert (once["metrics"]["precision of é"], once["metrics"]["baseline/loss"]) == (0.5, 2.5)
    assert once["metrics"]["accuracy/a"] == 0.5
    assert once["status"] == ("FINISHED", 500, 9000)
    assert once["params"] == {"policy.name": "dpl", "long": "x" * 6000}
    assert once["files"] == ["figures", "notes.txt", "page.html", "thresholds.json"]
    assert once["figures"] == ["figures/a-b-c.svg"]
    table = {"step": [1, 2], "class": ["cat", "cat"], "over": [0.5, 0.75]}
    points = [(0.5, 3000), (0.75, 4000)]
    assert once["children"] == [("it's one", ("FINISHED", 3000, 4000), {"policy.name": "dpl"}, table, points)]
    assert (once["models"], once["versions"], once["alias"]) == ([2], [("1", journal.run_id)], "1")
    assert journal.registered == "models:/digits/1"
    # Another process, that knows what is written down, and one that was killed before it could write it down.
    for forgotten in ({}, {"children": {}, "registered": None, "told_until": 0}):
        again = keep(tmp_path, *entries)
        vars(again).update(forgotten)
        Sender(mlflow_uri, again).send()
        assert everything_at(mlflow_uri, journal.run_id) == once


def test_what_earlier_versions_could_not_send_is_sent(tmp_path: Path, mlflow_uri: str) -> None:
    history = [[1, {"threshold/over/cat": 0.5}, 3000], [2, {"threshold/over/cat": 0.75}, 0]]
    sending, unsent = (tmp_path / f"tracking-{name}.jsonl" for name in ("sending", "unsent"))
    metrics: list[Entry] = [
        {"kind": "metrics", "values": {"loss": 1.5}, "step": 1, "time": 1000},
        {"kind": "metrics", "values": {"loss": 0.5}, "step": 2, "time": 2000},
    ]
    sending.write_bytes(to_lines([start_entry(mlflow_uri, tmp_path), metrics[0]]))
    older = every_kind(tmp_path)
    for entry in older:
        if entry.get("file") in ("page.html", "thresholds.json"):
            entry["kind"] = "page" if entry["file"] == "page.html" else "table"
        if entry["kind"] == "child":
            del entry["folder"]
            entry["history"] = history
    # Half a line of a process that was killed, and entries behind it.
    unsent.write_bytes(b'{"kind": "tag", "key": "ha\n' + to_lines([metrics[1], *older]))
    (tmp_path / "history.jsonl").unlink()
    result = sync_tracking(str(tmp_path))
    assert result.num_entries == {str(tmp_path): 11}
    found = everything_at(mlflow_uri, str(result.run_ids[str(tmp_path)]))
    assert found["loss"] == [(1, 1.5, 1000), (2, 0.5, 2000)]
    assert (found["status"][0], found["tags"]["checkpoint"], found["alias"]) == ("FINISHED", "step-2", "1")
    assert found["files"] == ["figures", "notes.txt", "page.html", "thresholds.json"]
    assert [child[4] for child in found["children"]] == [[(0.75, 5), (0.5, 3000)]]
    assert not list(tmp_path.glob("tracking-*"))


@pytest.mark.parametrize("told_until", [0, 1500])
def test_what_a_driver_that_was_killed_had_measured_is_sent(tmp_path: Path, mlflow_uri: str, told_until: int) -> None:
    every_kind(tmp_path)
    journal = keep(tmp_path, start_entry(mlflow_uri, tmp_path))
    Sender(mlflow_uri, journal).send()
    journal.is_open = True
    journal.told_until = told_until
    journal.save()
    more = [{"phase": "dpl", "step": 3, "metrics": {"loss": 0.25}, "time": 3000}]
    Storage(str(tmp_path / "history.jsonl")).append(to_lines(more) + b'{"phase": "dpl", "st')
    num_rows = 5 if told_until == 0 else 3  # those of the last time that is known are sent again
    assert sync_tracking(str(tmp_path)).num_entries == {str(tmp_path): num_rows}
    assert sync_tracking(str(tmp_path)).num_entries == {}
    found = MlflowClient(mlflow_uri).get_metric_history(str(journal.run_id), "loss")
    assert [(point.step, point.value) for point in found] == [(1, 1.5), (2, 0.5), (3, 0.25)]


@pytest.mark.parametrize("num_calls", range(19))
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
        with pytest.warns(UserWarning, match=r"MLflow at sqlite.*the server is gone.*sync-tracking run="):
            tell(tracker, every_kind(tmp_path))
    journal = Journal(Storage(str(tmp_path)))
    assert journal.has_unsent
    result = sync_tracking(str(tmp_path))
    assert set(result.num_entries) == {str(tmp_path)}
    assert sync_tracking(str(tmp_path)).num_entries == {}
    found = everything_at(mlflow_uri, str(result.run_ids[str(tmp_path)]))
    assert [point[:2] for point in found["loss"]] == [(1, 1.5), (2, 0.5)]
    assert (found["runs"], found["status"][0], found["tags"]["checkpoint"]) == (2, "FINISHED", "step-2")
    assert (found["params"], found["tags"]["commit"]) == ({"policy.name": "dpl", "long": "x" * 6000}, "abc")
    assert found["files"] == ["figures", "notes.txt", "page.html", "thresholds.json"]
    assert [child[4] for child in found["children"]] == [[(0.5, 3000), (0.75, 4000)]]
    assert (found["models"], found["alias"]) == ([2], "1")


def test_a_run_that_goes_on_sends_what_was_left_over(tmp_path: Path, mlflow_uri: str) -> None:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        first = new_tracker(tmp_path, NOWHERE)
        first.log({"loss": 3.0}, 1)
        first.log_tag("from", "first")
        first.finish("FAILED", QUIET)
        assert [str(warning.message).partition(":9: ")[0] for warning in told] == ["MLflow at http://127.0.0.1"]
    assert first.run_id is None
    write_history(tmp_path, ("dpl", 1, {"train/loss": 1.0}, 1000))
    second = new_tracker(tmp_path, mlflow_uri)
    second.log({"loss": 2.0}, 2)
    second.finish("FINISHED", QUIET)
    client = MlflowClient(mlflow_uri)
    run = client.get_run(str(second.run_id))
    assert (run.info.status, run.info.run_name) == ("FINISHED", "first")
    assert [point.step for point in client.get_metric_history(run.info.run_id, "loss")] == [1, 2]
    assert (run.data.tags["from"], run.data.metrics["train/loss"]) == ("first", 1.0)
    assert len(client.search_runs([run.info.experiment_id])) == 1
    assert not Journal(Storage(str(tmp_path))).has_unsent


def test_records_that_mlflow_is_slow_to_take_wait_on_the_disk(tmp_path: Path, mlflow_uri: str) -> None:
    write_history(tmp_path, *(("dpl", step, {"loss": 1.0}, step) for step in range(1, 251)))
    sender, lengths = Sender(mlflow_uri, keep(tmp_path, start_entry(mlflow_uri, tmp_path))), list[int]()
    sender._log_metrics = lambda _, points: lengths.append(len(points))  # type: ignore[method-assign]
    sender.send()
    assert lengths == [100, 100, 50]
    journal = Journal(Storage(str(tmp_path / "other")))
    tracker = MlflowTracker(journal, mlflow_uri, start_entry(mlflow_uri, tmp_path), waits=True)
    for _ in range(250):
        tracker.log_history()
    assert tracker._queue.qsize() == 1
    tracker.finish("FINISHED", QUIET)


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
    hangs, is_asked = threading.Event(), threading.Event()
    monkeypatch.setattr("dpl_ray.tracking.tracker.SECONDS_TO_FINISH", 0.5)

    def hanging(*_: object) -> None:
        is_asked.set()
        hangs.wait()
        raise ConnectionError("the server is gone")

    tracker = new_tracker(tmp_path, mlflow_uri)
    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "set_tag", hanging)
        tracker.log_tag("a", "1")
        assert is_asked.wait(60)
        tracker.log({"loss": 1.0}, 1)  # waits behind it
        with pytest.warns(UserWarning, match="no answer within"):
            tracker.finish("FINISHED", QUIET)
        kept = (tmp_path / "tracking.json").read_text()
        assert [entry["kind"] for entry in json.loads(kept)["unsent"]] == ["tag", "metrics", "finish"]
        hangs.set()
        tracker._thread.join()
    assert (tmp_path / "tracking.json").read_text() == kept, "what the end has kept is not kept again"
    sync_tracking(str(tmp_path))
    run = MlflowClient(mlflow_uri).get_run(str(tracker.run_id))
    assert (run.info.status, run.data.tags["a"], run.data.metrics["loss"]) == ("FINISHED", "1", 1.0)


def test_a_file_that_is_gone_does_not_hold_up_the_others(tmp_path: Path, mlflow_uri: str) -> None:
    tracker = new_tracker(tmp_path, mlflow_uri)
    tracker.log_file("gone.csv")
    tracker.log_file("gone.html")
    tracker.log_model("gone", 1, RegistryConfig(name="digits"))
    tracker.log_tag("after", "all")
    tracker.finish("FINISHED", QUIET)
    assert MlflowClient(mlflow_uri).get_run(str(tracker.run_id)).data.tags["after"] == "all"
    assert not Journal(Storage(str(tmp_path))).has_unsent


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
    assert not Journal(Storage(str(tmp_path))).has_unsent


def test_a_store_that_was_full_for_a_while_has_the_end_of_the_run(
    tmp_path: Path, mlflow_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_full, log_batch = [True], MlflowClient.log_batch

    def failing(self: MlflowClient, *given: Any, **named: Any) -> None:
        if is_full:
            raise OSError("database or disk is full")
        log_batch(self, *given, **named)

    monkeypatch.setattr(MlflowClient, "log_batch", failing)
    output, tracker = io.StringIO(), new_tracker(tmp_path, mlflow_uri)
    while tracker._failure is None:
        pass
    is_full.clear()
    with pytest.warns(UserWarning, match="database or disk is full"):
        tracker.finish("FINISHED", Console(file=output))
    run = MlflowClient(mlflow_uri).get_run(str(tracker.run_id))
    assert (run.info.status, run.data.params["policy.name"], output.getvalue()) == ("FINISHED", "dpl", "")


def test_what_is_sent_late_does_not_take_the_alias_back(tmp_path: Path, mlflow_uri: str) -> None:
    for name in ("late", "early"):
        (tmp_path / name).mkdir()
        entries = every_kind(tmp_path / name)
        entries[-2]["time"] = 10 if name == "early" else int(time.time() * 1000)
        Sender(mlflow_uri, keep(tmp_path / name, start_entry(mlflow_uri, tmp_path), *entries)).send()
    client = MlflowClient(mlflow_uri)
    assert len(client.search_model_versions("name = 'digits'")) == 2
    assert str(client.get_model_version_by_alias("digits", "candidate").version) == "1"


@given(st.sets(st.text(min_size=1, max_size=300) | st.text("./_+2be", max_size=6), min_size=2, max_size=9))
@example({".", "..", "_2e", "_", "", "a/", "a//b", "./x", "c+", "c#", "c_2b"})
@example({"+", metric_key("threshold/over/+").removeprefix("threshold/over/")})
def test_keys_stay_apart_and_are_names_that_mlflow_takes(names: set[str]) -> None:
    from mlflow.utils.validation import _validate_metric_name

    keys = {f"threshold/over/{name}" for name in names}
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


def test_an_interrupted_run_was_killed_and_the_end_says_what_is_not_sent(tmp_path: Path, mlflow_uri: str) -> None:
    output = io.StringIO()
    for uri in (mlflow_uri, NOWHERE):
        tracker = new_tracker(tmp_path, uri)
        with contextlib.suppress(KeyboardInterrupt), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with recording(tracker, Console(file=output, width=40)):
                raise KeyboardInterrupt
        if uri == mlflow_uri:
            assert MlflowClient(uri).get_run(str(tracker.run_id)).info.status == "KILLED"
            assert output.getvalue() == ""
    expected = f"MLflow does not have all of it yet: dpl-ray sync-tracking run={tmp_path}"
    assert output.getvalue().strip() == expected


def test_an_experiment_that_was_deleted_is_told_with_its_remedies(tmp_path: Path, mlflow_uri: str) -> None:
    client = MlflowClient(mlflow_uri)
    experiment = client.create_experiment("tests")
    client.delete_experiment(experiment)
    remedies = f"mlflow experiments restore --experiment-id {experiment}` .*or take another tracking.experiment"
    tracker = new_tracker(tmp_path, mlflow_uri)
    with pytest.warns(UserWarning, match=rf"tracking.experiment=tests was deleted there; `{remedies}"):
        tracker.finish("FINISHED", QUIET)
    client.restore_experiment(experiment)
    assert sync_tracking(str(tmp_path)).num_entries == {str(tmp_path): 2}


def test_a_database_that_another_process_has_locked_is_told_in_one_line(
    tmp_path: Path, mlflow_uri: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    connect = sqlite3.dbapi2.connect
    with contextlib.closing(sqlite3.connect(mlflow_uri.removeprefix("sqlite:///"))) as other:
        other.execute("BEGIN EXCLUSIVE")
        monkeypatch.setattr("sqlite3.dbapi2.connect", lambda *given, **named: connect(*given, **named | {"timeout": 0}))
        tracker = new_tracker(tmp_path, mlflow_uri)
        with pytest.warns(UserWarning, match=r"database is locked; the run goes on") as told:
            tracker.finish("FINISHED", QUIET)
    assert ["\n" in str(warning.message) for warning in told] == [False]
    assert capfd.readouterr() == ("", "")


def test_what_mlflow_logs_of_a_database_that_is_locked_later_is_not_shown(
    tmp_path: Path, mlflow_uri: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stack of sixty lines, beside the one line that tells of it."""
    text = utils.sql.text  # MLflow waits for twenty seconds
    monkeypatch.setattr(utils.sql, "text", lambda query: text(query.replace("timeout = 20000", "timeout = 0")))
    journal = keep(tmp_path, start_entry(mlflow_uri, tmp_path))
    sender = Sender(mlflow_uri, journal)
    sender.send()
    with contextlib.closing(sqlite3.connect(mlflow_uri.removeprefix("sqlite:///"))) as other:
        other.execute("BEGIN EXCLUSIVE")
        journal.unsent.append({"kind": "tag", "key": "a", "value": "b", "time": 0})
        with pytest.raises(MlflowException, match="database is locked"):
            sender.send()
    assert capfd.readouterr() == ("", "")
