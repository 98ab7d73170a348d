"""How good a trained model is on labelled images: scores with intervals, a page, and what it says of each image."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from dpl_ray.config.given import read_given
from dpl_ray.config.schema import DataConfig
from dpl_ray.data.files.kinds import as_text
from dpl_ray.inference.labeled_images import STANDARD, LabeledImages, read_labeled_images
from dpl_ray.jobs.evaluate_config import EvaluateConfig
from dpl_ray.page.console import console_table, open_console, show
from dpl_ray.page.html import Page, Section, render_page
from dpl_ray.page.result import Result, percent
from dpl_ray.report.accuracy import calibration_section, confusion_section, pictures_section
from dpl_ray.report.intervals import Interval, score_intervals
from dpl_ray.runs.provenance import describe_code
from dpl_ray.store.outputs import check_free, open_output
from dpl_ray.store.records import csv_text
from dpl_ray.store.storage import Storage
from dpl_ray.training.checkpoint_folder import open_checkpoint
from dpl_ray.training.predictions import Predictions

if TYPE_CHECKING:
    from torch import Tensor

PAGE_FILE, SCORES_FILE, IMAGES_FILE = "evaluation.html", "evaluation.json", "predictions.csv"
MAX_CONFUSIONS = 3  # on the console
MAX_IN_MATRIX = 1_000  # classes
#: Key -> name, and how its interval is made.
SCORES = {
    "eval/accuracy": ("accuracy", "Wilson"),
    "eval/balanced_accuracy": ("balanced accuracy", "Zou and Donner, of Wilson's"),
    "eval/ece": ("calibration error (ECE)", "bootstrap"),
}


@dataclass(frozen=True, repr=False)
class EvaluateResult(Result):
    """The result of `evaluate`."""

    checkpoint: str
    data: str
    num_images: int
    num_bad: int  # images that could not be read
    metrics: dict[str, float]  # in the keys of docs/metrics.md: eval/accuracy, eval/balanced_accuracy, eval/ece
    intervals: dict[str, Interval]  # of 95 %, by the same keys
    page: str
    scores: str  # JSON of all numbers, with the confusion matrix
    predictions: str  # CSV with a row for each image
    temperature: float  # of `load_checkpoint` and `label_pool`, for calibrated confidences; 1 where none helps

    def _facts(self) -> dict[str, str | None]:
        scores = {name: told(self.metrics[key], self.intervals[key]) for key, (name, _) in SCORES.items()}
        return {"images": f"{self.num_images:,}", **scores, "temperature": f"{self.temperature:g}", "page": self.page}


@dataclass(frozen=True)
class _Calibrated:
    """What a temperature does to the confidences, on images that it was not fitted on."""

    temperature: float
    found: Predictions
    ece: float
    interval: Interval
    loss: tuple[float, float]  # negative log-likelihood without and with it

    def tree(self) -> dict[str, Any]:
        """Of SCORES_FILE."""
        before, after = self.loss
        losses = {"negative_log_likelihood": after, "negative_log_likelihood_without": before}
        return {"eval/ece": self.ece, "interval": self.interval} | losses


def evaluate(
    config: EvaluateConfig | Sequence[str] = (), *, console: Console | bool | None = None, **keywords: Any
) -> EvaluateResult:
    """Measure the teacher of a checkpoint on labelled images.

    Args:
        config: a configuration, or overrides as on the command line.
        console: where the scores are shown, as in `fit`.
        keywords: fields, as `checkpoint="runs/first", data="photos/labelled"`.

    Raises:
        ValueError: a field, the checkpoint, the data or the output do not fit: an image has no label or another class,
            or the model was trained on it.
    """
    config, console = read_given(config, keywords, EvaluateConfig.load, EvaluateConfig), open_console(console)
    checkpoint = open_checkpoint(config.checkpoint)
    output = _open_output(config, checkpoint)
    try:
        given = read_labeled_images(
            checkpoint,
            "data",
            config.data,
            image_column=config.image_column,
            label_column=config.label_column,
            allow_overlap=config.allow_overlap,
            allow_outside=config.allow_outside,
            allowed_hosts=config.allowed_hosts,
        )
    except ValueError as error:  # these two are fields of their own here
        raise ValueError(re.sub(r"\bdata\.(image_column|label_column)\b", r"\1", str(error))) from None
    show(console, _headline(config, checkpoint, given))
    return _evaluate(config, checkpoint, output, given, console)


def told(value: float, interval: Interval) -> str:
    """A share with its interval."""
    return f"{percent(value)} [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]"


def _open_output(config: EvaluateConfig, checkpoint: Storage) -> Storage:
    slug = re.sub(r"[^A-Za-z0-9.]+", "-", config.data).strip("-.")[-60:]
    output = open_output(config.output or str(checkpoint.parent / f"evaluation-{slug}"))
    if config.output:
        check_free(output, SCORES_FILE, "evaluation")
    return output


def _headline(config: EvaluateConfig, checkpoint: Storage, given: LabeledImages) -> str:
    place = f"the test split of {config.data}" if config.data in STANDARD else config.data
    text = f"{checkpoint}: {len(given.images):,} labelled images, {place}"
    text += f", {len(given.bad):,} unreadable" if given.bad else ""
    text += f"; left out: {as_text(given.left_out)}" if given.left_out else ""
    if given.num_seen is None:
        return f"{text}\nnothing is known of the images that this model was trained on: whether these are among them"
    seen = f"\nthe model was trained on {given.num_seen:,} of them: the scores are too good" if given.num_seen else ""
    return text + seen


def _evaluate(
    config: EvaluateConfig, checkpoint: Storage, output: Storage, given: LabeledImages, console: Console
) -> EvaluateResult:
    import torch  # late: a mistake is answered before

    from dpl_ray.inference import predictions as answers
    from dpl_ray.training.checkpoint import load_classifier
    from dpl_ray.training.evaluation import classification_metrics, predict_logits

    model, _, info = load_classifier(checkpoint)
    images, targets = given.images, given.images.targets
    logits = predict_logits(model, images.images, config.batch_size)
    probs = logits.softmax(dim=1)
    if not torch.isfinite(probs).all():
        raise ArithmeticError("the model's logits are not finite: this checkpoint's weights are of no use")
    found, metrics = Predictions.from_probs(probs), classification_metrics(probs, torch.from_numpy(targets))
    intervals = score_intervals(found, targets)
    rows = [(name, told(metrics[key], intervals[key]), method) for key, (name, method) in SCORES.items()]
    calibrated = _calibrate(logits, targets)
    temperature = calibrated.temperature if calibrated else 1.0
    if calibrated:
        name = f"ECE, temperature {calibrated.temperature:g}"
        rows.append((name, told(calibrated.ece, calibrated.interval), SCORES["eval/ece"][1]))
    names = info.class_names
    pairs = targets * len(names) + found.labels
    has_matrix = len(names) <= MAX_IN_MATRIX
    matrix = np.bincount(pairs, minlength=len(names) ** 2).reshape(len(names), -1).tolist() if has_matrix else None
    scores = {
        "checkpoint": str(checkpoint),
        "data": config.data,
        "num_images": len(images),
        "unreadable": {image.id: image.reason for image in given.bad},
        "num_trained_on": given.num_seen,
        "metrics": metrics,
        "intervals": intervals,
        "interval_methods": {key: method for key, (_, method) in SCORES.items()},
        "temperature": temperature,
        "calibrated": calibrated.tree() if calibrated else None,
        "class_names": names,
        "confusion": matrix,  # (C, C): true class, class that the model says; null of many classes
        "code": describe_code(),
    }
    said = answers.Predictions(images.ids.tolist(), probs.numpy(), names, {}).rows()
    table = [(row[0], names[target], *row[1:-1]) for row, target in zip(said, targets.tolist(), strict=True)]
    header = (answers.COLUMNS[0], "true_label", *answers.COLUMNS[1:-1])
    sections = {
        "scores": Section(title="Scores", rows=rows, given=given, num_images=len(images)),
        "calibration": calibration_section(images, found, metrics["eval/ece"], None),
        "confusions": confusion_section(images, found, None, names),
    }
    advice = sections["calibration"].advice = _advice(calibrated, metrics["eval/ece"], found.labels != targets)
    if calibrated:
        after = calibration_section(images, calibrated.found, calibrated.ece, None)
        calibration = sections["calibration"]
        calibration.drawings = {**calibration.drawings, "calibrated": after.drawings["reliability-diagram"]}
        calibration.calibrated_bins = after.bins
    if images.images.dtype == np.uint8 and (pictures := pictures_section(images, found, names, DataConfig())):
        sections["images"] = pictures
    (output / IMAGES_FILE).write(csv_text([header, *table]).encode(errors="surrogateescape"))
    (output / SCORES_FILE).write(json.dumps(scores, indent=1).encode())
    _page(config, checkpoint, len(images), sections).write(output / PAGE_FILE)
    console.print(console_table("The teacher on these images", ["", "[95 %]", "interval by"], rows))
    show(console, advice)
    if confusions := sections["confusions"].confusions:
        shown = confusions.rows[:MAX_CONFUSIONS]
        console.print(console_table(confusions.caption, confusions.columns, shown, num_text_columns=2))
    return EvaluateResult(
        checkpoint=str(checkpoint),
        data=config.data,
        num_images=len(images),
        num_bad=len(given.bad),
        metrics=metrics,
        intervals=intervals,
        page=str(output / PAGE_FILE),
        scores=str(output / SCORES_FILE),
        predictions=str(output / IMAGES_FILE),
        temperature=temperature,
    )


def _calibrate(logits: Tensor, targets: NDArray[np.int64]) -> _Calibrated | None:
    """None where no temperature can be fitted, or none helps."""
    import torch

    from dpl_ray.inference.temperature import calibrate
    from dpl_ray.training.evaluation import classification_metrics

    found = calibrate(logits.numpy(), targets)
    if found is None or not found.helps:
        return None
    probs = torch.from_numpy(found.probs)
    after, ece = Predictions.from_probs(probs), classification_metrics(probs, torch.from_numpy(targets))["eval/ece"]
    return _Calibrated(found.temperature, after, ece, score_intervals(after, targets)["eval/ece"], found.loss)


def _advice(calibrated: _Calibrated | None, ece: float, is_wrong: NDArray[np.bool_]) -> str:
    from dpl_ray.inference.temperature import FEWEST_WRONG

    if calibrated:
        return (
            f"temperature={calibrated.temperature:g} for predict, label and export: their confidences are then off by "
            f"{percent(calibrated.ece)} on average, without it by {percent(ece)}"
        )
    if is_wrong.sum() < FEWEST_WRONG:
        return f"a temperature is fitted where {FEWEST_WRONG} images or more are wrong; here it is {is_wrong.sum()}"
    return "no temperature makes these confidences better"


def _page(config: EvaluateConfig, checkpoint: Storage, num_images: int, sections: dict[str, Section]) -> Page:
    command = ["dpl-ray", "evaluate", f"checkpoint={checkpoint}", f"data={config.data}"]
    facts = {"checkpoint": str(checkpoint), "data": config.data, "commit": describe_code()["commit"]}
    last = {"evaluation": Section(title="The evaluation", facts=facts, command=shlex.join(command))}
    title = f"{PurePosixPath(config.data).name or config.data} by {checkpoint.parent.name}"
    subtitle = f"A trained model on {num_images:,} labelled images"
    return render_page("jobs/evaluation.html", title, subtitle, sections | last)
