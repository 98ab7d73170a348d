"""Policies x seeds: train what is missing, as many cells at once as the cluster carries, and set them side by side.

A cell is one policy with one seed (cells.py). All policies of a seed have the same labelled images, initial
weights, order of batches and number of steps. A finished cell is never run again, so that an interrupted comparison
goes on, and policies and seeds can be added to it.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING, Any

from rich.console import Console

from dpl_ray.cluster import connect as cluster
from dpl_ray.config.schema import Config, shown
from dpl_ray.data.dataset import Splits
from dpl_ray.data.sources import load_splits
from dpl_ray.jobs.fit import check_network, check_storage
from dpl_ray.page.console import show
from dpl_ray.runs.folder import COMPARISON_FILE
from dpl_ray.runs.provenance import describe_code, describe_config
from dpl_ray.store.history import merge_records
from dpl_ray.store.lock import sole_use
from dpl_ray.studies.comparison.cells import Cell, CellResult, cell_config, run_cell
from dpl_ray.studies.comparison.config import CompareConfig, Plan, comparison_name, make_plan, shared_tree
from dpl_ray.studies.comparison.console import CellsProgress, comparison_tables
from dpl_ray.studies.comparison.folder import ComparisonFolder, write_comparison
from dpl_ray.studies.comparison.table import Row
from dpl_ray.tracking.journal import Journal
from dpl_ray.tracking.tracker import Tracker, recording, start_tracker, tracking_uri

if TYPE_CHECKING:
    from dpl_ray.training.records import Record

SECONDS_BETWEEN_LOOKS = 0.5  # at the cells that run


class CellsFailedError(RuntimeError):
    """Some cells have not finished."""


@dataclass(frozen=True)
class CompareResult:
    """The result of `compare`."""

    name: str
    rows: list[Row]  # one per policy, the most accurate first
    failed: dict[str, str]  # cell -> cause
    csv: str
    markdown: str
    report: str
    run_id: str | None  # of MLflow: the parent of the cells' runs
    tracking_uri: str | None


#: What happens to cells: a step that one has come to, and the end of one.
OnStep = Callable[[str, int], None]
OnEnd = Callable[[Cell, "CellResult | Exception"], None]


def compare(
    config: Config,
    options: CompareConfig | None = None,
    *,
    console: Console | None = None,
    command: str | None = None,
) -> CompareResult:
    """Train every policy with every seed, except the cells that have finished, and write tables and page.

    Args:
        config: configuration of every cell. Its policy and train.baseline are not read; train.seed is the first seed.
            scale.num_workers=0 runs the cells one after another in this process, any other number as Ray tasks.
        console: where progress and tables are shown; None shows nothing.
        command: command line that the tables name as their origin.

    Raises:
        ValueError: a field, the data or the resources do not fit; before any cell starts.
        CellsFailedError: not one cell has finished.
    """
    console, options = console or Console(quiet=True), options or CompareConfig()
    plan = make_plan(config, options)
    check_storage(config)
    uri = tracking_uri(config)
    if config.model.name == "torchvision":
        from dpl_ray.models import check_names

        check_names(config.model)
    folder = ComparisonFolder(config.run.storage_path, comparison_name(config), shared_tree(config))
    finished = {cell.name: result for cell in plan.cells if (result := folder.finished(cell))}
    folder.check_policies(plan.cells)
    missing = [cell for cell in plan.cells if cell.name not in finished]
    load = _loader(config, plan, folder)
    if missing:
        _check_room(config, options)
        load(missing[0].seed)  # mistakes in the data are answered before a cell starts
    with sole_use(f"run.name={folder.name}", folder.storage):
        folder.begin(command)
        show(console, _headline(config, plan, folder, len(finished)))
        tracker = _start_tracker(config, options, uri, folder, plan)
        failed: dict[str, str] = {}
        with recording(tracker, console):
            for cell in plan.cells:
                if cell.name in finished:
                    folder.remove_error(cell)
                    _record(tracker, folder, config, cell, finished[cell.name])
            with CellsProgress(console, missing, config.train.num_steps, len(finished)) as progress:

                def on_end(cell: Cell, result: CellResult | Exception) -> None:
                    if isinstance(result, CellResult):
                        folder.remove_error(cell)
                        progress.finish(cell, result)
                        _record(tracker, folder, config, cell, result)
                    else:
                        failed[cell.name] = _first_line(result)
                        folder.write_error(cell, result)
                        progress.finish(cell, None, failed[cell.name])

                run = _run_here if config.scale.num_workers == 0 else _run_on_ray
                if missing:
                    run(missing, config, options, load, str(folder.storage), progress.show, on_end)
            if len(failed) == len(plan.cells):
                raise CellsFailedError(describe_failed(failed))
            outputs = write_comparison(str(folder.storage), plan.reference, missing=failed)
            for file in (outputs.csv, outputs.markdown):
                tracker.log_file(file.name)
            tracker.log_page(outputs.page.name)
            tracker.log_tag("report", str(outputs.page))
            tracker.log({f"accuracy/{row.label}": row.accuracy for row in outputs.rows}, 0)
            tracker.failed = bool(failed)
    for table in comparison_tables(outputs.rows, plan.reference):
        console.print(table)
    return CompareResult(
        name=folder.name,
        rows=outputs.rows,
        failed=failed,
        csv=str(outputs.csv),
        markdown=str(outputs.markdown),
        report=str(outputs.page),
        run_id=tracker.run_id,
        tracking_uri=uri,
    )


def describe_failed(failed: dict[str, str]) -> str:
    """How many cells did not finish, and why the first of them did not."""
    name, cause = next(iter(failed.items()))
    return (
        f"{len(failed)} cells did not finish, as {name} ({cause}); the folder of each has an error.txt, and the same "
        "command runs them again"
    )


def _loader(config: Config, plan: Plan, folder: ComparisonFolder) -> Callable[[int], Splits]:
    """Seed -> splits, checked; the last ones are kept, since the cells come by seed."""
    uses_unlabeled = any(cell.policy["name"] != "supervised" for cell in plan.cells)
    in_one_process = config.model_copy(update={"scale": config.scale.model_copy(update={"num_workers": 1})})
    kept: dict[int, Splits] = {}

    def load(seed: int) -> Splits:
        if seed not in kept:
            kept.clear()
            # The pool is read even where no policy uses it: one that is added later must find the same data.
            splits = load_splits(config.data, seed=seed, uses_unlabeled=uses_unlabeled, reads_unlabeled=True)
            check_network(in_one_process, splits)
            folder.check_data(seed, splits.fingerprint(), splits.seedless_fingerprint())
            kept[seed] = splits
        return kept[seed]

    return load


def _by_data(config: Config, cells: list[Cell]) -> list[tuple[int, list[Cell]]]:
    """The cells that learn from the same splits, and a seed of theirs: with data.subset_seed, all."""
    if config.data.subset_seed is not None:
        return [(cells[0].seed, cells)]
    return [(seed, list(group)) for seed, group in groupby(cells, key=lambda cell: cell.seed)]


def _load_for(seed: int, cells: list[Cell], load: Callable[[int], Splits], on_end: OnEnd) -> Splits | None:
    """The splits of these cells; None where they cannot be had, which fails these cells and leaves others running."""
    try:
        return load(seed)
    except ValueError as error:
        for cell in cells:
            on_end(cell, error)
        return None


def _run_here(
    cells: list[Cell],
    config: Config,
    options: CompareConfig,  # noqa: ARG001
    load: Callable[[int], Splits],
    folder: str,
    on_step: OnStep,
    on_end: OnEnd,
) -> None:
    """One cell after another, in this process."""
    for seed, group in _by_data(config, cells):
        if (splits := _load_for(seed, group, load, on_end)) is None:
            continue
        for cell in group:
            try:
                result: CellResult | Exception = run_cell(config, cell, splits, folder, partial(_tell, on_step, cell))
            except Exception as error:  # whatever stops a cell must not stop the others
                result = error
            on_end(cell, result)


def _tell(on_step: OnStep, cell: Cell, record: Record) -> None:
    on_step(cell.name, record.step)


def _run_on_ray(
    cells: list[Cell],
    config: Config,
    options: CompareConfig,
    load: Callable[[int], Splits],
    folder: str,
    on_step: OnStep,
    on_end: OnEnd,
) -> None:
    """All cells as Ray tasks; Ray starts as many at once as there is room for."""
    # Zero workers: what a cell needs is checked here, in the words of a comparison's fields.
    started = cluster.connect(config.scale.model_copy(update={"num_workers": 0}))
    import ray
    from ray.util.queue import Queue

    if config.scale.threads_per_worker is None:
        threads = {"threads_per_worker": max(1, int(options.cpus_per_cell))}
        config = config.model_copy(update={"scale": config.scale.model_copy(update=threads)})
    pending: dict[Any, Cell] = {}
    mailbox = None
    try:
        _check_places(_connected_nodes(), config, options, "of the cluster")
        mailbox = Queue(actor_options={"num_cpus": 0})
        task = ray.remote(
            num_cpus=options.cpus_per_cell,
            num_gpus=options.gpus_per_cell if config.scale.use_gpu else 0,
            max_retries=config.scale.max_failures,
        )(_task)
        for seed, group in _by_data(config, cells):
            if (splits := _load_for(seed, group, load, on_end)) is None:
                continue
            reference, splits = ray.put(splits), None  # no second copy while the next seed's are read
            pending |= {task.remote(config, cell, reference, folder, mailbox): cell for cell in group}
            _collect(pending, mailbox, on_step, on_end, 0.0)
        while pending:
            _collect(pending, mailbox, on_step, on_end, SECONDS_BETWEEN_LOOKS)
    finally:
        with contextlib.suppress(ray.exceptions.RayError):
            for reference in pending:
                ray.cancel(reference, force=True)
            if mailbox:
                mailbox.shutdown()
        if started:
            ray.shutdown()


def _task(config: Config, cell: Cell, splits: Splits, folder: str, mailbox: Any) -> CellResult:
    def on_step(name: str, step: int) -> None:
        # Not waited for: news that cannot be delivered must not hold up the training.
        mailbox.actor.put_nowait.remote((name, step))

    return run_cell(config, cell, splits, folder, partial(_tell, on_step, cell))


def _collect(pending: dict[Any, Cell], mailbox: Any, on_step: OnStep, on_end: OnEnd, seconds: float) -> None:
    """Pass on the news of the cells, waiting up to `seconds` for one that ends."""
    import ray

    ready, _ = ray.wait(list(pending), timeout=seconds)
    news: list[tuple[str, int]] = []
    with contextlib.suppress(ray.exceptions.RayError):  # the mailbox may be lost with its node, the cells are not
        news = mailbox.get_nowait_batch(mailbox.qsize())
    running = {cell.name for cell in pending.values()}
    for name, step in news:
        if name in running:
            on_step(name, step)
    for reference in ready:
        cell = pending.pop(reference)
        try:
            result: CellResult | Exception = ray.get(reference)
        except ray.exceptions.RayError as error:
            result = error
        on_end(cell, result)


def _check_room(config: Config, options: CompareConfig) -> None:
    """Refuse a cell that no node carries."""
    scale = config.scale
    if scale.num_workers:
        # Whether the cluster answers, or there is a GPU here; the room is counted in cells below.
        scale = scale.model_copy(update={"num_workers": 1, "cpus_per_worker": 0.01})
    with cluster.checked_resources(scale):
        if scale.num_workers and cluster.cluster_address(scale):
            _check_places(_connected_nodes(), config, options, "of the cluster")
        elif scale.num_workers:
            _check_places([{"CPU": float(os.cpu_count() or 1), "GPU": 1.0}], config, options, "on this machine")


def _check_places(nodes: Iterable[dict[str, float]], config: Config, options: CompareConfig, where: str) -> None:
    fitting = [node for node in nodes if not config.scale.use_gpu or node.get("GPU", 0.0) >= options.gpus_per_cell]
    most = max((node.get("CPU", 0.0) for node in fitting), default=0.0)
    if most < options.cpus_per_cell:
        gpu = " beside a GPU" if config.scale.use_gpu else ""
        raise ValueError(
            f"cpus_per_cell={options.cpus_per_cell:g}: no node {where} has that many CPUs{gpu}; at most {most:g}"
        )


def _connected_nodes() -> list[dict[str, float]]:
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _start_tracker(
    config: Config, options: CompareConfig, uri: str | None, folder: ComparisonFolder, plan: Plan
) -> Tracker:
    """The parent run; the same one when a comparison goes on."""
    params = describe_config(config.model_copy(update={"policy": {}}))
    params |= {f"compare.{field}": shown(value) for field, value in options.model_dump(mode="json").items()}
    tags = describe_code() | {"data.fingerprint": folder.info["data"]}
    tracker = start_tracker(config, uri, Journal(folder.storage), name=folder.name, params=params, tags=tags)
    tracker.log_file(COMPARISON_FILE)
    # Tags too, because a comparison that goes on may have more of them, and MLflow's params cannot be changed.
    for key, value in (("policies", plan.labels), ("seeds", plan.seeds), ("reference", [plan.reference])):
        tracker.log_tag(key, ", ".join(map(str, value)))
    return tracker


def _record(tracker: Tracker, folder: ComparisonFolder, config: Config, cell: Cell, result: CellResult) -> None:
    """A child run of the cell, unless it has one."""
    if tracker.has_child(cell.name):
        return
    rows = map(json.loads, (folder.storage / cell.name / "history.jsonl").read().splitlines())
    tracker.log_child(
        cell.name,
        params=describe_config(cell_config(config, cell, str(folder.storage))),
        tags=result.facts | {"label": cell.label, "checkpoint": result.checkpoint},
        history=merge_records(rows),
    )


def _headline(config: Config, plan: Plan, folder: ComparisonFolder, num_finished: int) -> str:
    goes_on = f"goes on, {num_finished} of them finished before" if folder.resumed else "starts"
    ray_starts = config.scale.num_workers and not cluster.cluster_address(config.scale)
    return (
        f"{folder.name} {goes_on}: {len(plan.labels)} policies ({', '.join(plan.labels)}) x {len(plan.seeds)} seeds, "
        f"{len(plan.cells)} cells of {config.train.num_steps:,} steps"
        + ("\nstarting Ray takes some 20 seconds" if ray_starts and num_finished < len(plan.cells) else "")
    )


def _first_line(error: Exception) -> str:
    """Type and message of what stopped a cell, without Ray's traceback."""
    cause = getattr(error, "cause", None) or error
    return f"{type(cause).__name__}: {next(iter(str(cause).strip().splitlines()), '')}"
