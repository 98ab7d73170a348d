"""Filling a ledger: every block that is missing becomes a part, in this process or by actors of Ray."""

from __future__ import annotations

from collections.abc import Generator

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from dpl_ray.cluster import connect as cluster
from dpl_ray.config.schema import ScaleConfig
from dpl_ray.data.images.convert import DecodeSettings
from dpl_ray.data.splits.bad_images import most_bad
from dpl_ray.labeling.config import SMALL_POOL, LabelScaleConfig
from dpl_ray.labeling.ledger import Ledger
from dpl_ray.labeling.on_ray import count_actors, label_on_ray, usual_actors
from dpl_ray.labeling.parts import Counts
from dpl_ray.labeling.writer import BlockWriter
from dpl_ray.page.console import Progress


class TooManyBadError(RuntimeError):
    """More of the pool cannot be read than was allowed; what is labelled stays."""


def count_workers(config: LabelScaleConfig, num_images: int) -> int:
    """Actors; 0 for none, in this process.

    Args:
        num_images: of the pool.

    Raises:
        ValueError: this machine or the cluster cannot carry them.
    """
    wanted = config.num_workers
    is_here = not config.use_gpu and not cluster.cluster_address(config.with_workers(0))
    if wanted is None and is_here and num_images <= SMALL_POOL:  # Ray would take longer to start than it saves
        wanted = 0
    with cluster.checked_resources(config.with_workers(1 if wanted is None else wanted)):
        if wanted == 0:
            return 0
        scale = config.with_workers(0)
        nodes, where = cluster.nodes_for(scale)
        room = count_actors(nodes, scale)
        if wanted is None:
            wanted = usual_actors(nodes, scale)
        if wanted > room:
            raise ValueError(
                f"scale.num_workers={wanted}: {where} has room for {room} actors of scale.cpus_per_worker="
                f"{scale.cpus_per_worker:g} beside the tasks that read and decode; ask for less"
            )
    return wanted


def place_of(config: LabelScaleConfig, num_workers: int) -> str:
    """Where a pool is read, for the user, with the reason where nobody has asked for this process."""
    if num_workers:
        return f"{num_workers} actor{'s' * (num_workers > 1)}"
    return "this process" + f" (up to {SMALL_POOL:,} images need no Ray)" * (config.num_workers is None)


def fill(
    ledger: Ledger,
    writer: BlockWriter,
    settings: DecodeSettings,
    scale: ScaleConfig,
    max_bad_fraction: float,
    console: Console,
) -> None:
    """Write the parts of all blocks that have none.

    Args:
        scale: with the number of actors; 0 for none, in this process.

    Raises:
        TooManyBadError: more of the pool cannot be read than is allowed.
        WorkersFailedError: a process of Ray failed, or several died over the same images.
    """
    done: Generator[tuple[int, Counts, int], None, None]
    if scale.num_workers:
        done = label_on_ray(writer, ledger.missing, settings, scale)
    else:
        done = _fill_here(writer, ledger.missing, settings, use_gpu=scale.use_gpu)
    with Progress(console, "images", shows_speed=True) as progress:
        try:
            for block, counts, size in done:
                ledger.add(block, counts, size)
                progress.update(ledger.counts.num_rows, len(ledger.plan))
                check_bad(ledger, max_bad_fraction)
        finally:
            done.close()


def _fill_here(
    writer: BlockWriter, blocks: NDArray[np.int32], settings: DecodeSettings, *, use_gpu: bool
) -> Generator[tuple[int, Counts, int], None, None]:
    """The blocks one after another, in this process."""
    import torch

    from dpl_ray.labeling.decoding import decode_block

    writer = writer.to(torch.device("cuda" if use_gpu else "cpu"))
    for block in map(int, blocks):
        yield block, *writer.write(decode_block(writer.plan, block, settings))


def check_bad(ledger: Ledger, max_bad_fraction: float) -> None:
    """Stop as soon as too much is known to be bad; what is no image, and not called one, is not of the pool."""
    counts = ledger.counts
    pool_size = len(ledger.plan) - counts.num_foreign
    if counts.num_bad <= most_bad(max_bad_fraction, pool_size):
        return
    bad = ledger.write_bad()
    first = "; ".join(f"{sample_id} ({reason})" for sample_id, reason in ledger.first_bad(3))
    raise TooManyBadError(
        f"{counts.num_bad:,} of {pool_size:,} images cannot be read, more than max_bad_fraction="
        f"{max_bad_fraction:g} allows, as {first}; all that are known are in {bad}. What is done stays: "
        "the same command with a larger max_bad_fraction goes on"
    )
