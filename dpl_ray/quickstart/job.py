"""From a folder to a report, predictions and a configuration, within a budget of time."""

from __future__ import annotations

import re
import shlex
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike, fspath
from pathlib import Path

import numpy as np
from rich.console import Console

from dpl_ray.checking.files import Header, read_headers
from dpl_ray.checking.settings import settle_model
from dpl_ray.checking.timing import measure_steps
from dpl_ray.config.compose import load_config
from dpl_ray.config.given import quoted
from dpl_ray.config.schema import Config
from dpl_ray.config.section import shown
from dpl_ray.data.dataset import ImageSet, Splits
from dpl_ray.data.files import list_files, open_location
from dpl_ray.data.labeled import list_records
from dpl_ray.data.pool.choice import list_unlabeled
from dpl_ray.data.sources import load_splits
from dpl_ray.inference.predictions import Predictions
from dpl_ray.jobs.fit import FitResult, fit
from dpl_ray.models.cost import operations
from dpl_ray.page.console import open_console, show
from dpl_ray.page.result import Result
from dpl_ray.quickstart import frozen
from dpl_ray.quickstart.choices import DEPTHS, MIN_STEPS, Candidate, Choice, candidates_for, choose, steps_within
from dpl_ray.quickstart.config import load_quickstart, seconds_of
from dpl_ray.quickstart.layout import Layout, find_layout
from dpl_ray.runs.folder import CONFIG_FILE
from dpl_ray.store.records import csv_text
from dpl_ray.store.storage import Storage

LABELS_FILE = "labelled.csv"  # in the folder of the run, where the folders of the classes lie beside others
NETWORK = {"model", "model.depth", "model.architecture"}  # fields that choose one
PREDICTIONS_FILE = "predictions.csv"


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
    """
    began, console = time.monotonic(), open_console(console)
    options, given = load_quickstart([f"folder={fspath(folder)}", f"budget={budget}", *overrides])
    place = Path(options.folder).expanduser()
    layout = find_layout(place.absolute())
    named = [text for text in given if text.startswith("run.name=")]
    start = load_config([*_data_overrides(layout), *(named or [f"run.name={_run_name(place)}"]), *given])
    storage = Storage(start.run.storage_path) / (start.run.name or "")
    for role in ("train", "unlabeled", "test"):
        if role in layout.fields:
            show(console, f"{role:<12}{shown(layout.fields[role])}  ({layout.reasons[role]})")
    if (storage / CONFIG_FILE).exists():
        show(
            console,
            f"{storage / CONFIG_FILE} was chosen before: the run goes on with it, whatever the budget is now; "
            f"run.name={start.run.name}-2 chooses anew",
        )
        config = load_config([f"config={storage / CONFIG_FILE}", *given])
    else:
        config = _chosen(start, given, layout, storage, seconds_of(options.budget), began, console)
    run = fit(config, console=console)
    predictions = _predict(config, run, storage, console) if layout.has_pool else None
    commands = _next_commands(config, run, storage, layout)
    return QuickstartResult(run, str(storage / CONFIG_FILE), predictions, commands)


def _run_name(folder: Path) -> str:
    """A name that the same folder has again."""
    word = re.sub(r"[^A-Za-z0-9._-]+", "-", folder.absolute().name).strip("-.") or "folder"
    return f"quickstart-{word}"


def _data_overrides(layout: Layout) -> list[str]:
    found = [f"data={layout.name}", *(f"data.{role}={quoted(value)}" for role, value in layout.fields.items())]
    return found if layout.has_pool else [*found, "policy=supervised"]


def _chosen(
    start: Config, given: Sequence[str], layout: Layout, storage: Storage, budget: float, began: float, console: Console
) -> Config:
    """The configuration for the budget, with a line for each choice."""
    if layout.classes:
        start = start.changed(data={"train": str(_write_labels(layout, storage))})
    headers = [header for found in read_headers(start.data).values() for header in found]
    if not headers:
        raise ValueError(f"folder={layout.fields['train']}: none of the first images in it can be read")
    fixed = {text.partition("=")[0] for text in given}
    if not fixed & (NETWORK | {"data.image_size"}):
        left = budget - (time.monotonic() - began)
        if overrides := frozen.embed_layout(layout, storage, start.data.channels, left, given, console):
            policy = [] if layout.has_pool else ["policy=supervised"]
            config = load_config([*overrides, *policy, f"run.name={start.run.name}", *given])
            config = _with_steps(config, budget - (time.monotonic() - began), console)
            _tell_rest(config, layout, console)
            return config
    if "data.image_size" not in fixed:
        side = _side(headers)
        candidates = candidates_for(side)
        show(console, f"images      {len(headers):,} looked at: the shorter side has {side} pixels in the middle")
    else:
        assert start.data.image_size is not None
        candidates = [Candidate(start.data.image_size, depth) for depth in DEPTHS]
    if fixed & NETWORK:  # it is given: the sizes alone are tried
        candidates = list({each.size: each for each in candidates}.values())
    splits = {each.size: _noise(start, each.size) for each in candidates}

    def with_candidate(candidate: Candidate) -> Config:
        model = {} if fixed & NETWORK else {"depth": candidate.depth}
        return start.changed(data={"image_size": candidate.size}, model=model)

    def measure(candidate: Candidate) -> float:
        timing = measure_steps(with_candidate(candidate), splits[candidate.size])
        return timing.seconds_per_step + (timing.seconds_per_baseline_step or 0.0)

    def cost(candidate: Candidate) -> float:
        return operations(with_candidate(candidate).model, start.data.channels, candidate.size)

    choice = choose(candidates, cost, measure, budget - (time.monotonic() - began))
    return _told(with_candidate(choice.candidate), choice, layout, console)


def _with_steps(config: Config, left: float, console: Console) -> Config:
    """The configuration of a training on features, with the steps that fit into what is left of the time."""
    splits = load_splits(config.data, seed=config.train.seed, uses_unlabeled=config.policy.name != "supervised")
    timing = measure_steps(settle_model(config), splits)
    seconds = timing.seconds_per_step + (timing.seconds_per_baseline_step or 0.0)
    steps = min(frozen.NUM_STEPS, max(MIN_STEPS, steps_within(max(0.0, left), seconds)))
    show(
        console,
        f"steps       {steps:,} of {seconds:.2g} s each, policy and baseline together, measured on this machine; "
        f"{frozen.NUM_STEPS:,} suffice",
    )
    return config.changed(train={"num_steps": steps})


def _told(config: Config, choice: Choice, layout: Layout, console: Console) -> Config:
    """The configuration with the steps that fit, told line by line."""
    steps = choice.num_steps
    config = config.changed(train={"num_steps": steps, "log_every": max(1, min(50, steps // 20))})
    seconds = choice.seconds_per_step
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
        f"steps       {steps:,} of {seconds:.2g} s each, policy and baseline together, measured on this machine",
    )
    if choice.is_short:
        show(
            console,
            f"            that is few: {MIN_STEPS * seconds / 60 / 0.75:.0f} min or a GPU would give {MIN_STEPS}",
        )
    _tell_rest(config, layout, console)
    return config


def _tell_rest(config: Config, layout: Layout, console: Console) -> None:
    """A line for batch, policy, test images and views."""
    size, mu = config.train.batch_size, config.train.mu
    pool = f" and {mu * size} unlabelled" if layout.has_pool else ""
    show(console, f"batch       {size} labelled{pool} images a step, as train.batch_size and train.mu say")
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
    """A table of path,label of the folders that are the classes."""
    rows: list[tuple[str, str]] = [("path", "label")]
    for folder in layout.classes:
        listing = list_files(open_location("folder", str(folder)))
        rows += [(path, folder.name) for path in listing.paths.to_pylist()]
    (storage / LABELS_FILE).write(csv_text(rows).encode())
    return storage / LABELS_FILE


def _predict(config: Config, run: FitResult, storage: Storage, console: Console) -> str:
    """The CSV of predictions of the images that have no label."""
    from dpl_ray.inference.predictor import load_checkpoint

    target = storage / PREDICTIONS_FILE
    if config.data.name == "features":
        predictions = _predict_features(config, run)
        predictions.write(str(target))
        show(console, repr(predictions))
        return str(target)
    labelled = {
        sample_id
        for field, given in (("data.train", config.data.train), ("data.test", config.data.test))
        if given
        for sample_id in list_records(config.data, field, given).ids
    }
    paths = [row[0] for row in list_unlabeled(config.data).without(labelled).read_all()]
    predictions = load_checkpoint(run.checkpoint).predict(paths)
    predictions.write(str(target))
    show(console, repr(predictions))
    return str(target)


def _predict_features(config: Config, run: FitResult) -> Predictions:
    """Of the unlabelled images whose features are stored."""
    from dpl_ray.inference.predictor import load_checkpoint
    from dpl_ray.training.evaluation import predict_probs

    # Copies, which the training left out, are predicted, too.
    data = config.data.changed(allow_overlap=True, pool={"mode": "memory"})
    splits, model = load_splits(data, seed=config.train.seed), load_checkpoint(run.checkpoint)
    assert isinstance(splits.unlabeled, ImageSet), "in memory"
    probabilities = predict_probs(model.model, splits.unlabeled.images).numpy()
    return Predictions(splits.unlabeled.ids.tolist(), probabilities, splits.class_names, {})


def _next_commands(config: Config, run: FitResult, storage: Storage, layout: Layout) -> tuple[str, ...]:
    """The three that a user is most likely to want."""
    chosen = shlex.quote(f"config={storage / CONFIG_FILE}")
    longer = f"dpl-ray train {chosen} train.num_steps={4 * config.train.num_steps} run.name={run.name}-longer"
    policies = f"'policies=[supervised,{config.policy.name},fixmatch]'"
    compare = f"dpl-ray compare {chosen} {policies} seeds=3 run.name={run.name}-compared"
    pool = layout.fields.get("unlabeled")
    predict = shlex.join(["dpl-ray", "predict", f"checkpoint={run.checkpoint}", "images=photo.jpg"])
    if pool is None:
        return (f"dpl-ray check {chosen}", longer, predict)
    label = shlex.join(
        ["dpl-ray", "label", f"checkpoint={run.checkpoint}", f"pool={shown(pool)}", f"output={run.name}-labels"]
    )
    # On features the steps suffice: more of them bring nothing.
    return (label, compare, predict if config.data.name == "features" else longer)
