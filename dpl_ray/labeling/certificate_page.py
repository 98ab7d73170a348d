"""What is said of a certificate: on the console, in summary.json, and as a page, `certificate.html`.

Legend: C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dpl_ray.data.labels import some
from dpl_ray.labeling.certificate import Certificate, compare_shares, upper_bound
from dpl_ray.labeling.parts import Counts
from dpl_ray.page.html import MISSING, Page, Section, Table, render_page
from dpl_ray.page.plots import draw, legend_above

LEVEL = 0.01  # of the tests between held-out images and pool


def told(certificate: Certificate, class_names: Sequence[str]) -> str:
    """What is certified, in a line for the console."""
    without = _lacks(certificate, class_names)
    lack = "; ".join(f"{name}, {needed}" for name, needed in list(without.items())[:1])
    if not certificate.certifies:
        return f"nothing is certified, so nothing is selected: for {lack}"
    text = (
        f"{sum(certificate.held_out):,} held-out labels certify that at most {100 * certificate.max_error:g} % of the "
        f"selected labels are wrong (confidence {100 * certificate.confidence:g} %)"
    )
    if certificate.by_class:
        return f"{text}, of each class; nothing is selected of {some(list(without))}: for {lack}" if without else text
    (found,) = certificate.found
    return f"{text}, of confidence {found.threshold:.4f} or more" if found.threshold else f"{text}, of any confidence"


def summarize(certificate: Certificate, counts: Counts, class_names: Sequence[str]) -> dict[str, Any]:
    """What summary.json has of it."""
    distance, p_value = _distance(certificate, counts)
    names = class_names if certificate.by_class else ["all"]
    return {
        "bound": certificate.max_error if certificate.certifies else None,
        "confidence": certificate.confidence,
        "coverage": counts.num_selected / max(1, counts.num_rows),
        "num_labels": sum(certificate.held_out),
        "labels": certificate.source,
        "by_class": certificate.by_class,
        "thresholds": {
            name: {
                "threshold": found.threshold,
                "num_labels": found.num_labels,
                "num_selected": found.num_selected,
                "num_wrong": found.num_wrong,
                "needed": found.needed,
            }
            for name, found in zip(names, certificate.found, strict=True)
        },
        "class_shares": {"total_variation": distance, "p_value": p_value},
        "confidence_p_value": certificate.p_value,
        "warnings": draw_warnings(certificate, counts),
    }


def draw_warnings(certificate: Certificate, counts: Counts) -> list[str]:
    """That the held-out images are others than the pool's, or their labels the model's, as far as that is no chance."""
    warnings = []
    if found := _differences(certificate, counts):
        warnings.append(
            f"the held-out images differ from the pool in their {' and '.join(found)}: what is certified may not hold; "
            "draw images at random from the pool, have a person label them, and give them as audit=answers.csv"
        )
    if certificate.right_p_value < LEVEL**2:
        warnings.append(
            f"not one of {sum(certificate.held_out):,} held-out labels is wrong, which has the probability "
            f"{certificate.right_p_value:.2g} by the model's own confidences: make sure that these are labels of a "
            "person, not the model's that nobody has looked at"
        )
    return warnings


def _differences(certificate: Certificate, counts: Counts) -> list[str]:
    distance, p_value = _distance(certificate, counts)
    found = []
    if p_value < LEVEL:
        found.append(f"classes ({100 * distance:.0f} % of them would have to be of another one; p = {p_value:.2g})")
    if certificate.p_value < LEVEL:
        found.append(f"confidence (p = {certificate.p_value:.2g})")
    return found


def make_page(certificate: Certificate, counts: Counts, class_names: Sequence[str], title: str) -> Page:
    """Banner, curve and tables."""
    drawings = {} if certificate.by_class else {"error": draw(lambda axes: _curve(axes, certificate))}
    sections = {
        "certificate": Section(
            title="What is certified",
            certificate=certificate,
            share=counts.num_selected / max(1, counts.num_rows),
            num_selected=counts.num_selected,
            warnings=draw_warnings(certificate, counts),
            lacks=list(_lacks(certificate, class_names).items()),
            drawings=drawings,
            table=_thresholds(certificate, class_names),
        ),
        "classes": Section(
            title="Held-out images and pool",
            differ=bool(_differences(certificate, counts)),
            table=_shares(certificate, counts, class_names),
            level=LEVEL,
        ),
    }
    subtitle = (
        f"Labels of {counts.num_rows:,} images of a pool, certified by {sum(certificate.held_out):,} held-out ones"
    )
    return render_page("labeling/certificate.html", title, subtitle, sections)


def _lacks(certificate: Certificate, class_names: Sequence[str]) -> dict[str, str]:
    """Class, or that it is all of them, -> what is needed, where nothing is certified."""
    names = class_names if certificate.by_class else ["all classes"]
    return {name: found.needed for name, found in zip(names, certificate.found, strict=True) if found.needed}


def _pool_counts(counts: Counts) -> list[int]:
    """(C,) readable images by pseudo-label."""
    return [selected + rejected for selected, rejected in zip(counts.selected, counts.rejected, strict=True)]


def _distance(certificate: Certificate, counts: Counts) -> tuple[float, float]:
    return compare_shares(certificate.held_out, _pool_counts(counts))


def _thresholds(certificate: Certificate, class_names: Sequence[str]) -> Table:
    names = class_names if certificate.by_class else ["all"]
    rows = [
        [
            name,
            f"{found.num_labels:,}",
            MISSING if found.threshold is None else f"{found.threshold:.4f}" if found.threshold else "any",
            f"{found.num_selected:,}",
            f"{found.num_wrong:,}",
        ]
        for name, found in zip(names, certificate.found, strict=True)
    ]
    columns = ["class", "held-out labels", "least confidence", "of these labels", "wrong"]
    return Table("Thresholds, and the held-out labels that they select", columns, rows)


def _shares(certificate: Certificate, counts: Counts, class_names: Sequence[str]) -> Table:
    pool, held = _pool_counts(counts), certificate.held_out
    rows = [
        [name, f"{100 * mine / max(1, sum(held)):.1f} %", f"{100 * all_ / max(1, sum(pool)):.1f} %"]
        for name, mine, all_ in zip(class_names, held, pool, strict=True)
    ]
    return Table("Shares of the classes, as the model says them", ["class", "held-out", "pool"], rows)


def _curve(axes: Any, certificate: Certificate) -> None:
    """Error of the held-out labels that each threshold selects, with its upper bound."""
    (found,) = certificate.found
    coverage = [100 * selected / found.num_labels for _, selected, _ in found.steps]
    wrong = [100 * errors / max(1, selected) for _, selected, errors in found.steps]
    bounds = [100 * upper_bound(errors, selected, certificate.confidence) for _, selected, errors in found.steps]
    axes.plot(coverage, wrong, "-", color="0", linewidth=1.4, label="wrong")
    axes.plot(coverage, bounds, "--", color="0.4", linewidth=1.4, label="upper bound")
    axes.axhline(100 * certificate.max_error, linestyle=":", color="0", linewidth=1, label="allowed")
    if found.threshold is not None:
        axes.axvline(100 * found.num_selected / found.num_labels, color="0.7", linewidth=4, zorder=0, label="chosen")
    axes.set_xlabel("selected of the held-out labels (%)")
    axes.set_ylabel("wrong (%)")
    axes.set_ylim(bottom=0)
    legend_above(axes)
