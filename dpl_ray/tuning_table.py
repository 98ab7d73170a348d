"""The trials of a search as CSV, Markdown and rows for the console. Pure functions."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any

from dpl_ray.config import shown
from dpl_ray.trials import TrialResult
from dpl_ray.tuning_space import Space

MISSING = "-"
COLUMNS = ("trial", "accuracy, %", "step", "state")
MAX_ROWS = 20  # of the Markdown table and the console's; trials.csv has all


def to_csv(ranked: Sequence[TrialResult], space: Space) -> str:
    """A row per trial, the best first."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["rank", "trial", "state", "step", "validation_accuracy", "seconds", *space, "checkpoint", "cause"])
    for rank, result in enumerate(ranked, 1):
        accuracy = "" if result.accuracy is None else result.accuracy
        values = [_cell(result.values.get(field, "")) for field in space]
        start = [rank, result.number, result.state, result.steps, accuracy, result.seconds or ""]
        writer.writerow([*start, *values, result.checkpoint or "", result.cause])
    return text.getvalue()


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
            *(_short(result.values.get(field, MISSING)) for field in space),
        ]
        for result in ranked[:MAX_ROWS]
    ]


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else shown(value)


def to_markdown(ranked: Sequence[TrialResult], space: Space, name: str, command: str | None) -> str:
    """What was searched, with what it was measured, and the best trials."""
    facts = next((result.facts for result in ranked if result.facts), {})
    versions = [f"{key.removeprefix('version.')} {value}" for key, value in facts.items() if "version." in key]
    states = [result.state for result in ranked]
    counted = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    lines = [f"# {name}", "", *([f"    {command}", ""] if command else [])]
    lines.append(f"- trials: {len(ranked)} ({counted})")
    if facts:
        lines += [
            f"- data: {facts['data.num_labeled']} labelled images of {facts['data.num_classes']} classes, "
            f"{facts['data.num_unlabeled']} in the pool; accuracy is of the teacher on {facts['data.num_validation']} "
            f"held-out labelled images, so that one image more is {100 / int(facts['data.num_validation']):.1f} points",
            f"- hardware: {facts['hardware']}",
            f"- versions: {', '.join(versions)}; commit {facts['commit']}",
        ]
    titles = [*COLUMNS, *space]
    lines += ["", "| " + " | ".join(titles) + " |", "|" + "---|" * len(titles)]
    lines += ["| " + " | ".join(row) + " |" for row in rows(ranked, space)]
    if len(ranked) > MAX_ROWS:
        lines += ["", f"The {MAX_ROWS} best of {len(ranked)}; trials.csv has all."]
    lines += ["", "The space:", "", *(f"- `{field}`: {domain}" for field, domain in space.items())]
    return "\n".join(lines) + "\n"
