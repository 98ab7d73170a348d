"""What a comparison, a search and self-training have in common: `Study`, and `run_study`, which runs one.

A study is a folder of cells, each a training, and one MLflow run with a child for every cell that has ended. Its cells
are fixed at the start (a comparison), proposed while others run (a search), or made of the cell before
(self-training). The folder is all its state: the same command goes on, and a cell that has ended is never run again.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar, Generic, TypeVar

from rich.console import Console
from rich.table import Table

from dpl_ray.checking.findings import Finding, show_findings
from dpl_ray.checking.settings import settle_model
from dpl_ray.cluster import connect as cluster
from dpl_ray.config.schema import Config, ScaleConfig
from dpl_ray.jobs.checks import check_places
from dpl_ray.page.console import show
from dpl_ray.runs.folder import FREE, check_kind, check_same, writable_folder
from dpl_ray.runs.provenance import describe_code
from dpl_ray.store.lock import sole_use
from dpl_ray.store.records import read_tree, write_json
from dpl_ray.tracking.journal import Journal
from dpl_ray.tracking.server import tracking_uri
from dpl_ray.tracking.tracker import Tracker, recording, start_tracker

R = TypeVar("R")  # what a cell leaves that has ended
Nodes = Iterable[dict[str, float]]  # by their resources
#: Told of the end of a cell: its name, and what it has left or None, and then why it failed.
End = Callable[[str, R | None, str], None]


class Study(ABC, Generic[R]):
    """A study, new or begun before. Nothing is written before `run_study` has locked its folder."""

    kind: ClassVar[str]  # as messages name it
    file: ClassVar[str]  # of `info`

    def __init__(
        self,
        config: Config,
        name: str,
        identity: dict[str, Any],
        *,
        free: Collection[str] = FREE,
        defaults: dict[str, Any] | None = None,
        **info: Any,
    ) -> None:
        """
        Args:
            config: of every cell, but for what the study varies.
            name: of the folder below run.storage_path.
            identity: what may not change when the study goes on.
            free: fields of it that may.
            defaults: of the fields of `identity` that are none of a configuration, for files that lack them.
            info: what else is known of all cells, at first.

        Raises:
            ValueError: the folder cannot be written, or something else of this name exists, or a study of another
                identity.
        """
        check_places(config)
        self.name, self.uri = name, tracking_uri(config)
        self.config = settle_model(config)
        self.storage = writable_folder(config.run.storage_path, name)
        check_kind(self.storage, self.file)
        self.findings: list[Finding] = []  # in the data, once they are read
        self.info: dict[str, Any] = {"command": None, "config": identity} | info
        self.resumed = (self.storage / self.file).exists()
        if self.resumed:
            self.info |= read_tree(self.storage / self.file)
            check_same(name, self.kind, self.info["config"], identity, free, defaults)
            self.info["config"] = identity  # with the fields that an older version did not know

    def save_info(self) -> None:
        write_json(self.storage / self.file, self.info)

    @property
    def waits_for_ray(self) -> str:
        """A line for the headline where Ray is to be started here, if any cell is to be run."""
        starts = self.config.scale.num_workers and not cluster.cluster_address(self.config.scale)
        return "\nstarting Ray takes some 10 seconds" if starts else ""

    @abstractmethod
    def check(self) -> None:
        """Room and data; `ValueError` before anything is written or begun."""

    @abstractmethod
    def headline(self) -> str:
        """What is to be done, and how much of it was done before."""

    @abstractmethod
    def params(self) -> dict[str, str]:
        """Of the MLflow run, which do not change when the study goes on."""

    def tags(self) -> dict[str, str]:
        """Of the MLflow run, which may."""
        return {}

    @abstractmethod
    def ended(self) -> Iterable[R]:
        """What the cells have left that ended before."""

    @abstractmethod
    def run(self, console: Console, end: End[R]) -> None:
        """Run the cells that have not ended, show how far they are, and tell of the end of each."""

    @abstractmethod
    def child(self, result: R) -> str:
        """The name of a cell's MLflow run."""

    @abstractmethod
    def record(self, tracker: Tracker, result: R) -> None:
        """Tell MLflow of a cell that it does not know."""

    @abstractmethod
    def write(self, tracker: Tracker, failed: Mapping[str, str]) -> list[Table]:
        """Write what all cells have come to and record it; returns what the console is to show.

        Args:
            failed: cell -> why it has not ended.

        Raises:
            RuntimeError: there is nothing to write, since no cell has ended.
        """

    def finish(self) -> None:
        """All is written and recorded."""


def run_study(study: Study[R], *, console: Console, command: str | None = None) -> tuple[dict[str, str], str | None]:
    """Run what is missing of a study, write its outputs and record all of it in MLflow.

    Args:
        command: that the outputs are to name as their origin; None leaves the one that is known.

    Returns:
        Cell -> why it failed, and the id of the MLflow run.

    Raises:
        ValueError: room or data do not fit, or another command is at work in the folder; before any cell starts.
    """
    study.check()
    failed: dict[str, str] = {}
    with sole_use(f"run.name={study.name}", study.storage):
        study.info["command"] = command or study.info["command"]
        study.save_info()
        ended = [*study.ended()]
        show(console, study.headline())
        show_findings(console, study.findings)
        journal, tags = Journal(study.storage), describe_code()
        if "data" in study.info:
            tags["data.fingerprint"] = study.info["data"]
        tracker = start_tracker(study.config, study.uri, journal, name=study.name, params=study.params(), tags=tags)
        tracker.log_file(study.file)
        for key, value in study.tags().items():
            tracker.log_tag(key, value)

        def end(name: str, result: R | None, cause: str = "") -> None:
            if result is None:
                failed[name] = cause
            elif tracker.needs_child(study.child(result)):
                study.record(tracker, result)

        with recording(tracker, console):
            for result in ended:
                end(study.child(result), result)
            study.run(console, end)
            tables = study.write(tracker, failed)
            tracker.failed = bool(failed)
        study.finish()
    for table in tables:
        console.print(table)
    return failed, tracker.run_id


def cause_of(error: Exception) -> str:
    """Type and message of what stopped a cell, in a line, without Ray's traceback."""
    cause = getattr(error, "cause", None) or error
    return f"{type(cause).__name__}: {next(iter(str(cause).strip().splitlines()), '')}"


def check_room(scale: ScaleConfig, count: Callable[[Nodes, str], int]) -> None:
    """Refuse cells that this machine or the cluster does not carry.

    Args:
        count: `count_cells` with what a cell needs; called where cells are Ray's, with nodes and where these are.
    """
    if scale.num_workers:
        # Whether the cluster answers, or there is a GPU here; the room is counted in cells below.
        scale = scale.changed(num_workers=1, cpus_per_worker=0.01)
    with cluster.checked_resources(scale):
        if scale.num_workers:
            count(*cluster.nodes_for(scale))


def count_cells(nodes: Nodes, where: str, field: str, cpus: float, gpus: float) -> int:
    """For how many cells that reserve so much there is room at once; `ValueError` naming the field where for none."""
    nodes = list(nodes)
    places = cluster.room(nodes, cpus, gpus)
    if not places:
        most = max((node.get("CPU", 0.0) for node in nodes if node.get("GPU", 0.0) >= gpus), default=0.0)
        gpu = f" beside {gpus:g} of a GPU" if gpus else ""
        raise ValueError(f"{field}={cpus:g}: no node of {where} has that many CPUs{gpu}; at most {most:g}")
    return places


@contextmanager
def on_cluster(config: Config, cpus: float) -> Iterator[Config]:
    """Ray, connected while the block runs; yields the configuration of cells that reserve so many CPUs each."""
    # Zero workers: what a cell needs is checked in the words of the study's fields.
    started = cluster.connect(config.scale.changed(num_workers=0))
    threads = config.scale.threads_per_worker or max(1, int(cpus))
    try:
        yield config.changed(scale={"threads_per_worker": threads})
    finally:
        if started:
            cluster.disconnect()
