"""What results say of themselves in short."""

from __future__ import annotations

from typing import Any

import pytest

import dpl_ray
from dpl_ray.page.result import Result

PUBLIC = [getattr(dpl_ray, name) for name in dpl_ray.__all__]
RESULTS = [found for found in PUBLIC if isinstance(found, type) and issubclass(found, Result)]


def test_the_results_of_all_jobs_are_some() -> None:
    names = {"FitResult", "LabelResult", "CompareResult", "SearchResult", "SelfTrainResult", "Explanation"}
    assert {found.__name__ for found in RESULTS} >= names | {"CheckResult"}


def result(**changed: Any) -> dpl_ray.FitResult:
    fields: dict[str, Any] = dict.fromkeys(dpl_ray.FitResult.__dataclass_fields__)
    fields |= {
        "name": "<first>",
        "metrics": {"eval/accuracy": 0.9416},
        "health": (),
        "checkpoint": "runs/first/step-1",
        "report": "x",
    }
    return dpl_ray.FitResult(**fields | changed)


def test_a_line_and_a_table() -> None:
    made = result(baseline={"eval/accuracy": 0.905}, verdict="The pool helped: 94.2 % against 90.5 % supervised")
    assert repr(made) == (
        "<FitResult: name <first>, accuracy 94.2 %, supervised 90.5 %, verdict The pool helped, checkpoint "
        "runs/first/step-1, report x>"
    )
    html = made._repr_html_()
    assert "&lt;first&gt;</td>" in html
    assert html.count("<tr>") == 6
    assert "supervised" not in repr(result())
    assert result() == result()


@pytest.mark.parametrize("kind", RESULTS)
def test_every_result_has_a_short_line(kind: type[Result]) -> None:
    assert kind.__repr__ is Result.__repr__, "and not that of all its fields"
