"""The cells of a comparison as Ray tasks: as many at once as there is room for."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any

import ray
from ray.util.queue import Queue

from dpl_ray.config.schema import Config
from dpl_ray.data.dataset import Splits
from dpl_ray.studies.comparison.cells import Cell, CellResult, data_seed, run_cell
from dpl_ray.studies.comparison.config import CompareConfig

SECONDS_BETWEEN_LOOKS = 0.5  # at the cells that run
OnStep = Callable[[str, int], None]
OnEnd = Callable[[Cell, "CellResult | Exception"], None]


def run_tasks(
    config: Config,
    options: CompareConfig,
    cells: Sequence[Cell],
    load: Callable[[Cell], Splits],
    folder: str,
    on_step: OnStep,
    on_end: OnEnd,
) -> None:
    """Run these cells on the cluster that is connected.

    Args:
        load: the splits of a cell; a `ValueError` fails the cells of these data, and leaves others running.
        on_step: told of a cell's name, and the step that it has come to.
        on_end: told of a cell, and what it has left or what stopped it.
    """
    pending: dict[Any, Cell] = {}
    mailbox = Queue(actor_options={"num_cpus": 0})
    task = ray.remote(
        num_cpus=options.cpus_per_cell,
        num_gpus=options.gpus_per_cell if config.scale.use_gpu else 0,
        max_retries=config.scale.max_failures,
    )(_task)
    try:
        for _, group in groupby(cells, lambda cell: data_seed(config, cell)):
            same_data = list(group)
            try:
                splits = ray.put(load(same_data[0]))
            except ValueError as error:
                for cell in same_data:
                    on_end(cell, error)
                continue
            pending |= {task.remote(config, cell, splits, folder, mailbox): cell for cell in same_data}
            _collect(pending, mailbox, on_step, on_end, 0.0)
        while pending:
            _collect(pending, mailbox, on_step, on_end, SECONDS_BETWEEN_LOOKS)
    finally:
        with contextlib.suppress(ray.exceptions.RayError):
            for reference in pending:
                ray.cancel(reference, force=True)
            mailbox.shutdown()


def _task(config: Config, cell: Cell, splits: Splits, folder: str, mailbox: Any) -> CellResult:
    def on_step(name: str, step: int) -> None:
        # Not waited for: news that cannot be delivered must not hold up the training.
        mailbox.actor.put_nowait.remote((name, step))

    return run_cell(config, cell, splits, folder, on_step)


def _collect(pending: dict[Any, Cell], mailbox: Any, on_step: OnStep, on_end: OnEnd, seconds: float) -> None:
    """Pass on the news of the cells, waiting up to `seconds` for one that ends."""
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
