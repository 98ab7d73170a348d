"""The figures of a search: accuracy by field, by step and by trial, and the time. Readable in black and white.

By hand: Optuna's own figures are made of its storage, do not set apart what was stopped or diverged, and tell lines
apart by colour.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

from dpl_ray.config.section import shown
from dpl_ray.page.plots import cut, draw, legend_above, thinned
from dpl_ray.studies.tuning.space import Domain, Space
from dpl_ray.studies.tuning.trials import TrialResult

SPREAD, GOLDEN = 0.2, 0.618034  # of the trials of one choice; multiples of the latter fall far from each other
MAX_LABEL = 16  # characters of a choice below a panel
MAX_LABELS = 16  # of choices below a panel
LEVEL_CHARACTERS = 36  # for which a panel has room in one line
FIELD_CHARACTERS = 36  # of a field's name on one line below a panel
MANY_TRIALS = 40  # whose bars have no room for an edge
#: State -> marker, its face, line of the way there, hatch of a bar.
LOOKS = {
    "finished": ("o", "0.35", "-", ""),
    "stopped": ("v", "white", "--", "////"),
    "diverged": ("x", "black", ":", "xxxx"),
}


def draw_fields(ranked: Sequence[TrialResult], space: Space) -> dict[str, bytes]:
    """Field -> SVG of accuracy against its values, all with the same axis of accuracy.

    Args:
        ranked: results, the best first; what has no accuracy is left out.
    """
    found = [result for result in ranked if result.accuracy is not None]
    values = [_percent(result) for result in found]
    margin = 0.08 * (max(values) - min(values)) or 5.0
    limits = min(values) - margin, max(values) + margin
    drawings = {}
    for field, domain in space.items():
        labels = _labels(domain)
        height = 2.6 + 0.075 * (max(map(len, labels)) if _turned(labels) else 0)
        drawings[field] = draw(_panel(found, field, domain, limits), width=3.4, height=height)
    return drawings


def draw_curves(ranked: Sequence[TrialResult]) -> bytes:
    """The way of every trial to its accuracy, as SVG; the best one is the thick line."""
    return draw(lambda axes: _curves(axes, ranked), height=3.7)


def draw_progress(ranked: Sequence[TrialResult]) -> bytes:
    """Accuracy by number of the trial, and the best so far, as SVG."""
    return draw(lambda axes: _progress(axes, ranked), height=3.7)


def draw_seconds(ranked: Sequence[TrialResult]) -> bytes:
    """Seconds of training by number of the trial, as SVG."""
    return draw(lambda axes: _seconds(axes, ranked))


def best_so_far(ranked: Sequence[TrialResult]) -> list[TrialResult]:
    """The best of the first trials, for every number of them, as the search ranks them; none before the first."""
    best: list[TrialResult] = []
    for result in sorted(ranked, key=lambda result: result.number):
        if result.accuracy is not None:
            best.append(max([*best[-1:], result], key=lambda result: result.rank))
    return best


def _panel(
    ranked: Sequence[TrialResult], field: str, domain: Domain, limits: tuple[float, float]
) -> Callable[[Any], None]:
    def plot(axes: Any) -> None:
        _marks(axes, ranked, lambda result: _position(result, field, domain, spread=result is not ranked[0]))
        axes.set_ylim(limits)
        axes.set_ylabel("validation accuracy (%)", fontsize=8.5)
        axes.set_xlabel(_lines(f"{field}, logarithmic" if domain.kind == "loguniform" else field), fontsize=8.5)
        _scale(axes, domain)

    return plot


def _marks(axes: Any, ranked: Sequence[TrialResult], position: Callable[[TrialResult], float]) -> None:
    """A mark for every trial that has an accuracy; the best one's is a star."""
    best = ranked[0]
    for state, (marker, face, _, _) in LOOKS.items():
        found = [result for result in ranked[1:] if result.state == state and result.accuracy is not None]
        if found:
            axes.plot(
                [position(result) for result in found],
                [_percent(result) for result in found],
                linestyle="none",
                marker=marker,
                markersize=5.5,
                color="black",
                markerfacecolor=face,
                label=state,
            )
    name = f"best (trial {best.number})"
    axes.plot([position(best)], [_percent(best)], "*", markersize=13, color="black", label=name)


def _scale(axes: Any, domain: Domain) -> None:
    """The axis of a field's values."""
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

    if domain.kind == "choice":
        labels = _labels(domain)
        places = range(0, len(domain.values), _every(domain))
        axes.set_xticks(places, labels, rotation=90 if _turned(labels) else 0, fontsize=8.5)
        axes.set_xlim(-0.5, len(domain.values) - 0.5)
        return
    low, high = domain.values
    if domain.kind == "loguniform":
        decades = math.log10(high / low)
        subs, most = ((1.0, 2.0, 5.0), 7) if decades < 1.8 else ((1.0,), 5)
        axes.set_xscale("log")
        axes.set_xlim(low / (high / low) ** 0.04, high * (high / low) ** 0.04)
        axes.xaxis.set_major_locator(LogLocator(subs=subs, numticks=most))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        margin = 0.04 * (high - low)
        axes.set_xlim(low - margin, high + margin)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=domain.kind == "randint"))
        axes.xaxis.set_major_formatter("{x:g}")


def _labels(domain: Domain) -> list[str]:
    """Of choices, each cut in its middle where it is long; the page's tables have them whole."""
    if domain.kind != "choice":
        return [""]
    return [cut(shown(value), MAX_LABEL) for value in domain.values[:: _every(domain)]]


def _every(domain: Domain) -> int:
    """One of how many choices has a label."""
    return math.ceil(len(domain.values) / MAX_LABELS)


def _turned(labels: Sequence[str]) -> bool:
    room = LEVEL_CHARACTERS / len(labels)
    return any((len(label) + len(after)) / 2 + 1 > room for label, after in pairwise(labels))


def _lines(text: str) -> str:
    """The text in lines that a panel has room for, broken behind a dot, a comma or an underscore where there is one."""
    lines = []
    while len(text) > FIELD_CHARACTERS:
        place = max(text.rfind(sign, 0, FIELD_CHARACTERS) for sign in ".,_") + 1 or FIELD_CHARACTERS
        lines.append(text[:place])
        text = text[place:].lstrip()
    return "\n".join([*lines, text])


def _position(result: TrialResult, field: str, domain: Domain, *, spread: bool) -> float:
    """On the axis of values; `spread`: a little beside a choice, since trials of one value may have one accuracy."""
    value = result.values[field]
    if domain.kind != "choice":
        return float(value)
    place = [*map(shown, domain.values)].index(shown(value))
    return place + (SPREAD * ((result.number * GOLDEN) % 1 - 0.5) if spread else 0.0)


def _curves(axes: Any, ranked: Sequence[TrialResult]) -> None:
    from matplotlib.ticker import MaxNLocator

    best = ranked[0]
    look: dict[str, Any] = {"linewidth": 2.2, "color": "black", "zorder": 3, "label": f"best (trial {best.number})"}
    # A line of one report is not seen.
    look |= {"marker": "*", "markersize": 13} if len(best.reports) == 1 else {}
    axes.plot(*_way(best), **look)
    labelled = set[str]()
    for result in ranked[1:]:
        if not result.reports:
            continue
        marker, face, line, _ = LOOKS[result.state]
        look = {"linestyle": line, "linewidth": 0.9, "color": "0.6", "zorder": 2}
        if result.state != "finished" or len(result.reports) == 1:  # a mark where it has ended
            look |= {"marker": marker, "markevery": [-1], "markersize": 5.5, "markerfacecolor": face}
            look |= {"markeredgecolor": "black"}
        axes.plot(*_way(result), label=None if result.state in labelled else result.state, **look)
        labelled.add(result.state)
    axes.set_xlabel("training step")
    axes.set_ylabel("validation accuracy (%)")
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(nbins="auto", steps=[1, 2, 2.5, 5, 10], integer=True))
    legend_above(axes)


def _way(result: TrialResult) -> tuple[list[float], list[float]]:
    points = thinned(result.reports)
    return [step for step, _ in points], [100 * accuracy for _, accuracy in points]


def _progress(axes: Any, ranked: Sequence[TrialResult]) -> None:
    found = sorted((result for result in ranked if result.accuracy is not None), key=lambda result: result.number)
    numbers = [result.number for result in found]
    axes.step(
        numbers,
        [_percent(best) for best in best_so_far(ranked)],
        where="post",
        color="black",
        linewidth=1.6,
        label="best so far",
    )
    _marks(axes, ranked, lambda result: result.number)
    axes.set_ylabel("validation accuracy (%)")
    _by_trial(axes, ranked)


def _seconds(axes: Any, ranked: Sequence[TrialResult]) -> None:
    for state, (_, face, _, hatch) in LOOKS.items():
        found = [result for result in ranked if result.state == state and result.seconds]
        if found:
            axes.bar(
                [result.number for result in found],
                [result.seconds for result in found],
                color="white" if hatch else face,
                hatch=hatch,
                edgecolor="black",
                linewidth=0.7 if len(ranked) <= MANY_TRIALS else 0.0,
                label=state,
            )
    axes.set_ylabel("seconds in training steps")
    _by_trial(axes, ranked)


def _by_trial(axes: Any, ranked: Sequence[TrialResult]) -> None:
    """The axis of the trials' numbers, and the legend."""
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel("trial number")
    axes.set_xlim(-0.6, max(result.number for result in ranked) + 0.6)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    legend_above(axes)


def _percent(result: TrialResult) -> float:
    return 100 * (result.accuracy or 0.0)
