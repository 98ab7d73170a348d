"""Self-training in rounds: train, label the pool, train a fresh student on these labels, and label the pool again.

Round 0 trains on the labels alone (or takes a checkpoint) and labels the pool. Each further round trains a student on
the labels and on the pseudo-labels that the round before has selected, with the policy on the rest of the pool; where
there is no rest, on labels and pseudo-labels alone. All students have the same seed, and so the same labelled images
and initial weights: what differs between rounds is the pseudo-labels, and where these do not change, nothing does.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter
from rich.console import Console
from rich.table import Table

from dpl_ray.cluster.connect import checked_resources
from dpl_ray.config.given import read_study
from dpl_ray.config.policies import SupervisedConfig
from dpl_ray.config.schema import Config, RegistryConfig, TrackingConfig
from dpl_ray.config.section import shown
from dpl_ray.data.features.folder import list_features, read_spec
from dpl_ray.data.files.location import open_location
from dpl_ray.data.pool.choice import list_unlabeled
from dpl_ray.data.splits.sources import load_splits
from dpl_ray.data.splits.split import EmptyPoolError
from dpl_ray.jobs.fit import FitResult, fit
from dpl_ray.labeling.config import LabelConfig, LabelScaleConfig
from dpl_ray.labeling.job import label_pool
from dpl_ray.page.console import open_console, show
from dpl_ray.page.result import Result, percent
from dpl_ray.report.health import chance_finding
from dpl_ray.report.usable import NEXT_STEP, known_health, refuse_useless
from dpl_ray.runs.folder import MODEL_FOLDER, RUN_FILE, SELF_TRAINING_FILE, largest_class
from dpl_ray.runs.provenance import describe_code, describe_config
from dpl_ray.store.records import read_tree
from dpl_ray.store.storage import Storage
from dpl_ray.studies.frame import End, Study, run_study
from dpl_ray.studies.self_training.config import (
    SelfTrainConfig,
    check_self_training,
    load_self_training,
    self_training_name,
    self_training_tree,
)
from dpl_ray.studies.self_training.counts import LabelCounts, count_labels
from dpl_ray.studies.self_training.folder import Round, stop_reason
from dpl_ray.studies.self_training.report import draw_rounds, rounds_csv, rounds_table
from dpl_ray.tracking.journal import Journal
from dpl_ray.tracking.tracker import Tracker
from dpl_ray.training.checkpoint_folder import feature_spec, load_config_and_info

TRAINING, LABELS = "training", "labels"  # folders of a round


@dataclass(frozen=True, repr=False)
class SelfTrainResult(Result):
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

    def _facts(self) -> dict[str, str | None]:
        return {
            "name": self.name,
            "rounds": f"{len(self.rounds)}",
            "accuracy of the last": percent(self.rounds[-1].metrics.get("round/accuracy")),
            "stopped": self.stopped,
            "checkpoint": self.checkpoint,
            "labels": self.labels,
        }


def self_train(
    config: Config | Sequence[str] = (),
    options: SelfTrainConfig | None = None,
    *,
    console: Console | bool | None = None,
    command: str | None = None,
    **keywords: Any,
) -> SelfTrainResult:
    """Train and label in rounds until the pseudo-labels no longer change. A loop that was begun before goes on.

    Args:
        config: configuration of every training, or overrides as on the command line. data.unlabeled is the pool that is
            labelled. data.labels_per_class is the number of selected samples of each class that are trained on.
            train.baseline holds for round 0 alone.
        console: where progress and tables are shown, as in `fit`.
        command: command line that self_train.json keeps as its origin.
        keywords: further overrides, as in `fit`, and fields of `SelfTrainConfig`, as `rounds=5`.

    Raises:
        ValueError: a field, the data, the checkpoint or the resources do not fit, or a round's model is no better than
            guessing or has collapsed, and options.force is not set.
        Exception: everything that `fit` and `label_pool` raise. The same call then goes on where it stopped.
    """
    console = open_console(console)
    study = SelfTraining(*read_study(config, keywords, load_self_training, options))
    if study.stopped and study.info["finished"] == study.stopped:
        show(console, f"{study.name} had finished: {study.stopped}; another run.name starts anew")
        console.print(rounds_table(study.rounds))
    else:
        run_study(study, console=console, command=command)
        show(console, f"stopped: {study.stopped}")
    return study.result()


class SelfTraining(Study[Round]):
    """A loop of self-training: its cells are rounds, each made of the one before."""

    kind, file = "self-training", SELF_TRAINING_FILE

    def __init__(self, config: Config, options: SelfTrainConfig) -> None:
        """
        Raises:
            ValueError: a field does not fit, or the folder holds something else.
        """
        check_self_training(config)
        super().__init__(
            config,
            self_training_name(config, options),
            self_training_tree(config, options),
            defaults={"checkpoint": None},
            rounds=[],
            without_pool=[],  # rounds whose student had no unlabelled image left, and so learned without the policy
            finished=None,  # why it has ended, once all is written
        )
        self.options = options
        self.rounds = TypeAdapter(list[Round]).validate_python(self.info["rounds"])
        self.given: tuple[str, dict[str, float]] | None = None  # the checkpoint of round 0, and its metrics

    @property
    def stopped(self) -> str | None:
        """Why there is no further round; None where there is one."""
        return stop_reason(self.rounds, self.options)

    def round_storage(self, number: int) -> Storage:
        return self.storage / f"round-{number}"

    def check(self) -> None:
        if not self.rounds:
            self.given = _check_first(self.config, self.options)
        self.info["finished"] = None

    def headline(self) -> str:
        begins = f"goes on, {len(self.rounds)} round(s) finished before" if self.resumed else "starts"
        return (
            f"{self.name} {begins}: at most {self.options.rounds} rounds after round 0, and none after less than "
            f"{self.options.min_change:.2%} of the pseudo-labels have changed"
        )

    def params(self) -> dict[str, str]:
        own = self.options.model_dump(mode="json").items()
        return describe_config(self.config) | {f"self_train.{field}": shown(value) for field, value in own}

    def ended(self) -> list[Round]:
        return [*self.rounds]

    def run(self, console: Console, end: End[Round]) -> None:
        while not self.stopped:
            number = len(self.rounds)
            show(console, f"round {number} of {self.options.rounds}", style="bold")
            finished = self._run_round(number, console)
            self.rounds.append(finished)
            self.info["rounds"] = [dataclasses.asdict(each) for each in self.rounds]
            self.save_info()
            end(self.child(finished), finished, "")

    def _run_round(self, number: int, console: Console) -> Round:
        """Train and label, as far as that has not been done before."""
        place = self.round_storage(number)
        if self.given and number == 0:
            checkpoint, metrics = self.given
        else:
            fitted = self._fit(number, console)
            checkpoint, metrics = fitted.checkpoint, fitted.metrics
        output, training = place / LABELS, place / TRAINING / RUN_FILE
        to_label = _label_config(self.config, checkpoint, str(output), force=self.options.force)
        labeled = label_pool(to_label, console=console)
        before = str(self.round_storage(number - 1) / LABELS) if number else None
        class_names = tuple(json.loads(Storage(labeled.summary).read())["class_names"])
        counts = count_labels(str(output), self.config.data, class_names, before=before)
        return Round(
            number=number,
            checkpoint=checkpoint,
            labels=str(output),
            num_pseudo_labeled=read_tree(training)["num_pseudo_labeled"] if training.exists() else 0,
            num_samples=counts.num_samples,
            num_unreadable=counts.num_samples - counts.num_readable,
            num_selected=counts.num_selected,
            metrics=_round_metrics(metrics, counts, compared=before is not None),
        )

    def _fit(self, number: int, console: Console) -> FitResult:
        try:
            return fit(self.round_config(number), console=console)
        except EmptyPoolError:
            show(
                console,
                f"round {number - 1} selected the whole pool, or nearly: this student learns from labels and "
                "pseudo-labels alone (data.labels_per_class leaves a pool to the policy)",
            )
        # Kept before it is trained: a round that goes on must have the same configuration.
        self.info["without_pool"].append(number)
        self.save_info()
        return fit(self.round_config(number), console=console)

    def round_config(self, number: int) -> Config:
        """The configuration of a round's training: it is one of its own, but for the tracking."""
        if number:
            labels = str(self.round_storage(number - 1) / LABELS)
            config = self.config.changed(data={"labels": labels}, train={"baseline": False})
        else:
            config = self.config.changed(data={"labels_per_class": None})
        if number in self.info["without_pool"]:
            config = config.changed(policy=SupervisedConfig())
        run = {"storage_path": str(self.round_storage(number)), "name": TRAINING}
        return config.changed(run=run, tracking={"enabled": False}, registry=RegistryConfig())

    def child(self, result: Round) -> str:
        return f"{self.name}/round-{result.number}"

    def record(self, tracker: Tracker, result: Round) -> None:
        """The numbers of a round, and a child run of its training."""
        counts = ("num_pseudo_labeled", "num_samples", "num_unreadable", "num_selected")
        numbers = {f"round/{name}": float(getattr(result, name)) for name in counts}
        tracker.log(result.metrics | numbers, result.number)
        tags = describe_code() | {
            "round": str(result.number),
            "checkpoint": result.checkpoint,
            "labels": result.labels,
        }
        trained, training = self.round_config(result.number), self.round_storage(result.number) / TRAINING
        if (training / RUN_FILE).exists():
            tags["data.fingerprint"] = read_tree(training / RUN_FILE)["fingerprint"]
            # The data of all rounds are those that the first training read, and what was made of them.
            if result.number == 0 or not (self.round_storage(result.number - 1) / TRAINING / RUN_FILE).exists():
                tracker.log_tag("data.fingerprint", tags["data.fingerprint"])
        place = f"{self.round_storage(result.number).name}/{TRAINING}"
        tracker.log_child(self.child(result), params=describe_config(trained), tags=tags, folder=place)

    def write(self, tracker: Tracker, failed: Mapping[str, str]) -> list[Table]:  # noqa: ARG002
        from dpl_ray.inference.exported_model import record_model

        (self.storage / "self_train.csv").write(rounds_csv(self.rounds).encode())
        (self.storage / "self_train.png").write(draw_rounds(self.rounds, self.name))
        for name in ("self_train.csv", "self_train.png", SELF_TRAINING_FILE):
            tracker.log_file(name)
        checkpoint = self.rounds[-1].checkpoint
        tracker.log_tag("stopped", self.stopped or "")
        tracker.log_tag("checkpoint", checkpoint)
        record_model(tracker, self.config.registry, Storage(checkpoint), self.storage)
        return [rounds_table(self.rounds)]

    def finish(self) -> None:
        self.info["finished"] = self.stopped
        self.save_info()

    def result(self) -> SelfTrainResult:
        """Of a loop that has ended, at this time or before."""
        last, journal, model = self.rounds[-1], Journal(self.storage), self.storage / MODEL_FOLDER
        return SelfTrainResult(
            name=self.name,
            rounds=self.rounds,
            stopped=self.stopped or "",
            checkpoint=last.checkpoint,
            labels=last.labels,
            csv=str(self.storage / "self_train.csv"),
            figure=str(self.storage / "self_train.png"),
            model=str(model) if (model / "MLmodel").exists() else None,
            registered=journal.registered if self.uri else None,
            run_id=journal.run_id if self.uri else None,
            tracking_uri=self.uri,
        )


def _label_config(config: Config, checkpoint: str, output: str, *, force: bool) -> LabelConfig:
    scale = config.scale
    num_workers = scale.num_workers
    if num_workers is None:  # where it is trained, it labels
        num_workers = load_config_and_info(Storage(checkpoint))[0].scale.num_workers
    assert config.data.unlabeled is not None, "it was checked"
    return LabelConfig(
        checkpoint=checkpoint,
        pool=config.data.unlabeled,
        output=output,
        image_column=config.data.image_column,
        max_bad_fraction=config.data.max_bad_fraction,
        force=force,
        scale=LabelScaleConfig(
            num_workers=0 if num_workers == 0 else None, use_gpu=scale.use_gpu, address=scale.address
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
        ValueError: the data or the resources do not fit, there is no checkpoint, or one of other classes or channels,
            or one that is no better than guessing or has collapsed and is not forced.
    """
    checkpoint = None
    if options.checkpoint is not None:
        from dpl_ray.training.checkpoint_folder import open_checkpoint

        checkpoint = open_checkpoint(options.checkpoint)
    with checked_resources(config.scale):
        if config.data.name == "features":
            _check_features(config, checkpoint)
        else:
            list_unlabeled(config.data)
        data = config.data.changed(labels_per_class=None)
        splits = load_splits(data, seed=config.train.seed, uses_unlabeled=False)
    if checkpoint is None:
        return None
    from dpl_ray.training.checkpoint import load_classifier
    from dpl_ray.training.evaluation import evaluate_split

    model, _, info = load_classifier(checkpoint)
    compared: list[tuple[str, Any, Any]] = [("classes", ", ".join(info.class_names), ", ".join(splits.class_names))]
    if config.data.name != "features":
        compared.append(("channels", info.channels, splits.test.images.shape[1]))
    for what, has, needs in compared:
        if has != needs:
            raise ValueError(
                f"checkpoint={options.checkpoint}: its {what} are {has}, but those of data.train are {needs}"
            )
    metrics = evaluate_split(model, splits.test) if len(splits.test) else {}
    known = known_health(checkpoint)
    if known is None and metrics:
        number, largest = len(splits.test), largest_class(splits.test.targets)
        found = chance_finding(metrics["eval/accuracy"], number, largest / number, len(splits.class_names), NEXT_STEP)
        known = (found,) if found else ()
    refuse_useless(f"checkpoint={options.checkpoint}", known or (), force=options.force)
    return str(checkpoint), metrics


def _check_features(config: Config, checkpoint: Storage | None) -> None:
    """`ValueError` where the pool is none of features of one network, that of data.train, or of the checkpoint."""
    assert config.data.train is not None, "the configuration requires it"
    assert config.data.unlabeled is not None, "it was checked"
    pool = open_location("data.unlabeled", config.data.unlabeled)
    list_features(pool, read_spec("data.train", config.data.train), "data.train")
    if checkpoint is not None:
        list_features(pool, feature_spec(checkpoint, load_config_and_info(checkpoint)[0]))
