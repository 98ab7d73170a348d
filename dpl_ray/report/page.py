"""The page of a run, `report.html`: what it was, whether the pool has helped, and the pictures that say why."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING

from dpl_ray.config.parse import to_yaml
from dpl_ray.config.schema import Config
from dpl_ray.data.dataset import ImageSet, Splits
from dpl_ray.page.html import Page, Section, render_page
from dpl_ray.report.accuracy import calibration_section, confusion_section, pictures_section
from dpl_ray.report.curves import History, pseudo_section, thresholds_section, training_section
from dpl_ray.report.health import AT_CHANCE, KINDS, Finding
from dpl_ray.report.verdict import Verdict, compare_paired
from dpl_ray.runs.folder import RunFolder
from dpl_ray.runs.provenance import describe_code
from dpl_ray.store.history import read_history
from dpl_ray.tracking.journal import Journal

if TYPE_CHECKING:
    from dpl_ray.report.pool import PoolSample
    from dpl_ray.training.records import Outcome

REPORT_FILE = "report.html"
_SIGNS = {"helped": "▲", "hurt": "▼", "unknown": "≈"}


def find_verdict(splits: Splits, outcomes: list[Outcome]) -> Verdict | None:
    """The policy against the supervised baseline on the test split; None where one of them is not there."""
    predictions = [outcome.test for outcome in outcomes]
    if len(predictions) < 2 or predictions[0] is None or predictions[1] is None:
        return None
    baseline, main = (found.labels == splits.test.targets for found in predictions if found is not None)
    return compare_paired(main, baseline)


def verdict_sentence(verdict: Verdict, health: Sequence[Finding] = ()) -> str:
    """In one line, as for a console; that a pool has helped, and not enough, where the model is at chance."""
    accuracy = (verdict.both + verdict.only_model) / verdict.num_images
    baseline = (verdict.both + verdict.only_baseline) / verdict.num_images
    begins = {
        "helped": "The pool helped",
        "hurt": "The pool hurt",
        "unknown": "It cannot be told whether the pool helped or hurt",
    }
    begin = begins[verdict.effect]
    if verdict.effect == "helped" and any(found.name == AT_CHANCE for found in health):
        begin += " but the model is no better than guessing"
    return (
        f"{begin}: {100 * accuracy:.1f} % against {100 * baseline:.1f} % supervised, difference "
        f"{100 * verdict.difference:+.1f} points [95 %: {100 * verdict.low:+.1f}, {100 * verdict.high:+.1f}], "
        f"{verdict.num_images:,} test images"
    )


def make_page(
    config: Config,
    splits: Splits,
    folder: RunFolder,
    outcomes: list[Outcome],
    sample: PoolSample | None,
    health: Sequence[Finding],
) -> Page:
    """All sections that this run has something for.

    Args:
        sample: of the pool, where there is one.
        health: what is wrong with the run.
    """
    main, baseline = outcomes[-1], outcomes[0] if len(outcomes) > 1 else None
    history = History(read_history(folder.storage), main.phase)
    history_baseline = History(read_history(folder.storage), baseline.phase) if baseline else None
    sections = {"verdict": _verdict_section(config, splits, outcomes, health)}
    sections["health"] = Section(title="Health of the run", findings=health, kinds=list(KINDS))
    sections["training"] = training_section(
        history,
        history_baseline,
        num_curve_images=min(config.train.curve_images, len(splits.test)),
        num_test=len(splits.test),
        num_validation=len(splits.validation),
    )
    if history.points("pseudo/coverage"):
        sections["pseudo-labels"] = pseudo_section(history)
    if main.thresholds:
        sections["thresholds"] = thresholds_section(history, splits.class_names, main.thresholds)
    if sample:
        from dpl_ray.report.pool import pool_section

        sections["exploration"] = pool_section(sample, main.phase)
    if main.test is not None:
        ece = baseline.metrics.get("eval/ece") if baseline else None
        sections["calibration"] = calibration_section(splits.test, main.test, main.metrics["eval/ece"], ece)
        before = baseline.test if baseline else None
        sections["confusions"] = confusion_section(splits.test, main.test, before, splits.class_names)
        pictures = pictures_section(splits.test, main.test, splits.class_names, config.data)
        sections["images"] = pictures or Section(title="Images to look at", sheets=[])
    sections["run"] = _run_section(config, splits, folder, main)
    return render_page("report/run.html", folder.name, subtitle(config, splits), sections)


def subtitle(config: Config, splits: Splits) -> str:
    """What the run is, in a line."""
    streamed = "" if isinstance(splits.unlabeled, ImageSet) else ", streamed"
    return (
        f"{config.policy.name} on {config.data.name}: {len(splits.labeled):,} labelled images of "
        f"{len(splits.class_names)} classes, {len(splits.unlabeled):,} in the pool{streamed}, "
        f"{config.train.num_steps:,} steps"
    )


def _verdict_section(config: Config, splits: Splits, outcomes: list[Outcome], health: Sequence[Finding]) -> Section:
    metrics = outcomes[-1].metrics
    number = f"last teacher, {len(splits.test):,} test images"
    numbers = [
        (name, metrics[key], below)
        for name, key, below in (
            ("accuracy", "eval/accuracy", number),
            ("balanced accuracy", "eval/balanced_accuracy", "mean recall of the classes"),
            ("calibration error (ECE)", "eval/ece", "15 bins"),
            ("coverage of the pool", "pseudo/coverage", "mean weight, last record"),
            ("precision of pseudo-labels", "pseudo/precision", "weighted, last record"),
            ("of high entropy", "pseudo/high_entropy_share", "of what counts, last record"),
        )
        if key in metrics
    ]
    verdict = find_verdict(splits, outcomes)
    return Section(
        title="Has the pool helped?",
        verdict=verdict,
        sign=_SIGNS[verdict.effect] if verdict else None,
        sentence=verdict_sentence(verdict, health).partition(",")[0] if verdict else None,
        policy=config.policy.name,
        num_labeled=len(splits.labeled),
        num_test=len(splits.test),
        num_bad=len(splits.bad),
        numbers=numbers,
    )


def _run_section(config: Config, splits: Splits, folder: RunFolder, main: Outcome) -> Section:
    described = describe_code()
    versions = ", ".join(
        f"{name.removeprefix('version.')} {value}" for name, value in described.items() if name.startswith("version.")
    )
    facts = {
        "checkpoint": main.checkpoint,
        "MLflow run": Journal(folder.storage).run_id or "none",
        "training": f"{main.training_seconds:,.0f} s in steps of {main.phase}",
        "hardware": f"{described['hardware']} (of the driver)",
        "commit": described["commit"],
        "versions": versions,
        "data": folder.info["fingerprint"],
    } | ({"pool made for a benchmark": splits.shaped} if splits.shaped else {})
    command = shlex.join(["dpl-ray", "explain", f"checkpoint={main.checkpoint}", "sample=0"])
    return Section(title="The run", facts=facts, command=command, configuration=to_yaml(config))
