"""Search over fields of the configuration: trials of one process each, chosen by accuracy on held-out labelled images.

<run.storage_path>/<run.name>/
  search.json   configuration, digest of the data, the command
  trial-0007/   dpl_ray/studies/tuning/trials.py
  best.yaml     the configuration of the best trial, for `dpl-ray train config=best.yaml`
  trials.csv    a row per trial          search.md   the best of them          search.html
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from rich.console import Console
from rich.table import Table

from dpl_ray.checking.findings import quick_findings
from dpl_ray.checking.settings import check_network, check_pool_use
from dpl_ray.cluster.connect import cluster_address
from dpl_ray.config.given import read_study
from dpl_ray.config.parse import to_yaml
from dpl_ray.config.schema import Config
from dpl_ray.data.dataset import ImageSet, Splits
from dpl_ray.data.splits.sources import load_splits
from dpl_ray.page.console import open_console, show
from dpl_ray.page.result import Result, percent
from dpl_ray.runs.folder import SEARCH_FILE, study_name
from dpl_ray.runs.provenance import describe_code, describe_config
from dpl_ray.studies.frame import End, Nodes, Study, check_room, count_cells, run_study
from dpl_ray.studies.tuning.config import (
    SearchConfig,
    describe_options,
    how_searched,
    load_search,
    resolve,
    search_tree,
)
from dpl_ray.studies.tuning.console import TrialsProgress, search_table
from dpl_ray.studies.tuning.page import make_page
from dpl_ray.studies.tuning.space import Space, with_values
from dpl_ray.studies.tuning.table import chance_line, describe, to_csv, to_markdown
from dpl_ray.studies.tuning.trials import Trial, TrialResult, read_results, trial_config, without_test
from dpl_ray.tracking.journal import Journal
from dpl_ray.tracking.tracker import Tracker
from dpl_ray.training.interruption import interruptible

FILES = "best.yaml", "trials.csv", "search.md", "search.html"


class SearchFailedError(RuntimeError):
    """Some trials have not ended."""


@dataclass(frozen=True, repr=False)
class SearchResult(Result):
    """The result of `search`."""

    name: str
    trials: list[TrialResult]  # the best first
    failed: dict[str, str]  # trial -> cause; the same command runs them again
    best: str  # path of best.yaml
    csv: str
    table: str  # path of the table in Markdown
    markdown: str  # the same as text
    report: str
    run_id: str | None  # of MLflow: the parent of the trials' runs
    tracking_uri: str | None

    def _facts(self) -> dict[str, str | None]:
        return {
            "name": self.name,
            "trials": f"{len(self.trials)}",
            "failed": f"{len(self.failed)}" if self.failed else None,
            "accuracy of the best": percent(self.trials[0].accuracy),
            "best": self.best,
            "report": self.report,
        }


def search(
    config: Config | Sequence[str] = (),
    options: SearchConfig | None = None,
    *,
    console: Console | bool | None = None,
    command: str | None = None,
    **keywords: Any,
) -> SearchResult:
    """Run the trials that have not ended, and write best.yaml, tables and page.

    Args:
        config: configuration of every trial, except the searched fields, or overrides as on the command line.
            scale.num_workers=0 runs the trials one after another in this process, any other number as trials of Ray
            Tune.
        console: where progress and table are shown, as in `fit`.
        command: command line that the table names as its origin.
        keywords: further overrides, as in `fit`, and fields of `SearchConfig`, as `num_trials=20`.

    Raises:
        ValueError: a field, the space, the data or the resources do not fit; before any trial starts.
        SearchFailedError: not one trial has ended with an accuracy.
        Interrupted: by Ctrl-C in this process, with a checkpoint of the trial; the same call goes on from there.
    """
    study = Search(*read_study(config, keywords, load_search, options))
    console = open_console(console)
    failed, run_id = run_study(study, console=console, command=command)
    if line := chance_line(study.ranked):
        show(console, line)
    best, csv, table, report = (str(study.storage / name) for name in FILES)
    text = (study.storage / "search.md").read().decode()
    return SearchResult(study.name, study.ranked, failed, best, csv, table, text, report, run_id, study.uri)


def describe_failed(failed: dict[str, str]) -> str:
    """How many trials did not end, and why the first of them did not."""
    name, cause = next(iter(failed.items()))
    return f"{len(failed)} trials failed, as {name} ({cause}); the same command runs those again that did not end"


class Search(Study[TrialResult]):
    """A search: its cells are trials, which are proposed one by one."""

    kind, file = "search", SEARCH_FILE
    ranked: list[TrialResult]  # the best first, once it is written

    def __init__(self, config: Config, options: SearchConfig) -> None:
        """
        Raises:
            ValueError: a field or the space does not fit, or the folder holds something else.
        """
        config, self.options, self.space = resolve(config, options)
        tree = search_tree(config, self.options, self.space)
        defaults = {"search": SearchConfig().model_dump(mode="json")}
        super().__init__(config, study_name(config, "search", tree), tree, defaults=defaults, data=None)
        self.before = read_results(self.storage)

    def check(self) -> None:
        address = cluster_address(self.config.scale) or ""
        if self.config.scale.num_workers and address.startswith("ray://"):
            raise ValueError(
                f"scale.address={address}: a search runs where its cluster is; submit it there with `ray job submit`, "
                "or give host:port"
            )
        check_room(self.config.scale, self.count_places)
        splits = load(self.config, self.space)
        if self.before and self.info["data"] != splits.fingerprint():
            raise ValueError(
                f"run.name={self.name}: the trials of this search were trained on other data (the images or labels "
                "have changed since); take another run.name"
            )
        self.info["data"] = splits.fingerprint()
        self.findings = quick_findings(self.config, splits)
        self.splits = without_test(splits)

    def count_places(self, nodes: Nodes, where: str) -> int:
        """Trials at once; `ValueError` where not one has room, or fewer than options.max_concurrent."""
        cpus, most = self.options.cpus_per_trial, self.options.max_concurrent
        gpus = self.options.gpus_per_trial if self.config.scale.use_gpu else 0.0
        places = count_cells(nodes, where, "cpus_per_trial", cpus, gpus)
        if most and most > places:
            raise ValueError(
                f"max_concurrent={most}: with cpus_per_trial={cpus:g} {where} has room for {places} trials at once"
            )
        return places

    def headline(self) -> str:
        config, splits, num_trials = self.config, self.splits, self.options.num_trials
        goes_on = f"goes on, {len(self.before)} of them ended before" if self.resumed else "starts"
        return (
            f"{self.name} {goes_on}: {num_trials} trials over {len(self.space)} fields, {how_searched(self.options)}; "
            f"{config.train.num_steps:,} steps each, on {len(splits.labeled)} labelled images of "
            f"{len(splits.class_names)} classes and {len(splits.unlabeled)} in the pool; chosen by accuracy on "
            f"{len(splits.validation)} held-out labelled images (one image is {100 / len(splits.validation):.1f} "
            "points)" + (self.waits_for_ray if len(self.before) < num_trials else "")
        )

    def params(self) -> dict[str, str]:
        return describe_config(self.config) | describe_options(self.options, self.space)

    def ended(self) -> list[TrialResult]:
        self.before = read_results(self.storage)  # with those that another command has ended meanwhile
        return self.before

    def run(self, console: Console, end: End[TrialResult]) -> None:
        from dpl_ray.studies.tuning.on_ray import LedgerSearcher, make_scheduler, run_here, run_on_ray

        config, options, folder = self.config, self.options, str(self.storage)
        with TrialsProgress(console, options.num_trials, self.before) as progress:

            def on_end(trial: Trial, result: TrialResult | None, cause: str) -> None:
                progress.finish(trial, result, cause)
                end(trial.name, result, cause)

            searcher = LedgerSearcher(
                self.storage, self.space, options, config.train.seed, self.before, progress.show, on_end
            )
            scheduler = make_scheduler(config, options, self.before)
            if searcher.num_left and config.scale.num_workers:
                run_on_ray(config, self.splits, folder, options, searcher, scheduler, self.count_places)
            else:
                with interruptible(config.run.grace_seconds, partial(show, console)) as stop:
                    run_here(config, self.splits, folder, searcher, scheduler, stop)

    def child(self, result: TrialResult) -> str:
        return result.name

    def record(self, tracker: Tracker, result: TrialResult) -> None:
        tags = {"state": result.state, "checkpoint": result.checkpoint or "", "cause": result.cause}
        tracker.log_child(
            result.name,
            params=describe_config(trial_config(self.config, result, str(self.storage))),
            tags=describe_code() | result.facts | {key: value for key, value in tags.items() if value},
            folder=result.name,
        )

    def write(self, tracker: Tracker, failed: Mapping[str, str]) -> list[Table]:
        self.ranked = sorted(read_results(self.storage), key=lambda result: result.rank, reverse=True)
        if not any(result.accuracy is not None for result in self.ranked):
            causes = {**failed, **{result.name: result.cause for result in self.ranked}}
            raise SearchFailedError(describe_failed(causes))
        best = self.ranked[0]
        place, searched = self.storage, how_searched(self.options)
        described = describe(self.ranked, self.config, searched, self.info["command"], Journal(place).run_id)
        page = make_page(place.name, self.ranked, self.space, str(place / "best.yaml"), searched, described, failed)
        markdown = to_markdown(self.ranked, self.space, place.name, described)
        texts = self._best_yaml(best), to_csv(self.ranked, self.space), markdown
        for file, text in zip(FILES, texts, strict=False):
            (place / file).write(text.encode())
        page.write(place / FILES[-1])
        for file in FILES:
            tracker.log_file(file)
        tracker.log_tag("best", best.name)
        tracker.log_tag("report", str(self.storage / "search.html"))
        tracker.log({"validation/accuracy": best.accuracy or 0.0}, 0)
        return [search_table(self.ranked, self.space)]

    def _best_yaml(self, best: TrialResult) -> str:
        """A training run of its own, with a name of its own: not in the folder of the search."""
        own = {"run": {"name": None}, "train": {"baseline": True}, "scale": {"num_workers": None}}
        config = with_values(self.config, best.values).changed(**own)
        return (
            f"# {best.name} of {self.name}: accuracy {best.accuracy:.4f} on held-out labelled images\n"
            f"# dpl-ray train config={self.storage / 'best.yaml'}\n" + to_yaml(config)
        )


def load(config: Config, space: Space) -> Splits:
    """The splits of all trials, which every network of the space takes."""
    splits = load_splits(config.data, seed=config.train.seed, uses_unlabeled=config.policy.name != "supervised")
    assert isinstance(splits.unlabeled, ImageSet)
    check_pool_use(config, splits)
    check_network(config, splits)
    for field, domain in space.items():
        if field.startswith("model."):
            for value in domain.probes():
                try:
                    check_network(with_values(config, {field: value}), splits)
                except ValueError as error:
                    raise ValueError(f"space.{field}={domain}: {error}") from None
    return splits
