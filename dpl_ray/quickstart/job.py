"""From a folder to a report, predictions and a configuration, within a budget of time."""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from os import PathLike, fspath
from pathlib import Path

import numpy as np
from rich.console import Console

from dpl_ray.checking.files import Header, read_headers
from dpl_ray.checking.settings import settle_model
from dpl_ray.checking.timing import measure_steps
from dpl_ray.config.compose import load_config
from dpl_ray.config.given import quoted
from dpl_ray.config.schema import CURVE_POINTS, Config
from dpl_ray.config.section import shown
from dpl_ray.data.dataset import ImageSet, Splits
from dpl_ray.data.files.listing import list_files
from dpl_ray.data.files.location import open_location
from dpl_ray.data.labeled.records import list_records
from dpl_ray.data.splits.sources import load_splits
from dpl_ray.jobs.fit import FitResult, run_training
from dpl_ray.jobs.placement import passes_per_step
from dpl_ray.models import count_forward_operations
from dpl_ray.page.console import open_console, show
from dpl_ray.page.result import Result
from dpl_ray.quickstart import frozen
from dpl_ray.quickstart.choices import (
    DEPTHS,
    MIN_STEPS,
    MUS,
    STOP_SHARE,
    TRAINING_SHARE,
    Candidate,
    Choice,
    candidates_for,
    choose,
    mus_for,
    sizes_for,
    steps_within,
)
from dpl_ray.quickstart.config import load_quickstart, seconds_of
from dpl_ray.quickstart.layout import Layout, find_layout
from dpl_ray.quickstart.results import next_commands, predict
from dpl_ray.quickstart.work import measure_work, unlabelled
from dpl_ray.runs.kept_config import CONFIG_FILE
from dpl_ray.store.records import csv_text
from dpl_ray.store.storage import Storage
from dpl_ray.training.checkpoint_folder import list_checkpoints
from dpl_ray.training.interruption import Interrupted

LABELS_FILE = "labelled.csv"  # in the folder of the run, where the folders of the classes lie beside others
CURVE_SHARE = 0.05  # of the passes of the steps: most that the scores on the way take
MIN_CURVE_IMAGES = 50  # of such a score
NETWORK = {"model", "model.depth", "model.architecture"}  # fields that choose one


@dataclass(frozen=True, repr=False)
class QuickstartResult(Result):
    """The result of `quickstart`."""

    run: FitResult
    config: str  # file of all that was chosen
    predictions: str | None  # CSV of the unlabelled images; None where there are none
    next_commands: tuple[str, ...]

    def _facts(self) -> dict[str, str | None]:
        return {"run": repr(self.run), "predictions": self.predictions}


def quickstart(
    folder: str | PathLike[str],
    budget: str = "10min",
    *,
    overrides: Sequence[str] = (),
    console: Console | bool | None = None,
) -> QuickstartResult:
    """Find the images in a folder, choose settings for a budget of time, train, and predict the unlabelled ones.

    The same call goes on where it stopped, with the settings that it had chosen.

    Args:
        folder: on this machine; which images are labelled, unlabelled and for tests is told by its layout.
        budget: of the whole call, as 90s, 10min or 2h.
        overrides: further settings of the training, as on the command line; what they say is not chosen.
        console: as in `fit`.

    Raises:
        ValueError: no labels are found, or a setting is wrong; before anything is trained.
        Interrupted: by Ctrl-C, or as the budget is over; with a checkpoint, from which the same call goes on.
    """
    began, console = time.monotonic(), open_console(console)
    options, given = load_quickstart([f"folder={fspath(folder)}", f"budget={budget}", *overrides])
    seconds = seconds_of(options.budget)
    place = Path(options.folder).expanduser()
    layout = _with_rows(find_layout(place.absolute()), given)
    named = [text for text in given if text.startswith("run.name=")]
    start = load_config([*_data_overrides(layout), *(named or [f"run.name={_run_name(place)}"]), *given])
    storage = Storage(start.run.storage_path) / (start.run.name or "")
    for role in ("train", "unlabeled", "test"):
        if role in layout.fields:
            show(console, f"{role:<12}{shown(layout.fields[role])}  ({layout.reasons[role]})")
    if layout.has_unlabelled_rows:
        show(console, "unlabeled   the rows of these that have no label")
    if layout.classes:
        start = start.changed(data={"train": str(_write_labels(layout, storage)), "allow_outside": True})
    if (storage / CONFIG_FILE).exists():
        show(
            console,
            f"{storage / CONFIG_FILE} was chosen before: the run goes on with it, whatever the budget is now; "
            f"run.name={start.run.name}-2 chooses anew",
        )
        config = load_config([f"config={storage / CONFIG_FILE}", *given])
    else:
        config = _chosen(start, given, layout, storage, seconds, began, console)
    try:
        run = run_training(config, console, ends_at=began + STOP_SHARE * seconds)
    except Interrupted as error:
        if error.by_time:
            said = f"budget={options.budget} is over on this machine, and {error}"
            if layout.has_pool:
                newest = storage if list_checkpoints(storage) else storage / "baseline"
                said += f", its predictions in {predict(config, start.data, newest, storage, console)}"
            error.args = (said,)
        raise
    predictions = None
    if layout.has_pool:
        predictions = predict(config, start.data, Storage(run.checkpoint), storage, console)
    commands = next_commands(config, run, storage, layout)
    return QuickstartResult(run, str(storage / CONFIG_FILE), predictions, commands)


def _run_name(folder: Path) -> str:
    """A name that the same folder has again."""
    word = re.sub(r"[^A-Za-z0-9._-]+", "-", folder.absolute().name).strip("-.") or "folder"
    return f"quickstart-{word}"


def _with_rows(layout: Layout, given: Sequence[str]) -> Layout:
    """With the rows of parquet files that have no label, where nothing else is the pool."""
    if layout.name != "parquet" or layout.has_pool:
        return layout
    data = load_config([*_data_overrides(layout), *given]).data
    return replace(layout, has_unlabelled_rows=bool(unlabelled(data)))


def _data_overrides(layout: Layout) -> list[str]:
    found = [f"data={layout.name}", *(f"data.{role}={quoted(value)}" for role, value in layout.fields.items())]
    return found if layout.has_pool else [*found, "policy=supervised"]


def _chosen(
    start: Config, given: Sequence[str], layout: Layout, storage: Storage, budget: float, began: float, console: Console
) -> Config:
    """The configuration for the budget, with a line for each choice."""
    headers = [header for found in read_headers(start.data).values() for header in found]
    if not headers:
        raise ValueError(f"folder={layout.fields['train']}: none of the first images in it can be read")
    fixed, work = {text.partition("=")[0] for text in given}, measure_work(start.data)

    def left() -> float:
        return budget - (time.monotonic() - began)

    if not fixed & (NETWORK | {"data.image_size"}) and (
        overrides := frozen.embed_images(start.data, work, storage, left(), given, console)
    ):
        policy = [] if layout.has_pool else ["policy=supervised"]
        config = load_config([*overrides, *policy, f"run.name={start.run.name}", *given])
        if layout.has_pool and "train.mu" not in fixed:
            fitting = mus_for(work.num_pool, config.train.batch_size)
            config = config.changed(train={"mu": min(config.train.mu, fitting[0])})
        config = _with_steps(config, left(), console)
        _tell_rest(config, layout, console)
        return config
    sizes, depths, mus = [start.data.image_size or 0], list(DEPTHS), [start.train.mu]
    if "data.image_size" not in fixed:
        side = _side(headers)
        sizes = sizes_for(side)
        show(console, f"images      {len(headers):,} looked at: the shorter side has {side} pixels in the middle")
    if fixed & NETWORK:  # it is given: the sizes alone are tried
        depths = depths[:1]
    if layout.has_pool and "train.mu" not in fixed:
        mus = mus_for(work.num_pool, start.train.batch_size)
    splits = {size: _noise(start, size) for size in sizes}

    def with_candidate(candidate: Candidate) -> Config:
        model = {} if fixed & NETWORK else {"depth": candidate.depth}
        return start.changed(data={"image_size": candidate.size}, model=model, train={"mu": candidate.mu})

    def measure(candidate: Candidate) -> float:
        timing = measure_steps(with_candidate(candidate), splits[candidate.size])
        return timing.seconds_per_step + (timing.seconds_per_baseline_step or 0.0)

    def cost(candidate: Candidate) -> float:
        size, config = (candidate.size, candidate.size), with_candidate(candidate)
        return passes_per_step(config) * count_forward_operations(config.model, start.data.channels, size, 2)

    def beside(candidate: Candidate) -> float:
        return work.num_passes / passes_per_step(with_candidate(candidate))

    candidates = candidates_for(sizes, depths, mus)
    choice = choose(candidates, cost, measure, left() - work.seconds_to_read, beside)
    needed = (MIN_STEPS + beside(choice.candidate)) * choice.seconds_per_step / TRAINING_SHARE + work.seconds_to_read
    return _told(with_candidate(choice.candidate), choice, needed, layout, console)


def _with_steps(config: Config, left: float, console: Console) -> Config:
    """The configuration of a training on features, with the steps that fit into what is left of the time."""
    data = config.data.changed(pool={"mode": "memory"})
    splits = load_splits(data, seed=config.train.seed, uses_unlabeled=config.policy.name != "supervised")
    timing = measure_steps(settle_model(config), splits)
    seconds = timing.seconds_per_step + (timing.seconds_per_baseline_step or 0.0)
    steps = min(frozen.NUM_STEPS, max(MIN_STEPS, steps_within(max(0.0, left), seconds)))
    show(
        console,
        f"steps       {steps:,} of {seconds:.2g} s each, policy and baseline together, measured on this machine; "
        f"{frozen.NUM_STEPS:,} suffice",
    )
    return config.changed(train={"num_steps": steps})


def _told(config: Config, choice: Choice, needed: float, layout: Layout, console: Console) -> Config:
    """The configuration with the steps that fit, told line by line.

    Args:
        needed: seconds in which there would be MIN_STEPS.
    """
    steps = choice.num_steps
    most = CURVE_SHARE * steps * passes_per_step(config) / (2 * CURVE_POINTS)
    config = config.changed(
        train={
            "num_steps": steps,
            "log_every": max(1, min(50, steps // 20)),
            "curve_images": max(MIN_CURVE_IMAGES, min(config.train.curve_images, int(most))),
        }
    )
    model = config.model
    network = (
        f"WRN-{model.depth}-{model.width}" if model.name == "wide_resnet" else f"{model.architecture} of {model.name}"
    )
    size = (
        "the least work that is tried" if choice.is_short else f"the largest whose steps fit the time {MIN_STEPS} times"
    )
    depth = "the smallest that is tried" if choice.is_short else "the deepest that fits at this size"
    show(console, f"size        {choice.candidate.size} pixels: {size}")
    show(console, f"network     {network}: {depth}")
    show(
        console,
        f"steps       {steps:,} of {choice.seconds_per_step:.2g} s each, policy and baseline together, measured on "
        "this machine",
    )
    if choice.is_short:
        show(console, f"            that is few: budget={-(-needed // 60):.0f}min or a GPU would give {MIN_STEPS}")
    _tell_rest(config, layout, console)
    return config


def _tell_rest(config: Config, layout: Layout, console: Console) -> None:
    """A line for batch, policy, test images and views."""
    size, mu = config.train.batch_size, config.train.mu
    pool = f" and {mu * size} unlabelled" if layout.has_pool else ""
    fewer = "; more would be too many for the time or the pool" if layout.has_pool and mu < MUS[0] else ""
    show(console, f"batch       {size} labelled{pool} images a step{fewer}")
    if layout.has_pool:
        baseline = " beside the supervised baseline" if config.train.baseline else ""
        show(
            console, f"policy      {config.policy.name}{baseline}: the report says whether the unlabelled images helped"
        )
    else:
        show(console, "policy      supervised: there are no unlabelled images; put some into a folder unlabelled/")
    if config.data.test is None:
        show(
            console,
            f"test        {config.data.test_fraction:.0%} of the labelled images are held out: none lie in test/",
        )
    if config.data.views.horizontal_flip:
        show(console, "views       images are mirrored; data.views.horizontal_flip=false where left and right matter")


def _side(headers: Sequence[Header]) -> int:
    """The median of the shorter sides, in pixels."""
    return int(statistics.median(min(header.width, header.height) for header in headers))


def _noise(config: Config, size: int) -> Splits:
    """As many images as a few steps read; what is in them does not change how long a step takes."""
    number = 4 * config.train.batch_size
    images = np.random.default_rng(0).integers(0, 256, (number, config.data.channels, size, size), np.uint8)
    records = list_records(config.data, "data.train", config.data.train or "")
    names = tuple(sorted({str(label) for label in records.labels if label is not None})) or ("a", "b")
    targets = np.arange(number) % len(names)
    part = ImageSet(images, targets, np.array([str(place) for place in range(number)], np.str_))
    return Splits(part, part, part.subset(np.arange(0)), part.subset(np.arange(0)), names, ())


def _write_labels(layout: Layout, storage: Storage) -> Storage:
    """A table of path,label of the folders that are the classes; one that is there stays."""
    if (storage / LABELS_FILE).exists():
        return storage / LABELS_FILE
    rows: list[tuple[str, str]] = [("path", "label")]
    for folder in layout.classes:
        listing = list_files(open_location("folder", str(folder)))
        rows += [(path, folder.name) for path in listing.paths.to_pylist()]
    (storage / LABELS_FILE).write(csv_text(rows).encode())
    return storage / LABELS_FILE
