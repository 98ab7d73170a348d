"""What long runs hold is counted and summed up as by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import leaks
from benchmarks.figures import Figure


def held(at: int, megabytes: float, processes: float = 2.0) -> leaks.Sample:
    return at, {"processes": processes, "open files": 9.0, "object store": 0.0, "memory: driver": megabytes}


def test_the_slope_is_that_of_the_last_two_thirds() -> None:
    samples = [held(0, 900.0), held(999, 1.0), *(held(at, 500 + at / 250) for at in range(1000, 3000, 100))]
    found = leaks.summary([*samples, held(3000, 7000.0)])
    memory = found["memory: driver"]
    assert memory["second third"].value == pytest.approx(505.8)
    assert memory["last third"].value == pytest.approx(509.8)
    assert memory[leaks.SLOPE].value == pytest.approx(4.0)
    assert memory[leaks.SLOPE].unit == "MB"
    assert found["processes"] == {
        "second third": Figure(2.0),
        "last third": Figure(2.0, at_most=pytest.approx(3.2)),
        leaks.SLOPE: Figure(0.0),
    }


def test_what_begins_or_ends_on_the_way_counts_as_nothing_before_and_after() -> None:
    others = [(10, {"memory: reader": 4.0}), (20, {"memory: worker": 6.0}), (30, {})]
    found = leaks.summary(others)
    assert [each.value for each in found["memory: reader"].values()] == [4.0, 0.0, -400.0]
    assert [each.value for each in found["memory: worker"].values()] == [0.0, 6.0, 600.0]


@pytest.mark.parametrize("steps", [(0,), (1500, 3000)])
def test_too_few_steps_for_a_sample_of_each_third_are_refused(steps: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=f"^{steps[-1]} steps in --minutes: each third of them"):
        leaks.summary([held(at, 1.0) for at in steps])


@pytest.mark.parametrize(("processes", "status"), [(4.0, 1), (3.0, 0)])
def test_processes_that_stay_are_the_status(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], processes: float, status: int
) -> None:
    samples = [held(400, 1.0), held(700, 1.0, processes), held(1000, 1.0)]
    monkeypatch.setattr(leaks, "measure", lambda *given: samples)
    assert leaks.main(["--only", "here"]) == status
    assert ("**missed**" in capsys.readouterr().out) == bool(status)


def test_rows_are_counted_as_they_are_written(tmp_path: Path) -> None:
    file = tmp_path / "history.jsonl"
    sampler = leaks.Sampler(file)
    counts = []
    for more in (b"", b"{}\n{", b"}\n", b""):
        with file.open("ab") as stream:
            stream.write(more)
        counts.append(sampler.count())
    assert counts == [0, 1, 2, 2]


def test_a_training_is_looked_at_while_it_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leaks, "SECONDS_BETWEEN_SAMPLES", 0.01)
    samples = leaks.measure([leaks.HERE, "tracking.enabled=false"], 0.0)
    at, found = samples[0]
    assert at == 0
    assert found["memory: driver"] > 50
    assert found["processes"] >= 1
    assert found["open files"] > 3
