"""Policies x subsets x repeats: train what is missing, as many cells at once as the cluster carries, and compare.

A cell is one training of a policy (cells.py). All policies have the same labelled subsets and, in each of its repeats,
the same initial weights, order of batches and number of steps. A finished cell is never run again, so that an
interrupted comparison goes on, and policies, subsets and repeats can be added to it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from rich.console import Console
from rich.table import Table

from dpl_ray.checking.findings import quick_findings
from dpl_ray.checking.settings import check_network, check_pool_use, check_shares, check_test
from dpl_ray.cluster import connect as cluster
from dpl_ray.config.given import read_study
from dpl_ray.config.schema import Config
from dpl_ray.config.section import shown
from dpl_ray.data.dataset import Splits
from dpl_ray.data.splits.sources import load_splits
from dpl_ray.page.console import open_console, show
from dpl_ray.page.result import Result, percent
from dpl_ray.runs.folder import COMPARISON_FILE, check_same
from dpl_ray.runs.kept_config import read_kept
from dpl_ray.runs.provenance import describe_config
from dpl_ray.studies.comparison.cells import Cell, CellResult, cell_config, data_seed, read_cell, read_cells, run_cell
from dpl_ray.studies.comparison.config import (
    CompareConfig,
    comparison_name,
    free_fields,
    load_comparison,
    make_plan,
    shared_tree,
)
from dpl_ray.studies.comparison.console import CellsProgress, comparison_tables
from dpl_ray.studies.comparison.folder import check_policies, write_comparison
from dpl_ray.studies.comparison.table import Row, chance_line, describe_design
from dpl_ray.studies.frame import End, Nodes, Study, cause_of, check_room, count_cells, on_cluster, run_study
from dpl_ray.tracking.tracker import Tracker
from dpl_ray.training.interruption import Stop, interruptible

OnEnd = Callable[[Cell, "CellResult | Exception"], None]


class CellsFailedError(RuntimeError):
    """Some cells have not finished."""


@dataclass(frozen=True, repr=False)
class CompareResult(Result):
    """What `compare` gives back."""

    name: str
    rows: list[Row]  # one per policy, the most accurate first
    failed: dict[str, str]  # cell -> cause
    csv: str
    table: str  # path of the table in Markdown
    markdown: str  # the same as text
    report: str
    run_id: str | None  # of MLflow: the parent of the cells' runs
    tracking_uri: str | None

    def _facts(self) -> dict[str, str | None]:
        accuracies = {row.label: percent(row.accuracy) for row in self.rows}
        failed = f"{len(self.failed)} cells" if self.failed else None
        return {"name": self.name, **accuracies, "failed": failed, "report": self.report}


def compare(
    config: Config | Sequence[str] = (),
    options: CompareConfig | None = None,
    *,
    console: Console | bool | None = None,
    command: str | None = None,
    **keywords: Any,
) -> CompareResult:
    """Train policies x subsets x repeats, those cells that have not finished, and write tables and page.

    Args:
        config: of every cell, or overrides as on the command line; config.policy and train.baseline are not read, and
            train.seed is the first subset. scale.num_workers=0 runs the cells one after another in this process, any
            other number as Ray tasks.
        console: where progress and tables are shown, as in `fit`.
        command: that the tables are to name as their origin.
        keywords: further overrides, as in `fit`, and fields of `CompareConfig`, as `subsets=3`.

    Raises:
        ValueError: a field, the data or the resources do not fit; before any cell starts.
        CellsFailedError: not one cell has finished.
        Interrupted: by Ctrl-C in this process, with a checkpoint of the cell; the same call goes on from there.
    """
    study = Comparison(*read_study(config, keywords, load_comparison, options))
    console = open_console(console)
    failed, run_id = run_study(study, console=console, command=command)
    place = study.storage
    if line := chance_line(read_cells(str(place))):
        show(console, line)
    csv, table, report = (place / f"comparison.{kind}" for kind in ("csv", "md", "html"))
    text = table.read().decode()
    return CompareResult(study.name, study.rows, failed, str(csv), str(table), text, str(report), run_id, study.uri)


def describe_failed(failed: dict[str, str]) -> str:
    """How many cells did not finish, and why the first of them did not."""
    name, cause = next(iter(failed.items()))
    return (
        f"{len(failed)} cells did not finish, as {name} ({cause}); the folder of each has an error.txt, and the same "
        "command runs them again"
    )


class Comparison(Study[CellResult]):
    """A comparison: its cells are those of the plan, and the finished ones of other plans before."""

    kind, file = "comparison", COMPARISON_FILE
    rows: list[Row]  # once it is written

    def __init__(self, config: Config, options: CompareConfig) -> None:
        """
        Raises:
            ValueError: a policy or a field does not fit, or the folder holds something else, or cells of other
                parameters.
        """
        self.options, self.plan = options, make_plan(config, options)
        super().__init__(config, comparison_name(config), shared_tree(config), free=free_fields(), data=None)
        before = read_cells(str(self.storage))
        if not before:
            self.info["data"] = None  # nothing has been learned from them: they may still be corrected
        self.finished = {cell.name: result for cell in self.plan.cells if (result := self._finished(cell))}
        self.missing = [cell for cell in self.plan.cells if cell.name not in self.finished]
        check_policies(self.name, [*(found.cell for found in before), *self.plan.cells])
        self._splits: dict[int, Splits] = {}

    def _finished(self, cell: Cell) -> CellResult | None:
        """What a cell has left; `ValueError` where it has other parameters of the policy, or another subset."""
        if begun := read_kept(self.storage / cell.name):
            check_same(self.name, self.kind, {"policy": begun["policy"]}, {"policy": cell.policy}, free=())
        found = read_cell(self.storage / cell.name)
        if found and found.subset != cell.subset:
            raise ValueError(
                f"run.name={self.name}: {cell.label} with seed {cell.seed} was trained on the labelled subset "
                f"{found.subset}, now it is {cell.subset}; take another run.name"
            )
        return found

    def check(self) -> None:
        if self.missing:
            check_room(self.config.scale, self.count_places)
            splits = self.load(self.missing[0])  # mistakes in the data are answered before a cell starts
            self.findings = quick_findings(self.config, splits)

    def count_places(self, nodes: Nodes, where: str) -> int:
        """Cells at once; `ValueError` where not one has room."""
        gpus = self.options.gpus_per_cell if self.config.scale.use_gpu else 0.0
        return count_cells(nodes, where, "cpus_per_cell", self.options.cpus_per_cell, gpus)

    def load(self, cell: Cell) -> Splits:
        """The splits of a cell, checked; the last ones are kept, since the cells come by subset."""
        key = data_seed(self.config, cell)
        if key not in self._splits:
            self._splits.clear()
            uses_unlabeled = any(each.policy["name"] != "supervised" for each in self.plan.cells)
            # The pool is read even where no policy uses it: one that is added later must find the same data.
            splits = load_splits(self.config.data, seed=key, uses_unlabeled=uses_unlabeled, reads_unlabeled=True)
            if uses_unlabeled:
                check_pool_use(self.config, splits)
            for each in self.plan.cells:
                check_shares(each.policy.get("shares"), splits.class_names)
            check_test(splits)
            check_network(self.config.changed(scale={"num_workers": 1}), splits)
            self.check_data(key, splits.fingerprint(), splits.seedless_fingerprint())
            self._splits[key] = splits
        return self._splits[key]

    def check_data(self, subset: int, fingerprint: str, seedless_fingerprint: str) -> None:
        """Refuse to compare what the cells of this subset, or of any other, learned from other data."""
        changed = "trained on other data (the images or labels have changed since); take another run.name"
        for cell in read_cells(str(self.storage)):
            if cell.subset == subset and cell.facts.get("data.fingerprint", fingerprint) != fingerprint:
                raise ValueError(f"run.name={self.name}: {cell.label} with seed {cell.seed} was {changed}")
        # Another subset has another fingerprint, of the same data too.
        self.info["data"] = self.info["data"] or seedless_fingerprint
        if self.info["data"] != seedless_fingerprint:
            raise ValueError(f"run.name={self.name}: the cells of other subsets than {subset} were {changed}")

    def headline(self) -> str:
        num_finished, labels = len(self.finished), self.plan.labels
        design = describe_design(self.options.subsets, self.options.repeats)
        goes_on = f"goes on, {num_finished} of them finished before" if self.resumed else "starts"
        return (
            f"{self.name} {goes_on}: {len(labels)} policies ({', '.join(labels)}) x {design}, "
            f"{len(self.plan.cells)} cells of {self.config.train.num_steps:,} steps, compared to {self.plan.reference}"
            + (self.waits_for_ray if self.missing else "")
        )

    def params(self) -> dict[str, str]:
        config = {key: value for key, value in describe_config(self.config).items() if not key.startswith("policy.")}
        options = (self.options.model_dump(mode="json") | {"reference": self.plan.reference}).items()
        return config | {f"compare.{field}": shown(value) for field, value in options}

    def tags(self) -> dict[str, str]:
        # As tags besides the params: a comparison that goes on may have more of them.
        plan = self.plan
        listed = {"policies": plan.labels, "subsets": plan.subsets, "seeds": plan.seeds, "reference": [plan.reference]}
        return {key: ", ".join(map(str, values)) for key, values in listed.items()}

    def ended(self) -> list[CellResult]:
        for name in self.finished:
            (self.storage / name / "error.txt").remove()  # it had finished when the news of it was lost
        return [*self.finished.values()]

    def run(self, console: Console, end: End[CellResult]) -> None:
        if not self.missing:
            return
        with CellsProgress(console, self.missing, self.config.train.num_steps, len(self.finished)) as progress:

            def on_end(cell: Cell, result: CellResult | Exception) -> None:
                error = self.storage / cell.name / "error.txt"
                if isinstance(result, CellResult):
                    error.remove()
                    progress.finish(cell, result)
                    end(cell.name, result, "")
                else:
                    cause = cause_of(result)
                    error.write(str(result).encode())
                    progress.finish(cell, None, cause)
                    end(cell.name, None, cause)

            if self.config.scale.num_workers:
                self._run_on_ray(progress.show, on_end)
            else:
                with interruptible(self.config.run.grace_seconds, partial(show, console)) as stop:
                    self._run_here(progress.show, on_end, stop)

    def _run_here(self, on_step: Callable[[str, int], None], on_end: OnEnd, stop: Stop) -> None:
        """One cell after another, in this process."""
        for cell in self.missing:
            try:
                result = run_cell(self.config, cell, self.load(cell), str(self.storage), on_step, stop)
            except Exception as error:  # whatever stops a cell must not stop the others
                on_end(cell, error)
            else:
                on_end(cell, result)

    def _run_on_ray(self, on_step: Callable[[str, int], None], on_end: OnEnd) -> None:
        with on_cluster(self.config, self.options.cpus_per_cell) as config:
            from dpl_ray.studies.comparison.on_ray import run_tasks

            self.count_places(cluster.connected_nodes(), "the cluster")
            run_tasks(config, self.options, self.missing, self.load, str(self.storage), on_step, on_end)

    def child(self, result: CellResult) -> str:
        return result.cell.name

    def record(self, tracker: Tracker, result: CellResult) -> None:
        name = result.cell.name
        tracker.log_child(
            name,
            params=describe_config(cell_config(self.config, result.cell, str(self.storage))),
            tags=result.facts | {"label": result.label, "checkpoint": result.checkpoint},
            folder=name,
        )

    def write(self, tracker: Tracker, failed: Mapping[str, str]) -> list[Table]:
        if len(failed) == len(self.plan.cells):
            raise CellsFailedError(describe_failed(dict(failed)))
        self.rows = write_comparison(str(self.storage), self.plan.reference, missing=failed)
        for file in ("comparison.csv", "comparison.md"):
            tracker.log_file(file)
        tracker.log_file("comparison.html")
        tracker.log_tag("report", str(self.storage / "comparison.html"))
        tracker.log({f"accuracy/{row.label}": row.accuracy for row in self.rows}, 0)
        return comparison_tables(self.rows, self.plan.reference)
