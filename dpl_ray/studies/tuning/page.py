"""The page of a search, `search.html`: what it has chosen, what that is worth, and what all trials were."""

from __future__ import annotations

import re
import shlex
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from dpl_ray.page.html import (
    MISSING,
    Html,
    Page,
    Section,
    banner,
    code,
    element,
    facts,
    figure,
    folded,
    grid,
    markup,
    note,
    paragraph,
    strong,
    table,
)
from dpl_ray.report.verdict import wilson_interval
from dpl_ray.studies.tuning.figure import best_so_far, draw_curves, draw_fields, draw_progress, draw_seconds
from dpl_ray.studies.tuning.space import Space
from dpl_ray.studies.tuning.table import COLUMNS, MAX_ROWS, rows, short
from dpl_ray.studies.tuning.trials import TrialResult

NUM_DRAWS = 2_000
#: State -> what it means.
STATES = {
    "finished": "trained to its end",
    "stopped": "by ASHA, behind the others at the same step",
    "diverged": "its loss was not finite",
    "failed": "not ended; the same command runs it again",
}


def make_page(
    name: str,
    ranked: Sequence[TrialResult],
    space: Space,
    best: str,
    searched: str,
    described: Mapping[str, str],
    failed: Mapping[str, str],
) -> Page:
    """
    Args:
        ranked: results of the trials that have ended, the best first; that one has an accuracy.
        best: path of best.yaml.
        searched: who has proposed and stopped, as config.how_searched says it.
        described: name -> value of what the search was measured with.
        failed: name of a trial that has not ended -> why.
    """
    num_images = int(next((result.facts.get("data.num_validation", 0) for result in ranked if result.facts), 0))
    images = f"{num_images:,} held-out labelled images" if num_images else "held-out labelled images"
    sections = [
        _result(ranked, space, best, num_images, images, len(failed)),
        _trials(ranked, space),
        _fields(ranked, space),
        _progress(ranked),
        _endings(ranked, failed),
        Section("search", "The search", facts({key: _fact(key, value) for key, value in described.items()})),
    ]
    subtitle = (
        f"{_counted(len(ranked) + len(failed), 'trial')} over {_counted(len(space), 'field')}, {searched}; chosen by "
        f"the teacher's accuracy on {images}"
    )
    return Page(name, subtitle, sections, "Written by dpl_ray. The file needs no network.")


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' * (number != 1)}"


def _fact(key: str, value: str) -> object:
    return code(value) if key in ("command", "MLflow run") else value


def _result(
    ranked: Sequence[TrialResult], space: Space, best: str, num_images: int, images: str, num_failed: int
) -> Section:
    first = ranked[0]
    scored = [result for result in ranked if result.accuracy is not None]
    rest = "" if len(scored) == len(ranked) + num_failed else " that have an accuracy"
    what = f"is the best of {len(scored)}{rest}" if len(scored) > 1 else "alone has an accuracy"
    headline = f"Trial {first.number} {what}: {_percent(first)} of {images}"
    parts = [paragraph(worth) for worth in _worth(scored, num_images)]
    if first.state != "finished":
        parts.insert(
            0, paragraph(f"No trial was trained to its end: this one was {first.state} at step {first.steps}.")
        )
    train = shlex.join(["python", "-m", "pipelines.train", f"config={best}"])
    values: dict[str, object] = {
        _name(field): element("span", strong(short(first.values[field], domain)), " of ", code(str(domain)))
        for field, domain in space.items()
    }
    return Section(
        "result",
        "Result",
        banner("★", headline, *parts),
        paragraph("No trial has seen the test split. To train it and its baseline, and see them there: ", code(train)),
        note("With ", code("data.validation_fraction=0 train.evaluate_every=null"), " it trains on all labels."),
        element("h3", "The values of the best trial, and the space"),
        facts(values),
    )


def _worth(scored: Sequence[TrialResult], num_images: int) -> list[str]:
    """What the accuracy of the best trial does and does not say."""
    if not num_images:
        return []
    best = scored[0]
    assert best.accuracy is not None
    low, high = wilson_interval(best.accuracy * num_images, num_images)
    finished = [result.accuracy for result in scored if result.state == "finished" and result.accuracy is not None]
    others = finished[best.state == "finished" :]
    inside = sum(low <= accuracy <= high for accuracy in others)
    single = (
        f"One image is worth {100 / num_images:.2g} points. An accuracy like this on {num_images:,} images has a 95 % "
        f"interval (Wilson) of {100 * low:.1f} to {100 * high:.1f} %."
    )
    if len(others) > 1:
        single += f" Of the {len(others)} other trials that were trained to their end {inside or 'none'} "
        single += f"{'lies' if inside < 2 else 'lie'} in it."
    if len(scored) == 1:
        return [single]
    chosen = f"It is also the best of {len(scored)}, chosen by the same images, and so optimistic"
    if len(finished) < 2:
        return [single, chosen + "."]
    middle = statistics.median(finished)
    luck = expected_best(middle, num_images, len(scored)) - middle
    chosen += (
        f": were all of them truly at {100 * middle:.1f} %, the median of those trained to their end, chance alone "
        f"would lift the best of them up to about {100 * luck:.1f} points above it. This one is "
        f"{100 * (best.accuracy - middle):.1f} above it."
    )
    return [single, chosen]


def expected_best(accuracy: float, num_images: int, num_trials: int) -> float:
    """Mean of the highest accuracy of trials that are all truly this accurate.

    Each on images of its own; on the same images, where trials err together, it is lower.
    """
    draws = np.random.default_rng(0).binomial(num_images, accuracy, (NUM_DRAWS, num_trials))
    return float(draws.max(axis=1).mean()) / num_images


def _trials(ranked: Sequence[TrialResult], space: Space) -> Section:
    number = f"The {MAX_ROWS} best of {len(ranked)}" if len(ranked) > MAX_ROWS else "All that have ended"
    text = (
        f"{number}: those trained to their end before those stopped, then by the last accuracy on the held-out "
        "labelled images, then by the mean of all evaluations. trials.csv has all, in all digits."
    )
    columns = [*COLUMNS, *map(_name, space)]
    made = table("The best first", columns, rows(ranked, space))
    return Section("trials", "Trials", made, note(text))


def _name(field: str) -> Html:
    """A field's name, which may be broken behind a dot, and before a word behind an underscore."""
    return Html(re.sub(r"(?<=\.)|(?<=_)(?=[^\W_]{4})", "<wbr>", markup(field)))


def _fields(ranked: Sequence[TrialResult], space: Space) -> Section:
    text = (
        "A mark is a trial. Circle: trained to its end; hollow triangle: stopped, at its last accuracy; star: the "
        "best. Other trials of a choice are set a little beside it, so that none hides another. All fields vary at "
        "once: a panel shows the same trials as every other, and a trend in it may come from another field, or, with "
        "few trials, from chance."
    )
    panels = [figure(svg, field) for field, svg in draw_fields(ranked, space).items()]
    return Section("fields", "Accuracy by field", paragraph(text), grid(panels, "medium"))


def _progress(ranked: Sequence[TrialResult]) -> Section:
    bests = list(dict.fromkeys(result.number for result in best_so_far(ranked)))
    by_number = {result.number: result for result in ranked}
    listed = ", ".join(f"{number} ({_percent(by_number[number])})" for number in bests)
    later = sum(number > ranked[0].number for number in by_number)
    text = f"What the search would have chosen, had it ended earlier, in the order of the trials: trial {listed}. "
    text += f"The {later} after it brought nothing better." if later > 1 else ""
    text += " One that was trained to its end is chosen before all that were stopped."
    captions = (
        "The teacher's accuracy on the held-out labelled images on the way; the best trial is the thick line, and a "
        "mark is where a trial was stopped or diverged.",
        "The line is what the search would have chosen, had it ended there.",
    )
    return Section(
        "progress",
        "On the way",
        paragraph(text),
        grid(
            [
                figure(draw_curves(ranked), "Learning curves", captions[0]),
                figure(draw_progress(ranked), "What more trials brought", captions[1]),
            ]
        ),
    )


def _endings(ranked: Sequence[TrialResult], failed: Mapping[str, str]) -> Section:
    counts = Counter[str](result.state for result in ranked)
    counts["failed"] = len(failed)
    seconds: dict[str, float] = {
        state: sum(result.seconds for result in ranked if result.state == state) for state in STATES
    }
    counted = [
        [state, meaning, str(counts[state]), f"{seconds[state]:,.1f}" if seconds[state] else MISSING]
        for state, meaning in STATES.items()
        if counts[state]
    ]
    total = sum(seconds.values())
    counted.append(["all", "", str(counts.total()), f"{total:,.1f}" if total else MISSING])
    parts = [table("By state", ["state", "meaning", "trials", "seconds"], counted, text_columns=2)]
    if total:
        text = (
            "Seconds are those of training steps, without start, evaluation and checkpoints, and up to the last "
            "evaluation where a trial has not come to its end. Trials that ran at once each have their own."
        )
        parts = [grid([element("div", *parts, note(text)), figure(draw_seconds(ranked), "Seconds of each trial")])]
    causes = {f"trial {each.number}, diverged": each.cause for each in ranked if each.state == "diverged"}
    causes |= {f"trial {int(name.rpartition('-')[2])}, failed": cause for name, cause in failed.items()}
    if causes:
        title, listed = "Why trials have no result", facts(causes)
        parts += [element("h3", title), listed] if len(causes) <= MAX_ROWS else [folded(title, listed)]
    return Section("endings", "How the trials ended", *parts)


def _percent(result: TrialResult) -> str:
    return MISSING if result.accuracy is None else f"{100 * result.accuracy:.1f} %"
