"""Entries of every kind for MLflow, and what is there of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Run
from rich.console import Console

from dpl_ray.commands import cli
from dpl_ray.commands import sync_tracking as command
from dpl_ray.config.schema import RegistryConfig
from dpl_ray.page.html import Page
from dpl_ray.store.history import TABLE_FILE
from dpl_ray.store.records import to_lines
from dpl_ray.store.storage import Storage
from dpl_ray.tracking.journal import Entry, Journal
from dpl_ray.tracking.tracker import MlflowTracker

NOWHERE = "http://127.0.0.1:9"
QUIET = Console(quiet=True)


def write_model(folder: Path) -> None:
    """A folder that says it is a model, which is all that a store looks at."""
    (folder / "data").mkdir(parents=True)
    (folder / "MLmodel").write_text("model_uuid: abc0\nflavors: {}\nutc_time_created: '2026-01-01 00:00:00.0'\n")
    (folder / "data" / "model.pt2").write_bytes(b"graph")


def write_history(folder: Path, *rows: tuple[str, int, dict[str, float], int]) -> None:
    """A history.jsonl of (phase, step, metrics, ms)."""
    folder.mkdir(exist_ok=True)
    names = ("phase", "step", "metrics", "time")
    lines = to_lines(dict(zip(names, row, strict=True)) for row in rows)
    (folder / "history.jsonl").write_bytes(lines)


def every_kind(folder: Path) -> list[Entry]:
    """Entries of every kind, and the files that they name."""
    (folder / "notes.txt").write_text("text")
    Page("<!doctype html>", {"a-b-c": b"<svg/>"}).write(Storage(str(folder)) / "page.html")
    (folder / "thresholds.json").write_text('{"columns": ["step"], "data": [[1]]}')
    write_model(folder / "model")
    registry = {"name": "digits", "alias": "candidate"}
    write_history(
        folder,
        ("supervised", 1, {"loss": 2.5}, 900),
        ("dpl", 1, {"loss": 1.5}, 1000),
        ("dpl", 1, {"loss": 1.25, "precision of é": 0.5}, 1500),  # measured again after an interruption
        ("dpl", 2, {"loss": 0.5}, 2000),
    )
    rows = [(1, {"threshold/over/cat": 0.5, "loss": 2.0}, 3000), (2, {"threshold/over/cat": 0.75}, 4000)]
    write_history(folder / "cell", *(("dpl", *row) for row in rows))
    child = {"name": "it's one", "params": {"policy.name": "dpl"}, "tags": {"b": "2"}, "folder": "cell"}
    return [
        {"kind": "metrics", "values": {"accuracy/a": 0.5}, "step": 0, "time": 2500},
        {"kind": "tag", "key": "checkpoint", "value": "step-2"},
        {"kind": "file", "file": "notes.txt"},
        {"kind": "file", "file": "page.html"},
        {"kind": "file", "file": "thresholds.json"},
        {"kind": "child", **child, "time": 5},
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
        "params": {"policy.name": "dpl", "long": "x" * 7000},
        "tags": {"commit": "abc"},
    }


def new_tracker(folder: Path, uri: str) -> MlflowTracker:
    return MlflowTracker(Journal(Storage(str(folder))), uri, start_entry(uri, folder))


def keep(folder: Path, *entries: Entry, prefix: str = "") -> Journal:
    """Entries as a run leaves them that could not send them."""
    journal = Journal(Storage(str(folder)), prefix)
    journal.unsent += entries
    journal.save()
    return journal


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
            case "child":
                given = {key: entry[key] for key in ("name", "params", "tags", "folder")}
                tracker.log_child(**given)
            case "model":
                tracker.log_model(entry["folder"], entry["step"], RegistryConfig(**entry["registry"]))
            case "finish":
                tracker.finish(entry["status"], QUIET)


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


def run_command(*given: str) -> int:
    return cli.run(command.COMMAND, list(given))
