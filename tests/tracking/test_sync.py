"""Sending MLflow later what it was not sent, and the addresses of servers."""

from __future__ import annotations

import io
import json
import re
import warnings
from pathlib import Path

import pytest
from mlflow import MlflowClient
from rich.console import Console

from dpl_ray import fit, load_config, sync_tracking
from dpl_ray.store.lock import sole_use
from dpl_ray.store.storage import Storage
from dpl_ray.tracking.journal import Journal
from dpl_ray.tracking.sender import Sender
from dpl_ray.tracking.server import check_uri, shown_uri, tracking_uri
from dpl_ray.tracking.sync import NotSentError
from dpl_ray.tracking.tracker import start_tracker
from tests.recordings import (
    NOWHERE,
    QUIET,
    keep,
    new_tracker,
    run_command,
    start_entry,
)


def test_what_mlflow_refuses_later_is_told(tmp_path: Path, mlflow_uri: str, capsys: pytest.CaptureFixture[str]) -> None:
    keep(tmp_path, start_entry(mlflow_uri, tmp_path), {"kind": "tag", "key": "", "value": "b"})
    assert run_command(f"run={tmp_path}") == 0
    output = capsys.readouterr().out
    assert "2 entries sent to run" in output
    assert output.endswith(", 1 of which it does not take: tracking-refused.jsonl\n")


def test_the_command_says_what_it_has_sent(tmp_path: Path, mlflow_uri: str, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "runs" / "first"
    keep(folder, start_entry(mlflow_uri, tmp_path), prefix="_ledger/")
    assert run_command(f"run={tmp_path}/runs") == 0
    run_id = json.loads((folder / "_ledger" / "tracking.json").read_text())["run_id"]
    assert capsys.readouterr().out == f"{folder}: 1 entries sent to run {run_id}\n"
    assert run_command(f"run={folder}") == 0
    assert capsys.readouterr().out == f"{folder}: nothing is left to send\n"


def test_a_server_that_is_still_down_is_named_and_costs_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    entries = [start_entry(NOWHERE, tmp_path), {"kind": "tag", "key": "a", "value": "b"}]
    keep(tmp_path, *entries)
    for _ in range(2):
        assert run_command(f"run={tmp_path}") == 1
        message = capsys.readouterr().err
        assert message.startswith(f"failed: NotSentError: MLflow at {NOWHERE}: ")
        assert "; 2 entries of" in message
    assert Journal(Storage(str(tmp_path))).unsent == entries


def test_a_server_at_another_address_is_the_same_server(tmp_path: Path, mlflow_uri: str) -> None:
    journal = keep(tmp_path, start_entry(mlflow_uri, tmp_path))
    Sender(mlflow_uri, journal).send()
    journal.uri = NOWHERE
    journal.save()
    keep(tmp_path, start_entry(NOWHERE, tmp_path), {"kind": "tag", "key": "a", "value": "b"})
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


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        (
            "127.0.0.1:5000",
            "tracking.uri=127.0.0.1:5000: is no address of an MLflow server or database; give it as http://127",
        ),
        ("runs/mlflow.db", "or sqlite:////absolute/path/mlflow.db"),
        ("file:///tmp/mlruns", "tracking.uri=file:///tmp/mlruns: is a folder of files"),
        ("file:/tmp/mlruns", "give a database in it, as sqlite:////tmp/mlruns/mlflow.db"),
        ("FILE:///tmp/mlruns/", "give a database in it, as sqlite:////tmp/mlruns/mlflow.db"),
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


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("http://alice:p@ss@host:5000/a", "http://alice@host:5000/a"),
        ("postgresql://alice:a/b@host/db", "postgresql://alice@host/db"),
        ("mysql+pymysql://host/db?user=a&password=s3cret&x=1", "mysql+pymysql://host/db?user=a&password=&x=1"),
        ("https://host/?access_token=s3cret#a", "https://host/?access_token=#a"),
        ("GET http://a:b@c failed, as http://a:b@d/e@f: no", "GET http://a@c failed, as http://a@d/e@f: no"),
        ("http://host:5000/a@b", "http://host:5000/a@b"),
        ("sqlite:////a/b:c.db", "sqlite:////a/b:c.db"),
    ],
)
def test_no_form_of_a_password_is_shown(address: str, shown: str) -> None:
    assert shown_uri(address) == shown


@pytest.mark.parametrize("prefix", ["", "_ledger/"])
def test_what_is_at_work_is_left_to_itself(tmp_path: Path, prefix: str) -> None:
    journal = keep(tmp_path, start_entry(NOWHERE, tmp_path), prefix=prefix)
    with sole_use("run=x", journal.place), pytest.raises(NotSentError, match=f"^run={tmp_path}: another command is at"):
        sync_tracking(str(tmp_path))
    assert journal.has_unsent
    journal.unsent, journal.is_open = [], True  # all is sent, and more will come
    journal.save()
    with sole_use("run=x", journal.place):
        assert sync_tracking(str(tmp_path)).num_entries == {}


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


def test_a_folder_of_somebody_else_sends_neither_other_files_nor_credentials_to_his_server(
    tmp_path: Path, mlflow_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, secret = tmp_path / "runs" / "first", tmp_path / "secret.txt"
    secret.write_text("canary")
    (secret.parent / "history.jsonl").write_text("")
    child = {"kind": "child", "name": "a", "params": {}, "tags": {}, "folder": "../..", "time": 5}
    files = [{"kind": "file", "file": name} for name in ("../../secret.txt", str(secret))]
    models = [{"kind": "model", "folder": "..", "step": 1, "registry": None, "time": 5}]
    keep(folder, start_entry(mlflow_uri, tmp_path), *files, child, *models)
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "canary")
    assert not mlflow_uri.startswith("http"), "a database has no use for the token"
    found = sync_tracking(str(folder))
    assert found.num_refused == {str(folder): 4}
    assert "is outside of the run" in (folder / "tracking-refused.jsonl").read_text()
    other = tmp_path / "runs" / "other"
    keep(other, start_entry(NOWHERE, tmp_path))
    with pytest.raises(NotSentError, match=rf"{NOWHERE}, which would get MLFLOW_TRACKING_TOKEN; give it as uri= or in"):
        sync_tracking(str(other))
    for known in ({"uri": NOWHERE}, {}):  # and with it in the environment
        with pytest.raises(NotSentError, match=f"^MLflow at {NOWHERE}"):
            sync_tracking(str(other), **known)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", NOWHERE)
