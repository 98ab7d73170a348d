"""From a configuration to a finished run: check, train, record, report.

torch is imported where training begins: a mistake in fields, files or paths is answered before it is loaded.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from dpl_ray.cluster.connect import check_readers, checked_resources, cluster_address
from dpl_ray.cluster.workers import run_workers
from dpl_ray.config.policies import SupervisedConfig
from dpl_ray.config.schema import Config
from dpl_ray.data.dataset import ImageSet, Splits
from dpl_ray.data.files import as_text
from dpl_ray.data.sources import load_splits
from dpl_ray.page.console import Progress, show
from dpl_ray.report.console import result_tables, training_state
from dpl_ray.report.curves import History
from dpl_ray.report.page import REPORT_FILE, find_verdict, verdict_sentence, write_report
from dpl_ray.runs.folder import MODEL_FOLDER, RunFolder, check_run, run_storage
from dpl_ray.runs.provenance import describe_config, describe_run
from dpl_ray.store.history import TABLE_FILE, threshold_table
from dpl_ray.store.lock import sole_use
from dpl_ray.store.storage import Storage
from dpl_ray.tracking.journal import Journal
from dpl_ray.tracking.tracker import Tracker, recording, start_tracker, tracking_uri

if TYPE_CHECKING:
    from dpl_ray.data.pool.windows import WindowReader
    from dpl_ray.training.distributed import Workers
    from dpl_ray.training.records import Outcome, Record


@dataclass(frozen=True)
class FitResult:
    """The result of `fit`."""

    name: str
    metrics: dict[str, float]  # of the last teacher: eval/..., pseudo/..., in the keys of docs/metrics.md
    baseline: dict[str, float] | None  # the same of the supervised baseline
    thresholds: dict[str, dict[str, float]]  # threshold -> class name -> value
    checkpoint: str
    verdict: str | None  # whether the pool has helped, in a sentence; None without a baseline
    report: str
    model: str | None  # folder of the last teacher in MLflow's format; None where nothing was recorded
    registered: str | None  # models:/NAME/VERSION, where registry.name is set
    run_id: str | None  # of MLflow
    tracking_uri: str | None


def fit(config: Config, *, console: Console | None = None) -> FitResult:
    """Train a model as the configuration says. A run of the same name goes on where it stopped.

    Args:
        console: where progress and tables are shown; None shows nothing.

    Raises:
        ValueError: a field, the data or the resources do not fit; before any worker starts.
        NonFiniteLossError: a loss is not finite; names step, worker and term.
        WorkersLostError: Ray gave up on the workers; the same run.name goes on from the last checkpoint.
    """
    with checked_resources(config.scale):
        return _fit(config, console or Console(quiet=True))


def _fit(config: Config, console: Console) -> FitResult:
    check_storage(config)
    uri = tracking_uri(config)
    check_run(config)
    if config.model.name == "torchvision":
        from dpl_ray.models import check_names

        check_names(config.model)
    # Policy.uses_unlabeled says it too, but only with torch loaded; a test holds them together.
    uses_unlabeled = config.policy.name != "supervised"
    splits = load_splits(config.data, seed=config.train.seed, uses_unlabeled=uses_unlabeled)
    check_network(config, splits)
    if uses_unlabeled and not isinstance(splits.unlabeled, ImageSet):
        check_readers(config.scale)
    storage = run_storage(config)
    with sole_use(f"run.name={storage.name}", storage):
        folder = RunFolder(storage, config, splits)
        show(console, _headline(config, splits, folder))
        had_finished = folder.finished
        result = _result(folder, uri) if had_finished else _train(config, splits, folder, uri, console)
    wanted = config.registry.name
    if had_finished and wanted and not (result.registered or "").startswith(f"models:/{wanted}/"):
        warnings.warn(
            f"registry.name={wanted}: the run had finished and is not registered now; "
            f"mlflow.register_model('runs:/{result.run_id}/model', '{wanted}') does it",
            stacklevel=2,
        )
    for table in result_tables(config.policy.name, result.metrics, result.baseline, result.thresholds):
        console.print(table)
    if result.verdict:
        show(console, result.verdict)
    return result


def _train(config: Config, splits: Splits, folder: RunFolder, uri: str | None, console: Console) -> FitResult:
    journal = Journal(folder.storage)
    params, tags = describe_config(config), describe_run(splits)
    tracker = start_tracker(config, uri, journal, name=folder.name, params=params, tags=tags)
    with recording(tracker, console):
        tracker.log_file("config.yaml")

        def tell(row: dict[str, Any]) -> None:
            prefix = "" if row["phase"] == config.policy.name else "baseline/"
            tracker.log({prefix + key: value for key, value in row["metrics"].items()}, row["step"], row["time"])

        for row in folder.first_told():
            if tracker.needs_metrics(row["time"]):  # of a driver that was killed before it could send them
                tell(row)
        try:
            states: dict[str, str] = {}
            with Progress(console, "steps") as progress:

                def receive(record: Record) -> None:
                    if state := training_state(record.metrics):
                        states[record.phase] = state
                    state = f"{record.images_per_second:,.0f} images/s  {states.get(record.phase, '')}"
                    progress.update(record.step, record.num_steps, state, name=record.phase)
                    if record.metrics:
                        # What it was told of this step before, at another time, MLflow would show twice.
                        tell(folder.add(record) | {"metrics": folder.news(record)})

                outcomes = _run(config, splits, folder, receive)
        finally:
            folder.save_history()
        found = find_verdict(splits, outcomes)
        verdict = verdict_sentence(found) if found else None
        _record_outcome(config, splits, folder, outcomes, verdict, tracker)
    folder.finish(outcomes, splits.class_names, verdict)
    return _result(folder, uri)


def _record_outcome(
    config: Config, splits: Splits, folder: RunFolder, outcomes: list[Outcome], verdict: str | None, tracker: Tracker
) -> None:
    """Page, table of thresholds and model: written into the folder, and told to MLflow."""
    from dpl_ray.inference.exported_model import record_model

    main = outcomes[-1]
    report = write_report(config, splits, folder, outcomes)
    tracker.log_page(report.name)
    if table := threshold_table(History(folder.history, main.phase).merged):
        (folder.storage / TABLE_FILE).write(table)
        tracker.log_table(TABLE_FILE)
    record_model(tracker, config.registry, Storage(main.checkpoint), folder.storage)
    # The note is what MLflow shows as the description of the run.
    note = f"{verdict or 'No baseline'}. The page of the run is its artifact {REPORT_FILE}."
    for key, value in {"checkpoint": main.checkpoint, "report": str(report), "mlflow.note.content": note}.items():
        tracker.log_tag(key, value)


def _result(folder: RunFolder, uri: str | None) -> FitResult:
    """Of a finished run, of this time or of another."""
    found, journal = folder.info["result"], Journal(folder.storage)
    has_model = (folder.storage / MODEL_FOLDER / "MLmodel").exists()
    return FitResult(
        name=folder.name,
        metrics=found["metrics"],
        baseline=found["baseline"],
        thresholds=found["thresholds"],
        checkpoint=str(folder.storage / found["checkpoint"]),
        verdict=found.get("verdict"),
        report=str(folder.storage / REPORT_FILE),
        model=str(folder.storage / MODEL_FOLDER) if has_model else None,
        registered=journal.registered if uri else None,
        run_id=journal.run_id if uri else None,
        tracking_uri=uri,
    )


def check_storage(config: Config) -> None:
    """Refuse a folder that the workers would not share."""
    path = config.run.storage_path
    if (
        config.scale.num_workers
        and cluster_address(config.scale)
        and "://" not in path
        and not Path(path).is_absolute()
    ):
        raise ValueError(
            f"run.storage_path={path}: on a cluster this folder is another one for every node, and a job's is removed; "
            "give an absolute path that all nodes share, or s3://"
        )


def check_network(config: Config, splits: Splits) -> None:
    """Refuse a network that does not take these images."""
    from dpl_ray.models import check_model

    channels, height, width = splits.labeled.images.shape[1:]
    check_model(config, channels, (height, width), len(splits.class_names))


def train_phases(
    config: Config,
    splits: Splits,
    folder: Storage,
    workers: Workers,
    tell: Callable[[Record], None],
    read: WindowReader | None = None,
) -> list[Outcome]:
    """The supervised baseline, where it is wanted, then the policy; each from its newest checkpoint.

    Args:
        read: reads a pool that is streamed; None: this process does.
    """
    from dpl_ray.data.pool.windows import read_here
    from dpl_ray.training.loop import train

    outcomes = []
    if config.train.baseline and config.policy.name != "supervised":
        baseline = config.model_copy(update={"policy": SupervisedConfig()})
        outcomes.append(train(baseline, splits, workers, folder / "baseline", tell))
    outcomes.append(train(config, splits, workers, folder, tell, read or read_here))
    return outcomes


def _run(config: Config, splits: Splits, folder: RunFolder, receive: Callable[[Record], None]) -> list[Outcome]:
    """The outcomes of all phases, from Ray's workers or from this process."""
    import torch

    from dpl_ray.training.distributed import Workers

    if config.scale.num_workers == 0:
        if config.scale.threads_per_worker:
            torch.set_num_threads(config.scale.threads_per_worker)
        device = torch.device("cuda" if config.scale.use_gpu else "cpu")
        return train_phases(config, splits, folder.storage, Workers(device=device), receive)
    found = run_workers(
        partial(_train_on_worker, config, folder.storage),
        splits,
        scale=config.scale,
        name=folder.name,
        storage_path=str(Storage(config.run.storage_path) / "ray"),
        on_news=receive,
    )
    if isinstance(found, Exception):
        raise found
    return found


def _train_on_worker(
    config: Config, folder: Storage, splits: Splits, tell: Callable[[Record], None]
) -> list[Outcome] | Exception:
    import torch
    from ray.train import get_context
    from ray.train.torch import get_device

    from dpl_ray.cluster.windows import read_windows
    from dpl_ray.training.distributed import Workers
    from dpl_ray.training.step import NonFiniteLossError

    num_threads = config.scale.threads_per_worker or (os.cpu_count() or 1) // get_context().get_local_world_size()
    torch.set_num_threads(max(1, num_threads))
    try:
        return train_phases(config, splits, folder, Workers.current(get_device()), tell, read_windows)
    except (NonFiniteLossError, ValueError) as error:
        # Returned, not raised: another attempt would only meet it again.
        return error


def _headline(config: Config, splits: Splits, folder: RunFolder) -> str:
    num_bad = f", {len(splits.bad)} unreadable (bad_images.csv)" if splits.bad else ""
    left_out = f"\nleft out: {as_text(splits.left_out)}" if splits.left_out else ""
    if folder.finished:
        return f"{folder.name} had finished; another run.name trains anew"
    streamed = "" if isinstance(splits.unlabeled, ImageSet) else " (streamed)"
    place = (
        f"{config.scale.num_workers} Ray Train worker{'s' * (config.scale.num_workers > 1)}"
        if config.scale.num_workers
        else "this process"
    )
    data = config.data
    num_pseudo = f" + {splits.num_pseudo_labeled} pseudo-labelled" if data.labels else ""
    of_pseudo_labels = " (of pseudo-labels)" if data.labels and not data.train and not data.test else ""
    return (
        f"{folder.name} {_beginning(config, folder)} with {place}: {data.name}, "
        f"{len(splits.labeled) - splits.num_pseudo_labeled} labelled{num_pseudo} images of "
        f"{len(splits.class_names)} classes, {len(splits.unlabeled)} in the pool{streamed}, "
        f"{len(splits.validation)} validation, {len(splits.test)} test{of_pseudo_labels}{num_bad}{left_out}"
        + (
            "\nstarting Ray takes some 20 seconds"
            if config.scale.num_workers and not cluster_address(config.scale)
            else ""
        )
    )


def _beginning(config: Config, folder: RunFolder) -> str:
    from dpl_ray.training.checkpoint import list_checkpoints

    phases = {config.policy.name: folder.storage, "the supervised baseline": folder.storage / "baseline"}
    for phase, place in phases.items():
        if saved := list_checkpoints(place):
            return f"goes on from step {int(saved[-1].name.removeprefix('step-'))} of {phase}"
    return "starts again" if folder.resumed else "starts"
