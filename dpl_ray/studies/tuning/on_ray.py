"""Trials through Ray Tune: its schedulers and Optuna propose and stop, in Tune's processes or in this one.

What Tune writes is not read again, because that would unpickle it. The folder of the search is the state: proposals are
written before they run, results when they end; started again, searcher and scheduler are told of them anew.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import warnings
from collections.abc import Callable
from itertools import count
from types import SimpleNamespace
from typing import Any, Protocol

from ray import tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from dpl_ray.cluster import connect as cluster
from dpl_ray.config.schema import Config
from dpl_ray.data.dataset import Splits
from dpl_ray.store.storage import Storage
from dpl_ray.studies.tuning.config import SearchConfig
from dpl_ray.studies.tuning.space import Space, draw_values
from dpl_ray.studies.tuning.trials import (
    Trial,
    TrialResult,
    read_history,
    read_reports,
    read_trials,
    recorded_seconds,
    run_trial,
)

STEP, ACCURACY = "step", "accuracy"
TUNE_FOLDER = "tune"  # of what Tune writes while it runs
ERROR_FILE = "error.txt"
#: Tune's loggers and printing, its answer to Ctrl-C and its change of folder are not wanted; a trial that diverges may
#: end without a report.
ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
}


class Listener(Protocol):
    """Who is told what happens to trials."""

    def on_report(self, trial: Trial, step: int, accuracy: float) -> None: ...

    def on_end(self, trial: Trial, result: TrialResult | None, cause: str) -> None: ...


class TrialStoppedError(Exception):
    """The scheduler has stopped the trial."""


class LedgerSearcher(Searcher):
    """Trials that have not ended, and then new ones: drawn, or proposed by Optuna. Each is written down first."""

    def __init__(
        self,
        storage: Storage,
        space: Space,
        options: SearchConfig,
        seed: int,
        listener: Listener,
        ended: list[TrialResult],
    ) -> None:
        """
        Args:
            ended: results of all trials that have ended before.
        """
        super().__init__(metric=ACCURACY, mode="max")
        self.storage, self.space, self.seed, self.listener = storage, space, seed, listener
        known = read_trials(storage)
        numbers = {result.number for result in ended}
        self.unfinished = [trial for trial in known if trial.number not in numbers]
        self.num_trials = options.num_trials
        self.next_number = max((trial.number for trial in known), default=-1) + 1
        self.running: dict[str, Trial] = {}
        self.proposer: Any = None
        if options.searcher == "optuna":
            # Another draw than that of the search that was interrupted, which has used its beginning.
            self.proposer = _optuna(space, options.random_trials, seed + self.next_number)
            self.proposed: set[str] = set()
            for result in ended:
                self._tell(result)

    @property
    def num_left(self) -> int:
        return len(self.unfinished) + max(0, self.num_trials - self.next_number)

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any) -> bool:  # noqa: ARG002
        return True

    def suggest(self, trial_id: str) -> Any:
        if self.unfinished:
            trial = self.unfinished.pop(0)
        elif self.next_number >= self.num_trials:
            return Searcher.FINISHED
        elif self.proposer:
            trial = Trial(self.next_number, dict(self.proposer.suggest(trial_id)))
            self.proposed.add(trial_id)
        else:
            trial = Trial(self.next_number, draw_values(self.space, self.seed, self.next_number))
        if trial.number == self.next_number:
            self.next_number += 1
            trial.save(self.storage)
        (self.storage / trial.name / ERROR_FILE).remove()
        self.running[trial_id] = trial
        return {"number": trial.number, "values": trial.values}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        if ACCURACY in result:
            self.listener.on_report(self.running[trial_id], result[STEP], result[ACCURACY])

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        if (trial := self.running.pop(trial_id, None)) is None:
            return  # Tune tells it again where something went wrong while it was told
        ended = TrialResult.load(self.storage, trial.name)
        cause = file.read().decode() if (file := self.storage / trial.name / ERROR_FILE).exists() else ""
        if ended is None and not cause and not error:
            assert result is not None
            ended = self._stopped(trial, result[STEP])
            ended.save(self.storage)
        if self.proposer and trial_id in self.proposed:
            accuracy = ended.accuracy if ended else None
            self.proposer.on_trial_complete(trial_id, {ACCURACY: accuracy}, error=accuracy is None)
        elif self.proposer and ended:
            self._tell(ended)
        self.listener.on_end(trial, ended, "" if ended else cause or "its process died")

    def __getstate__(self) -> dict[str, Any]:
        """Nothing, for Tune, which pickles whom it works with: console, tracker and threads stay here."""
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the folder of the search is the state."""

    def restore(self, checkpoint_path: str) -> None:
        """Never called, since Tune restores nothing here; it has to be there."""
        raise NotImplementedError("a search goes on from its folder")

    def _stopped(self, trial: Trial, step: int) -> TrialResult:
        history = read_history(self.storage, trial.name)
        reports = [report for report in read_reports(history) if report[0] <= step]
        metrics: dict[str, float] = {}
        for row in history:
            metrics |= {key: value for key, value in row["metrics"].items() if not key.startswith("threshold/")}
        seconds = recorded_seconds(history)
        return TrialResult(trial.number, trial.values, "stopped", reports, seconds, metrics)

    def _tell(self, result: TrialResult) -> None:
        """Tell Optuna of a trial that it has not proposed in this process."""
        if result.accuracy is not None:
            self.proposer.add_evaluated_point(result.values, result.accuracy)


def _optuna(space: Space, random_trials: int, seed: int) -> Any:
    import optuna
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    distributions: dict[str, Any] = {}
    for field, domain in space.items():
        if domain.kind == "choice":
            distributions[field] = CategoricalDistribution(domain.values)
        elif domain.kind == "randint":
            distributions[field] = IntDistribution(*domain.values)
        else:
            low, high = domain.values
            distributions[field] = FloatDistribution(low, high, log=domain.kind == "loguniform")
    sampler = optuna.samplers.TPESampler(n_startup_trials=random_trials, seed=seed)
    return OptunaSearch(distributions, metric=ACCURACY, mode="max", sampler=sampler)


def make_scheduler(config: Config, options: SearchConfig, ended: list[TrialResult]) -> TrialScheduler:
    """The scheduler, which knows what the ended trials have reported."""
    if options.scheduler == "none":
        return FIFOScheduler()
    scheduler = ASHAScheduler(
        time_attr=STEP,
        metric=ACCURACY,
        mode="max",
        max_t=config.train.num_steps,
        grace_period=options.grace_steps or 1,
        reduction_factor=options.reduction_factor,
    )
    for result in ended:
        trial = SimpleNamespace(trial_id=result.trial.name)
        scheduler.on_trial_add(None, trial)
        for step, accuracy in result.reports:
            scheduler.on_trial_result(None, trial, {STEP: step, ACCURACY: accuracy})
        scheduler.on_trial_remove(None, trial)
    return scheduler


def run_here(config: Config, splits: Splits, folder: str, searcher: LedgerSearcher, scheduler: TrialScheduler) -> None:
    """One trial after another, in this process."""
    for number in count():
        stub = SimpleNamespace(trial_id=f"here-{number}")
        proposal = searcher.suggest(stub.trial_id)
        if proposal == Searcher.FINISHED:
            return
        scheduler.on_trial_add(None, stub)
        _run_one(config, splits, folder, searcher, scheduler, stub, Trial(**proposal))


def _run_one(
    config: Config,
    splits: Splits,
    folder: str,
    searcher: LedgerSearcher,
    scheduler: TrialScheduler,
    stub: Any,
    trial: Trial,
) -> None:
    last: dict[str, Any] = {}

    def report(step: int, accuracy: float) -> None:
        last.update({STEP: step, ACCURACY: accuracy, "training_iteration": last.get("training_iteration", 0) + 1})
        searcher.on_trial_result(stub.trial_id, last)
        if scheduler.on_trial_result(None, stub, last) == TrialScheduler.STOP:
            raise TrialStoppedError

    with contextlib.suppress(TrialStoppedError):
        _run_noting_errors(config, trial, splits, folder, report)
    with contextlib.suppress(KeyError):
        scheduler.on_trial_remove(None, stub)
    searcher.on_trial_complete(stub.trial_id, last)


def run_on_ray(
    config: Config,
    splits: Splits,
    folder: str,
    options: SearchConfig,
    searcher: LedgerSearcher,
    scheduler: TrialScheduler,
) -> None:
    """All trials as Tune's, as many at once as there is room for; a process that has ended one takes the next.

    Raises:
        ValueError: the cluster is not there, or has no room for a trial.
    """
    for key, value in ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    # Zero workers: what a trial needs is checked here, in the words of a search's fields.
    started = cluster.connect(config.scale.model_copy(update={"num_workers": 0}))
    import ray

    logging.getLogger("ray").setLevel(logging.ERROR)
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # a process that dies is told of in a line of our own
    if config.scale.threads_per_worker is None:
        threads = {"threads_per_worker": max(1, int(options.cpus_per_trial))}
        config = config.model_copy(update={"scale": config.scale.model_copy(update=threads)})
    resources = {"CPU": options.cpus_per_trial}
    if config.scale.use_gpu:
        resources["GPU"] = options.gpus_per_trial
    place = Storage(folder) / TUNE_FOLDER
    try:
        room = check_places(connected_nodes(), config, options, "the cluster")
        _delete(place)
        trainable = tune.with_parameters(_trainable, config=config, splits=splits, folder=folder)
        tuner = tune.Tuner(
            tune.with_resources(trainable, resources),
            tune_config=tune.TuneConfig(
                search_alg=searcher,
                scheduler=scheduler,
                num_samples=searcher.num_left,
                max_concurrent_trials=min(room, options.max_concurrent or room),
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                name=TUNE_FOLDER,
                storage_path=folder,
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=config.scale.max_failures),
            ),
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tuner.fit()
    finally:
        if started:
            ray.shutdown()
        _delete(place)


def _trainable(proposal: dict[str, Any], config: Config, splits: Splits, folder: str) -> None:
    def report(step: int, accuracy: float) -> None:
        tune.report({STEP: step, ACCURACY: accuracy})

    _run_noting_errors(config, Trial(**proposal), splits, folder, report)


def _run_noting_errors(
    config: Config, trial: Trial, splits: Splits, folder: str, report: Callable[[int, float], None]
) -> None:
    """Run the trial; what ends it must not end the others, nor this process, and is left in its folder."""
    try:
        run_trial(config, trial, splits, folder, report)
    except TrialStoppedError:
        raise
    except Exception as error:
        first_line = next(iter(str(error).strip().splitlines()), "")
        (Storage(folder) / trial.name / ERROR_FILE).write(f"{type(error).__name__}: {first_line}".encode())


def _delete(place: Storage) -> None:
    if place.exists():
        with contextlib.suppress(OSError):  # what a process of Ray still writes is deleted by the next search
            place.delete()


def connected_nodes() -> list[dict[str, float]]:
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def check_places(nodes: list[dict[str, float]], config: Config, options: SearchConfig, where: str) -> int:
    """For how many trials there is room at once.

    Raises:
        ValueError: for none, or for fewer than options.max_concurrent.
    """
    places = 0
    for node in nodes:
        by_cpu = math.floor(node.get("CPU", 0.0) / options.cpus_per_trial + 1e-9)
        by_gpu = math.floor(node.get("GPU", 0.0) / options.gpus_per_trial + 1e-9) if config.scale.use_gpu else by_cpu
        places += min(by_cpu, by_gpu)
    if not places:
        most = max((node.get("CPU", 0.0) for node in nodes), default=0.0)
        gpu = f" and {options.gpus_per_trial:g} of a GPU" if config.scale.use_gpu else ""
        raise ValueError(
            f"cpus_per_trial={options.cpus_per_trial:g}: no node of {where} has that many CPUs{gpu}; "
            f"at most {most:g} CPUs"
        )
    if options.max_concurrent and options.max_concurrent > places:
        raise ValueError(
            f"max_concurrent={options.max_concurrent}: with cpus_per_trial={options.cpus_per_trial:g} {where} has room "
            f"for {places} trials at once"
        )
    return places
