"""Search over fields of the configuration: trials of one process each, chosen by accuracy on held-out labelled images.

The folder of the search is all its state (folder.py, trials.py), so that an interrupted one goes
on: trials that have ended stay, those that ran go on from their checkpoints.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from rich.console import Console

from dpl_ray.cluster import connect as cluster
from dpl_ray.config.schema import Config
from dpl_ray.data.dataset import ImageSet, Splits
from dpl_ray.data.sources import load_splits
from dpl_ray.jobs.fit import check_network, check_storage
from dpl_ray.page.console import show
from dpl_ray.runs.folder import SEARCH_FILE
from dpl_ray.runs.provenance import describe_code, describe_config
from dpl_ray.store.history import merge_records
from dpl_ray.store.lock import sole_use
from dpl_ray.studies.tuning.config import (
    SearchConfig,
    describe_options,
    how_searched,
    resolve,
    search_name,
    search_tree,
)
from dpl_ray.studies.tuning.console import TrialsProgress, search_table
from dpl_ray.studies.tuning.folder import SearchFolder
from dpl_ray.studies.tuning.space import Space, with_values
from dpl_ray.studies.tuning.trials import Trial, TrialResult, read_history, trial_config, without_test
from dpl_ray.tracking.journal import Journal
from dpl_ray.tracking.tracker import Tracker, recording, start_tracker, tracking_uri


class SearchFailedError(RuntimeError):
    """Some trials have not ended."""


@dataclass(frozen=True)
class SearchResult:
    """The result of `search`."""

    name: str
    trials: list[TrialResult]  # the best first
    failed: dict[str, str]  # trial -> cause; the same command runs them again
    best: str  # path of best.yaml
    csv: str
    markdown: str
    report: str
    run_id: str | None  # of MLflow: the parent of the trials' runs
    tracking_uri: str | None


def search(
    config: Config,
    options: SearchConfig | None = None,
    *,
    console: Console | None = None,
    command: str | None = None,
) -> SearchResult:
    """Run the trials that have not ended, and write best.yaml, tables and page.

    Args:
        config: configuration of every trial, except the searched fields. scale.num_workers=0 runs the trials one after
            another in this process, any other number as trials of Ray Tune.
        console: where progress and table are shown; None shows nothing.
        command: command line that the table names as its origin.

    Raises:
        ValueError: a field, the space, the data or the resources do not fit; before any trial starts.
        SearchFailedError: not one trial has ended with an accuracy.
    """
    console, options = console or Console(quiet=True), options or SearchConfig()
    config, options, space = resolve(config, options)
    check_storage(config)
    uri = tracking_uri(config)
    if config.model.name == "torchvision":
        from dpl_ray.models import check_names

        check_names(config.model)
    tree = search_tree(config, options, space)
    folder = SearchFolder(config.run.storage_path, search_name(config, tree), tree)
    _check_room(config, options)
    splits = _load(config, space)
    folder.check_data(splits.fingerprint())
    splits = without_test(splits)
    with sole_use(f"run.name={folder.name}", folder.storage):
        folder.begin(command)
        ended = folder.ended()
        show(console, _headline(config, options, space, splits, folder, len(ended)))
        params = describe_config(config) | describe_options(options, space)
        tags = describe_code() | {"data.fingerprint": folder.info["data"]}
        tracker = start_tracker(config, uri, Journal(folder.storage), name=folder.name, params=params, tags=tags)
        tracker.log_file(SEARCH_FILE)
        with recording(tracker, console):
            for result in ended:
                _record(tracker, folder, config, result)
            with TrialsProgress(console, options.num_trials, ended) as progress:
                listener = _Listener(progress, tracker, folder, config)
                _run(config, options, space, splits, folder, ended, listener)
            ranked = sorted(folder.ended(), key=lambda result: result.rank, reverse=True)
            if not any(result.accuracy is not None for result in ranked):
                causes = listener.failed | {result.trial.name: result.cause for result in ranked}
                raise SearchFailedError(describe_failed(causes))
            outputs = folder.write(config, options, space, ranked, listener.failed)
            for file in (outputs.best, outputs.csv, outputs.markdown):
                tracker.log_file(file.name)
            tracker.log_page(outputs.page.name)
            tracker.log_tag("best", ranked[0].trial.name)
            tracker.log_tag("report", str(outputs.page))
            tracker.log({"validation/accuracy": ranked[0].accuracy or 0.0}, 0)
            tracker.failed = bool(listener.failed)
    console.print(search_table(ranked, space))
    return SearchResult(
        name=folder.name,
        trials=ranked,
        failed=listener.failed,
        best=str(outputs.best),
        csv=str(outputs.csv),
        markdown=str(outputs.markdown),
        report=str(outputs.page),
        run_id=tracker.run_id,
        tracking_uri=uri,
    )


def describe_failed(failed: dict[str, str]) -> str:
    """How many trials did not end, and why the first of them did not."""
    name, cause = next(iter(failed.items()))
    return f"{len(failed)} trials failed, as {name} ({cause}); the same command runs those again that did not end"


class _Listener:
    """What happens to trials, told to the console and to MLflow."""

    def __init__(self, progress: TrialsProgress, tracker: Tracker, folder: SearchFolder, config: Config) -> None:
        self.progress, self.tracker, self.folder, self.config = progress, tracker, folder, config
        self.failed: dict[str, str] = {}

    def on_report(self, trial: Trial, step: int, accuracy: float) -> None:
        self.progress.show(trial, step, accuracy)

    def on_end(self, trial: Trial, result: TrialResult | None, cause: str) -> None:
        self.progress.finish(trial, result, cause)
        if result is None:
            self.failed[trial.name] = cause
        else:
            _record(self.tracker, self.folder, self.config, result)


def _run(
    config: Config,
    options: SearchConfig,
    space: Space,
    splits: Splits,
    folder: SearchFolder,
    ended: list[TrialResult],
    listener: _Listener,
) -> None:
    from dpl_ray.studies.tuning.on_ray import LedgerSearcher, make_scheduler, run_here, run_on_ray

    searcher = LedgerSearcher(folder.storage, space, options, config.train.seed, listener, ended)
    if not searcher.num_left:
        return
    scheduler = make_scheduler(config, options, ended)
    place = str(folder.storage)
    if config.scale.num_workers == 0:
        run_here(config, splits, place, searcher, scheduler)
    else:
        run_on_ray(config, splits, place, options, searcher, scheduler)


def _load(config: Config, space: Space) -> Splits:
    """The splits of all trials, which every network of the space takes."""
    splits = load_splits(config.data, seed=config.train.seed, uses_unlabeled=config.policy["name"] != "supervised")
    assert isinstance(splits.unlabeled, ImageSet)
    check_network(config, splits)
    for field, domain in space.items():
        if field.startswith("model."):
            for value in domain.probes():
                try:
                    check_network(with_values(config, {field: value}), splits)
                except ValueError as error:
                    raise ValueError(f"space.{field}={domain}: {error}") from None
    return splits


def _check_room(config: Config, options: SearchConfig) -> None:
    """Refuse what this machine has no room for; a cluster is asked when it is connected."""
    scale = config.scale
    address = cluster.cluster_address(scale) or ""
    if scale.num_workers and address.startswith("ray://"):
        raise ValueError(
            f"scale.address={address}: a search runs where its cluster is; submit it there with `ray job submit`, or "
            "give host:port"
        )
    if scale.num_workers:
        scale = scale.model_copy(update={"num_workers": 1, "cpus_per_worker": 0.01})
    with cluster.checked_resources(scale):
        if not scale.num_workers:
            return
        from dpl_ray.studies.tuning.on_ray import check_places, connected_nodes

        if cluster.cluster_address(scale):
            check_places(connected_nodes(), config, options, "the cluster")
        else:
            gpus = float(cluster.count_gpus()) if scale.use_gpu else 0.0
            here = {"CPU": float(os.cpu_count() or 1), "GPU": gpus}
            check_places([here], config, options, "this machine")


def _record(tracker: Tracker, folder: SearchFolder, config: Config, result: TrialResult) -> None:
    """A child run of the trial, unless it has one."""
    name = result.trial.name
    if not tracker.needs_child(name):
        return
    tags = {"state": result.state, "checkpoint": result.checkpoint or "", "cause": result.cause}
    tracker.log_child(
        name,
        params=describe_config(trial_config(config, result.trial, str(folder.storage))),
        tags=describe_code() | result.facts | {key: value for key, value in tags.items() if value},
        history=merge_records(read_history(folder.storage, name)),
    )


def _headline(
    config: Config, options: SearchConfig, space: Space, splits: Splits, folder: SearchFolder, num_ended: int
) -> str:
    goes_on = f"goes on, {num_ended} of them ended before" if folder.resumed else "starts"
    ray_starts = config.scale.num_workers and not cluster.cluster_address(config.scale)
    return (
        f"{folder.name} {goes_on}: {options.num_trials} trials over {len(space)} fields, {how_searched(options)}; "
        f"{config.train.num_steps:,} steps each, on {len(splits.labeled)} labelled images of {len(splits.class_names)} "
        f"classes and {len(splits.unlabeled)} in the pool; chosen by accuracy on {len(splits.validation)} held-out "
        f"labelled images (one image is {100 / len(splits.validation):.1f} points)"
        + ("\nstarting Ray takes some 20 seconds" if ray_starts and num_ended < options.num_trials else "")
    )
