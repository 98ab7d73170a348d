"""The page of a search, `search.html`: what it has chosen, what that is worth, and what all trials were."""

from __future__ import annotations

import re
import shlex
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from markupsafe import Markup, escape

from dpl_ray.page.html import MISSING, Page, Section, Table, render_page
from dpl_ray.report.verdict import wilson_interval
from dpl_ray.studies.tuning.figure import best_so_far, draw_curves, draw_fields, draw_progress, draw_seconds
from dpl_ray.studies.tuning.space import Space
from dpl_ray.studies.tuning.table import COLUMNS, MAX_ROWS, chance_line, rows, short
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
    sections = {
        "result": _result(ranked, space, best, num_images, images, len(failed)),
        "trials": _trials(ranked, space),
        "fields": Section(title="Accuracy by field", drawings=draw_fields(ranked, space)),
        "progress": _progress(ranked),
        "endings": _endings(ranked, failed),
        "search": Section(title="The search", facts=described),
    }
    subtitle = (
        f"{_counted(len(ranked) + len(failed), 'trial')} over {_counted(len(space), 'field')}, {searched}; chosen by "
        f"the teacher's accuracy on {images}"
    )
    return render_page("studies/tuning/page.html", name, subtitle, sections)


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' * (number != 1)}"


def _result(
    ranked: Sequence[TrialResult], space: Space, best: str, num_images: int, images: str, num_failed: int
) -> Section:
    first = ranked[0]
    scored = [result for result in ranked if result.accuracy is not None]
    rest = "" if len(scored) == len(ranked) + num_failed else " that have an accuracy"
    what = f"is the best of {len(scored)}{rest}" if len(scored) > 1 else "alone has an accuracy"
    worth = [*filter(None, [chance_line(ranked)]), *_worth(scored, num_images)]
    if first.state != "finished":
        worth.insert(0, f"No trial was trained to its end: this one was {first.state} at step {first.steps}.")
    return Section(
        title="Result",
        headline=f"Trial {first.number} {what}: {_percent(first)} of {images}",
        worth=worth,
        command=shlex.join(["dpl-ray", "train", f"config={best}"]),
        values=[(_name(field), short(first.values[field], domain), domain) for field, domain in space.items()],
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
    made = Table("The best first", [*COLUMNS, *map(_name, space)], rows(ranked, space))
    number = f"The {MAX_ROWS} best of {len(ranked)}" if len(ranked) > MAX_ROWS else "All that have ended"
    return Section(title="Trials", table=made, number=number)


def _name(field: str) -> Markup:
    """A field's name, which may be broken behind a dot, and before a word behind an underscore."""
    return Markup(re.sub(r"(?<=\.)|(?<=_)(?=[^\W_]{4})", "<wbr>", escape(field)))


def _progress(ranked: Sequence[TrialResult]) -> Section:
    bests = list(dict.fromkeys(result.number for result in best_so_far(ranked)))
    by_number = {result.number: result for result in ranked}
    listed = ", ".join(f"{number} ({_percent(by_number[number])})" for number in bests)
    later = sum(number > ranked[0].number for number in by_number)
    text = f"What the search would have chosen, had it ended earlier, in the order of the trials: trial {listed}. "
    text += f"The {later} after it brought nothing better." if later > 1 else ""
    return Section(
        title="On the way",
        text=text,
        drawings={"learning-curves": draw_curves(ranked), "what-more-trials-brought": draw_progress(ranked)},
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
    causes = {f"trial {each.number}, diverged": each.cause for each in ranked if each.state == "diverged"}
    causes |= {f"trial {int(name.rpartition('-')[2])}, failed": cause for name, cause in failed.items()}
    return Section(
        title="How the trials ended",
        drawings={"seconds": draw_seconds(ranked)} if total else {},
        table=Table("By state", ["state", "meaning", "trials", "seconds"], counted, 2),
        causes=causes,
        is_long=len(causes) > MAX_ROWS,
    )


def _percent(result: TrialResult) -> str:
    return MISSING if result.accuracy is None else f"{100 * result.accuracy:.1f} %"
