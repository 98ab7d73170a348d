"""The page of a run, `report.html`: what it was, whether the pool has helped, and the pictures that say why."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dpl_ray.config.schema import Config, to_yaml
from dpl_ray.data.dataset import ImageSet, Splits
from dpl_ray.page.html import (
    MISSING,
    Html,
    Page,
    Section,
    banner,
    code,
    element,
    facts,
    folded,
    note,
    numbers,
    paragraph,
)
from dpl_ray.report.accuracy import calibration_section, confusion_section, pictures_section
from dpl_ray.report.curves import History, pseudo_section, thresholds_section, training_section
from dpl_ray.report.verdict import Verdict, compare_paired
from dpl_ray.runs.folder import RunFolder
from dpl_ray.runs.provenance import describe_code
from dpl_ray.store.storage import Storage
from dpl_ray.tracking.journal import Journal

if TYPE_CHECKING:
    from dpl_ray.training.records import Outcome

REPORT_FILE = "report.html"
_SIGNS = {"helped": "▲", "hurt": "▼", "unknown": "≈"}


def write_report(config: Config, splits: Splits, folder: RunFolder, outcomes: list[Outcome]) -> Storage:
    """Write the page of a finished run into its folder and return where it is.

    The test split was predicted by the workers; a sample of the pool is predicted here, on this machine's CPU.
    """
    report = folder.storage / REPORT_FILE
    report.write(make_page(config, splits, folder, outcomes).render().encode())
    return report


def find_verdict(splits: Splits, outcomes: list[Outcome]) -> Verdict | None:
    """The policy against the supervised baseline on the test split; None where one of them is not there."""
    predictions = [outcome.test for outcome in outcomes]
    if len(predictions) < 2 or predictions[0] is None or predictions[1] is None:
        return None
    baseline, main = (found.labels == splits.test.targets for found in predictions if found is not None)
    return compare_paired(main, baseline)


def verdict_sentence(verdict: Verdict) -> str:
    """In one line, as for a console."""
    accuracy = (verdict.both + verdict.only_model) / verdict.num_images
    baseline = (verdict.both + verdict.only_baseline) / verdict.num_images
    begins = {
        "helped": "The pool helped",
        "hurt": "The pool hurt",
        "unknown": "It cannot be told whether the pool helped or hurt",
    }
    return (
        f"{begins[verdict.effect]}: {100 * accuracy:.1f} % against {100 * baseline:.1f} % supervised, difference "
        f"{100 * verdict.difference:+.1f} points [95 %: {100 * verdict.low:+.1f}, {100 * verdict.high:+.1f}], "
        f"{verdict.num_images:,} test images"
    )


def make_page(config: Config, splits: Splits, folder: RunFolder, outcomes: list[Outcome]) -> Page:
    """All sections that this run has something for."""
    main, baseline = outcomes[-1], outcomes[0] if len(outcomes) > 1 else None
    history = History(folder.history, main.phase)
    history_baseline = History(folder.history, baseline.phase) if baseline else None
    sections = [_summary(config, splits, outcomes)]
    sections.append(
        training_section(
            history,
            history_baseline,
            num_curve_images=min(config.train.curve_images, len(splits.test)),
            num_test=len(splits.test),
            num_validation=len(splits.validation),
        )
    )
    if history.points("pseudo/coverage"):
        sections.append(pseudo_section(history))
    if main.thresholds:
        sections.append(thresholds_section(history, splits.class_names, main.thresholds))
    if main.phase != "supervised":
        from dpl_ray.report.pool import label_sample, pool_section

        if sample := label_sample(main.checkpoint, splits):
            sections.append(pool_section(sample, main.phase))
    if main.test is not None:
        ece = baseline.metrics.get("eval/ece") if baseline else None
        sections.append(calibration_section(splits.test, main.test, main.metrics["eval/ece"], ece))
        before = baseline.test if baseline else None
        sections.append(confusion_section(splits.test, main.test, before, splits.class_names))
        sections.append(pictures_section(splits.test, main.test, splits.class_names))
    sections.append(_run_section(config, folder, main))
    streamed = "" if isinstance(splits.unlabeled, ImageSet) else ", streamed"
    subtitle = (
        f"{config.policy.name} on {config.data.name}: {len(splits.labeled):,} labelled images of "
        f"{len(splits.class_names)} classes, {len(splits.unlabeled):,} in the pool{streamed}, "
        f"{config.train.num_steps:,} steps"
    )
    return Page(folder.name, subtitle, sections, "Written by dpl_ray at the end of the run. The file needs no network.")


def _summary(config: Config, splits: Splits, outcomes: list[Outcome]) -> Section:
    main = outcomes[-1]
    metrics = main.metrics
    number = f"last teacher, {len(splits.test):,} test images"
    cards = [
        (name, f"{100 * metrics[key]:.1f} %", below)
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
    parts = [_verdict(config, splits, outcomes), numbers(cards)] if cards else [_verdict(config, splits, outcomes)]
    if cards:
        parts.append(note("What is shown is rounded; every difference on this page is one of unrounded numbers."))
    if splits.bad:
        parts.append(note(f"{len(splits.bad):,} images could not be read: bad_images.csv names them."))
    return Section("verdict", "Has the pool helped?", *parts)


def _verdict(config: Config, splits: Splits, outcomes: list[Outcome]) -> Html:
    verdict = find_verdict(splits, outcomes)
    if verdict is None:
        return _no_verdict(config, splits)
    policy = config.policy.name
    sentence = verdict_sentence(verdict).partition(",")[0]
    counts = (
        f"Difference {100 * verdict.difference:+.1f} points, 95 % interval {100 * verdict.low:+.1f} to "
        f"{100 * verdict.high:+.1f}, on the same {verdict.num_images:,} test images: {policy} alone is right on "
        f"{verdict.only_model:,}, the supervised baseline alone on {verdict.only_baseline:,}, both on "
        f"{verdict.both:,}, neither on {verdict.neither:,}."
    )
    what = (
        f"The baseline is trained on the same {len(splits.labeled):,} labels for as many steps. The interval (Bonett "
        "and Price's for paired proportions) is of these two models over test images; another seed or other labels "
        "make other models, and pipelines.compare sets policies side by side over seeds."
    )
    return banner(_SIGNS[verdict.effect], sentence, paragraph(counts), note(what))


def _no_verdict(config: Config, splits: Splits) -> Html:
    if config.policy.name == "supervised":
        text = "This run is supervised: it has no pool that could help or hurt. A run with another policy, as "
        return banner(MISSING, "No verdict", paragraph(text, code("policy=dpl"), ", is set beside it."))
    if not len(splits.test):
        return banner(MISSING, "No verdict", paragraph("There are no test images to tell it by."))
    text = "The supervised baseline on the same labels was not trained. A run with "
    advice = paragraph(text, code("train.baseline=true"), " and another run.name trains it beside the policy.")
    return banner(MISSING, "No verdict: there is no baseline", advice)


def _run_section(config: Config, folder: RunFolder, main: Outcome) -> Section:
    described = describe_code()
    versions = ", ".join(
        f"{name.removeprefix('version.')} {value}" for name, value in described.items() if name.startswith("version.")
    )
    values: dict[str, object] = {
        "checkpoint": code(main.checkpoint),
        "MLflow run": code(Journal(folder.storage).run_id or "none"),
        "training": f"{main.training_seconds:,.0f} s in steps of {main.phase}",
        "hardware": f"{described['hardware']} (of the driver)",
        "commit": described["commit"],
        "versions": versions,
        "data": folder.info["fingerprint"],
    }
    command = f"python -m pipelines.explain checkpoint={main.checkpoint} sample=0"
    return Section(
        "run",
        "The run",
        facts(values),
        paragraph("Why an image of the pool got its weight: ", code(command)),
        folded("Configuration", element("pre", to_yaml(config))),
    )
