"""Trials through Ray Tune: its schedulers and Optuna propose and stop, in Tune's processes or in this one.

What Tune writes is not read again, because that would unpickle it. The folder of the search is the state: proposals are
written before they run, results when they end; started again, searcher and scheduler are told of them anew.
"""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from itertools import count
from threading import Event
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from ray import tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from dpl_ray.cluster.connect import connected_nodes
from dpl_ray.config.schema import Config
from dpl_ray.data.dataset import Splits
from dpl_ray.store.history import read_history
from dpl_ray.store.records import read_json, write_json
from dpl_ray.store.storage import Storage
from dpl_ray.studies.frame import Nodes, cause_of, on_cluster
from dpl_ray.studies.tuning.config import SearchConfig
from dpl_ray.studies.tuning.space import Space, draw_values
from dpl_ray.studies.tuning.trials import RESULT_FILE, TRIAL_FILE, Trial, TrialResult, read_trials, run_trial, stopped

if TYPE_CHECKING:
    import optuna

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
        ended: list[TrialResult],
        on_report: Callable[[Trial, int, float], None],
        on_end: Callable[[Trial, TrialResult | None, str], None],
    ) -> None:
        """
        Args:
            ended: results of all trials that have ended before.
            on_report: told of a trial, and the step and the accuracy that it has come to.
            on_end: told of a trial, and what it has left or None, and then why it failed.
        """
        super().__init__(metric=ACCURACY, mode="max")
        self.storage, self.space, self.seed = storage, space, seed
        self.on_report, self.on_end = on_report, on_end
        known = read_trials(storage)
        numbers = {result.number for result in ended}
        self.unfinished = [trial for trial in known if trial.number not in numbers]
        self.num_trials = options.num_trials
        self.next_number = max((trial.number for trial in known), default=-1) + 1
        self.running: dict[str, Trial] = {}
        self.optuna: OptunaProposer | None = None
        if options.searcher == "optuna":
            # Another draw than that of the search that was interrupted, which has used its beginning.
            self.optuna = OptunaProposer(space, options.random_trials, seed + self.next_number)
            for result in ended:
                self.optuna.tell(result, result.accuracy)

    @property
    def num_left(self) -> int:
        return len(self.unfinished) + max(0, self.num_trials - self.next_number)

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any) -> bool:  # noqa: ARG002
        return True

    def suggest(self, trial_id: str) -> Any:
        if self.unfinished:
            trial = self.unfinished.pop(0)
        elif (number := self.next_number) >= self.num_trials:
            return Searcher.FINISHED
        else:
            draw = draw_values(self.space, self.seed, number) if self.optuna is None else self.optuna.ask(number)
            trial = Trial(number, draw)
            self.next_number += 1
            write_json(self.storage / trial.name / TRIAL_FILE, trial)
        (self.storage / trial.name / ERROR_FILE).remove()
        self.running[trial_id] = trial
        return {"number": trial.number, "values": trial.values}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        if ACCURACY in result:
            self.on_report(self.running[trial_id], result[STEP], result[ACCURACY])

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        if (trial := self.running.pop(trial_id, None)) is None:
            return  # Tune tells it again where something went wrong while it was told
        place = self.storage / trial.name
        ended = read_json(place / RESULT_FILE, TrialResult)
        cause = file.read().decode() if (file := place / ERROR_FILE).exists() else ""
        if ended is None and not cause and not error:
            assert result is not None
            ended = stopped(trial, [*read_history(place)], result[STEP])
            write_json(place / RESULT_FILE, ended)
        if self.optuna:
            self.optuna.tell(trial, ended.accuracy if ended else None)
        self.on_end(trial, ended, "" if ended else cause or "its process died")

    def __getstate__(self) -> dict[str, Any]:
        """Nothing, for Tune, which pickles whom it works with: console, tracker and threads stay here."""
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the folder of the search is the state."""


class OptunaProposer:
    """Optuna's TPE, which proposes from what it was told.

    Its study lives in memory. Its storages would keep the same numbers a second time: a trial's folder has them all,
    is written by the process that runs it, also into a bucket, and is read without Optuna.
    """

    def __init__(self, space: Space, random_trials: int, seed: int) -> None:
        import optuna
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._distributions: dict[str, Any] = {}
        for field, domain in space.items():
            if domain.kind == "choice":
                self._distributions[field] = CategoricalDistribution(domain.values)
            elif domain.kind == "randint":
                self._distributions[field] = IntDistribution(*domain.values)
            else:
                low, high = domain.values
                self._distributions[field] = FloatDistribution(low, high, log=domain.kind == "loguniform")
        sampler = optuna.samplers.TPESampler(n_startup_trials=random_trials, seed=seed)
        self._study = optuna.create_study(direction="maximize", sampler=sampler)
        self._asked: dict[int, optuna.Trial] = {}  # number of a trial -> Optuna's

    def ask(self, number: int) -> dict[str, Any]:
        """The values of a trial."""
        self._asked[number] = self._study.ask(self._distributions)
        return dict(self._asked[number].params)

    def tell(self, trial: Trial, accuracy: float | None) -> None:
        """What a trial has come to; None: to nothing that can be learned from."""
        import optuna

        if asked := self._asked.pop(trial.number, None):
            failed = optuna.trial.TrialState.FAIL if accuracy is None else None
            self._study.tell(asked, accuracy, state=failed)
        elif accuracy is not None:  # one that was proposed by another process
            self._study.add_trial(
                optuna.trial.create_trial(params=trial.values, distributions=self._distributions, value=accuracy)
            )


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
        trial = SimpleNamespace(trial_id=result.name)
        scheduler.on_trial_add(None, trial)
        for step, accuracy in result.reports:
            scheduler.on_trial_result(None, trial, {STEP: step, ACCURACY: accuracy})
        scheduler.on_trial_remove(None, trial)
    return scheduler


def run_here(
    config: Config,
    splits: Splits,
    folder: str,
    searcher: LedgerSearcher,
    scheduler: TrialScheduler,
    stop: Event,
) -> None:
    """One trial after another, in this process, until `stop` is set."""
    for number in count():
        stub = SimpleNamespace(trial_id=f"here-{number}")  # what Tune's scheduler needs of a trial
        if (proposal := searcher.suggest(stub.trial_id)) == Searcher.FINISHED:
            return
        last: dict[str, Any] = {"training_iteration": 0}
        scheduler.on_trial_add(None, stub)

        def report(step: int, accuracy: float, stub: Any = stub, last: dict[str, Any] = last) -> None:
            last.update({STEP: step, ACCURACY: accuracy, "training_iteration": last["training_iteration"] + 1})
            searcher.on_trial_result(stub.trial_id, last)
            if scheduler.on_trial_result(None, stub, last) == TrialScheduler.STOP:
                raise TrialStoppedError

        with contextlib.suppress(TrialStoppedError):
            _run_noting_errors(config, Trial(**proposal), splits, folder, report, stop)
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
    count_places: Callable[[Nodes, str], int],
) -> None:
    """All trials as Tune's, as many at once as there is room for; a process that has ended one takes the next.

    Raises:
        ValueError: the cluster is not there, or has no room for a trial.
    """
    for key, value in ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    place, resources = Storage(folder) / TUNE_FOLDER, {"CPU": options.cpus_per_trial}
    if config.scale.use_gpu:
        resources["GPU"] = options.gpus_per_trial
    with on_cluster(config, options.cpus_per_trial) as config, _without_output(place):
        places = count_places(connected_nodes(), "the cluster")
        trainable = tune.with_parameters(_trainable, config=config, splits=splits, folder=folder)
        tune.Tuner(
            tune.with_resources(trainable, resources),
            tune_config=tune.TuneConfig(
                search_alg=searcher,
                scheduler=scheduler,
                num_samples=searcher.num_left,
                max_concurrent_trials=min(places, options.max_concurrent or places),
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                name=TUNE_FOLDER,
                storage_path=folder,
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=config.scale.max_failures),
            ),
        ).fit()


@contextlib.contextmanager
def _without_output(place: Storage) -> Iterator[None]:
    """Nothing of what Tune prints, nor of what it writes at `place`, when the block has ended."""
    logging.getLogger("ray").setLevel(logging.ERROR)
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # a process that dies is told of in a line of our own
    _delete(place)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        _delete(place)


def _trainable(proposal: dict[str, Any], config: Config, splits: Splits, folder: str) -> None:
    def report(step: int, accuracy: float) -> None:
        tune.report({STEP: step, ACCURACY: accuracy})

    _run_noting_errors(config, Trial(**proposal), splits, folder, report)


def _run_noting_errors(
    config: Config,
    trial: Trial,
    splits: Splits,
    folder: str,
    report: Callable[[int, float], None],
    stop: Event | None = None,
) -> None:
    """Run the trial; what ends it must not end the others, nor this process, and is left in its folder."""
    try:
        run_trial(config, trial, splits, folder, report, stop)
    except TrialStoppedError:
        raise
    except Exception as error:
        (Storage(folder) / trial.name / ERROR_FILE).write(cause_of(error).encode())


def _delete(place: Storage) -> None:
    if place.exists():
        with contextlib.suppress(OSError):  # what a process of Ray still writes is deleted by the next search
            place.delete()
