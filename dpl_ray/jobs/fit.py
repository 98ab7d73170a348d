"""From a configuration to a finished run: check, train, record, report.

torch is imported where training begins: a mistake in fields, files or paths is answered before it is loaded.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from rich.console import Console

from dpl_ray.checking.findings import quick_findings, show_findings
from dpl_ray.checking.settings import check_network, check_pool_use, settle_model
from dpl_ray.cluster.connect import check_readers, checked_resources, cluster_address
from dpl_ray.cluster.workers import WorkersLostError
from dpl_ray.config.compose import load_config
from dpl_ray.config.given import read_given
from dpl_ray.config.schema import Config, DataConfig
from dpl_ray.data.dataset import ImageSet, Source, Splits
from dpl_ray.data.files.kinds import as_text
from dpl_ray.data.files.location import indexes_in
from dpl_ray.data.formats.rows import shards_told
from dpl_ray.data.splits.sources import load_splits
from dpl_ray.jobs.checks import check_places
from dpl_ray.jobs.phases import run_phases
from dpl_ray.jobs.placement import place, place_name
from dpl_ray.page.console import Progress, open_console, show
from dpl_ray.page.markdown import markdown
from dpl_ray.page.result import Result, percent
from dpl_ray.report.console import result_tables, training_state
from dpl_ray.report.health import Finding, find_health, health_lines
from dpl_ray.report.live import LivePage
from dpl_ray.report.measure import measure
from dpl_ray.report.page import REPORT_FILE, find_verdict, make_page, verdict_sentence
from dpl_ray.runs.folder import MODEL_FOLDER, RunFolder, check_run, run_storage
from dpl_ray.runs.provenance import describe_config, describe_run
from dpl_ray.store.history import TABLE_FILE, merge_records, read_history, threshold_table
from dpl_ray.store.lock import sole_use
from dpl_ray.store.storage import Storage
from dpl_ray.tracking.journal import Journal
from dpl_ray.tracking.server import tracking_uri
from dpl_ray.tracking.tracker import Tracker, recording, start_tracker
from dpl_ray.training.interruption import Interrupted
from dpl_ray.training.threads import threads_of

if TYPE_CHECKING:
    from dpl_ray.page.html import Page
    from dpl_ray.report.pool import PoolSample
    from dpl_ray.training.records import Outcome, Record


@dataclass(frozen=True, repr=False)
class FitResult(Result):
    """The result of `fit`."""

    name: str
    metrics: dict[str, float]  # of the last teacher: eval/..., pseudo/..., in the keys of docs/metrics.md
    baseline: dict[str, float] | None  # the same of the supervised baseline
    thresholds: dict[str, dict[str, float]]  # threshold -> class name -> value
    checkpoint: str
    verdict: str | None  # whether the pool has helped, in a sentence; None without a baseline
    health: tuple[Finding, ...]  # what is wrong with the run, the worst first; docs/health.md
    report: str | None  # None: none is written for an estimator without storage_path
    model: str | None  # folder of the last teacher in MLflow's format; None where nothing was recorded
    registered: str | None  # models:/NAME/VERSION, where registry.name is set
    run_id: str | None  # of MLflow
    tracking_uri: str | None

    def _facts(self) -> dict[str, str | None]:
        return {
            "name": self.name,
            "accuracy": percent(self.metrics.get("eval/accuracy")),
            "supervised": percent((self.baseline or {}).get("eval/accuracy")),
            "verdict": self.verdict and self.verdict.partition(":")[0],
            "health": ", ".join(found.name for found in self.health) or None,
            "checkpoint": self.checkpoint,
            "report": self.report,
        }


def fit(config: Config | Sequence[str] = (), *, console: Console | bool | None = None, **keywords: Any) -> FitResult:
    """Train a model as the configuration says. A run of the same name goes on where it stopped.

    Args:
        config: a configuration, or overrides as on the command line: `["data=digits", "train.num_steps=100"]`.
        console: where progress and tables are shown; True: standard output, or the cell of a notebook; None: nowhere.
        keywords: further overrides: `data="digits"` chooses an option of a group, `train={"num_steps": 100}` sets
            fields of a section. Both in one: `policy={"name": "dpl", "rule": "band"}`.

    Raises:
        ValueError: a field, the data or the resources do not fit; before any worker starts.
        NonFiniteLossError: a loss is not finite; names step, worker and term.
        Interrupted: by Ctrl-C, with a checkpoint; the same run.name goes on from there.
        WorkersLostError: Ray gave up on the workers; the same run.name goes on from the last checkpoint.
    """
    return run_training(read_given(config, keywords, load_config), open_console(console))


def run_training(
    config: Config,
    console: Console,
    read: Callable[[DataConfig], Source] | None = None,
    *,
    has_page: bool = True,
    ends_at: float | None = None,
) -> FitResult:
    """`fit`, also of images in memory, and within a time.

    Args:
        read: reads these, with data=arrays.
        has_page: whether report.html is written, which takes seconds.
        ends_at: when the training is interrupted, by `time.monotonic()`; None: never.
    """
    with checked_resources(config.scale):
        listing = Progress(console, "shards looked at")
        with listing, shards_told(listing.update), indexes_in(config.run.storage_path):
            config, uri, splits, why = _check(settle_model(config), read)
        storage = run_storage(config)
        with sole_use(f"run.name={storage.name}", storage):
            folder = RunFolder(storage, config, splits)
            show(console, _headline(config, splits, folder))
            if why and not folder.finished:
                show(console, why)
            if folder.finished:
                result = _result(folder, uri)
                _warn_if_unregistered(config, result)
            else:
                show_findings(console, quick_findings(config, splits))
                with _named(config, folder), threads_of(config.scale):
                    result = _train(config, splits, folder, uri, console, has_page, ends_at)
    for table in result_tables(config.policy.name, result.metrics, result.baseline, result.thresholds):
        console.print(table)
    for line in filter(None, [result.verdict, *health_lines(result.health)]):
        show(console, line)
    return result


def _check(config: Config, read: Callable[[DataConfig], Source] | None) -> tuple[Config, str | None, Splits, str]:
    """The configuration with its workers, where MLflow's records go, the data, and why there are so many workers."""
    check_places(config)
    uri = tracking_uri(config)
    saved = check_run(config)
    # Policy.uses_unlabeled says it too, but only with torch loaded; a test holds them together.
    uses_unlabeled = config.policy.name != "supervised"
    splits = load_splits(config.data, seed=config.train.seed, uses_unlabeled=uses_unlabeled, read=read)
    check_pool_use(config, splits)
    check_network(config, splits)
    config, why = place(config, splits, saved.get("scale", {}))
    check_network(config, splits)  # with the workers that were chosen
    if uses_unlabeled and not isinstance(splits.unlabeled, ImageSet):
        check_readers(config.scale)
    return config, uri, splits, why


def _warn_if_unregistered(config: Config, result: FitResult) -> None:
    wanted = config.registry.name
    if wanted and not (result.registered or "").startswith(f"models:/{wanted}/"):
        warnings.warn(
            f"registry.name={wanted}: the run had finished and is not registered now; "
            f"mlflow.register_model('runs:/{result.run_id}/model', '{wanted}') does it",
            stacklevel=4,
        )


def _train(
    config: Config,
    splits: Splits,
    folder: RunFolder,
    uri: str | None,
    console: Console,
    has_page: bool,
    ends_at: float | None,
) -> FitResult:
    """Train what is missing, with its records in the folder, on the console and in MLflow."""
    params, tags = describe_config(config), describe_run(splits)
    journal = Journal(folder.storage)
    tracker = start_tracker(config, uri, journal, name=folder.name, params=params, tags=tags, waits=True)
    with recording(tracker, console):
        tracker.log_file("config.yaml")
        with Progress(console, "steps") as progress:
            live = LivePage(config, splits, folder) if has_page else None
            receive = _receiver(progress, tracker, live, loads=has_page and bool(config.scale.num_workers))
            outcomes = run_phases(config, splits, folder, receive, partial(show, console), ends_at)
        tracker.log_history()
        found = find_verdict(splits, outcomes)
        sample = _sample(splits, outcomes[-1]) if has_page else None
        health = find_health(measure(config, splits, read_history(folder.storage), outcomes[-1], sample, found))
        verdict = verdict_sentence(found, health) if found else None
        if has_page:
            page = make_page(config, splits, folder, outcomes, sample, health)
            _record(config, folder, outcomes[-1], page, [verdict or "No baseline", *health_lines(health)], tracker)
        if health:
            tracker.log({found.key: found.measured for found in health}, config.train.num_steps)
        tracker.log_tag("health", ", ".join(found.name for found in health) or "nothing found")
    folder.finish(outcomes, splits.class_names, verdict, [asdict(found) for found in health])
    return _result(folder, uri)


@contextmanager
def _named(config: Config, folder: RunFolder) -> Iterator[None]:
    """An interruption, and lost workers, say under which name a run goes on that was given none."""
    try:
        yield
    except WorkersLostError as error:
        error.run_name = None if config.run.name else folder.name
        raise
    except KeyboardInterrupt as error:
        interrupted = Interrupted(*error.args)
        interrupted.run_name = None if config.run.name else folder.name
        interrupted.by_time = getattr(error, "by_time", False)
        raise interrupted from error


def _receiver(progress: Progress, tracker: Tracker, page: LivePage | None, *, loads: bool) -> Callable[[Record], None]:
    """What is done with news of the training: they are shown, and metrics, which the folder has, sent and drawn.

    Args:
        loads: from the first ones on, what the end of the run takes is loaded.
    """
    newest: dict[str, dict[str, float]] = {}
    loading = threading.Thread(target=_load_exporter, daemon=True)

    def receive(record: Record) -> None:
        tracker.begin()
        if loads and tracker.is_recording and loading.ident is None:
            loading.start()
        newest[record.phase] = newest.get(record.phase, {}) | record.metrics
        state = f"{record.images_per_second:,.0f} images/s  {training_state(newest[record.phase])}".rstrip()
        progress.update(record.step, record.num_steps, state, name=record.phase)
        if record.metrics:
            tracker.log_history()
            if page:
                page.update(record)

    return receive


def _load_exporter() -> None:
    from dpl_ray.inference.exported_model import load_libraries

    load_libraries()


def _sample(splits: Splits, main: Outcome) -> PoolSample | None:
    """Of the pool, predicted on this machine's CPU; the test split was predicted by the workers."""
    from dpl_ray.report.pool import label_sample

    return None if main.phase == "supervised" else label_sample(main.checkpoint, splits)


def _record(config: Config, folder: RunFolder, main: Outcome, page: Page, told: list[str], tracker: Tracker) -> None:
    """Page, table of thresholds and model: written into the folder, and told to MLflow.

    Args:
        told: sentences about the run.
    """
    from dpl_ray.inference.exported_model import record_model

    report = folder.storage / REPORT_FILE
    page.write(report)
    tracker.log_file(report.name)
    rows = (row for row in read_history(folder.storage) if row["phase"] == main.phase)
    if table := threshold_table(merge_records(rows)):
        (folder.storage / TABLE_FILE).write(table)
        tracker.log_file(TABLE_FILE)
    record_model(tracker, config.registry, Storage(main.checkpoint), folder.storage)
    notes = {"checkpoint": main.checkpoint, "report": str(report), "mlflow.note.content": _note(told)}
    for key, value in notes.items():
        tracker.log_tag(key, value)


def _note(told: list[str]) -> str:
    """What MLflow shows as the description of the run, in Markdown: sentences with names of classes in them."""
    return ". ".join([*map(markdown, told), f"The page of the run is its artifact {REPORT_FILE}."])


def _result(folder: RunFolder, uri: str | None) -> FitResult:
    """Of a finished run, of this time or of another."""
    found, journal = folder.info["result"], Journal(folder.storage)
    report, model = folder.storage / REPORT_FILE, folder.storage / MODEL_FOLDER
    return FitResult(
        name=folder.name,
        metrics=found["metrics"],
        baseline=found["baseline"],
        thresholds=found["thresholds"],
        checkpoint=str(folder.storage / found["checkpoint"]),
        verdict=found.get("verdict"),
        health=tuple(Finding(**each) for each in found.get("health", ())),
        report=str(report) if report.exists() else None,
        model=str(model) if (model / "MLmodel").exists() else None,
        registered=journal.registered if uri else None,
        run_id=journal.run_id if uri else None,
        tracking_uri=uri,
    )


def _headline(config: Config, splits: Splits, folder: RunFolder) -> str:
    num_bad = f", {len(splits.bad)} unreadable (bad_images.csv)" if splits.bad else ""
    left_out = f"\nleft out: {as_text(splits.left_out)}" if splits.left_out else ""
    shaped = f"\npool made for a benchmark: {splits.shaped}" if splits.shaped else ""
    if folder.finished:
        return f"{folder.name} had finished; another run.name trains anew"
    streamed = "" if isinstance(splits.unlabeled, ImageSet) else " (streamed)"
    data = config.data
    network = ""
    if config.model.weights is not None:
        network = f"\n{config.model.architecture} of {config.model.name} with weights {config.model.weights}, images "
        network += f"{data.image_size}x{data.image_size}, {data.interpolation}"
    num_pseudo = f" + {splits.num_pseudo_labeled} pseudo-labelled" if data.labels else ""
    of_pseudo_labels = " (of pseudo-labels)" if data.labels and not data.train and not data.test else ""
    return (
        f"{folder.name} {_beginning(config, folder)} with {place_name(config.scale)}: {data.name}, "
        f"{len(splits.labeled) - splits.num_pseudo_labeled} labelled{num_pseudo} images of "
        f"{len(splits.class_names)} classes, {len(splits.unlabeled)} in the pool{streamed}, "
        f"{len(splits.validation)} validation, {len(splits.test)} test{of_pseudo_labels}{num_bad}{left_out}{shaped}"
        f"{network}{_small_pool(config, splits)}"
        + (
            "\nstarting Ray takes some 10 seconds"
            if config.scale.num_workers and not cluster_address(config.scale)
            else ""
        )
    )


def _small_pool(config: Config, splits: Splits) -> str:
    size, pool_size = config.train.batch_size * config.train.mu, len(splits.unlabeled)
    if config.policy.name == "supervised" or size <= pool_size:
        return ""
    return f"\na step takes {size} unlabelled images, more than the pool has: train.mu={config.train.mu} for each label"


def _beginning(config: Config, folder: RunFolder) -> str:
    from dpl_ray.training.checkpoint import list_checkpoints

    phases = {config.policy.name: folder.storage, "the supervised baseline": folder.storage / "baseline"}
    for phase, checkpoints in phases.items():
        if saved := list_checkpoints(checkpoints):
            return f"goes on from step {int(saved[-1].name.removeprefix('step-'))} of {phase}"
    return "starts again" if folder.resumed else "starts"
