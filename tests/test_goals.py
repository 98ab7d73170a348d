"""The bounds beside the figures of docs/results/bench: none is dropped or changed where a figure misses it."""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatchcase

import pytest

from benchmarks.figures import FOLDER, Figure, Measurement

TOGETHER = "heads, policy, collective and records together"
LEAST, MOST = "at_least", "at_most"
Goal = tuple[str, str, str, str, float]
#: File, row, column, which bound, and its value; a star in a row stands for anything.
GOALS: list[Goal] = [
    ("peer", "coverage 0.7", "ours / semilearn", MOST, 0.4),
    ("peer", "coverage 1.0", "ours / semilearn", MOST, 0.55),
    ("peer_epyc", "coverage 0.7", "ours / semilearn", MOST, 0.4),
    ("peer_epyc", "coverage 1.0", "ours / semilearn", MOST, 0.55),
    ("peer_bfloat16", "coverage 0.7", "ours / semilearn", MOST, 0.4),
    ("peer_bfloat16", "coverage 1.0", "ours / semilearn", MOST, 0.55),
    ("step_compare", "coverage 0.7", "ours / peers' form", MOST, 0.55),
    ("step_compare", "coverage 1.0", "ours / peers' form", MOST, 0.65),
    ("step_compare_bfloat16", "coverage 0.7", "ours / peers' form", MOST, 0.55),
    ("step_compare_bfloat16", "coverage 1.0", "ours / peers' form", MOST, 0.65),
    ("step", "everything but the network together", "share", MOST, 6),
    ("step", TOGETHER, "share", MOST, 2),
    ("step_1000_classes", TOGETHER, "share", MOST, 2),
    ("step_10000_classes", TOGETHER, "share", MOST, 5),
    ("step_open_set", "a step", "open_set=true / dpl", MOST, 1.02),
    ("step_speedup", "2 workers", "2 workers / 1 worker", LEAST, 1.8),
    ("views", "strong", "ratio", LEAST, 15),
    ("views", "weak", "ratio", LEAST, 20),
    ("views_112", "strong", "ratio", LEAST, 15),
    ("views_112", "weak", "ratio", LEAST, 20),
    ("views_96", "strong", "ratio", LEAST, 5),
    ("views_96_epyc", "strong", "ratio", LEAST, 5),
    ("views_224", "strong", "ratio", LEAST, 2),
    ("views_224", "weak", "ratio", LEAST, 5),
    ("start", "to the first step, in the process of the command", "measured", MOST, 4),
    ("start", "to the first step, with 2 workers", "measured", MOST, 12),
    ("start", "import of dpl_ray", "measured", MOST, 0.2),
    ("start", "the demo, to the end of the command", "measured", MOST, 45),
    ("threads", "as it is", "its rate / the better one", LEAST, 0.9),
    ("threads", "with * busy programs", "its rate / the better one", LEAST, 0.9),
    ("mistakes", "slowest", "answer", MOST, 5),
    ("feature_rates", "dpl, B = 448, in memory", "measured", LEAST, 100_000),
    ("feature_rates", "fixmatch, B = 448, in memory", "measured", LEAST, 100_000),
    ("label", "ratio", "whole command", LEAST, 0.95),
    ("pool_feed", "feed, windows_ahead=*", "feed / plain loop", LEAST, 0.9),
    ("pool_feed_h100", "feed, windows_ahead=*", "feed / plain loop", LEAST, 0.9),
    ("pool_wait", "its wait for data", "measured", MOST, 5),
    ("pool_memory", "*", "ratio", MOST, 1.15),
    ("ledger", "all parts *", "held", MOST, 50),
    ("ledger", "of a file in 10 one part is missing, and is labelled", "held", MOST, 50),
    ("ledger", "a review or a suggestion opens the labels", "held", MOST, 50),
    ("listing", "*", "whole process", MOST, 2),
    ("scaling", "* workers, * delays", "measured / planned", LEAST, 0.9),
    ("scaling", "* workers, * delays", "measured / planned", MOST, 1.1),
    ("gpu", "fixed shapes, one CUDA graph", "coverage 1", MOST, 10),
    ("gpu", "compiled, one CUDA graph", "coverage 1", MOST, 10),
    ("gpu", "CIFAR-10, 25 labels a class, *", "test accuracy", LEAST, 90),
    ("gpu", "CIFAR-10, 25 labels a class, *", "training", MOST, 10),
    ("gpu", "CIFAR-10, 25 labels a class, *", "wait for data", MOST, 2),
]
#: Of a row that `benchmarks/gpu.sh` may not have come to.
NOT_ALWAYS: list[Goal] = [("gpu", "share of the step that waits for data", "coverage 1", MOST, 2)]
#: Whose bounds are worked out from what the runs measure.
WORKED_OUT = {"leaks_here", "leaks_ray"}


@pytest.mark.parametrize(("file", "row", "column", "bound", "value"), GOALS, ids=lambda part: str(part))
def test_a_figure_stands_beside_its_goal_and_says_where_it_misses_it(
    file: str, row: str, column: str, bound: str, value: float
) -> None:
    figures = Measurement.load(file).figures
    found = {name: cells[column] for name, cells in figures.items() if fnmatchcase(name, row) and column in cells}
    assert found, f"no row of {file}.json is called {row} and has {column}"
    assert {name: getattr(figure, bound) for name, figure in found.items()} == dict.fromkeys(found, value)
    for figure in found.values():
        is_missed = figure.value < value if bound == LEAST else figure.value > value
        assert not is_missed or "**missed**" in str(figure)


def bounds() -> Iterator[tuple[str, str, str, str, float]]:
    """All that stand in the files."""
    for path in sorted(FOLDER.glob("*.json")):
        for row, cells in Measurement.load(path.stem).figures.items():
            for column, figure in cells.items():
                for bound in (LEAST, MOST):
                    if (value := getattr(figure, bound)) is not None:
                        yield path.stem, row, column, bound, value


def test_no_figure_has_a_bound_that_is_no_goal() -> None:
    def is_goal(file: str, row: str, *rest: object) -> bool:
        return any(
            (file, *rest) == (goal[0], *goal[2:]) and fnmatchcase(row, goal[1]) for goal in (*GOALS, *NOT_ALWAYS)
        )

    assert [found for found in bounds() if found[0] not in WORKED_OUT and not is_goal(*found)] == []


def test_a_figure_at_its_bound_does_not_miss_it() -> None:
    assert "missed" not in str(Figure(2.0, at_most=2, at_least=2))
    assert "bound: at most 2, **missed**" in str(Figure(3, at_most=2))
    assert "bound: at least 2, **missed**" in str(Figure(1, at_least=2))
