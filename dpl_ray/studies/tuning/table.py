"""The trials of a search as CSV, Markdown and rows for the console. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from dpl_ray.config.schema import Config
from dpl_ray.config.section import shown
from dpl_ray.page.markdown import markdown, markdown_facts, markdown_table
from dpl_ray.report.health import study_line
from dpl_ray.store.records import csv_text
from dpl_ray.studies.facts import listed_facts
from dpl_ray.studies.tuning.space import Domain, Space
from dpl_ray.studies.tuning.trials import TrialResult

MISSING = "-"
COLUMNS = ("trial", "accuracy, %", "step", "state", "seconds")
MAX_ROWS = 20  # of the Markdown table and the console's; trials.csv has all


def chance_line(ranked: Sequence[TrialResult]) -> str | None:
    """That no trial is better than guessing; None where one is."""
    facts = next((result.facts for result in ranked if result.facts), {})  # what was stopped has left none
    return study_line([result.accuracy for result in ranked if result.accuracy is not None], facts, "validation")


def to_csv(ranked: Sequence[TrialResult], space: Space) -> str:
    """A row per trial, the best first."""
    header = ["rank", "trial", "state", "step", "validation_accuracy", "seconds", *space, "checkpoint", "cause"]
    lines: list[list[Any]] = [header]
    for rank, result in enumerate(ranked, 1):
        accuracy = "" if result.accuracy is None else result.accuracy
        values = [_cell(result.values.get(field, "")) for field in space]
        start = [rank, result.number, result.state, result.steps, accuracy, result.seconds or ""]
        lines.append([*start, *values, result.checkpoint or "", result.cause])
    return csv_text(lines)


def _cell(value: Any) -> Any:
    """Numbers as they are, in all their digits."""
    return value if isinstance(value, int | float) and not isinstance(value, bool) else shown(value)


def rows(ranked: Sequence[TrialResult], space: Space) -> list[list[str]]:
    """The best trials, as text: COLUMNS, and the value of every field."""
    return [
        [
            str(result.number),
            MISSING if result.accuracy is None else f"{100 * result.accuracy:.1f}",
            str(result.steps),
            result.state,
            f"{result.seconds:,.1f}" if result.seconds else MISSING,
            *(short(result.values[field], domain) for field, domain in space.items()),
        ]
        for result in ranked[:MAX_ROWS]
    ]


def short(value: Any, domain: Domain) -> str:
    """A value to be read: what was drawn from a range in as many digits as tell a hundredth of it."""
    if domain.kind == "uniform":
        low, high = domain.values
        return f"{value:.{max(0, 2 - math.floor(math.log10(high - low)))}f}"
    return f"{value:.3g}" if domain.kind == "loguniform" else shown(value)


def describe(
    ranked: Sequence[TrialResult], config: Config, searched: str, command: str | None, run_id: str | None
) -> dict[str, str]:
    """Name -> value of what was searched, and what it was measured with.

    Args:
        searched: who has proposed and stopped, as config.how_searched says it.
        run_id: of MLflow.
    """
    states = [result.state for result in ranked]
    counted = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    train = config.train
    described = {"command": command} if command else {}
    described |= {
        "trials": f"{len(ranked)} ({counted}), {searched}",
        "training": f"{train.num_steps:,} steps of {train.batch_size} labelled images, {config.policy.name}, "
        f"{config.model.name}, {train.precision}; where a field was searched, with its value",
    }
    if kept := [result.facts for result in ranked if result.facts]:  # what was stopped has left none
        facts, num_validation = listed_facts(kept), kept[0].get("data.num_validation")
        worth = f", so that one image more is {100 / int(num_validation):.1f} points" if num_validation else ""
        described |= {
            "data": f"{config.data.name}, {facts['data.num_labeled']} labelled images of {facts['data.num_classes']} "
            f"classes, {facts['data.num_unlabeled']} in the pool; accuracy is of the teacher on "
            f"{facts['data.num_validation']} held-out labelled images{worth}",
            "fingerprint of the data": facts["data.fingerprint"],
            "hardware": facts["hardware"],
            "versions": facts["versions"],
        }
    return described | ({"MLflow run": run_id} if run_id else {})


def to_markdown(ranked: Sequence[TrialResult], space: Space, name: str, described: dict[str, str]) -> str:
    """What was searched, with what it was measured, and the best trials."""
    lines = [f"# {markdown(name)}", "", *markdown_facts(described), ""]
    lines += markdown_table([*COLUMNS, *space], rows(ranked, space))
    if len(ranked) > MAX_ROWS:
        lines += ["", f"The {MAX_ROWS} best of {len(ranked)}; trials.csv has all."]
    lines += [
        "",
        "The space:",
        "",
        *(f"- {markdown(field)}: {markdown(str(domain))}" for field, domain in space.items()),
    ]
    return "\n".join(lines) + "\n"
