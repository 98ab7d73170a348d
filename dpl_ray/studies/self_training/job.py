"""Self-training in rounds: train, label the pool, train a fresh student on these labels, and label the pool again.

Round 0 trains on the labels alone (or takes a checkpoint) and labels the pool. Each further round trains a student on
the labels and on the pseudo-labels that the round before has selected, with the policy on the rest of the pool; where
there is no rest, on labels and pseudo-labels alone. All students have the same seed, and so the same labelled images
and initial weights: what differs between rounds is the pseudo-labels, and where these do not change, nothing does.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from rich.console import Console

from dpl_ray.cluster.connect import checked_resources
from dpl_ray.config.compose import check_policy
from dpl_ray.config.schema import Config, RegistryConfig, TrackingConfig, shown
from dpl_ray.data.label_counts import LabelCounts, count_labels
from dpl_ray.data.pool.choice import list_unlabeled
from dpl_ray.data.sources import load_splits
from dpl_ray.data.split import EmptyPoolError
from dpl_ray.jobs.fit import FitResult, check_storage, fit
from dpl_ray.labeling.config import LabelConfig, LabelScaleConfig
from dpl_ray.labeling.job import label_pool
from dpl_ray.page.console import show
from dpl_ray.runs.folder import MODEL_FOLDER, RUN_FILE
from dpl_ray.runs.provenance import describe_code, describe_config
from dpl_ray.store.history import Point, merge_records
from dpl_ray.store.lock import sole_use
from dpl_ray.store.storage import Storage
from dpl_ray.studies.self_training.config import SelfTrainConfig, check_self_training
from dpl_ray.studies.self_training.folder import Round, SelfTrainFolder, stop_reason
from dpl_ray.studies.self_training.report import draw_rounds, rounds_csv, rounds_table
from dpl_ray.tracking.journal import Journal
from dpl_ray.tracking.tracker import Tracker, recording, start_tracker, tracking_uri

TRAINING, LABELS = "training", "labels"  # folders of a round


@dataclass(frozen=True)
class SelfTrainResult:
    """The result of `self_train`."""

    name: str
    rounds: list[Round]
    stopped: str  # why there is no further round
    checkpoint: str  # of the last round
    labels: str  # output of the last round
    csv: str
    figure: str
    model: str | None  # folder of the last student's teacher in MLflow's format; None where nothing was recorded
    registered: str | None  # models:/NAME/VERSION, where registry.name is set
    run_id: str | None  # of MLflow: the parent of the rounds' runs
    tracking_uri: str | None


def self_train(
    config: Config,
    options: SelfTrainConfig | None = None,
    *,
    console: Console | None = None,
    command: str | None = None,
) -> SelfTrainResult:
    """Train and label in rounds until the pseudo-labels no longer change. A loop that was begun before goes on.

    Args:
        config: configuration of every training. data.unlabeled is the pool that is labelled. data.labels_per_class is
            the number of selected samples of each class that are trained on. train.baseline holds for round 0 alone.
        console: where progress and tables are shown; None shows nothing.
        command: command line that self_train.json keeps as its origin.

    Raises:
        ValueError: a field, the data, the checkpoint or the resources do not fit.
        Exception: everything that `fit` and `label_pool` raise. The same call then goes on where it stopped.
    """
    console, options = console or Console(quiet=True), options or SelfTrainConfig()
    config = config.model_copy(update={"policy": check_policy(config.policy)})
    check_self_training(config)
    check_storage(config)
    uri = tracking_uri(config)
    folder = SelfTrainFolder(config, options)
    reason = stop_reason(folder.rounds, options)
    if reason and folder.info["finished"] == reason:
        show(console, f"{folder.name} had finished: {reason}; another run.name starts anew")
        console.print(rounds_table(folder.rounds))
        return _result(folder, reason, uri)
    given = _check_first(config, options) if not folder.rounds else None
    with sole_use(f"run.name={folder.name}", folder.storage):
        folder.begin(command)
        show(console, _headline(folder, options))
        tracker = _start_tracker(config, options, uri, folder)
        with recording(tracker, console):
            for each in folder.rounds:
                _record(tracker, folder, config, each)
            while not (reason := stop_reason(folder.rounds, options)):
                number = len(folder.rounds)
                show(console, f"round {number} of {options.rounds}", style="bold")
                finished = _run_round(config, folder, number, given, console)
                folder.add(finished)
                _record(tracker, folder, config, finished)
            (folder.storage / "self_train.csv").write(rounds_csv(folder.rounds).encode())
            (folder.storage / "self_train.png").write(draw_rounds(folder.rounds, folder.name))
            for name in ("self_train.csv", "self_train.png", "self_train.json"):
                tracker.log_file(name)
            tracker.log_tag("stopped", reason)
            tracker.log_tag("checkpoint", folder.rounds[-1].checkpoint)
            from dpl_ray.inference.exported_model import record_model

            record_model(tracker, config.registry, Storage(folder.rounds[-1].checkpoint), folder.storage)
        folder.finish(reason)
    console.print(rounds_table(folder.rounds))
    show(console, f"stopped: {reason}")
    return _result(folder, reason, uri)


def round_config(config: Config, folder: SelfTrainFolder, number: int) -> Config:
    """The configuration of a round's training: it is one of its own, but for the tracking."""
    data, train, policy = config.data, config.train, config.policy
    if number in folder.info["without_pool"]:
        policy = {"name": "supervised"}
    if number:
        data = data.model_copy(update={"labels": str(folder.round_storage(number - 1) / LABELS)})
        train = train.model_copy(update={"baseline": False})
    else:
        data = data.model_copy(update={"labels_per_class": None})
    run = config.run.model_copy(update={"storage_path": str(folder.round_storage(number)), "name": TRAINING})
    tracking = config.tracking.model_copy(update={"enabled": False})
    sections = {"data": data, "train": train, "run": run, "tracking": tracking, "registry": RegistryConfig()}
    return config.model_copy(update=sections | {"policy": policy})


def _run_round(
    config: Config,
    folder: SelfTrainFolder,
    number: int,
    given: tuple[str, dict[str, float]] | None,
    console: Console,
) -> Round:
    """Train and label, as far as that has not been done before."""
    place = folder.round_storage(number)
    if given and number == 0:
        checkpoint, metrics = given
    else:
        fitted = _fit_round(config, folder, number, console)
        checkpoint, metrics = fitted.checkpoint, fitted.metrics
    output = place / LABELS
    labeled = label_pool(_label_config(config, checkpoint, str(output)), console=console)
    before = str(folder.round_storage(number - 1) / LABELS) if number else None
    class_names = _class_names(labeled.summary)
    counts = count_labels(str(output), config.data, class_names, before=before)
    training = place / TRAINING / RUN_FILE
    return Round(
        number=number,
        checkpoint=checkpoint,
        labels=str(output),
        num_pseudo_labeled=json.loads(training.read())["num_pseudo_labeled"] if training.exists() else 0,
        num_samples=counts.num_samples,
        num_unreadable=counts.num_samples - counts.num_readable,
        num_selected=counts.num_selected,
        metrics=_round_metrics(metrics, counts, compared=before is not None),
    )


def _fit_round(config: Config, folder: SelfTrainFolder, number: int, console: Console) -> FitResult:
    try:
        return fit(round_config(config, folder, number), console=console)
    except EmptyPoolError:
        text = f"round {number - 1} selected the whole pool: this student learns from labels and pseudo-labels alone "
        show(console, text + "(data.labels_per_class leaves a pool to the policy)")
    # Kept before it is trained: a round that goes on must have the same configuration.
    folder.info["without_pool"].append(number)
    folder.save_info()
    return fit(round_config(config, folder, number), console=console)


def _class_names(summary: str) -> tuple[str, ...]:
    return tuple(json.loads(Storage(summary).read())["class_names"])


def _label_config(config: Config, checkpoint: str, output: str) -> LabelConfig:
    scale = config.scale
    assert config.data.unlabeled is not None, "it was checked"
    return LabelConfig(
        checkpoint=checkpoint,
        pool=config.data.unlabeled,
        output=output,
        image_column=config.data.image_column,
        max_bad_fraction=config.data.max_bad_fraction,
        scale=LabelScaleConfig(
            num_workers=None if scale.num_workers else 0, use_gpu=scale.use_gpu, address=scale.address
        ),
        tracking=TrackingConfig(enabled=False),
    )


def _round_metrics(metrics: dict[str, float], counts: LabelCounts, *, compared: bool) -> dict[str, float]:
    found = {f"round/{key.removeprefix('eval/')}": value for key, value in metrics.items() if key.startswith("eval/")}
    found |= {
        f"round/validation_{key.removeprefix('validation/')}": value
        for key, value in metrics.items()
        if key.startswith("validation/")
    }
    found["round/selected_share"] = counts.num_selected / max(1, counts.num_readable)
    if compared:
        found["round/changed_share"] = counts.num_changed / max(1, counts.num_readable)
    if counts.num_known:
        found["round/pool_accuracy"] = counts.num_correct / counts.num_known
    if counts.num_selected_known:
        found["round/precision"] = counts.num_selected_correct / counts.num_selected_known
    return found


def _check_first(config: Config, options: SelfTrainConfig) -> tuple[str, dict[str, float]] | None:
    """Answer mistakes before anything is begun; the checkpoint that is given, with its metrics on the test split.

    Raises:
        ValueError: the data or the resources do not fit, there is no checkpoint, or one of other classes or channels.
    """
    checkpoint = None
    if options.checkpoint is not None:
        from dpl_ray.training.checkpoint_folder import find_checkpoint

        checkpoint = find_checkpoint(Storage(options.checkpoint))
    with checked_resources(config.scale):
        list_unlabeled(config.data)
        data = config.data.model_copy(update={"labels_per_class": None})
        splits = load_splits(data, seed=config.train.seed, uses_unlabeled=False)
    if checkpoint is None:
        return None
    from dpl_ray.training.checkpoint import load_classifier
    from dpl_ray.training.evaluation import evaluate_split

    model, _, info = load_classifier(checkpoint)
    for what, has, needs in (
        ("classes", ", ".join(info.class_names), ", ".join(splits.class_names)),
        ("channels", info.channels, splits.test.images.shape[1]),
    ):
        if has != needs:
            raise ValueError(
                f"checkpoint={options.checkpoint}: its {what} are {has}, but those of data.train are {needs}"
            )
    return str(checkpoint), evaluate_split(model, splits.test)


def _start_tracker(config: Config, options: SelfTrainConfig, uri: str | None, folder: SelfTrainFolder) -> Tracker:
    params = describe_config(config)
    params |= {f"self_train.{field}": shown(value) for field, value in options.model_dump(mode="json").items()}
    journal = Journal(folder.storage)
    return start_tracker(config, uri, journal, name=folder.name, params=params, tags=describe_code())


def _record(tracker: Tracker, folder: SelfTrainFolder, config: Config, finished: Round) -> None:
    """The numbers of a round, and a child run of its training; nothing of a round that MLflow has."""
    name = f"{folder.name}/round-{finished.number}"
    if not tracker.needs_child(name):
        return
    counts = {
        f"round/{name}": float(getattr(finished, name))
        for name in ("num_pseudo_labeled", "num_samples", "num_unreadable", "num_selected")
    }
    trained = round_config(config, folder, finished.number)
    tracker.log(finished.metrics | counts, finished.number)
    tags = describe_code() | {
        "round": str(finished.number),
        "checkpoint": finished.checkpoint,
        "labels": finished.labels,
    }
    training = folder.round_storage(finished.number) / TRAINING
    if (training / RUN_FILE).exists():
        tags["data.fingerprint"] = json.loads((training / RUN_FILE).read())["fingerprint"]
        # The data of all rounds are those that the first training read, and what was made of them.
        if finished.number == 0 or not (folder.round_storage(finished.number - 1) / TRAINING / RUN_FILE).exists():
            tracker.log_tag("data.fingerprint", tags["data.fingerprint"])
    tracker.log_child(
        name, params=describe_config(trained), tags=tags, history=_history(training, trained.policy["name"])
    )


def _history(training: Storage, policy: str) -> list[Point]:
    """Records of a training, under the keys of a run of its own; none where a checkpoint was given."""
    file = training / "history.jsonl"
    rows = map(json.loads, file.read().splitlines() if file.exists() else ())
    return merge_records(row | {"metrics": _prefixed(row["metrics"], row["phase"], policy)} for row in rows)


def _prefixed(metrics: dict[str, float], phase: str, policy: str) -> dict[str, float]:
    return metrics if phase == policy else {f"baseline/{key}": value for key, value in metrics.items()}


def _headline(folder: SelfTrainFolder, options: SelfTrainConfig) -> str:
    begins = f"goes on, {len(folder.rounds)} round(s) finished before" if folder.resumed else "starts"
    return (
        f"{folder.name} {begins}: at most {options.rounds} rounds after round 0, and none after less than "
        f"{options.min_change:.2%} of the pseudo-labels have changed"
    )


def _result(folder: SelfTrainFolder, reason: str, uri: str | None) -> SelfTrainResult:
    last, journal = folder.rounds[-1], Journal(folder.storage)
    has_model = (folder.storage / MODEL_FOLDER / "MLmodel").exists()
    return SelfTrainResult(
        name=folder.name,
        rounds=folder.rounds,
        stopped=reason,
        checkpoint=last.checkpoint,
        labels=last.labels,
        csv=str(folder.storage / "self_train.csv"),
        figure=str(folder.storage / "self_train.png"),
        model=str(folder.storage / MODEL_FOLDER) if has_model else None,
        registered=journal.registered if uri else None,
        run_id=journal.run_id if uri else None,
        tracking_uri=uri,
    )
