"""Which labels are drawn, with which probability, and what is read for it."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from dpl_ray.reviewing import labels as labels_module
from dpl_ray.reviewing.draw import choose_strata, draw_labels
from dpl_ray.reviewing.labels import open_labels
from tests.reviewing.outputs import Counting, write_output


def test_strata_are_the_cells_and_small_ones_go_with_their_neighbours() -> None:
    cells = np.array([[[0, 3, 400], [500, 2, 300]], [[1, 0, 0], [0, 2, 0]]]).reshape(-1)  # selected, class, confidence
    strata = choose_strata(cells, 3, 100)
    least = 4 * cells.sum() / 100
    assert strata.reshape(2, 2, 3).tolist() == [[[-1, 1, 1], [0, 1, 2]], [[3, -1, -1], [-1, 3, -1]]], least
    assert choose_strata(cells, 3, 10).reshape(2, 2, 3).tolist() == [
        [[-1, 1, 1], [0, 1, 1]],
        [[2, -1, -1], [-1, 2, -1]],
    ]
    assert set(choose_strata(cells, 3, 5000)) == {-1, 0}, "all are drawn"


def test_every_label_is_drawn_as_often_as_its_probability_says(tmp_path: Path) -> None:
    labels = open_labels("labels", str(write_output(tmp_path / "out", [[40, 30], [50]])))
    draws = [draw_labels(labels, 30, seed) for seed in range(150)]
    times = Counter(item.sample_id for draw in draws for item in draw.items)
    assert all(len(draw.items) == 30 for draw in draws)
    assert len(times) > 100
    assert not [name for name in times if name.endswith("00000000.png")], "they have no label"
    assert {draw.probability for draw in draws} == {30 / 117}
    share = np.array(list(times.values())) / len(draws)
    assert np.abs(share - 30 / 117).max() < 5 * np.sqrt(30 / 117 / len(draws))
    assert draws[0].num_strata > 3
    firsts = {draw.items[0].cell for draw in draws}
    assert len(firsts) > 10, "the order is random"
    assert draws[3] == draw_labels(labels, 30, 3) != draws[4]


def test_what_is_drawn_is_what_the_labels_say(tmp_path: Path) -> None:
    labels = open_labels("labels", str(write_output(tmp_path / "out", [[40, 30], [50]])))
    rows = {row["sample_id"]: row for row in pq.read_table(tmp_path / "out").to_pylist()}
    draw = draw_labels(labels, 1000, 0)
    assert {item.sample_id for item in draw.items} == {name for name, row in rows.items() if row["error"] is None}
    assert draw.probability == 1
    for item in draw.items:
        row = rows[item.sample_id]
        assert (item.label, item.confidence) == (row["pseudo_label"], row["confidence"])
        assert item.runners_up == ((0, row["second_confidence"]),)
        assert (item.cell < len(draw.cells) // 2) == row["selected"]
    assert Counter(item.cell for item in draw.items) == {cell: size for cell, size in enumerate(draw.cells) if size}


def test_labels_of_an_older_version_are_drawn_by_class(tmp_path: Path) -> None:
    labels = open_labels("labels", str(write_output(tmp_path / "out", [[60], [50]], has_cells=False)))
    draw = draw_labels(labels, 40, 0)
    assert labels.num_bins == 1
    assert {(item.cell % 3, item.label) for item in draw.items} == {(0, 0), (1, 1), (2, 2)}
    assert sum(draw.cells) == 108


def test_a_draw_reads_the_parts_that_it_needs_and_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = write_output(tmp_path / "out", [[6000]] * 24 + [[6000] * 3] * 3)
    counting = Counting()
    monkeypatch.setattr(labels_module, "Storage", counting.storage)
    draw = draw_labels(open_labels("labels", str(output)), 10, 0)
    read = {name: size for name, size in counting.read.items() if name.startswith("part-")}
    drawn = {"part-{2}-{3}.parquet".format(*item.sample_id.split("/")) for item in draw.items}
    assert drawn <= read.keys()
    inputs = {name[:11] for name in drawn}
    assert {name[:11] for name in read} == inputs, "of other inputs, the manifests alone"
    footer = 2**16 + 8  # that pyarrow reads of a file at first
    assert all(size <= footer for name, size in read.items() if name not in drawn)
    columns = {name: sum(_column_sizes(output / name)) for name in drawn}
    assert all(read[name] <= columns[name] + 2 * footer + 4096 for name in drawn)
    sizes = {path.name: path.stat().st_size for path in output.glob("part-*")}
    assert sum(read.values()) < 0.4 * sum(sizes.values())
    assert all(columns[name] < 0.8 * sizes[name] for name in drawn), "the other columns are not read"


def _column_sizes(part: Path) -> list[int]:
    group = pq.read_metadata(part).row_group(0)
    columns = [group.column(place) for place in range(group.num_columns)]
    return [column.total_compressed_size for column in columns if column.path_in_schema in labels_module.COLUMNS]


def test_labels_of_more_classes_than_the_books_name_are_named(tmp_path: Path) -> None:
    output = write_output(tmp_path / "labels", [[30]])
    labels = replace(open_labels("labels", str(output)), class_names=("ant",))
    with pytest.raises(
        ValueError, match=r"^labels=.*: part-000000-00000\.parquet has labels of more than its 1 classes$"
    ):
        labels.rows(labels.part_name(0))
